# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The oracle's own names: right for every layout, and not taken from the tables that it must be able to contradict."""

import subprocess
import sys

import pytest
import torch

from conversion.checkpoints.checkpoint import Checkpoint
from conversion.checkpoints.convert import converted_state_dict
from conversion.checkpoints.rename_tables import table_between
from conversion.checkpoints.source_config import model_config
from conversion.verification.oracle_weights import oracle_weights
from tests.conversion.scripts import ROOT
from tests.conversion.weights import peaked_state_dict, tiny_config


@pytest.mark.parametrize("layout", ["source", "dense", "packing"])
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_every_layout_gives_the_same_weights(layout, norm):
    config = tiny_config(layer_norm_type=norm)
    weights = peaked_state_dict(config)
    checkpoint = Checkpoint.from_state_dict(weights)
    if layout != "source":
        table = table_between("source", layout)
        checkpoint = Checkpoint.from_state_dict(converted_state_dict(checkpoint, table, model_config(config, layout)))
    found = oracle_weights(checkpoint)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_weights_are_rounded_to_what_was_stored_and_frequencies_left_out():
    weights = peaked_state_dict(tiny_config())
    found = oracle_weights(Checkpoint.from_state_dict(weights | {"rope.inv_freq_t": torch.zeros(2)}), torch.bfloat16)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], tensor.bfloat16()) for name, tensor in weights.items())


def test_oracle_and_worker_leave_the_project_code_alone():
    program = (
        "import sys; import conversion.verification.oracle_weights, conversion.source.encoder; "
        "assert 'conversion.checkpoints.renaming' not in sys.modules; "
        "import conversion.verification.worker; "
        "assert sys.modules['llava_vit_hf'] is None; "
        "assert not [name for name in sys.modules if name.startswith('llava_vit_hf.')]"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=300)


def test_neither_oracle_nor_its_weights_read_the_tables():
    for name in (
        "verification/oracle_weights",
        "source/encoder",
        "verification/cases",
        "verification/double_precision",
    ):
        text = (ROOT / "conversion" / f"{name}.py").read_text(encoding="utf-8")
        imports = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
        assert not [line for line in imports if "rename" in line or "renaming" in line or "llava_vit_hf" in line]
