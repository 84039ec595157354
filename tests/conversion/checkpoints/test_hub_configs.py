# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""`hub_configs/` says what the classes produce, and what a named conversion takes from it."""

import json
from dataclasses import asdict

import pytest
import torch
from transformers.dynamic_module_utils import custom_object_save

from conversion.checkpoints.checkpoint import Checkpoint
from conversion.checkpoints.convert import expected_shapes
from conversion.checkpoints.hub_configs import (
    CARD_FIELDS,
    FOLDER,
    fitting_variant,
    read_card_data,
    read_config,
    read_processor,
    variant_names,
)
from conversion.checkpoints.model_folder_writer import MODEL_CLASSES, build_processor
from conversion.checkpoints.source_config import infer_source_config, model_config
from conversion.checkpoints.variants import VARIANTS
from conversion.source.encoder import SourceConfig


# Heads and epsilons as the pretraining code has them, apart from the files under test.
HEADS = {
    "llava_vit_small_ln": 6,
    "llava_vit_base_ln": 12,
    "llava_vit_base_rms": 12,
    "llava_vit_large_ln": 16,
    "llava_vit_huge_ln": 20,
    "llava_vit_giant_ln": 16,
}
# Depends on the checkpoint, or on the version that writes.
UNSTORED = ("dtype", "torch_dtype", "transformers_version", "processor_class")


def written(path):
    return {key: value for key, value in json.loads(path.read_text()).items() if key not in UNSTORED}


@pytest.mark.parametrize("layout", ["dense", "packing"])
@pytest.mark.parametrize("name", HEADS)
def test_files_are_what_the_classes_write(name, layout, tmp_path):
    config = model_config(SourceConfig(**VARIANTS[name]), layout)
    with torch.device("meta"):
        custom_object_save(MODEL_CLASSES[layout](config), tmp_path, config=config)
    config.save_pretrained(tmp_path)
    processor = build_processor(config, layout)
    processor.save_pretrained(tmp_path)
    assert read_config(name, layout) == written(tmp_path / "config.json")
    # transformers 4 writes what is None, transformers 5 does not.
    stored = {key: value for key, value in written(tmp_path / "preprocessor_config.json").items() if value is not None}
    assert read_processor(name, layout) == stored


def test_every_variant_has_its_folder_and_nothing_else_is_there():
    assert set(variant_names()) == set(HEADS) == set(VARIANTS)
    files = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    names = ("config.json", "preprocessor_config.json")
    expected = {f"{name}/{layout}/{file}" for name in HEADS for layout in ("dense", "packing") for file in names}
    assert files == expected | {f"{name}/card.json" for name in HEADS}
    assert all(set(read_card_data(name)) == set(CARD_FIELDS) for name in HEADS)


@pytest.mark.parametrize(("name", "heads"), HEADS.items())
def test_a_name_supplies_heads_and_epsilons(name, heads):
    config = SourceConfig(**VARIANTS[name])
    assert config.num_attention_heads == heads
    assert config.norm_eps == (1.1920929e-07 if name.endswith("rms") else 1e-5)
    assert config.head_norm_eps == 1.1920929e-07
    assert fitting_variant(read_config(name, "packing")) == name


def test_epsilons_of_a_named_checkpoint_are_read_from_the_files(monkeypatch):
    shapes = expected_shapes("source", SourceConfig(**VARIANTS["llava_vit_small_ln"]))
    weights = {name: torch.empty(1).expand(shape) for name, shape in shapes.items()}
    checkpoint = Checkpoint.from_state_dict(weights)
    monkeypatch.setitem(VARIANTS, "llava_vit_small_ln", VARIANTS["llava_vit_small_ln"] | {"norm_eps": 0.5})
    assert infer_source_config(checkpoint, "llava_vit_small_ln").norm_eps == 0.5
    assert infer_source_config(checkpoint, "auto", num_attention_heads=6).norm_eps == 1e-5
    stored = asdict(SourceConfig(**VARIANTS["llava_vit_small_ln"])) | {"layer_norm_eps": 1e-6}
    with_config = Checkpoint.from_state_dict(weights, {k: v for k, v in stored.items() if k != "norm_eps"})
    assert infer_source_config(with_config, "llava_vit_small_ln").norm_eps == 1e-6


def test_other_sizes_fit_no_variant():
    config = read_config("llava_vit_base_ln", "dense")
    assert fitting_variant(config) == "llava_vit_base_ln"
    assert fitting_variant(config | {"num_attention_heads": 6}) is None
    assert fitting_variant({}) is None
