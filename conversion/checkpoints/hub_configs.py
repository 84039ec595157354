# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Reads `hub_configs/`: what a named variant looks like on the Hub.

One folder per variant: `dense/` and `packing/` with `config.json` and `preprocessor_config.json`, and `card.json` with
the license, base model and tags of its model card.
"""

import functools
import json
from pathlib import Path


FOLDER = Path(__file__).resolve().parents[2] / "hub_configs"
CARD_FIELDS = ("license", "base_model", "tags")


def variant_names() -> tuple[str, ...]:
    """The variants that have a folder, by hidden size."""
    names = [path.parent.name for path in FOLDER.glob("*/card.json")]
    return tuple(sorted(names, key=lambda name: (read_config(name, "dense")["hidden_size"], name)))


def read_config(name: str, layout: str) -> dict:
    """The `config.json` of a variant's model, without the dtype and the version of transformers."""
    return _read(name, layout, "config.json")


def read_processor(name: str, layout: str) -> dict:
    """The `preprocessor_config.json` of a variant's model."""
    return _read(name, layout, "preprocessor_config.json")


def read_card_data(name: str) -> dict:
    """License, base model (None where there is none) and tags of a variant's model card."""
    return _read(name, "card.json")


def fitting_variant(config: dict) -> str | None:
    """The variant whose dense `config.json` has the sizes and norms of `config`; None if there is none.

    Args:
        config: the `config.json` of a dense or packing model.
    """
    fields = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "patch_size")
    fields += ("layer_norm_type",)
    for name in variant_names():
        row = read_config(name, "dense")
        if all(config.get(field) == row[field] for field in fields):
            return name
    return None


def _read(*parts: str) -> dict:
    # A copy, so that no caller can change what the next one reads.
    return json.loads(_text(FOLDER.joinpath(*parts)))


@functools.cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
