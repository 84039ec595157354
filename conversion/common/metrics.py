# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The one place that compares arrays of features: numbers, and the bounds they are judged by.

Cosine sees structural faults (a swapped axis, a wrong rotation) on single tokens, hardly on a mean; the relative
and absolute bounds see small numeric ones (another epsilon), which no cosine shows. Use them together.

NumPy only; torch tensors are accepted and converted.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np


# Rows compared at a time: 2**20 values are 8 MiB in float64, whatever the size of the arrays.
_CHUNK_VALUES = 2**20


@dataclass(frozen=True)
class Comparison:
    """How two arrays differ. Every number is NaN when shapes differ, a value is not finite, or there is none.

    Cosines are per token (the last axis), in [-1, 1]; `relative_error` is `||a - b|| / ||b||` over all values,
    with `a` the actual and `b` the expected array.
    """

    shape_actual: tuple[int, ...]
    shape_expected: tuple[int, ...]
    finite: bool
    min_cosine: float = math.nan
    mean_cosine: float = math.nan
    max_cosine: float = math.nan
    max_abs: float = math.nan
    mean_abs: float = math.nan
    relative_error: float = math.nan

    @property
    def shapes_equal(self) -> bool:
        return self.shape_actual == self.shape_expected

    def to_dict(self) -> dict:
        """The fields as JSON types; NaN and infinity, which JSON lacks, become None."""
        fields = {name: _json_number(value) for name, value in asdict(self).items()}
        fields["shape_actual"], fields["shape_expected"] = list(self.shape_actual), list(self.shape_expected)
        fields["shapes_equal"] = self.shapes_equal
        return fields


@dataclass(frozen=True)
class Bounds:
    """What a comparison must keep to: `min_cosine` from below, the others from above. None means not judged."""

    min_cosine: float | None = None
    relative_error: float | None = None
    max_abs: float | None = None

    def check(self, comparison: Comparison) -> list[str]:
        """Returns why `comparison` violates these bounds; an empty list if it keeps to all of them."""
        if not comparison.shapes_equal:
            return [f"shape {comparison.shape_actual} differs from the expected {comparison.shape_expected}"]
        if math.prod(comparison.shape_actual) == 0:
            return [f"nothing to compare: shape {comparison.shape_actual} has no values"]
        if not comparison.finite:
            return ["a value is NaN or infinite"]
        reasons = []
        # Written so that NaN, which compares false with everything, violates.
        if self.min_cosine is not None and not comparison.min_cosine >= self.min_cosine:
            found, least = _told_apart(comparison.min_cosine, self.min_cosine)
            reasons.append(f"min cosine {found} is below {least}")
        for name, bound in (("relative_error", self.relative_error), ("max_abs", self.max_abs)):
            value = getattr(comparison, name)
            if bound is not None and not value <= bound:
                found, most = _told_apart(value, bound)
                reasons.append(f"{name.replace('_', ' ')} {found} is above {most}")
        return reasons

    def to_dict(self) -> dict:
        """The bounds as JSON types."""
        return asdict(self)


def compare(actual, expected) -> Comparison:
    """Compares two arrays of one shape in float64, a chunk of tokens at a time.

    Shapes are never broadcast, cut or squeezed: arrays of different shapes give NaN for every number. Two zero
    vectors have cosine 1, a zero vector and another one 0. A difference from an all-zero `expected` is an infinite
    relative error.

    Args:
        actual: numpy array or torch tensor, any real dtype, `(..., C)`; one token is a vector of the last axis.
        expected: the same, of the same shape.

    Raises:
        TypeError: if an argument does not hold real numbers.
    """
    actual, expected = _as_array(actual, "actual"), _as_array(expected, "expected")
    shapes = tuple(actual.shape), tuple(expected.shape)
    if shapes[0] != shapes[1] or actual.size == 0:
        return Comparison(*shapes, finite=_all_finite(actual) and _all_finite(expected))
    width = actual.shape[-1] if actual.ndim else 1
    actual, expected = actual.reshape(-1, width), expected.reshape(-1, width)
    if not (_all_finite(actual) and _all_finite(expected)):
        return Comparison(*shapes, finite=False)
    return Comparison(*shapes, finite=True, **_measure(actual, expected))


def _measure(actual: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """The numbers of a `Comparison` for two finite, non-empty `(tokens, C)` arrays."""
    tokens, width = actual.shape
    cosines = np.empty(tokens)
    max_abs = sum_abs = sum_squares = expected_squares = 0.0
    for rows in _row_chunks(tokens, width):
        a, b = actual[rows].astype(np.float64), expected[rows].astype(np.float64)
        cosines[rows] = _cosine(a, b)
        with np.errstate(over="ignore"):
            difference = np.abs(a - b)
            max_abs = max(max_abs, float(difference.max()))
            sum_abs += float(difference.sum())
            sum_squares += float(np.square(difference).sum())
            expected_squares += float(np.square(b).sum())
    if expected_squares == 0:
        relative_error = 0.0 if sum_squares == 0 else math.inf
    else:
        relative_error = math.sqrt(sum_squares) / math.sqrt(expected_squares)
    return {
        "min_cosine": float(cosines.min()),
        "mean_cosine": float(cosines.mean()),
        "max_cosine": float(cosines.max()),
        "max_abs": max_abs,
        "mean_abs": sum_abs / (tokens * width),
        "relative_error": relative_error,
    }


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each row of two `(tokens, C)` float64 arrays: `(tokens,)`."""
    a_scale, b_scale = np.abs(a).max(axis=1), np.abs(b).max(axis=1)
    # Scaled to a largest entry of 1, squares neither overflow nor vanish.
    a = a / np.where(a_scale == 0, 1, a_scale)[:, None]
    b = b / np.where(b_scale == 0, 1, b_scale)[:, None]
    norms = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    cosine = (a * b).sum(axis=1) / np.where(norms == 0, 1, norms)
    return np.where((a_scale == 0) & (b_scale == 0), 1.0, cosine.clip(-1.0, 1.0))


def _as_array(values, name: str) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        # NumPy has no bfloat16; float32 holds both 16-bit types exactly.
        values = values.float().numpy() if values.is_floating_point() and values.itemsize < 4 else values.numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold real numbers, found dtype {array.dtype}.")
    return array


def _all_finite(array: np.ndarray) -> bool:
    if array.dtype.kind != "f" or array.size == 0:
        return True
    rows = array.reshape(-1, array.shape[-1] if array.ndim else 1)
    return all(bool(np.isfinite(rows[chunk]).all()) for chunk in _row_chunks(*rows.shape))


def _row_chunks(tokens: int, width: int):
    step = max(1, _CHUNK_VALUES // max(width, 1))
    return (slice(start, start + step) for start in range(0, tokens, step))


def _told_apart(value: float, bound: float) -> tuple[str, str]:
    """Both as text, with the digits that it takes to tell them apart."""
    for digits in range(4, 18):
        texts = f"{value:.{digits}g}", f"{bound:.{digits}g}"
        if texts[0] != texts[1]:
            break
    return texts


def _json_number(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value
