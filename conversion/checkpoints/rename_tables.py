# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Parameter and configuration names of the four layouts, as data.

`PARAMETERS` has one row per kind of parameter and one column per layout; every table between two layouts, and its
inverse, is derived from it. In a name, `[layer]` stands for a layer's number and `[parameter]` for `weight` or `bias`;
everything else is literal. A row that has three names in one column and one in another stacks q, k and v along axis 0:
going from one to three splits, from three to one concatenates.
"""

from dataclasses import dataclass


LAYOUTS = ("source", "dense", "packing", "tower")
"""Columns of `PARAMETERS`: `backbone.pt`, `LlavaViTModel` (and OneVision-Encoder), `LlavaViTPackingModel`, and what
VLMs have below `model.visual.`: LLaVA-OneVision-2, and with the very same names Mage-VL."""

_LAYER = "encoder.layers.[layer]."
_SOURCE_LAYER = "transformer.layers.[layer]."

MERGER = ("merger.ln_q.[parameter]", "merger.mlp.0.[parameter]", "merger.mlp.2.[parameter]")
"""What makes a VLM's tokens of a tower's; the dense model has none."""

_SAME_IN_ALL = (
    "head.probe",
    "head.attention.in_proj_[parameter]",
    "head.attention.out_proj.[parameter]",
    "head.norm.[parameter]",
    "head.mlp.fc1.[parameter]",
    "head.mlp.fc2.[parameter]",
    *MERGER,
)
_SAME_IN_CONVERTED = (
    ("ln_pre.[parameter]", "layernorm_pre.[parameter]"),
    (_SOURCE_LAYER + "ln_1.[parameter]", _LAYER + "layer_norm1.[parameter]"),
    (_SOURCE_LAYER + "ln_2.[parameter]", _LAYER + "layer_norm2.[parameter]"),
    (_SOURCE_LAYER + "mlp.0.[parameter]", _LAYER + "mlp.fc1.[parameter]"),
    (_SOURCE_LAYER + "mlp.2.[parameter]", _LAYER + "mlp.fc2.[parameter]"),
    ("ln_post.[parameter]", "layernorm_post.[parameter]"),
)

PARAMETERS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (
        ("conv1.weight",),
        ("embeddings.patch_embedding.weight",),
        ("patch_embed.proj.weight",),
        ("embeddings.patch_embedding.weight",),
    ),
    (
        (_SOURCE_LAYER + "attn.in_proj.[parameter]",),
        tuple(_LAYER + f"self_attn.{part}_proj.[parameter]" for part in "qkv"),
        *[(_LAYER + "self_attn.qkv.[parameter]",)] * 2,
    ),
    (
        (_SOURCE_LAYER + "attn.out_proj.[parameter]",),
        (_LAYER + "self_attn.out_proj.[parameter]",),
        *[(_LAYER + "self_attn.proj.[parameter]",)] * 2,
    ),
    *(((source,), *[(converted,)] * 3) for source, converted in _SAME_IN_CONVERTED),
    *(((name,),) * len(LAYOUTS) for name in _SAME_IN_ALL),
)

DROPPED_PARAMETERS: tuple[tuple[str, str], ...] = tuple(
    (name, "rotary frequencies are computed from the config in every forward pass, and never stored")
    for prefix in ("rope", "video_rope", "rotary_emb", "encoder.rope", "encoder.rotary_emb")
    for name in (f"{prefix}.inv_freq", *(f"{prefix}.inv_freq_{axis}" for axis in "thw"))
)
"""Tensors of old files that no layout holds, each with the reason."""

DROPPED_MERGER: tuple[tuple[str, str], ...] = tuple(
    (template.replace("[parameter]", parameter), "the merger is the VLM's, not the encoder's; --with_merger keeps it")
    for template in MERGER
    for parameter in ("weight", "bias")
)

LAYOUT_MARKERS = {
    "source": ("conv1.weight", "ln_pre.weight", "transformer.layers.0.attn.in_proj.weight"),
    "dense": (
        "embeddings.patch_embedding.weight",
        "layernorm_pre.weight",
        "encoder.layers.0.self_attn.q_proj.weight",
    ),
    "packing": ("patch_embed.proj.weight", "layernorm_pre.weight", "encoder.layers.0.self_attn.qkv.weight"),
    "tower": ("embeddings.patch_embedding.weight", "layernorm_pre.weight", "encoder.layers.0.self_attn.qkv.weight"),
}
"""Names that a state dict of the layout has, and one of another architecture has not, all of them."""


@dataclass(frozen=True)
class Rule:
    """Targets made of sources: one to one keeps a tensor, one to many splits it, many to one concatenates."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """The rules from one layout to another, and what is dropped on purpose: `(name, reason)`."""

    source_layout: str
    target_layout: str
    rules: tuple[Rule, ...]
    drops: tuple[tuple[str, str], ...] = DROPPED_PARAMETERS


def table_between(source_layout: str, target_layout: str, with_merger: bool = True) -> Table:
    """Derives the table between two of `LAYOUTS` from `PARAMETERS`.

    Args:
        with_merger: whether a merger is converted, or else dropped.

    Raises:
        ValueError: if a layout is unknown.
    """
    for layout in (source_layout, target_layout):
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {LAYOUTS}, found {layout!r}.")
    source, target = LAYOUTS.index(source_layout), LAYOUTS.index(target_layout)
    rules = []
    for row in PARAMETERS:
        if not with_merger and row[source][0] in MERGER:
            continue
        if len(row[source]) == len(row[target]):
            rules.extend(Rule((old,), (new,)) for old, new in zip(row[source], row[target], strict=True))
        else:
            rules.append(Rule(row[source], row[target]))
    drops = DROPPED_PARAMETERS + (() if with_merger else DROPPED_MERGER)
    return Table(source_layout, target_layout, tuple(rules), drops)


MODEL_TYPE_LAYOUTS = {"llava_vit": "dense", "onevision_encoder": "dense", "llava_vit_packing": "packing"}
"""Layout of the weights beside a `config.json`, by its `model_type`."""

CONFIG_ARCHITECTURE = {
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_hidden_layers": "num_hidden_layers",
    "intermediate_size": "intermediate_size",
    "patch_size": "patch_size",
    "layer_norm_type": "layer_norm_type",
    "layer_norm_eps": "norm_eps",
    "head_norm_eps": "head_norm_eps",
    "rope_theta": "rope_theta",
    "use_head": "use_head",
}
"""Fields of `config.json` that say what the encoder computes, to those of `SourceConfig`."""

CONFIG_TOWER = {
    name: name for name in ("use_post_norm", "attention_window", "merge_size", "merger_output_size", "temporal_rule")
}
"""The same, of those that only towers have; the dense model's `config.json` has the first alone."""

