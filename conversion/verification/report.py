# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The verification report: `verification.json` and the same as Markdown; and two reports compared."""

import json
from pathlib import Path

from conversion.common.files import write_atomically
from conversion.common.json_files import MAX_JSON_BYTES, NONE, NUMBER, check_shape
from conversion.common.model_folder import read_json
from conversion.verification.verify import MARKDOWN_FILE, PASS, PEAKED, REPORT_FILE, SCHEMA_VERSION


_COLUMNS = "| case | dtype | array | min cosine | mean cosine | max abs | relative error | result |"


_METRICS = {name: (*NUMBER, NONE) for name in ("min_cosine", "mean_cosine", "max_abs", "relative_error")}
_CASE = {"name": str, "dtype": str, "result": str, "reasons": [str], "first_diverging": (str, NONE)}
_CONTROL = {"name": str, "description": str, "weights": str, "case": str, "detected": bool, "metrics": _METRICS}
_BOUNDS = {name: (*NUMBER, NONE) for name in ("min_cosine", "relative_error", "max_abs")}
_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "patch_size")
_SHAPE = {
    "verdict": str,
    "created": str,
    "seconds": NUMBER,
    "taken_on_trust": str,
    "notes": [str],
    "model": {"layout": str, "config": {**dict.fromkeys(_SIZES, int), "layer_norm_type": str}, "files": {str: str}},
    "source": {"location": str, "sha256": {str: str}},
    "environment": {str: object},
    "inputs": {str: {"description": str, "grids": [[int]], "sha256": str}},
    "bounds": {str: {**_BOUNDS, "times_own_rounding?": NUMBER, "tightest_relative_error?": NUMBER}},
    "cases": [{**_CASE, "arrays": {"hidden_states?": [_METRICS]}}],
    "controls": [_CONTROL],
    "margins": {str: {"nearest_fault": str, "fault": NUMBER, "model": (*NUMBER, NONE), "weights": str}},
}


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
    found = report.get("schema_version")
    if found != SCHEMA_VERSION:
        raise ValueError(f"{path}: expected schema_version {SCHEMA_VERSION}, found {found!r}. Make it anew.")
    check_shape(report, _SHAPE, path)
    for index, case in enumerate(report["cases"]):
        arrays = {name: metrics for name, metrics in case["arrays"].items() if name != "hidden_states"}
        check_shape(arrays, {str: _METRICS}, path, field=f"cases[{index}].arrays")
    for dtype, bounds in report["bounds"].items():
        if ("tightest_relative_error" in bounds) != ("times_own_rounding" in bounds):
            raise ValueError(f"{path}: bounds.{dtype} has only half of the bound by rounding. Make it anew.")
    return report


