# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Small checkpoints of VLMs with a tower, in shards, under the names that the released ones have.

What these names are is written out here, apart from the tables of the conversion, so that a wrong row there shows.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from conversion.source.encoder import SourceConfig
from conversion.source.peaked_weights import peaked_state_dict


PREFIX = "model.visual."
WIDTH = 48
"""Channels of the language model."""

_NAMES = (
    ("conv1.", "embeddings.patch_embedding."),
    ("ln_pre.", "layernorm_pre."),
    ("ln_post.", "layernorm_post."),
    ("transformer.layers.", "encoder.layers."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".attn.in_proj.", ".self_attn.qkv."),
    (".attn.out_proj.", ".self_attn.proj."),
)


def small_tower(**overrides) -> SourceConfig:
    """Two layers of two heads, windows of 3 frames, blocks of 2 x 2, and a merger to `WIDTH` channels."""
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 96}
    kind = {"use_head": False, "use_post_norm": False, "temporal_rule": "index", "patch_size": 14}
    kind |= {"norm_eps": 1e-6, "head_norm_eps": 1e-6}
    kind |= {"attention_window": 3, "merge_size": 2, "merger_output_size": WIDTH}
    return SourceConfig(**(sizes | kind | overrides))


def tower_name(name: str) -> str:
    """Of a parameter of the oracle, below the prefix."""
    for ours, theirs in _NAMES:
        name = name.replace(ours, theirs)
    if name.startswith("encoder.layers."):
        name = name.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.2.", ".mlp.fc2.")
    return name


def vlm_weights(config: SourceConfig, dtype: torch.dtype = torch.bfloat16, separate: bool = False) -> dict:
    """All tensors of a VLM: a language model's around those of the tower.

    Args:
        separate: queries, keys and values have projections of their own, as in the encoder's own repo.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (64, WIDTH))
    shapes |= {f"model.layers.{layer}.mlp.up_proj.weight": (96, WIDTH) for layer in range(12)}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, tensor in peaked_state_dict(config).items():
        name = PREFIX + tower_name(name)
        if separate and ".self_attn.qkv." in name:
            parts = zip("qkv", tensor.chunk(3), strict=True)
            weights |= {name.replace("qkv", f"{part}_proj"): rows.clone() for part, rows in parts}
        else:
            weights[name.replace(".self_attn.proj.", ".self_attn.out_proj.") if separate else name] = tensor
    return {name: tensor.to(dtype) for name, tensor in weights.items()}


def vlm_config(config: SourceConfig, model_type: str = "llava_onevision2") -> dict:
    """The VLM's `config.json`."""
    vision = {
        "model_type": "onevision_encoder",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "patch_size": config.patch_size,
        "image_size": 56,
        "hidden_act": "gelu",
        "layer_norm_eps": config.norm_eps,
        "use_head": config.use_head,
        "frame_windows_size": config.attention_window,
        "spatial_merge_size": config.merge_size,
        "out_hidden_size": config.merger_output_size,
    }
    return {"model_type": model_type, "vision_config": vision, "text_config": {"hidden_size": WIDTH}}


def write_vlm(folder: Path, config: SourceConfig, shards: int = 4, **weights) -> Path:
    """A VLM's folder: the tower's tensors in the last shards, the language model's in the first, and in one both."""
    folder.mkdir()
    tensors = vlm_weights(config, **weights)
    names = sorted(tensors, key=lambda name: (name.startswith(PREFIX), name))
    files = {
        name: f"model-{place * shards // len(names) + 1:05}-of-{shards:05}.safetensors"
        for place, name in enumerate(names)
    }
    for file in sorted(set(files.values())):
        part = {name: tensors[name] for name in names if files[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (folder / "config.json").write_text(json.dumps(vlm_config(config)))
    (folder / "tokenizer.json").write_text("{}")
    return folder