VISION_CONFIG = {
    "frame_windows_size": "attention_window",
    "spatial_merge_size": "merge_size",
    "out_hidden_size": "merger_output_size",
}
"""Fields of a VLM's `vision_config` that have other names in ours."""

VISION_DEFAULTS = {"attention_window": 4, "merge_size": 2}
"""What a `vision_config` means that does not say it."""

VISION_FIXED = {"temporal_rule": "index"}
"""What every such tower does: times are frame numbers. Whether it has a head and a last norm, its weights tell."""

TOWER_PREFIX = "model.visual."
"""What the names of a tower start with in the VLMs' checkpoints."""

CONFIG_KEPT = ("image_size", "attention_dropout", "initializer_range", "rope_temporal_size")
"""Fields carried over from an existing `config.json` as they are, for both models."""

CONTEXT_FRAMES = 64
"""`rope_temporal_size` where there is none to carry over: the frames of the pretraining context."""

CONFIG_KEPT_PACKING = ("spatial_merge_size", "temporal_patch_size")
"""The same, for the packing model only."""

CONFIG_REQUIRED = {"hidden_act": "gelu", "num_channels": 3}
"""Fields that, where present, must have this value: the encoder was trained with it and knows no other."""

CONFIG_DROPPED = {
    "model_type": "set by the class that is written",
    "architectures": "set by the class that is written",
    "auto_map": "names code of the old folder; written anew for the code that is shipped",
    "transformers_version": "set by the version that writes",
    "torch_dtype": "follows the weights that are written",
    "dtype": "follows the weights that are written",
    "_name_or_path": "a path of the machine that wrote the old folder",
}
"""Fields of an existing `config.json` that are dropped on purpose, each with the reason."""
