# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The report in both forms, and two of them compared."""

import copy
import json

import pytest

from conversion.verification.report import (
    compare_reports,
    failures,
    markdown_report,
    read_report,
    summary_line,
    write_report,
)
from conversion.verification.report_tables import bounds_list, cases_table, cosine_text, error_text, table


METRICS = {"min_cosine": 0.5, "mean_cosine": 0.9, "max_abs": 2.0, "relative_error": 0.25}


@pytest.fixture
def report() -> dict:
    def case(name, dtype, result, reasons=()):
        return {
            "name": name,
            "dtype": dtype,
            "result": result,
            "arrays": {"last_hidden_state": METRICS, "hidden_states": [METRICS, METRICS]},
            "first_diverging": "hidden_states[1]" if reasons else None,
            "reasons": list(reasons),
            "notes": [],
        }

    return {
        "schema_version": 1,
        "verdict": "FAIL",
        "created": "2026-01-01T00:00:00+00:00",
        "seconds": 1.5,
        "notes": ["a note"],
        "model": {"layout": "dense", "config": CONFIG, "files": {"model.safetensors": "aa", "config.json": "bb"}},
        "source": {"location": "backbone.pt", "sha256": {"backbone.pt": "cc"}},
        "environment": {"torch": "2"},
        "bounds": {
            "float64": {"min_cosine": 0.999, "relative_error": 1e-8, "max_abs": None},
            "pixels": {"min_cosine": None, "relative_error": None, "max_abs": 1e-6},
        },
        "inputs": {"image_448": {"description": "an image", "grids": [[1, 32, 32]], "sha256": "dd"}},
        "cases": [
            case("image_448", "float64", "FAIL", ["hidden_states[1]: relative error 1 is above 2"]),
            case("image_448", "float32", "PASS"),
            case("image_448", "bfloat16", "REPORTED"),
        ],
        "controls": [
            {
                "name": "leak",
                "description": "a leak",
                "weights": "peaked",
                "case": "leak",
                "kind": "structural",
                "detected": False,
                "metrics": METRICS,
            },
        ],
        "taken_on_trust": "the number of heads",
        "margins": {"structural": {"nearest_fault": "leak", "fault": 0.25, "model": 0.05, "weights": "peaked"}},
    }


CONFIG = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "patch_size": 14,
    "layer_norm_type": "layer_norm",
    "dtype": "float32",
}


def test_markdown_says_all_of_it(report):
    text = markdown_report(report)
    for part in (
        "# Verification: FAIL",
        "* a note",
        "2 layers, hidden size 64, 2 heads, MLP 96, patch 14, layer_norm, stored as float32.",
        "the number of heads",
        "| image_448 | an image | 1x32x32 | `dd` |",
        "* float64: min cosine >= 0.999, relative error <= 1e-08",
        "* pixels: max abs <= 1e-06",
        "| image_448 | float64 | last_hidden_state | 0.50000000 | 0.90000000 | 2.50e-01 | 2.00e+00 | FAIL |",
        "| image_448 | bfloat16 | hidden_states, worst of 2 |",
        "* image_448: 2.50e-01, 2.50e-01.",
        "| leak | a leak | leak | structural | peaked | 0.50000000 | 2.50e-01 | 2.00e+00 | **no** |",
        "* nearest structural fault: leak at a relative error of 2.50e-01",
        "5 times as far (peaked weights)",
        "| model.safetensors | `aa` |",
        "| source backbone.pt | `cc` |",
        "| torch | 2 |",
    ):
        assert part in text


def test_failures_and_summary(report):
    assert failures(report) == [
        "image_448 (float64): hidden_states[1]: relative error 1 is above 2 (first diverging: hidden_states[1])",
        "fault leak was not told apart",
    ]
    assert summary_line(report).startswith("verification FAIL: 1 of 2 cases pass, 0 of 1 planted faults told apart")


def test_what_a_failed_model_looks_like_is_said_last_and_in_the_markdown(report, tmp_path):
    line = "looks like h and w exchanged: cosine 1.0000 to that fault's output"
    with_diagnosis = report | {"diagnosis": [line]}
    assert failures(with_diagnosis) == [*failures(report), line]
    assert f"* a note\n* {line}\n" in markdown_report(with_diagnosis)
    write_report(with_diagnosis, tmp_path)
    assert read_report(tmp_path)["diagnosis"] == [line]
    (tmp_path / "verification.json").write_text(json.dumps(report | {"diagnosis": line}))
    with pytest.raises(ValueError, match="diagnosis"):
        read_report(tmp_path)


