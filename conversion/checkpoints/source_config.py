# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What a checkpoint is, told from its weights; what they cannot tell, from a variant's name or a `config.json`."""

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from conversion.checkpoints.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from conversion.checkpoints.hub_configs import SIZES, fitting_variants, read_architecture, variant_names
from conversion.checkpoints.rename_tables import (
    CONFIG_ARCHITECTURE,
    CONFIG_DROPPED,
    CONFIG_KEPT,
    CONFIG_KEPT_PACKING,
    CONFIG_REQUIRED,
    CONFIG_TOWER,
    CONTEXT_FRAMES,
    MODEL_TYPE_LAYOUTS,
    table_between,
)
from conversion.checkpoints.renaming import rename
from conversion.source.encoder import SourceConfig
from llava_vit_hf import LlavaViTConfig, LlavaViTPackingConfig


AUTO = "auto"

_DEFAULT_STORED_EPS = 1e-6
# Of `SourceConfig`, beside the number of heads.
_NOT_IN_WEIGHTS = ("norm_eps", "head_norm_eps", "rope_theta", "attention_window", "merge_size", "temporal_rule")
_UNKNOWN_FIELD = "not a field of this encoder's configuration"


@dataclass(frozen=True)
class Source:
    """What a conversion starts from, opened once: the weights, and the configuration that they turned out to have."""

    checkpoint: Checkpoint
    config: SourceConfig


def read_source(
    weights: str | Path,
    revision: str | None = None,
    model_name: str = AUTO,
    num_attention_heads: int | None = None,
    layout: str | None = None,
    prefix: str = "",
    with_merger: bool = True,
) -> Source:
    """Opens a checkpoint, as `read_checkpoint`, and tells its configuration, as `infer_source_config`.

    Args:
        layout: that the weights must have; None takes any.
        prefix: of the encoder's names in a larger model.
        with_merger: whether a merger beside the encoder is part of it.

    Raises:
        CheckpointError: as these two, and for weights of another layout.
    """
    checkpoint = read_checkpoint(weights, revision, prefix=prefix)
    if layout is not None and checkpoint.layout != layout:
        raise CheckpointError(
            f"{weights} holds {checkpoint.layout} weights, expected a {layout} model folder. "
            "convert_llava_vit_to_hf.py and convert_llava_vit_packing_to_hf.py take any layout."
        )
    return Source(checkpoint, infer_source_config(checkpoint, model_name, num_attention_heads, with_merger))


def infer_source_config(
    checkpoint: Checkpoint,
    model_name: str = AUTO,
    num_attention_heads: int | None = None,
    with_merger: bool = True,
) -> SourceConfig:
    """Tells the configuration of a checkpoint of any layout.

    Sizes, the type of norm and whether there is a head come from the weights. The number of heads, which weights
    cannot tell, comes from the variant's name, from the `config.json` beside the weights, or from the argument.
    Epsilons are those of `config.json` where there is one, else those of the named variant in `hub_configs`; with
    `"auto"` the pretraining code's.

    Args:
        model_name: a variant's name, or `"auto"`.
        num_attention_heads: needed with `"auto"` for a checkpoint without `config.json`.
        with_merger: whether a merger that is there counts.

    Raises:
        CheckpointError: if the name is unknown, any two of weights, name, `config.json` and argument contradict each
            other (both are named), the number of heads is given nowhere, the head dim is no multiple of 32, or the
            weights have shapes that no such encoder has.
    """
    sizes = _sizes_from_weights(checkpoint)
    if not with_merger:
        sizes["merger_output_size"] = None
    claims, named = [], {}
    if model_name != AUTO:
        if model_name not in variant_names():
            raise CheckpointError(
                f"model_name {model_name!r} is unknown. Expected one of {', '.join(variant_names())}, or {AUTO!r} "
                "with num_attention_heads."
            )
        named = read_architecture(model_name)
        claims.append((f"model_name {model_name}", named))
    stored = stored_architecture(checkpoint)
    if not with_merger:
        stored.pop("merger_output_size", None)
    if stored:
        claims.append((f"config.json of {checkpoint.location}", stored))
    if num_attention_heads is not None:
        claims.append(("num_attention_heads", {"num_attention_heads": num_attention_heads}))
    for origin, claim in claims:
        _require_agreement(origin, claim, sizes, checkpoint.location)
    heads = _agreed_heads(claims, checkpoint.location)
    supplied = named | stored
    extra = {name: supplied[name] for name in _NOT_IN_WEIGHTS if name in supplied}
    try:
        return SourceConfig(num_attention_heads=heads, **sizes, **extra)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.location}: {error}") from error


