# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Weights of any layout under the oracle's names, apart from the rename tables.

The conversion goes by the tables, so the oracle must not: a wrong row would then be wrong on both sides and cancel.
What this file knows of the names it knows by itself.
"""

import torch

from conversion.checkpoints.checkpoint import Checkpoint


# Endings inside a layer: of the dense and packing layouts, and of the source.
_LAYER_ENDINGS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
    "self_attn.qkv": "attn.in_proj",
    "self_attn.proj": "attn.out_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_TOP = {
    "embeddings.patch_embedding": "conv1",
    "patch_embed.proj": "conv1",
    "layernorm_pre": "ln_pre",
    "layernorm_post": "ln_post",
}


def oracle_weights(
    checkpoint: Checkpoint, stored_dtype: torch.dtype | None = None, with_merger: bool = True
) -> dict[str, torch.Tensor]:
    """The state dict for `SourceEncoder`.

    Args:
        stored_dtype: the dtype that the converted weights were stored in; the oracle's are rounded to it, so that
            what is compared is the computation and not that rounding.
        with_merger: whether the oracle has the merger that may be there.
    """
    names = [name for name in checkpoint.specs if "inv_freq" not in name]
    if not with_merger:
        names = [name for name in names if not name.startswith("merger.")]
    if checkpoint.layout == "source":
        weights = {name: checkpoint.tensor(name) for name in names}
    else:
        weights = {}
        for name in names:
            if ".self_attn.k_proj." in name or ".self_attn.v_proj." in name:
                continue
            if ".self_attn.q_proj." in name:
                parts = [checkpoint.tensor(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
                weights[_source_name(name.replace("q_proj", "qkv"))] = torch.cat(parts)
            else:
                weights[_source_name(name)] = checkpoint.tensor(name)
    if stored_dtype is not None:
        weights = {name: tensor.to(stored_dtype) for name, tensor in weights.items()}
    return weights


def _source_name(name: str) -> str:
    if name.startswith(("head.", "merger.")):
        return name
    stem, parameter = name.rsplit(".", 1)
    if stem.startswith("encoder.layers."):
        _, _, number, ending = stem.split(".", 3)
        return f"transformer.layers.{number}.{_LAYER_ENDINGS[ending]}.{parameter}"
    return f"{_TOP[stem]}.{parameter}"
