# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""`verification.json`: its names, its verdicts and the fields that its readers take for granted.

Imports nothing heavy, so that publishing starts without torch.
"""

from typing import Any

from conversion.common.json_files import NONE, NUMBER, check_shape


SCHEMA_VERSION = 1
# Which cases run and which faults are planted; reports of others have only the cases in common compared.
CHECKS_VERSION = 2
REPORT_FILE, MARKDOWN_FILE = "verification.json", "VERIFICATION.md"
PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"
# The result of a case that is shown and not judged.
REPORTED = "REPORTED"
# Before the names of cases that ran on peaked random weights.
PEAKED = "peaked "

_METRICS = {name: (*NUMBER, NONE) for name in ("min_cosine", "mean_cosine", "max_abs", "relative_error")}
_BOUNDS = {name: (*NUMBER, NONE) for name in ("min_cosine", "relative_error", "max_abs")}
_CASE = {"name": str, "dtype": str, "result": str, "reasons": [str], "first_diverging": (str, NONE)}
_CONTROL = {"name": str, "description": str, "weights": str, "case": str, "detected": bool, "metrics": _METRICS}
_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "patch_size")
_SHAPE = {
    "verdict": str,
    "created": str,
    "seconds": NUMBER,
    "notes": [str],
    "model": {"layout": str, "config": {**dict.fromkeys(_SIZES, int), "layer_norm_type": str}, "files": {str: str}},
    "source": {"location": str, "sha256": {str: str}},
    "environment": {str: object},
    "inputs": {str: {"description": str, "grids": [[int]], "sha256": str}},
    "bounds": {str: {**_BOUNDS, "times_own_rounding?": NUMBER, "tightest_relative_error?": NUMBER}},
    "cases": [{**_CASE, "arrays": {"hidden_states?": [_METRICS]}}],
    "controls": [{**_CONTROL, "kind?": str, "array?": str}],
    "diagnosis?": [str],
    "checks_version?": int,
    "seconds_by_part?": {str: NUMBER},
}
# Not in the first reports of schema 1. Such a report still proves its files, so they can be published.
_LATER = {
    "taken_on_trust": str,
    "margins": {str: {"nearest_fault": str, "fault": NUMBER, "model": (*NUMBER, NONE), "weights": str}},
}


def check_report(report: dict, where: Any, error: type[ValueError] = ValueError, first_reports: bool = False) -> None:
    """Checks the fields of a parsed `verification.json`.

    Args:
        where: the file, for the message.
        error: what is raised.
        first_reports: whether the fields that the first reports of this schema did not have may be absent.

    Raises:
        ValueError: or `error`, if the report has another schema, lacks a field, or has one of another type.
    """
    found = report.get("schema_version")
    if found != SCHEMA_VERSION:
        raise error(f"{where}: expected schema_version {SCHEMA_VERSION}, found {found!r}. Make it anew.")
    check_shape(report, _SHAPE | {f"{name}{'?' * first_reports}": part for name, part in _LATER.items()}, where, error)
    for index, case in enumerate(report["cases"]):
        arrays = {name: metrics for name, metrics in case["arrays"].items() if name != "hidden_states"}
        check_shape(arrays, {str: _METRICS}, where, error, f"cases[{index}].arrays")
    for dtype, bounds in report["bounds"].items():
        if ("tightest_relative_error" in bounds) != ("times_own_rounding" in bounds):
            raise error(f"{where}: bounds.{dtype} has only half of the bound by rounding. Make it anew.")
