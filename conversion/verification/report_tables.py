# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The parts of a verification report as Markdown, for `VERIFICATION.md` and for the model card.

Each takes a report that `check_report` has seen. Imports nothing heavy, so that publishing starts without torch.
"""

from conversion.common.report_schema import PASS, REPORTED


_NUMBERS = ("min_cosine", "relative_error", "max_abs")
# Of which the model card shows the rows; `VERIFICATION.md` shows all.
_OUTPUTS = ("last_hidden_state", "pooler_output", "merged_hidden_state")


def cases_table(report: dict, detailed: bool = False) -> str:
    """One row per case and array, of which the worst sample counts: the numbers, and the case's result.

    Args:
        detailed: also the mean cosine, and rows for arrays that are no output of the model, which are the pixels.
    """
    columns = ("min_cosine", "mean_cosine", "relative_error", "max_abs") if detailed else _NUMBERS
    rows = [
        (case["name"], case["dtype"], label, *_numbers(metrics, columns), case["result"])
        for case in report["cases"]
        for label, metrics in _shown_arrays(case, detailed) or [("none", {})]
    ]
    return table(("case", "dtype", "array", *_heads(columns), "result"), rows)


def controls_table(report: dict) -> str:
    """One row per planted fault: what it is, what it changes, and whether it was detected."""
    rows = [
        (
            *(control.get(name, "") for name in ("name", "description", "case", "kind", "weights")),
            *_numbers(control["metrics"], _NUMBERS),
            "yes" if control["detected"] else "**no**",
        )
        for control in report["controls"]
    ]
    return table(("fault", "what is wrong", "case", "kind", "weights", *_heads(_NUMBERS), "detected"), rows)


def inputs_table(report: dict) -> str:
    """One row per input: its grids in patches `(t, h, w)` and the hash of its pixels."""
    rows = [
        (name, value["description"], ", ".join("x".join(map(str, grid)) for grid in value["grids"]), value["sha256"])
        for name, value in report["inputs"].items()
    ]
    heads = ("input", "description", "patches (t x h x w)", "sha256")
    return table(heads, [(*row, f"`{sha256}`") for *row, sha256 in rows])


def environment_table(report: dict) -> str:
    """Versions, device and threads."""
    return table(("environment", ""), list(report["environment"].items()))


def bounds_list(report: dict, detailed: bool = False) -> list[str]:
    """The bounds of each dtype in words.

    Args:
        detailed: also by which rounding those of an array were set, where they were.
    """
    return [_bounds_text(dtype, bounds, detailed) for dtype, bounds in report["bounds"].items()]


def layers_list(report: dict) -> str:
    """The relative error of every layer in float32, and where a case first diverges."""
    return "\n".join(
        f"* {case['name']}: {', '.join(error_text(metrics['relative_error']) for metrics in hidden_states(case))}."
        + (f" First diverging: {case['first_diverging']}." if case["first_diverging"] else "")
        for case in report["cases"]
        if case["dtype"] == "float32" and hidden_states(case)
    )


def margin_line(kind: str, margin: dict) -> str:
    """How much farther the nearest fault of a kind is than the real model."""
    times = f", {margin['fault'] / margin['model']:.3g} times as far" if margin["model"] else ""
    return (
        f"nearest {kind} fault: {margin['nearest_fault']} at a relative error of {error_text(margin['fault'])}, the "
        f"real model at {error_text(margin['model'])}{times} ({margin['weights']} weights)"
    )


def summary_line(report: dict) -> str:
    """The verdict with its counts, and a line on each margin, which the first reports did not have."""
    judged = [case for case in report["cases"] if case["result"] != REPORTED]
    passed = sum(case["result"] == PASS for case in judged)
    told = sum(control["detected"] for control in report["controls"])
    counts = (
        f"verification {report['verdict']}: {passed} of {len(judged)} cases pass, {told} of "
        f"{len(report['controls'])} planted faults told apart, {report['seconds']} s"
    )
    return "\n".join([counts, *(margin_line(kind, margin) for kind, margin in report.get("margins", {}).items())])


def time_list(report: dict) -> str:
    """Where the time went, longest first; nothing of a report that does not say."""
    parts = report.get("seconds_by_part", {})
    return f"Seconds: {', '.join(f'{part} {taken:g}' for part, taken in parts.items())}." if parts else ""


def facts_line(config: dict) -> str:
    """The encoder's sizes in words."""
    return (
        f"{config['num_hidden_layers']} layers, hidden size {config['hidden_size']}, {config['num_attention_heads']} "
        f"heads, MLP {config['intermediate_size']}, patch {config['patch_size']}, {config['layer_norm_type']}, stored "
        f"as {config.get('dtype') or config.get('torch_dtype')}."
    )


def hidden_states(case: dict) -> list[dict]:
    """The metrics of a case's layers; none for a case that runs no model."""
    return case["arrays"].get("hidden_states", [])


def cosine_text(value: float | None) -> str:
    """With the digits that tell it from 1. NaN and infinity are None in JSON."""
    return "n/a" if value is None else f"{value:.8f}"


def error_text(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2e}"


def table(heads: tuple[str, ...], rows: list[tuple]) -> str:
    """A Markdown table; cells are kept on one line."""
    cells = [[" ".join(str(cell).replace("|", "\\|").split()) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *cells])


def _shown_arrays(case: dict, detailed: bool) -> list[tuple[str, dict]]:
    """The arrays of a case by label; of its layers the second-to-last, which features are taken of, and the worst."""
    arrays, layers, found = case["arrays"], hidden_states(case), []
    if len(layers) > 1:
        found.append(("hidden_states[-2]", layers[-2]))
    if layers:
        # A layer without a number differs most of all.
        worst = max(layers, key=lambda metrics: float("inf") if (e := metrics["relative_error"]) is None else e)
        found.append((f"hidden_states, worst of {len(layers)}", worst))
    names = [name for name in _OUTPUTS if name in arrays]
    if detailed:
        names += [name for name in arrays if name not in ("hidden_states", *_OUTPUTS)]
    return found + [(name, arrays[name]) for name in names]


def _heads(columns: tuple[str, ...]) -> list[str]:
    return [column.replace("_", " ") for column in columns]


def _numbers(metrics: dict, columns: tuple[str, ...]) -> list[str]:
    return [(cosine_text if "cosine" in column else error_text)(metrics.get(column)) for column in columns]


def _bounds_text(dtype: str, bounds: dict, detailed: bool) -> str:
    signs = {"min_cosine": ">=", "relative_error": "<=", "max_abs": "<="}
    # Ten digits: a bound on the cosine may be that close to 1.
    said = [
        f"{name.replace('_', ' ')} {sign} {bounds[name]:.10g}"
        for name, sign in signs.items()
        if bounds[name] is not None
    ]
    if detailed and "tightest_relative_error" in bounds:
        said.append(
            f"for each array {bounds['times_own_rounding']:g} times the oracle's own float32 rounding there, the "
            f"tightest {bounds['tightest_relative_error']:.3g}"
        )
    return f"{dtype}: {', '.join(said)}"
