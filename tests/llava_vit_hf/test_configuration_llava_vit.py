# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
import json

import pytest

from llava_vit_hf import LlavaViTConfig, LlavaViTPackingConfig


CLASSES = [LlavaViTConfig, LlavaViTPackingConfig]


@pytest.mark.parametrize("config_class", CLASSES)
def test_round_trip_keeps_every_field(config_class, tmp_path):
    config = config_class(hidden_size=192, num_attention_heads=2, rope_theta=500.0, head_norm_eps=1e-7, use_head=False)
    config.save_pretrained(tmp_path)
    loaded = config_class.from_pretrained(tmp_path)
    first, second = config.to_dict(), loaded.to_dict()
    assert {**first, "transformers_version": None} == {**second, "transformers_version": None}
    assert loaded.rope_theta == 500.0 and loaded.head_norm_eps == 1e-7 and loaded.use_head is False
    assert json.loads((tmp_path / "config.json").read_text())["rope_theta"] == 500.0


@pytest.mark.parametrize("config_class", CLASSES)
def test_head_norm_eps_follows_layer_norm_eps(config_class):
    assert config_class(layer_norm_eps=1e-5).head_norm_eps == 1e-5
    assert config_class(layer_norm_eps=1e-5, head_norm_eps=1e-7).head_norm_eps == 1e-7


@pytest.mark.parametrize("config_class", CLASSES)
def test_unknown_fields_of_old_folders_are_kept(config_class):
    config = config_class.from_dict({"spatial_merge_size": 2, "temporal_patch_size": 1, "rope_temporal_size": 64})
    assert config.to_dict()["spatial_merge_size"] == 2
    assert config.to_dict()["rope_temporal_size"] == 64


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 100, "num_attention_heads": 3}, "hidden_size=100 is not divisible by num_attention_heads=3"),
        ({"hidden_size": 96, "num_attention_heads": 2}, "= 48 must be a multiple of 32"),
        ({"hidden_size": 0}, "hidden_size must be a positive integer, found 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be a positive integer, found -1"),
        ({"patch_size": 14.0}, "patch_size must be a positive integer, found 14.0"),
        ({"num_attention_heads": True}, "num_attention_heads must be a positive integer"),
        ({"layer_norm_type": "batch_norm"}, "layer_norm_type must be one of"),
        ({"hidden_act": "gelo"}, "hidden_act must be one of"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps must be a positive number"),
        ({"rope_theta": float("nan")}, "rope_theta must be a positive number"),
        ({"attention_dropout": 1.5}, r"attention_dropout must be in \[0, 1\)"),
    ],
)
@pytest.mark.parametrize("config_class", CLASSES)
def test_impossible_values_are_named(config_class, fields, message):
    with pytest.raises(ValueError, match=message):
        config_class(**fields)