def stored_architecture(checkpoint: Checkpoint) -> dict:
    """The fields of a checkpoint's `config.json` under the names of `SourceConfig`; empty if it has none.

    Raises:
        CheckpointError: if a field has a value that this encoder does not know, or an epsilon is no positive number.
    """
    config = checkpoint.config
    if config is None:
        return {}
    model_type = config.get("model_type")
    if model_type is not None and MODEL_TYPE_LAYOUTS.get(str(model_type), "source") != checkpoint.layout:
        raise CheckpointError(
            f"config.json of {checkpoint.location} says model_type={model_type!r}, but the weights beside it have the "
            f"{checkpoint.layout} layout. Known model types: {MODEL_TYPE_LAYOUTS}."
        )
    for name, required in CONFIG_REQUIRED.items():
        if config.get(name, required) != required:
            raise CheckpointError(
                f"config.json of {checkpoint.location} says {name}={config[name]!r}; this encoder has {required!r}."
            )
    names = CONFIG_ARCHITECTURE | CONFIG_TOWER
    fields = {ours: config[theirs] for theirs, ours in names.items() if config.get(theirs) is not None}
    fields.setdefault("norm_eps", _DEFAULT_STORED_EPS)
    fields.setdefault("head_norm_eps", fields["norm_eps"])
    for name in ("norm_eps", "head_norm_eps", "rope_theta"):
        value = fields.get(name, 1.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise CheckpointError(
                f"config.json of {checkpoint.location}: {name} must be a positive number, found {value!r}."
            )
    for name in ("attention_window", "merge_size", "merger_output_size"):
        value = fields.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CheckpointError(
                f"config.json of {checkpoint.location}: {name} must be a positive integer, found {value!r}."
            )
    return fields


def model_config(
    source_config: SourceConfig, layout: str, stored: dict | None = None, dtype: torch.dtype | None = None
) -> LlavaViTConfig | LlavaViTPackingConfig:
    """The configuration of the dense or packing model that computes what `source_config` describes.

    Args:
        layout: `"dense"` or `"packing"`.
        stored: an existing `config.json`, whose other fields (`image_size`, ...) are carried over.
        dtype: of the weights that the configuration is written beside.

    Raises:
        CheckpointError: if the dense model cannot compute it.
    """
    if layout == "dense":
        refuse_tower(source_config, "the dense model does not have them")
    config_class, model_class = {
        "dense": (LlavaViTConfig, "LlavaViTModel"),
        "packing": (LlavaViTPackingConfig, "LlavaViTPackingModel"),
    }[layout]
    kept = CONFIG_KEPT + (CONFIG_KEPT_PACKING if layout == "packing" else ())
    fields = {name: stored[name] for name in kept if stored and name in stored}
    if fields.get("rope_temporal_size") is None:
        fields["rope_temporal_size"] = CONTEXT_FRAMES
    source = asdict(source_config)
    fields |= {theirs: source[ours] for theirs, ours in _architecture_of(layout).items()}
    return config_class(**fields, architectures=[model_class], dtype=dtype)


def refuse_tower(config: SourceConfig, reason: str) -> None:
    """Raises a CheckpointError for what only the towers of VLMs have, and only a packing folder keeps."""
    plain = {"attention_window": None, "merge_size": 1, "merger_output_size": None}
    for name, value in plain.items():
        if getattr(config, name) != value:
            raise CheckpointError(
                f"{name}={getattr(config, name)}: the weights are those of a VLM's tower, with windows of frames and "
                f"blocks of patches, and {reason}. Make a packing folder of them (convert_vlm_tower_to_hf.py), or put "
                "that back into its VLM (put_tower_into_vlm.py)."
            )


def dropped_config_fields(stored: dict | None, layout: str) -> dict[str, str]:
    """The fields of an existing `config.json` that `model_config` leaves out, each with the reason."""
    known = {*_architecture_of(layout), *CONFIG_KEPT, *CONFIG_REQUIRED}
    known |= set(CONFIG_KEPT_PACKING) if layout == "packing" else set()
    return {name: CONFIG_DROPPED.get(name, _UNKNOWN_FIELD) for name in stored or () if name not in known}


def _architecture_of(layout: str) -> dict[str, str]:
    """Fields of a layout's `config.json` to those of `SourceConfig`."""
    return CONFIG_ARCHITECTURE | (CONFIG_TOWER if layout == "packing" else {"use_post_norm": "use_post_norm"})


def _sizes_from_weights(checkpoint: Checkpoint) -> dict:
    """Everything of `SourceConfig` that shapes and names tell."""
    if checkpoint.layout == "source":
        shapes = {name: spec.shape for name, spec in checkpoint.specs.items()}
    else:
        renamed = rename(checkpoint, table_between(checkpoint.layout, "source"))
        shapes = {tensor.name: tensor.shape for tensor in renamed}
    patch = shapes["conv1.weight"]
    mlp = shapes.get("transformer.layers.0.mlp.0.weight", ())
    if len(patch) != 4 or patch[1] != 3 or patch[2] != patch[3] or len(mlp) != 2:
        raise CheckpointError(
            f"{checkpoint.location}: the patch embedding is {patch} and the first layer of the MLP {mlp}; expected "
            "(hidden_size, 3, patch_size, patch_size) and (intermediate_size, hidden_size)."
        )
    layers = {int(match.group(1)) for name in shapes if (match := re.match(r"transformer\.layers\.(\d+)\.", name))}
    if layers != set(range(len(layers))):
        absent = sorted(set(range(len(layers))) - layers)
        raise CheckpointError(f"{checkpoint.location} has {len(layers)} layers, but none numbered {absent[:5]}.")
    return {
        "hidden_size": patch[0],
        "num_hidden_layers": len(layers),
        "intermediate_size": mlp[0],
        "patch_size": patch[2],
        "layer_norm_type": "layer_norm" if "ln_pre.bias" in shapes else "rms_norm",
        "use_head": any(name.startswith("head.") for name in shapes),
        "use_post_norm": "ln_post.weight" in shapes,
        "merger_output_size": shapes.get("merger.mlp.2.weight", (None,))[0],
    }


def _require_agreement(origin: str, claim: dict, sizes: dict, location: str) -> None:
    wrong = [name for name in sizes if name in claim and claim[name] != sizes[name]]
    if wrong:
        said = ", ".join(f"{name}={claim[name]!r}" for name in wrong)
        found = ", ".join(f"{name}={sizes[name]!r}" for name in wrong)
        fitting = fitting_variants(sizes, [name for name in SIZES if name in sizes])
        advice = f"The weights fit {' or '.join(fitting)}." if fitting else "The weights fit no variant."
        raise CheckpointError(
            f"{origin} says {said}, but the weights of {location} have {found}. {advice} "
            f"For other sizes use model_name {AUTO!r} with num_attention_heads."
        )


def _agreed_heads(claims: list[tuple[str, dict]], location: str) -> int:
    heads = [(origin, claim["num_attention_heads"]) for origin, claim in claims if "num_attention_heads" in claim]
    if not heads:
        raise CheckpointError(
            f"{location}: the number of attention heads cannot be told from weights. Pass num_attention_heads "
            f"(--num_attention_heads), or as model_name one of {', '.join(variant_names())}."
        )
    for _, value in heads:
        if isinstance(value, bool) or not isinstance(value, int):
            raise CheckpointError(f"{location}: num_attention_heads must be an integer, found {value!r}.")
    if len({value for _, value in heads}) > 1:
        found = ", ".join(f"{value} by {origin}" for origin, value in heads)
        raise CheckpointError(f"{location}: the number of attention heads is contradictory: {found}.")
    return heads[0][1]