def markdown_report(report: dict) -> str:
    """The whole report as Markdown: verdict, cases, controls, environment, hashes."""
    source = report["source"]
    lines = [
        f"# Verification: {report['verdict']}",
        "",
        f"The {report['model']['layout']} model in this folder against an independent implementation of the source "
        f"encoder on the weights of `{source['location']}`, {report['created']}, {report['seconds']} s.",
        "",
        summary_line(report) + ".",
        "",
        facts_line(report["model"]["config"]),
        "",
        report["taken_on_trust"],
        "",
        *(f"* {note}" for note in report["notes"]),
        "",
        "## Cases",
        "",
        "Worst sample of each case. float64 and float32 decide; bfloat16 is reported: with attention this peaked its "
        "rounding alone moves single tokens.",
        "",
        *(f"* {name}: {case['description']}" for name, case in report["inputs"].items()),
        "",
        *(bounds_line(dtype, bounds) for dtype, bounds in report["bounds"].items()),
        "",
        _COLUMNS,
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in report["cases"]:
        lines += case_rows(case)
    lines += ["", "## Layers", "", "Relative error of each hidden state, float32.", ""]
    lines += [layer_line(case) for case in report["cases"] if case["dtype"] == "float32" and hidden_states(case)]
    lines += ["", "## Planted faults", "", "Each was planted in this model and must be told apart.", ""]
    lines += [
        "| fault | weights | case | min cosine | max abs | relative error | told apart |",
        "|---|---|---|---|---|---|---|",
    ]
    for control in report["controls"]:
        metrics = control["metrics"]
        numbers = " | ".join(number(metrics[name]) for name in ("min_cosine", "max_abs", "relative_error"))
        told = "yes" if control["detected"] else "NO"
        lines.append(f"| {control['description']} | {control['weights']} | {control['case']} | {numbers} | {told} |")
    lines += ["", *(margin_line(kind, margin) for kind, margin in report["margins"].items())]
    lines += ["", "## Environment", ""]
    lines += [f"* {name}: {value}" for name, value in report["environment"].items()]
    lines += ["", "## SHA-256", "", "| file | sha256 |", "|---|---|"]
    lines += [f"| {name} | `{value}` |" for name, value in report["model"]["files"].items()]
    lines += [f"| source {name} | `{value}` |" for name, value in source["sha256"].items()]
    return "\n".join(lines) + "\n"


def facts_line(config: dict) -> str:
    """The encoder's sizes in words."""
    return (
        f"{config['num_hidden_layers']} layers, hidden size {config['hidden_size']}, {config['num_attention_heads']} "
        f"heads, MLP {config['intermediate_size']}, patch {config['patch_size']}, {config['layer_norm_type']}, stored "
        f"as {config.get('dtype') or config.get('torch_dtype')}."
    )


def case_rows(case: dict) -> list[str]:
    """Table rows of one case: its arrays but the hidden states, of which the worst stands for all."""
    arrays = {name: metrics for name, metrics in case["arrays"].items() if name != "hidden_states"}
    layers = [metrics for metrics in hidden_states(case) if metrics["relative_error"] is not None]
    if layers:
        arrays["hidden_states (worst)"] = max(layers, key=lambda metrics: metrics["relative_error"])
    if not arrays:
        return [f"| {case['name']} | {case['dtype']} | | | | | | {case['result']} |"]
    rows = []
    for name, metrics in arrays.items():
        columns = ("min_cosine", "mean_cosine", "max_abs", "relative_error")
        numbers = " | ".join(number(metrics[column]) for column in columns)
        rows.append(f"| {case['name']} | {case['dtype']} | {name} | {numbers} | {case['result']} |")
    return rows


def bounds_line(dtype: str, bounds: dict) -> str:
    """The bounds of one dtype in words."""
    said = [f"min cosine at least {bounds['min_cosine']:.7g}"] if bounds["min_cosine"] is not None else []
    said += [
        f"{name.replace('_', ' ')} at most {bounds[name]:.2g}"
        for name in ("relative_error", "max_abs")
        if bounds[name] is not None
    ]
    if "tightest_relative_error" in bounds:
        said.append(
            f"for each array {bounds['times_own_rounding']:g} times the oracle's own float32 rounding there, the "
            f"tightest {bounds['tightest_relative_error']:.2g}"
        )
    return f"* {dtype}: {', '.join(said)}"


def margin_line(kind: str, margin: dict) -> str:
    times = "" if not margin["model"] else f", {margin['fault'] / margin['model']:.3g} times as far"
    return (
        f"* nearest {kind} fault: {margin['nearest_fault']} at a relative error of {number(margin['fault'])}, the "
        f"real model at {number(margin['model'])}{times} ({margin['weights']} weights)"
    )


def layer_line(case: dict) -> str:
    errors = ", ".join(number(metrics["relative_error"]) for metrics in hidden_states(case))
    diverging = f" First diverging: {case['first_diverging']}." if case["first_diverging"] else ""
    return f"* {case['name']}: {errors}.{diverging}"


def hidden_states(case: dict) -> list[dict]:
    return case["arrays"].get("hidden_states", [])


def number(value: float | None) -> str:
    """Cosines with their digits, small numbers in scientific form, NaN and infinity (None in JSON) as a dash."""
    if value is None:
        return "-"
    return f"{value:.8f}" if 0.01 < abs(value) <= 1 else f"{value:.2e}"


def failures(report: dict) -> list[str]:
    """Why a report is not PASS, a line each."""
    lines = [
        f"{case['name']} ({case['dtype']}): {'; '.join(case['reasons'][:3])}"
        + (f" (first diverging: {case['first_diverging']})" if case["first_diverging"] else "")
        for case in report["cases"]
        if case["result"] == "FAIL"
    ]
    lines += [f"fault {c['name']} was not told apart" for c in report["controls"] if not c["detected"]]
    return lines


def compare_reports(mine: dict, published: dict) -> list[str]:
    """How a repeated verification differs from the published one; empty if it confirms it.

    Files and source are compared by hash, cases by their inputs and results. Numbers differ between machines, so they
    are not compared with each other but each with its bounds; inputs of another size (a pack that had to shrink) are
    not compared either.
    """
    differences = []
    if mine["verdict"] != published["verdict"]:
        differences.append(f"the verdict is {mine['verdict']}, published is {published['verdict']}")
    ours, theirs = mine["model"]["files"], published["model"]["files"]
    differences += [
        f"{name}: sha256 is {ours.get(name, 'absent')}, published is {theirs.get(name, 'absent')}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    made, stated = mine["source"]["sha256"], published["source"]["sha256"]
    # Weights taken from the folder itself say nothing about its source.
    if set(made.values()) != set(stated.values()) and not set(made.values()) <= set(ours.values()):
        differences.append(f"the source's sha256 is {made}, published is {stated}")
    results = {(case["name"], case["dtype"]): case["result"] for case in mine["cases"]}
    # Which faults need peaked weights to be told apart may hang on a machine's rounding.
    for case in (case for case in published["cases"] if not case["name"].startswith(PEAKED)):
        result = results.get((case["name"], case["dtype"]))
        if result != case["result"]:
            differences.append(f"case {case['name']} ({case['dtype']}) is {result}, published is {case['result']}")
    for name, described in published["inputs"].items():
        made = mine["inputs"].get(name)
        if made is not None and made["grids"] == described["grids"] and made["sha256"] != described["sha256"]:
            differences.append(f"input {name}: sha256 is {made['sha256']}, published is {described['sha256']}")
    return differences


def summary_line(report: dict) -> str:
    judged = [case for case in report["cases"] if case["result"] != "REPORTED"]
    passed = sum(case["result"] == PASS for case in judged)
    told = sum(control["detected"] for control in report["controls"])
    counts = (
        f"verification {report['verdict']}: {passed} of {len(judged)} cases pass, {told} of "
        f"{len(report['controls'])} planted faults told apart, {report['seconds']} s"
    )
    return "\n".join([counts, *(margin_line(*margin).removeprefix("* ") for margin in report["margins"].items())])
