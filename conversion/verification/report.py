# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The verification report: `verification.json` and the same as Markdown; and two reports compared."""

import json
from pathlib import Path

from conversion.common.files import write_atomically
from conversion.common.json_files import MAX_JSON_BYTES
from conversion.common.model_folder import read_json
from conversion.common.report_schema import FAIL, MARKDOWN_FILE, PEAKED, REPORT_FILE, check_report
from conversion.verification.report_tables import (
    bounds_list,
    cases_table,
    controls_table,
    environment_table,
    facts_line,
    inputs_table,
    layers_list,
    margin_line,
    summary_line,
    table,
    time_list,
)


def write_report(report: dict, folder: Path) -> None:
    """Writes both forms into `folder`, each beside its place and then renamed."""
    texts = {REPORT_FILE: json.dumps(report, indent=1) + "\n", MARKDOWN_FILE: markdown_report(report)}
    for name, text in texts.items():
        write_atomically(Path(folder) / name, lambda stream, text=text: stream.write(text.encode()))


def read_report(folder: Path, max_json_bytes: int = MAX_JSON_BYTES) -> dict:
    """Reads `verification.json` of a folder.

    Args:
        max_json_bytes: a larger file is an error.

    Raises:
        ValueError: if it is missing, no JSON object, of another schema, or lacks a field.
    """
    path = Path(folder) / REPORT_FILE
    report = read_json(path, "Make one with conversion/verify_model.py --write_report.", max_json_bytes)
    check_report(report, path)
    return report


def markdown_report(report: dict) -> str:
    """The whole report as Markdown: verdict, cases, controls, environment, hashes."""
    model, source = report["model"], report["source"]
    hashes = [(name, f"`{value}`") for name, value in model["files"].items()]
    hashes += [(f"source {name}", f"`{value}`") for name, value in source["sha256"].items()]
    parts = [
        f"# Verification: {report['verdict']}",
        f"The {model['layout']} model in this folder against an independent implementation of the source encoder on "
        f"the weights of `{source['location']}`, {report['created']}, {report['seconds']} s.",
        summary_line(report) + ".",
        facts_line(model["config"]),
        report["taken_on_trust"],
        "\n".join(f"* {note}" for note in report["notes"] + report.get("diagnosis", [])),
        "## Cases",
        "Worst sample of each case. float64 and float32 decide; bfloat16 is reported: with attention this peaked its "
        "rounding alone moves single tokens.",
        "\n".join(f"* {bounds}" for bounds in bounds_list(report, detailed=True)),
        cases_table(report, detailed=True),
        time_list(report),
        "## Inputs",
        inputs_table(report),
        "## Layers",
        "Relative error of each hidden state, float32.",
        layers_list(report),
        "## Planted faults",
        "Each was planted in this model and must be told apart.",
        controls_table(report),
        "\n".join(f"* {margin_line(kind, margin)}" for kind, margin in report["margins"].items()),
        "## Environment",
        environment_table(report),
        "## SHA-256",
        table(("file", "sha256"), hashes),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def failures(report: dict) -> list[str]:
    """Why a report is not PASS, a line each."""
    lines = [
        f"{case['name']} ({case['dtype']}): {'; '.join(case['reasons'][:3])}"
        + (f" (first diverging: {case['first_diverging']})" if case["first_diverging"] else "")
        for case in report["cases"]
        if case["result"] == FAIL
    ]
    lines += [f"fault {c['name']} was not told apart" for c in report["controls"] if not c["detected"]]
    return lines + report.get("diagnosis", [])


def compare_files(mine: dict, published: dict) -> list[str]:
    """How the files of a model differ from those that a published verification names."""
    ours, theirs = mine["model"]["files"], published["model"]["files"]
    return [
        f"{name}: sha256 is {ours.get(name, 'absent')}, published is {theirs.get(name, 'absent')}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]


def compare_reports(mine: dict, published: dict) -> list[str]:
    """How a repeated verification differs from the published one; empty if it confirms it.

    Files and source are compared by hash, cases by their inputs and results. Numbers differ between machines, so they
    are not compared with each other but each with its bounds; inputs of another size (a pack that had to shrink) are
    not compared either. A report by another `checks_version` may have other cases beside those in float32.
    """
    differences = []
    if mine["verdict"] != published["verdict"]:
        differences.append(f"the verdict is {mine['verdict']}, published is {published['verdict']}")
    ours = mine["model"]["files"]
    differences += compare_files(mine, published)
    made, stated = mine["source"]["sha256"], published["source"]["sha256"]
    # Weights taken from the folder itself say nothing about its source.
    if set(made.values()) != set(stated.values()) and not set(made.values()) <= set(ours.values()):
        differences.append(f"the source's sha256 is {made}, published is {stated}")
    results = {(case["name"], case["dtype"]): case["result"] for case in mine["cases"]}
    others = mine.get("checks_version") != published.get("checks_version")
    # Which faults need peaked weights to be told apart may hang on a machine's rounding.
    for case in (case for case in published["cases"] if not case["name"].startswith(PEAKED)):
        result = results.get((case["name"], case["dtype"]))
        if result is None and others and case["dtype"] != "float32":
            continue
        if result != case["result"]:
            found = "was not run here" if result is None else f"is {result}"
            differences.append(f"case {case['name']} ({case['dtype']}) {found}, published is {case['result']}")
    for name, described in published["inputs"].items():
        made = mine["inputs"].get(name)
        if made is not None and made["grids"] == described["grids"] and made["sha256"] != described["sha256"]:
            differences.append(f"input {name}: sha256 is {made['sha256']}, published is {described['sha256']}")
    return differences
