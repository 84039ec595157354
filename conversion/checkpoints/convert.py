# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The conversion engine: a checkpoint, a table of names, a folder of weights."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from conversion.checkpoints.checkpoint import FLOAT_DTYPES, Checkpoint, CheckpointError
from conversion.checkpoints.rename_tables import DROPPED_PARAMETERS, Table
from conversion.checkpoints.renaming import check_coverage, dropped_names, rename
from conversion.checkpoints.weights_writer import TensorToWrite, write_weights
from conversion.source.encoder import SourceConfig, SourceEncoder
from llava_vit_hf import LlavaViTConfig, LlavaViTModel, LlavaViTPackingConfig, LlavaViTPackingModel


_MODEL_CLASSES = {
    "source": (SourceConfig, SourceEncoder),
    "dense": (LlavaViTConfig, LlavaViTModel),
    "packing": (LlavaViTPackingConfig, LlavaViTPackingModel),
}


@dataclass(frozen=True)
class ConversionSummary:
    """What `convert_weights` did. `dropped` maps names of the checkpoint that were left out to the reason."""

    files: tuple[Path, ...]
    dtype: torch.dtype
    num_tensors: int
    total_bytes: int
    dropped: dict[str, str]


def expected_shapes(
    layout: str, config: SourceConfig | LlavaViTConfig | LlavaViTPackingConfig
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the state dict of a layout's model, built without memory for its weights.

    Raises:
        TypeError: if `config` is not the layout's class of configuration.
    """
    config_class, model_class = _MODEL_CLASSES[layout]
    if type(config) is not config_class:
        raise TypeError(
            f"config must be a {config_class.__name__} for the {layout} layout, found {type(config).__name__}."
        )
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in model_class(config).state_dict().items()}


def convert_weights(
    checkpoint: Checkpoint,
    table: Table,
    config: SourceConfig | LlavaViTConfig | LlavaViTPackingConfig,
    output_dir: str | Path,
    dtype: torch.dtype | str | None = None,
    max_shard_size: int | str = "5GB",
) -> ConversionSummary:
    """Converts a checkpoint into safetensors files, tensor by tensor.

    Args:
        config: of the target's class; what the weights must fit.
        output_dir: gets `model.safetensors`, or shards and `model.safetensors.index.json` above `max_shard_size`.
        dtype: of the written weights, also by name; None keeps the checkpoint's, which must then be one.

    Raises:
        CheckpointError: as `rename` and `check_coverage`, for weights that are NaN or infinite, and for mixed dtypes
            without `dtype`.
        FileExistsError: if the folder holds weights already.
        OSError: if writing fails; nothing is left behind.
    """
    renamed = rename(checkpoint, table)
    check_coverage(renamed, expected_shapes(table.target_layout, config), checkpoint.location)
    dtype = resolve_dtype(checkpoint, dtype)
    tensors = [TensorToWrite(tensor.name, tensor.shape, tensor.load) for tensor in renamed]
    files = write_weights(tensors, output_dir, dtype, max_shard_size)
    return ConversionSummary(
        files=tuple(files),
        dtype=dtype,
        num_tensors=len(renamed),
        total_bytes=sum(torch.Size(tensor.shape).numel() * dtype.itemsize for tensor in renamed),
        dropped=dropped_names(checkpoint, table),
    )


def converted_state_dict(
    checkpoint: Checkpoint,
    table: Table,
    config: SourceConfig | LlavaViTConfig | LlavaViTPackingConfig,
    dtype: torch.dtype | str | None = None,
) -> dict[str, torch.Tensor]:
    """Converts a checkpoint in memory; the errors of `convert_weights` for names, shapes and dtypes.

    Tensors that needed neither a cast nor stacking still belong to the checkpoint: do not write to them.
    """
    renamed = rename(checkpoint, table)
    check_coverage(renamed, expected_shapes(table.target_layout, config), checkpoint.location)
    dtype = resolve_dtype(checkpoint, dtype)
    return {tensor.name: tensor.load().to(dtype) for tensor in renamed}


def resolve_dtype(checkpoint: Checkpoint, dtype: torch.dtype | str | None) -> torch.dtype:
    """The dtype to convert to: the one asked for, or the checkpoint's own.

    Raises:
        CheckpointError: if none is asked for and the checkpoint mixes several; they are listed with examples.
        ValueError: if `dtype` is unknown.
    """
    if isinstance(dtype, str):
        if dtype not in FLOAT_DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(FLOAT_DTYPES)}, found {dtype!r}.")
        return FLOAT_DTYPES[dtype]
    if dtype is not None:
        if dtype not in FLOAT_DTYPES.values():
            raise ValueError(f"dtype must be one of {', '.join(FLOAT_DTYPES)}, found {dtype}.")
        return dtype
    dtypes = {name: spec.dtype for name, spec in checkpoint.specs.items() if name not in dict(DROPPED_PARAMETERS)}
    counts = Counter(dtypes.values())
    if len(counts) > 1:
        examples = {kind: name for name, kind in dtypes.items()}
        found = ", ".join(f"{count} of {kind} (such as {examples[kind]})" for kind, count in counts.most_common())
        raise CheckpointError(f"{checkpoint.location} mixes dtypes: {found}. Choose one with dtype (--dtype).")
    return next(iter(counts))
