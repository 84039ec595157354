# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Both models against the oracle on peaked weights, for every shape of encoder the variants have."""

import pytest
import torch

from conversion.checkpoints.checkpoint import Checkpoint
from conversion.checkpoints.convert import converted_state_dict
from conversion.checkpoints.rename_tables import table_between
from conversion.checkpoints.source_config import model_config
from conversion.common.metrics import Bounds, compare
from conversion.source.encoder import SourceConfig, SourceEncoder
from conversion.source.peaked_weights import peaked_state_dict
from llava_vit_hf import LlavaViTModel, LlavaViTPackingModel
from llava_vit_hf.grid_llava_vit import frame_positions, patchify, temporal_positions


BOUNDS = Bounds(relative_error=2e-5, max_abs=5e-4)
ENCODERS = {
    "head dim 64, LayerNorm, patch 14": SourceConfig(128, 2, 4, 256, 14),
    "head dim 96, RMSNorm, patch 16": SourceConfig(192, 2, 4, 384, 16, layer_norm_type="rms_norm"),
    "head dim 32, LayerNorm, patch 14, no head": SourceConfig(64, 2, 3, 128, 14, use_head=False),
}


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_converted_models_match_the_oracle(name):
    config = ENCODERS[name]
    weights = peaked_state_dict(config)
    oracle = SourceEncoder.from_state_dict(config, weights)
    checkpoint = Checkpoint.from_state_dict(weights)
    models = []
    for layout, model_class in (("dense", LlavaViTModel), ("packing", LlavaViTPackingModel)):
        model = model_class(model_config(config, layout)).eval()
        table = table_between("source", layout)
        model.load_state_dict(converted_state_dict(checkpoint, table, model.config), strict=True)
        models.append(model)
    dense, packing = models

    size = config.patch_size
    clip = torch.randn(3, 4, 5 * size + 3, 4 * size + 1, generator=torch.Generator().manual_seed(1))
    positions = frame_positions(temporal_positions(4), 5, 4)
    expected = oracle(clip, positions=positions)
    alone = dense(clip[None], patch_positions=positions[None], output_hidden_states=True)
    patches = patchify(clip.transpose(0, 1), size).flatten(0, 1)
    packed = packing(patches, torch.tensor([[4, 5, 4]]), positions, output_hidden_states=True)
    for output in (alone, packed):
        states = [*output.hidden_states, output.last_hidden_state]
        for actual, reference in zip(states, [*expected["hidden_states"], expected["last_hidden_state"]], strict=True):
            assert BOUNDS.check(compare(actual.reshape(reference.shape), reference)) == []
        if config.use_head:
            assert BOUNDS.check(compare(output.pooler_output, expected["pooled"])) == []
        else:
            assert output.pooler_output is None

    # A negative control: the bounds see another epsilon.
    for module in dense.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-4
    wrong = dense(clip[None], patch_positions=positions[None]).last_hidden_state
    assert BOUNDS.check(compare(wrong, expected["last_hidden_state"])) != []
