# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What a checkpoint is: from its weights, its name, its config.json, and never from two that disagree."""

import pytest
import torch

from conversion.checkpoints.checkpoint import Checkpoint, CheckpointError
from conversion.checkpoints.convert import converted_state_dict
from conversion.checkpoints.rename_tables import table_between
from conversion.checkpoints.source_config import dropped_config_fields, infer_source_config, model_config
from tests.conversion.weights import peaked_state_dict, tiny_config


def checkpoint_of(config, stored=None) -> Checkpoint:
    return Checkpoint.from_state_dict(peaked_state_dict(config), config=stored)


def dense_checkpoint(config, stored) -> Checkpoint:
    source = checkpoint_of(config)
    dense = converted_state_dict(source, table_between("source", "dense"), model_config(config, "dense"))
    return Checkpoint.from_state_dict(dense, config=stored)


STORED = {"model_type": "llava_vit", "num_attention_heads": 2, "hidden_size": 64, "layer_norm_eps": 1e-6}


@pytest.mark.parametrize(
    "overrides", [{}, {"layer_norm_type": "rms_norm"}, {"use_head": False}, {"patch_size": 7, "num_hidden_layers": 3}]
)
def test_everything_but_heads_comes_from_the_weights(overrides):
    config = tiny_config(**overrides)
    assert infer_source_config(checkpoint_of(config), "auto", num_attention_heads=2) == config


def test_heads_must_be_given():
    with pytest.raises(CheckpointError, match="num_attention_heads"):
        infer_source_config(checkpoint_of(tiny_config()))


@pytest.mark.parametrize("heads, message", [(4, "multiple of 32"), (3, "does not divide"), (0, "does not divide")])
def test_heads_that_cannot_be(heads, message):
    with pytest.raises(CheckpointError, match=message):
        infer_source_config(checkpoint_of(tiny_config()), "auto", heads)


def test_a_name_that_contradicts_the_weights_is_named_with_them():
    with pytest.raises(CheckpointError, match="llava_vit_base_ln says .*hidden_size=768.*have .*hidden_size=64"):
        infer_source_config(checkpoint_of(tiny_config()), "llava_vit_base_ln")
    small = tiny_config(
        hidden_size=384, num_attention_heads=6, num_hidden_layers=6, intermediate_size=1536, patch_size=16
    )
    meta = {name: torch.empty(1).expand(tensor.shape) for name, tensor in peaked_state_dict(small).items()}
    checkpoint = Checkpoint.from_state_dict(meta)
    assert infer_source_config(checkpoint, "llava_vit_small_ln") == small
    with pytest.raises(CheckpointError, match="The weights fit llava_vit_small_ln"):
        infer_source_config(checkpoint, "llava_vit_large_ln")
    with pytest.raises(CheckpointError, match="contradictory: 6 by model_name llava_vit_small_ln, 12 by num_att"):
        infer_source_config(checkpoint, "llava_vit_small_ln", 12)


def test_unknown_names_are_answered_with_the_known():
    with pytest.raises(CheckpointError, match="'vit_tiny' is unknown.*llava_vit_giant_ln"):
        infer_source_config(checkpoint_of(tiny_config()), "vit_tiny")


@pytest.mark.parametrize("model_type", ["llava_vit", "onevision_encoder"])
def test_an_existing_folder_keeps_what_its_config_says(model_type):
    stored = STORED | {"model_type": model_type, "rope_temporal_size": 64, "image_size": 336, "spatial_merge_size": 1}
    checkpoint = dense_checkpoint(tiny_config(), stored)
    config = infer_source_config(checkpoint)
    assert (config.num_attention_heads, config.norm_eps, config.head_norm_eps) == (2, 1e-6, 1e-6)
    target = model_config(config, "packing", checkpoint.config, torch.bfloat16)
    assert (target.image_size, target.spatial_merge_size, target.layer_norm_eps) == (336, 1, 1e-6)
    assert "bfloat16" in str(target.dtype)
    dropped = dropped_config_fields(checkpoint.config, "packing")
    assert dropped.keys() == {"model_type"}
    assert "spatial_merge_size" in dropped_config_fields(checkpoint.config, "dense")


def test_a_head_epsilon_of_its_own_is_carried():
    checkpoint = dense_checkpoint(tiny_config(), STORED | {"head_norm_eps": 1.1920929e-07})
    config = infer_source_config(checkpoint)
    target = model_config(config, "dense", checkpoint.config)
    assert (target.layer_norm_eps, target.head_norm_eps) == (1e-6, 1.1920929e-07)


def test_the_pretraining_codes_epsilons_are_carried():
    config = infer_source_config(checkpoint_of(tiny_config()), "auto", 2)
    for layout in ("dense", "packing"):
        target = model_config(config, layout)
        assert (target.layer_norm_eps, target.head_norm_eps) == (1e-5, 1.1920929e-07)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_size": 128}, "hidden_size=128, but the weights"),
        ({"layer_norm_type": "rms_norm"}, "layer_norm_type='rms_norm', but"),
        ({"use_head": False}, "use_head=False, but"),
        ({"hidden_act": "quick_gelu"}, "hidden_act='quick_gelu'; this encoder has 'gelu'"),
        ({"layer_norm_eps": "1e-6"}, "norm_eps must be a positive number, found '1e-6'"),
        ({"head_norm_eps": -1.0}, "head_norm_eps must be a positive number"),
        ({"num_attention_heads": "2"}, "must be an integer, found '2'"),
        ({"model_type": "llava_vit_packing"}, "model_type='llava_vit_packing', but the weights"),
        ({"model_type": "siglip_vision_model"}, "model_type='siglip_vision_model', but the weights"),
    ],
)
def test_a_config_that_contradicts_the_weights(change, message):
    with pytest.raises(CheckpointError, match=message):
        infer_source_config(dense_checkpoint(tiny_config(), STORED | change))


def test_argument_against_config():
    with pytest.raises(CheckpointError, match="2 by config.json.*1 by num_attention_heads"):
        infer_source_config(dense_checkpoint(tiny_config(), STORED), num_attention_heads=1)


def test_weights_with_impossible_shapes():
    weights = peaked_state_dict(tiny_config())
    for name, shape in (("conv1.weight", (64, 3, 4, 5)), ("transformer.layers.0.mlp.0.weight", (96,))):
        with pytest.raises(CheckpointError, match="patch embedding"):
            infer_source_config(Checkpoint.from_state_dict(weights | {name: torch.zeros(shape)}), "auto", 2)


def test_a_gap_in_the_layers_is_named():
    weights = peaked_state_dict(tiny_config()) | {"transformer.layers.99999999.ln_1.weight": torch.zeros(64)}
    with pytest.raises(CheckpointError, match=r"3 layers, but none numbered \[2\]"):
        infer_source_config(Checkpoint.from_state_dict(weights), "auto", 2)
