# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The planted faults of every user's verification: none is lost by accident, and each is well formed."""

import pytest

from conversion.verification.cases import BATCH
from conversion.verification.faults import FAULTS, Fault


# Written twice on purpose: a fault that goes must go here too. A new one is added here.
NAMES = {
    "height_width_swapped": "structural",
    "time_zeroed": "structural",
    "rows_shifted": "structural",
    "rotate_half": "structural",
    "query_key_exchanged": "structural",
    "leak": "structural",
    "epsilon": "numeric",
    "tanh_gelu": "numeric",
}


def test_these_faults_are_planted():
    assert [fault.name for fault in FAULTS] == list(dict.fromkeys(fault.name for fault in FAULTS))
    assert {fault.name: fault.kind for fault in FAULTS} == NAMES, "a fault came or went: say so in NAMES of this file"


def test_a_fault_changes_something():
    for fault in FAULTS:
        assert fault.edit_positions or fault.plant or fault.leak, fault.name


@pytest.mark.parametrize(("field", "value"), [("case", "image_typo"), ("kind", "numerical")])
def test_a_misspelt_case_or_kind_is_named_at_once(field, value):
    with pytest.raises(ValueError, match=f"fault mirrored: {field}='{value}', expected one of "):
        Fault(**{"name": "mirrored", "description": "columns mirrored", "case": BATCH, field: value})