def test_numbers():
    assert [cosine_text(value) for value in (None, 1.0, -0.5)] == ["n/a", "1.00000000", "-0.50000000"]
    assert [error_text(value) for value in (None, 0.0, 2e-5, 3.0)] == ["n/a", "0.00e+00", "2.00e-05", "3.00e+00"]


def test_a_layer_without_a_number_is_the_worst(report):
    report["cases"][0]["arrays"]["hidden_states"] += [dict.fromkeys(METRICS), METRICS]
    assert "| image_448 | float64 | hidden_states, worst of 4 | n/a | n/a | n/a | FAIL |" in cases_table(report)


def test_a_case_without_arrays_keeps_its_result(report):
    report["cases"][0]["arrays"] = {"hidden_states": []}
    assert "| image_448 | float64 | none | n/a | n/a | n/a | FAIL |" in cases_table(report)


def test_only_the_detailed_tables_show_pixels_mean_cosines_and_the_rounding(report):
    report["cases"][0]["arrays"] = {"pixel_values": METRICS}
    report["bounds"]["float64"] |= {"times_own_rounding": 5, "tightest_relative_error": 1e-9}
    short, full = cases_table(report), cases_table(report, detailed=True)
    assert "mean cosine" not in short and "pixel_values" not in short
    assert "| image_448 | float64 | pixel_values | 0.50000000 | 0.90000000 | 2.50e-01 | 2.00e+00 | FAIL |" in full
    assert bounds_list(report)[0] == "float64: min cosine >= 0.999, relative error <= 1e-08"
    rounding = ", for each array 5 times the oracle's own float32 rounding there, the tightest 1e-09"
    assert bounds_list(report, detailed=True)[0] == bounds_list(report)[0] + rounding


def test_cells_cannot_break_the_table():
    assert table(("a",), [("x|y\nz",)]) == "| a |\n| --- |\n| x\\|y z |"


def test_written_and_read_again(tmp_path, report):
    write_report(report, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["VERIFICATION.md", "verification.json"]
    assert read_report(tmp_path) == report


@pytest.mark.parametrize(
    "text, message",
    [(None, "does not exist"), ("{", "is not JSON"), ("[]", "holds a list"), ('{"schema_version": 2}', "found 2")],
)
def test_unreadable_reports_are_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "verification.json").write_text(text)
    with pytest.raises(ValueError, match=f"verification.json.*{message}"):
        read_report(tmp_path)


def differences(report: dict, change) -> list[str]:
    mine = copy.deepcopy(report)
    change(mine)
    return compare_reports(mine, report)


def test_a_repeated_verification_confirms_or_says_what_differs(report):
    assert differences(report, lambda mine: mine.update(seconds=9, created="later", environment={})) == []
    assert differences(report, lambda mine: mine["source"].update(sha256={"model.safetensors": "aa"})) == []
    assert differences(report, lambda mine: mine["inputs"]["image_448"].update(grids=[[1, 8, 8]], sha256="x")) == []
    assert "verdict is PASS" in differences(report, lambda mine: mine.update(verdict="PASS"))[0]
    assert (
        "config.json: sha256 is x"
        in differences(report, lambda mine: mine["model"]["files"].update({"config.json": "x"}))[0]
    )
    assert "source's sha256" in differences(report, lambda mine: mine["source"].update(sha256={"b.pt": "x"}))[0]
    assert "(float32) is FAIL" in differences(report, lambda mine: mine["cases"][1].update(result="FAIL"))[0]
    assert "input image_448" in differences(report, lambda mine: mine["inputs"]["image_448"].update(sha256="x"))[0]
    report["cases"].append({"name": "peaked image_448", "dtype": "float32", "result": "PASS"})
    assert differences(report, lambda mine: mine["cases"].pop()) == []


def test_the_report_is_json_without_nan(report, tmp_path):
    report["margins"]["structural"]["model"] = None
    write_report(report, tmp_path)
    json.loads((tmp_path / "verification.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert "real model at n/a" in (tmp_path / "VERIFICATION.md").read_text()
