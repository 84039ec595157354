# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Packs hold every sample once, keep to the budget, and are well filled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.extraction.packing_plan import plan_packs


@given(st.lists(st.integers(1, 300), max_size=80), st.integers(1, 250))
def test_packs(lengths, pack_tokens):
    packs = plan_packs(lengths, pack_tokens)
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    sums = [sum(lengths[index] for index in pack) for pack in packs]
    assert all(total <= pack_tokens or len(pack) == 1 for total, pack in zip(sums, packs, strict=True))
    # Two packs that fit into one would have been one.
    assert all(a + b > pack_tokens for place, a in enumerate(sums) for b in sums[:place])


def test_longest_first():
    assert plan_packs([2, 9, 4, 1, 5], 10) == [[1, 3], [4, 2], [0]]
    with pytest.raises(ValueError, match="pack_tokens"):
        plan_packs([1], 0)
