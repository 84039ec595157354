# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The comparison of arrays: right numbers, no way to pass by accident."""

import json
import math

import numpy as np
import pytest
import torch

from conversion.common import metrics
from conversion.common.metrics import Bounds, compare


NUMBERS = ("min_cosine", "mean_cosine", "max_cosine", "max_abs", "mean_abs", "relative_error")


def test_numbers_by_hand():
    expected = np.array([[3.0, 4.0], [1.0, 0.0]])
    actual = np.array([[3.0, 4.0], [0.0, 2.0]])
    result = compare(actual, expected)
    assert (result.min_cosine, result.mean_cosine, result.max_cosine) == (0.0, 0.5, 1.0)
    assert (result.max_abs, result.mean_abs) == (2.0, 0.75)
    assert result.relative_error == pytest.approx(math.sqrt(5 / 26))


def test_chunks_give_what_one_piece_gives(monkeypatch):
    generator = np.random.default_rng(0)
    expected = generator.normal(size=(3, 37, 8)).astype(np.float32)
    actual = expected + generator.normal(size=expected.shape).astype(np.float32) * 0.1
    whole = compare(actual, expected)
    monkeypatch.setattr(metrics, "_CHUNK_VALUES", 50)
    pieces = compare(actual, expected)
    for name in NUMBERS:
        assert getattr(pieces, name) == pytest.approx(getattr(whole, name), rel=1e-12)
    assert compare(actual[:, ::-1], expected).min_cosine < 0.9


@pytest.mark.parametrize("shape", [(4, 3), (5, 2), (1, 4, 2), (8,)])
def test_another_shape_is_never_cut_broadcast_or_squeezed(shape):
    result = compare(np.ones(shape), np.ones((4, 2)))
    assert not result.shapes_equal
    assert all(math.isnan(getattr(result, name)) for name in NUMBERS)
    assert "shape" in Bounds().check(result)[0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_a_value_that_is_not_finite_violates_all_bounds(value, side):
    arrays = [np.ones((4, 2), np.float32), np.ones((4, 2), np.float32)]
    arrays[side][2, 1] = value
    result = compare(*arrays)
    assert not result.finite
    assert Bounds().check(result) and Bounds(min_cosine=-1).check(result)
    json.dumps(result.to_dict(), allow_nan=False)


def test_bounds_name_what_they_found():
    result = compare(np.array([[1.0, 0.0]]), np.array([[1.0, 0.1]]))
    assert Bounds(min_cosine=0.9, relative_error=0.2, max_abs=0.2).check(result) == []
    reasons = Bounds(min_cosine=0.999, relative_error=0.01, max_abs=0.01).check(result)
    assert [reason.split(" ")[0] for reason in reasons] == ["min", "relative", "max"]
    assert Bounds(max_abs=math.nan).check(result)
    assert Bounds(0.9, 0.1, 0.2).to_dict() == {"min_cosine": 0.9, "relative_error": 0.1, "max_abs": 0.2}


def test_zero_vectors():
    zero, one = np.zeros((1, 3)), np.ones((1, 3))
    assert compare(zero, zero).min_cosine == 1.0
    assert compare(zero, zero).relative_error == 0.0
    assert compare(zero, one).min_cosine == compare(one, zero).min_cosine == 0.0
    assert compare(one, zero).relative_error == math.inf


def test_nothing_to_compare_is_no_agreement():
    result = compare(np.zeros((0, 3)), np.zeros((0, 3)))
    assert result.shapes_equal and result.finite
    assert Bounds().check(result) and Bounds(min_cosine=-1.0).check(result)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_cosine_of_extreme_scales(scale):
    a, b = np.array([[3.0, 4.0]]) * scale, np.array([[4.0, 3.0]]) * scale
    assert compare(a, b).min_cosine == pytest.approx(0.96)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int32])
def test_torch_tensors_compare_as_their_exact_values(dtype):
    tensor = torch.tensor([[1.0, -2.0], [3.0, 7.0]], dtype=dtype)
    assert compare(tensor, tensor.double().numpy()).max_abs == 0.0


def test_text_is_refused():
    with pytest.raises(TypeError, match="expected must hold real numbers"):
        compare(np.ones(2), np.array(["a", "b"]))
