# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Comparing features: dense with packing, and one run with another."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from conversion.common.files import write_atomically
from conversion.common.metrics import Bounds, Comparison, compare
from examples.extraction.feature_sets import ORIGINS, FeatureSet
from examples.extraction.files import write_json


REPORT_FILE, REPORT_TEXT_FILE = "report.json", "report.txt"
# Of two models with the same weights in one dtype; peaked attention amplifies the rounding of that dtype.
RELATIVE_ERROR = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-2}
DEFAULT_THRESHOLD = 0.99
# Of a longer table only what fails is printed.
MAX_ROWS = 40


@dataclass(frozen=True)
class Verdict:
    """What the comparison of one array found. It passed if there are no `reasons` against it."""

    name: str
    comparison: Comparison
    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.reasons


@dataclass(frozen=True)
class Report:
    """The comparison of two sets of features, called `expected` and `actual`.

    Attributes:
        origins: what the sets were made from: for each of `ORIGINS` that was checked, why it is not the same.
        checked: of each of those, how many entries were compared.
    """

    expected: str
    actual: str
    dtype: str
    threshold: float
    verdicts: list[Verdict]
    origins: dict[str, list[str]] = field(default_factory=dict)
    checked: dict[str, int] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        same_origin = not any(self.origins.values())
        return same_origin and bool(self.verdicts) and all(verdict.passed for verdict in self.verdicts)

    def text(self) -> str:
        """What the sets were made from, the table, what failed and why, and a summary."""
        lines = [line for name, reasons in self.origins.items() for line in self._origin_lines(name, reasons)]
        shown = self.verdicts
        if len(shown) > MAX_ROWS:
            shown = [verdict for verdict in shown if not verdict.passed][:MAX_ROWS]
        width = max([10, *(len(verdict.name) for verdict in shown)])
        header = (
            f"{'input':<{width}} {self.expected:>14} {self.actual:>14} {'min cos':>10} {'mean cos':>10} "
            f"{'max cos':>10} {'max abs':>10} {'mean abs':>10} {'relative':>10}  result"
        )
        lines += [header, "-" * len(header), *(_row(verdict, width) for verdict in shown)]
        lines += [f"{verdict.name}: {reason}" for verdict in shown for reason in verdict.reasons]
        passed = sum(verdict.passed for verdict in self.verdicts)
        origin = ", made from the same" if self.origins and not any(self.origins.values()) else ""
        origin = ", not made from the same" if any(self.origins.values()) else origin
        what = "comparisons" if self.origins else "inputs"
        lines.append(
            f"{passed} of {len(self.verdicts)} {what} pass (dtype {self.dtype}; min cosine >= {self.threshold:g}, "
            f"relative error <= {RELATIVE_ERROR[self.dtype]:g}){origin}: {'PASS' if self.passed else 'FAIL'}"
        )
        return "\n".join(lines)

    def _origin_lines(self, name: str, reasons: list[str]) -> Iterable[str]:
        if not reasons:
            return [f"{name:<10} same ({self.checked[name]})"]
        more = [f"{'':<10} ... and {len(reasons) - MAX_ROWS} more"] if len(reasons) > MAX_ROWS else []
        return [f"{name:<10} DIFFERENT: {reason}" for reason in reasons[:MAX_ROWS]] + more

    def to_dict(self) -> dict:
        """The report as JSON types."""
        rows = [
            {"name": verdict.name, "passed": verdict.passed, "reasons": list(verdict.reasons)}
            | verdict.comparison.to_dict()
            for verdict in self.verdicts
        ]
        return {
            "passed": self.passed,
            "expected": self.expected,
            "actual": self.actual,
            "dtype": self.dtype,
            "bounds": bounds_for(self.dtype, self.threshold).to_dict(),
            "origins": self.origins,
            "inputs": rows,
        }

    def write(self, folder: Path) -> None:
        """Writes `report.json` and `report.txt`."""
        write_json(folder / REPORT_FILE, self.to_dict())
        text = self.text() + "\n"
        write_atomically(folder / REPORT_TEXT_FILE, lambda stream: stream.write(text.encode()))


