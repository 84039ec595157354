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
from llava_vit_hf.grid_llava_vit import block_order, frame_positions, patchify, temporal_positions


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


@torch.no_grad()
def test_a_tower_matches_the_oracle_in_windows_and_blocks():
    """A clip of seven frames in windows of three, at raw frame numbers, its patches in blocks of two by two."""
    config = SourceConfig(
        **{"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 128},
        **{"patch_size": 4, "use_head": False, "use_post_norm": False, "attention_window": 3, "merge_size": 2},
        merger_output_size=24,
    )
    weights = peaked_state_dict(config)
    oracle = SourceEncoder.from_state_dict(config, weights)
    names = {"merge_size": 2, "merger_output_size": 24, "attention_window": 3, "use_post_norm": False}
    plain = SourceConfig(64, 2, 3, 128, 4, use_head=False)
    target = model_config(plain, "packing")
    for name, value in names.items():
        setattr(target, name, value)
    model = LlavaViTPackingModel(target).eval()
    own = {name: tensor for name, tensor in weights.items() if not name.startswith("merger.")}
    # A tower has no norm there, so the table gets one to rename, which is left out again.
    own |= {"ln_post.weight": torch.ones(64), "ln_post.bias": torch.zeros(64)}
    renamed = converted_state_dict(
        Checkpoint.from_state_dict(own), table_between("source", "packing"), model_config(plain, "packing")
    )
    state = {name: tensor for name, tensor in renamed.items() if not name.startswith("layernorm_post")}
    model.load_state_dict({**state, **{name: weights[name] for name in weights if name.startswith("merger.")}})

    clip = torch.randn(3, 7, 16, 24, generator=torch.Generator().manual_seed(1))
    raster = frame_positions(torch.tensor([0, 5, 6, 20, 21, 50, 90]), 4, 6)
    expected = oracle(clip, positions=raster)
    patches = patchify(clip.transpose(0, 1), 4).flatten(0, 1)

    def run(order: torch.Tensor):
        found = model(patches[order], torch.tensor([[7, 4, 6]]), raster[order], output_hidden_states=True)
        return [*found.hidden_states, found.last_hidden_state], found.merged_hidden_state

    blocks = block_order([7, 4, 6], 2)
    states, merged = run(blocks)
    for actual, reference in zip(states, [*expected["hidden_states"], expected["last_hidden_state"]], strict=True):
        assert BOUNDS.check(compare(actual, reference[0][blocks])) == []
    assert BOUNDS.check(compare(merged, expected["merged"][0])) == []
    # Negative controls: rows in another order, and another window.
    assert BOUNDS.check(compare(run(torch.arange(168))[1], expected["merged"][0])) != []
    model.config.attention_window = 4
    assert BOUNDS.check(compare(run(blocks)[0][-1], expected["last_hidden_state"][0][blocks])) != []
