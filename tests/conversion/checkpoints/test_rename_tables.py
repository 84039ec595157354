# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The tables as data: complete, inverse to each other, and the names existing checkpoints have."""

import itertools
import re

import pytest

from conversion.checkpoints.rename_tables import LAYOUTS, Rule, table_between


PAIRS = list(itertools.permutations(LAYOUTS, 2))


@pytest.mark.parametrize("source, target", PAIRS)
def test_the_inverse_undoes_every_rule(source, target):
    there, back = table_between(source, target), table_between(target, source)
    assert {Rule(rule.targets, rule.sources) for rule in there.rules} == set(back.rules)


@pytest.mark.parametrize("source, target", PAIRS)
def test_every_name_occurs_once_on_each_side(source, target):
    rules = table_between(source, target).rules
    for names in ([n for rule in rules for n in rule.sources], [n for rule in rules for n in rule.targets]):
        assert len(names) == len(set(names))


def test_rules_read_as_documented():
    layer = "encoder.layers.[layer].self_attn."
    rule = Rule(
        ("transformer.layers.[layer].attn.in_proj.[parameter]",),
        (layer + "q_proj.[parameter]", layer + "k_proj.[parameter]", layer + "v_proj.[parameter]"),
    )
    to_dense, to_source = table_between("source", "dense"), table_between("dense", "source")
    assert rule in to_dense.rules
    assert Rule(rule.targets, rule.sources) in to_source.rules
    assert Rule(("conv1.weight",), ("embeddings.patch_embedding.weight",)) in to_dense.rules


def test_a_stack_stays_whole_or_in_parts_within_one_layout():
    for layout in LAYOUTS:
        assert all(rule.sources == rule.targets for rule in table_between(layout, layout).rules)


def test_drops_have_reasons_and_no_placeholders():
    for name, reason in table_between("source", "dense").drops:
        assert reason and not re.search(r"[\[\]*]", name)


def test_unknown_layout_is_named():
    with pytest.raises(ValueError, match="'flax'"):
        table_between("source", "flax")
