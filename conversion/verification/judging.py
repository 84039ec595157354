# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Bounds of the verification, and what it means to keep to them.

Rounding in float32 grows with depth and with how peaked attention is, so one number cannot fit every checkpoint. The
relative bound of each array is a multiple of the oracle's own rounding there (its float32 against its float64 run on
an image and a clip), between a floor and a ceiling. In float64 the same computation leaves no room for doubt.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from conversion.common.metrics import Bounds, Comparison, compare
from conversion.verification.faults import Fault


ROUNDING_FACTOR = 10.0
FLOAT32_FLOOR, FLOAT32_CEILING = 2e-5, 1e-2
FLOAT32_MIN_COSINE = 0.999
FLOAT64 = Bounds(min_cosine=1 - 1e-9, relative_error=1e-8)
PIXELS = Bounds(max_abs=1e-6)
# In half precision a multiple as large would reach the faults.
HALF_ROUNDING_FACTOR, HALF_CEILING = 3.0, 0.5
# Of a half-precision run nothing is concluded; these only say what would be remarkable.
REPORTED = Bounds(min_cosine=0.9, relative_error=0.1)
# The largest of many differences is this many times their root mean square at most.
MAX_ABS_FACTOR = 100.0


@dataclass(frozen=True)
class Judgement:
    """Metrics of every array, the worst sample's, and why they violate the bounds, in order of computation."""

    metrics: dict[str, dict]
    reasons: list[str]
    first_diverging: str | None

    @property
    def passed(self) -> bool:
        return not self.reasons

    @property
    def tells_a_fault(self) -> bool:
        """Whether the encoder's outputs, which must be finite and of the right shapes, violate their bounds."""
        encoded = [metrics for name, metrics in self.metrics.items() if name != "pixel_values"]
        sound = all(metrics["finite"] and metrics["shapes_equal"] for metrics in encoded)
        return sound and any(not reason.startswith("pixel_values: ") for reason in self.reasons)


def float32_bounds(rounding: dict[str, float]) -> dict[str, Bounds]:
    """Bounds of each array from the oracle's own rounding there."""
    bounds = {"pixel_values": PIXELS}
    for name, error in rounding.items():
        if name == "pixel_values":
            continue
        relative = min(max(ROUNDING_FACTOR * error, FLOAT32_FLOOR), FLOAT32_CEILING)
        bounds[name] = Bounds(min_cosine=FLOAT32_MIN_COSINE, relative_error=relative)
    return bounds


def half_bounds(rounding: dict[str, float], dtype: torch.dtype) -> dict[str, Bounds]:
    """Bounds of each array in half precision, from the oracle's own rounding there: without one on single tokens, as
    with peaked attention rounding alone moves some of them far."""
    bounds = {"pixel_values": PIXELS}
    for name, error in rounding.items():
        if name != "pixel_values":
            relative = min(max(HALF_ROUNDING_FACTOR * error, torch.finfo(dtype).eps), HALF_CEILING)
            bounds[name] = Bounds(relative_error=relative)
    return bounds


def summary_of_bounds(bounds: dict[str, Bounds]) -> dict[str, float]:
    """The loosest and the tightest of the bounds of all arrays but the pixels."""
    relative = [limit.relative_error for name, limit in bounds.items() if name != "pixel_values"]
    loosest = Bounds(FLOAT32_MIN_COSINE, max(relative)).to_dict()
    return {**loosest, "tightest_relative_error": min(relative), "times_own_rounding": ROUNDING_FACTOR}


def uniform_bounds(names, bounds: Bounds) -> dict[str, Bounds]:
    return {name: bounds if name != "pixel_values" else PIXELS for name in names}


def judge(samples: list[dict[str, tuple[Comparison, float]]], bounds: dict[str, Bounds]) -> Judgement:
    """Judges a case by its worst sample.

    Args:
        samples: per sample, array name to comparison and root mean square of what was expected.
        bounds: by array name; an array without is not expected at all.
    """
    metrics, reasons, first = {}, [], None
    for name in samples[0]:
        comparisons = [sample[name][0] for sample in samples]
        scale = max(sample[name][1] for sample in samples)
        limit = bounds.get(name, Bounds())
        if limit.max_abs is None and limit.relative_error is not None:
            limit = Bounds(limit.min_cosine, limit.relative_error, MAX_ABS_FACTOR * limit.relative_error * scale)
        violated = [reason for comparison in comparisons for reason in limit.check(comparison)]
        metrics[name] = {**worst(comparisons).to_dict(), "bounds": limit.to_dict()}
        reasons += [f"{name}: {reason}" for reason in dict.fromkeys(violated)]
        if violated and first is None:
            first = name
    return Judgement(metrics, reasons, first)


def judge_outputs(actual: Iterable, expected: Iterable, bounds: dict[str, Bounds]) -> Judgement:
    """Judges the outputs of a case, sample by sample, each with `arrays()`."""
    samples = [measure(ours.arrays(), theirs.arrays()) for ours, theirs in zip(actual, expected, strict=True)]
    return judge(samples, bounds)


def judge_fault(fault: Fault, actual: Sequence, expected: Sequence, bounds: dict[str, Bounds]) -> Judgement:
    """As `judge_outputs`, of a planted fault. Of a leak the first sample is judged; the others are there to leak."""
    return judge_outputs(actual[:1], expected[:1], bounds) if fault.leak else judge_outputs(actual, expected, bounds)


def rounding_of(rounded: Iterable, exact: Iterable) -> dict[str, float]:
    """How much an encoder's own outputs are rounded: relative errors by array, of the worst sample."""
    worst: dict[str, float] = {}
    for ours, theirs in zip(rounded, exact, strict=True):
        actual = ours.arrays()
        for name, expected in theirs.arrays().items():
            worst[name] = max(worst.get(name, 0.0), compare(actual[name], expected).relative_error)
    return worst


def measure(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]):
    """Compares the arrays of one sample by name; one that a side lacks is compared as an empty one."""
    nothing = torch.empty(0)
    return {
        name: (
            compare(actual.get(name, nothing), expected.get(name, nothing)),
            root_mean_square(expected.get(name, nothing)),
        )
        for name in [*expected, *(name for name in actual if name not in expected)]
    }


def root_mean_square(array: torch.Tensor) -> float:
    return array.double().square().mean().sqrt().item()


def worst(comparisons: list[Comparison]) -> Comparison:
    """The worst of every number over the samples; means are means of samples."""
    first = comparisons[0]

    def combined(name: str, choose) -> float:
        values = [getattr(comparison, name) for comparison in comparisons]
        return math.nan if any(math.isnan(value) for value in values) else choose(values)

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    mismatch = next((comparison for comparison in comparisons if not comparison.shapes_equal), first)
    return Comparison(
        shape_actual=mismatch.shape_actual,
        shape_expected=mismatch.shape_expected,
        finite=all(comparison.finite for comparison in comparisons),
        min_cosine=combined("min_cosine", min),
        mean_cosine=combined("mean_cosine", mean),
        max_cosine=combined("max_cosine", max),
        max_abs=combined("max_abs", max),
        mean_abs=combined("mean_abs", mean),
        relative_error=combined("relative_error", max),
    )