def _row(verdict: Verdict, width: int) -> str:
    c = verdict.comparison
    cosines = " ".join(f"{value:>10.7f}" for value in (c.min_cosine, c.mean_cosine, c.max_cosine))
    errors = " ".join(f"{value:>10.2e}" for value in (c.max_abs, c.mean_abs, c.relative_error))
    shapes = f"{'x'.join(map(str, c.shape_expected)):>14} {'x'.join(map(str, c.shape_actual)):>14}"
    return f"{verdict.name:<{width}} {shapes} {cosines} {errors}  {'PASS' if verdict.passed else 'FAIL'}"


def bounds_for(dtype: str, threshold: float) -> Bounds:
    """What features of one dtype must keep to.

    Raises:
        ValueError: for an unknown dtype.
    """
    if dtype not in RELATIVE_ERROR:
        raise ValueError(f"dtype must be one of {sorted(RELATIVE_ERROR)}, found {dtype!r}.")
    return Bounds(min_cosine=threshold, relative_error=RELATIVE_ERROR[dtype])


def _missing(name: str, where: str) -> Verdict:
    return Verdict(name, Comparison((), (), finite=False), (f"missing from {where}",))


def compare_features(
    dense: dict[str, np.ndarray], packing: dict[str, np.ndarray], dtype: str, threshold: float = DEFAULT_THRESHOLD
) -> Report:
    """Compares features by name.

    Args:
        dense: name to `(1, N, C)`; the batch dimension is dropped.
        packing: name to `(N, C)`.
        dtype: the dtype both models ran in, which sets the bound of the relative error.
        threshold: smallest cosine of any token that passes.

    Raises:
        ValueError: for an unknown dtype.
    """
    bounds = bounds_for(dtype, threshold)
    verdicts = []
    for name in sorted(dense.keys() | packing.keys()):
        missing = [kind for kind, features in (("dense", dense), ("packing", packing)) if name not in features]
        if missing:
            verdicts.append(_missing(name, f"the {missing[0]} features"))
            continue
        expected = dense[name][0] if dense[name].ndim == 3 and len(dense[name]) == 1 else dense[name]
        comparison = compare(packing[name], expected)
        verdicts.append(Verdict(name, comparison, tuple(bounds.check(comparison))))
    return Report("dense", "packing", dtype, threshold, verdicts)


def compare_runs(mine: FeatureSet, reference: FeatureSet, threshold: float = DEFAULT_THRESHOLD) -> Report:
    """Compares one run's features with another's, and what both were made from.

    The bound is that of the coarser of the two dtypes.
    """
    dtype = max(mine.dtype, reference.dtype, key=RELATIVE_ERROR.__getitem__)
    bounds = bounds_for(dtype, threshold)
    verdicts, known = [], set(mine.labels) & set(reference.labels)
    for label in dict.fromkeys([*mine.labels, *reference.labels]):
        if label not in known:
            verdicts.append(_missing(label, "the reference" if label in set(mine.labels) else "your features"))
            continue
        comparison = compare(mine.load(label), reference.load(label))
        verdicts.append(Verdict(label, comparison, tuple(bounds.check(comparison))))
    origins = {name: _differences(mine.origins[name], reference.origins[name]) for name in ORIGINS}
    if mine.dtype != reference.dtype:
        origins["dtype"] = [f"{mine.dtype} here, {reference.dtype} in the reference"]
    checked = {name: len(mine.origins[name].keys() & reference.origins[name].keys()) for name in ORIGINS}
    return Report("reference", "mine", dtype, threshold, verdicts, origins, checked)


def _differences(mine: dict, reference: dict) -> list[str]:
    """What has other hashes in two runs, or none."""
    reasons = []
    for name in mine.keys() & reference.keys():
        if mine[name] is None or reference[name] is None:
            reasons.append(f"{name} was recorded {'there' if mine[name] is None else 'here'} only or nowhere")
        elif mine[name] != reference[name]:
            reasons.append(f"{name}: {_shorten(mine[name])} here, {_shorten(reference[name])} in the reference")
    reasons += [f"{name} is missing from the reference" for name in mine.keys() - reference.keys()]
    reasons += [f"{name} is only in the reference" for name in reference.keys() - mine.keys()]
    return sorted(reasons) if mine or reference else ["nothing was recorded"]


def _shorten(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shorten(part)}" for name, part in value.items() if part is not None)
    return value[:12] if isinstance(value, str) else str(value)
