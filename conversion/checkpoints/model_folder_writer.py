# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""From a checkpoint to a complete model folder: weights, configuration, code and processor, all or nothing.

Everything is made in a hidden folder beside the final one and renamed at the end, so that under its final name a
folder is either absent or complete.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.dynamic_module_utils import custom_object_save

from conversion.checkpoints.checkpoint import CheckpointError, stored_processor
from conversion.checkpoints.convert import ConversionSummary, convert_weights
from conversion.checkpoints.hub_configs import read_processor
from conversion.checkpoints.rename_tables import table_between
from conversion.checkpoints.source_config import AUTO, Source, dropped_config_fields, model_config, read_source
from conversion.common.files import exclusive
from llava_vit_hf import (
    LlavaViTConfig,
    LlavaViTImageProcessor,
    LlavaViTModel,
    LlavaViTPackingConfig,
    LlavaViTPackingModel,
    LlavaViTProcessor,
)


MODEL_CLASSES = {"dense": LlavaViTModel, "packing": LlavaViTPackingModel}
# What an existing processor configuration is asked for; the rest follows from the target model.
KEPT_PROCESSOR_FIELDS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std", "do_convert_rgb", "num_frames", "fps"),
    *("temporal_context", "temporal_rule", "max_patches", "min_patches", "max_pixels", "min_pixels"),
    *("max_tokens", "max_image_pixels", "max_frames", "codec_score", "keep_first_frame", "block"),
)


@dataclass(frozen=True)
class ConversionRequest:
    """What to convert into what.

    Attributes:
        weights: checkpoint file, model folder or repo id.
        layout: `"dense"` or `"packing"`.
        output_dir: the model folder to make; must not exist, unless `overwrite`.
        model_name: a variant's name, or `"auto"`.
        dtype: name of the dtype to store; None keeps the checkpoint's.
        source_layout: the layout that the weights must have; None takes any.
        prefix: of the encoder's names in a larger model.
        with_merger: whether a merger beside the encoder is converted, too.
    """

    weights: str
    layout: str
    output_dir: Path
    model_name: str = "auto"
    num_attention_heads: int | None = None
    dtype: str | None = None
    max_shard_size: str = "5GB"
    overwrite: bool = False
    revision: str | None = None
    source_layout: str | None = None
    prefix: str = ""
    with_merger: bool = True


def convert_folder(
    request: ConversionRequest,
    complete: Callable[[Path, Source], object] | None = None,
    source: Source | None = None,
) -> ConversionSummary:
    """Makes the model folder that `request` asks for.

    Args:
        complete: called with the finished but still hidden folder and the opened source; what it raises ends the
            conversion, and then there is no folder under the final name.
        source: the weights of the request, where they are open already.

    Raises:
        CheckpointError: for anything wrong with the weights, or an output folder that is in the way.
        OSError: if writing fails.
    """
    if source is None:
        source = read_source(
            request.weights,
            request.revision,
            request.model_name,
            request.num_attention_heads,
            request.source_layout,
            request.prefix,
            request.with_merger,
        )
    with staging_folder(request.output_dir, request.overwrite) as folder:
        summary = write_model_folder(source, request, folder)
        if complete is not None:
            complete(folder, source)
    return summary


def write_model_folder(source: Source, request: ConversionRequest, folder: Path) -> ConversionSummary:
    """Writes weights, `config.json` with `auto_map`, code and processor configuration into `folder`."""
    checkpoint = source.checkpoint
    config = model_config(source.config, request.layout, checkpoint.config)
    table = table_between(checkpoint.layout, request.layout, source.config.has_merger)
    summary = convert_weights(checkpoint, table, config, folder, request.dtype, request.max_shard_size)
    summary.dropped.update(dropped_config_fields(checkpoint.config, request.layout))
    config.dtype = summary.dtype
    stored = stored_processor(checkpoint)
    if stored is None and request.model_name != AUTO:
        stored = read_processor(request.model_name, request.layout)
    write_code_and_configurations(config, request.layout, folder, stored)
    return summary


def write_code_and_configurations(
    config: LlavaViTConfig | LlavaViTPackingConfig, layout: str, folder: Path, stored: dict | None = None
) -> None:
    """Writes everything of a model folder but the weights: `config.json` with `auto_map`, code and processor.

    Args:
        stored: an existing processor configuration whose preprocessing is carried over.
    """
    with torch.device("meta"):
        model = MODEL_CLASSES[layout](config)
    custom_object_save(model, folder, config=config)
    config.save_pretrained(folder)
    build_processor(config, layout, stored).save_pretrained(folder)


def build_processor(config, layout: str, stored: dict | None = None) -> LlavaViTProcessor:
    """The processor of a converted model: packing at native resolution, dense as CLIP at `config.image_size`.

    Args:
        stored: an existing processor configuration whose preprocessing is carried over.
    """
    fields = {name: stored[name] for name in KEPT_PROCESSOR_FIELDS if stored and stored.get(name) is not None}
    # Those of a packing config; the dense one has neither.
    merge_size, rule = getattr(config, "merge_size", 1), getattr(config, "temporal_rule", None)
    # To whole blocks of patches, where the model takes them.
    unit = config.patch_size * merge_size if merge_size > 1 else 1
    crop_size = max(config.image_size // unit, 1) * unit
    fields = {"size": max(config.image_size, crop_size), "crop_size": crop_size} | fields
    if layout == "packing":
        fields |= {"merge_size": merge_size} | ({} if rule is None else {"temporal_rule": rule})
    return LlavaViTProcessor(
        LlavaViTImageProcessor(patch_size=config.patch_size, packing=layout == "packing", **fields)
    )


@contextmanager
def staging_folder(final: Path, overwrite: bool = False) -> Iterator[Path]:
    """Gives a hidden folder beside `final` and renames it to `final` when the block ends well.

    A block that fails leaves nothing behind; what a killed process left is removed by the next one.

    Raises:
        CheckpointError: if `final` exists and may not be overwritten, or another process is making it.
    """
    final = Path(os.path.abspath(final))
    check_free(final, overwrite)
    final.parent.mkdir(parents=True, exist_ok=True)
    held = CheckpointError(f"{final} is being written by another process. Wait for it.")
    with exclusive(final.parent / f".{final.name}.lock", held):
        # Again, as another process may have finished it since.
        check_free(final, overwrite)
        for stale in final.parent.glob(f".{final.name}.partial-*"):
            shutil.rmtree(stale)
        folder = Path(tempfile.mkdtemp(prefix=f".{final.name}.partial-", dir=final.parent))
        try:
            yield folder
            folder.chmod(0o755)
            # And again: the lock keeps out other conversions, not somebody who makes a folder of that name.
            check_free(final, overwrite)
            replace_folder(folder, final)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def check_free(final: Path, overwrite: bool) -> None:
    """Raises a CheckpointError if something is at `final` that may not be replaced; an empty folder may."""
    if final.exists() and not overwrite and not (final.is_dir() and not any(final.iterdir())):
        raise CheckpointError(f"{final} exists. Choose another output folder, remove it, or pass --overwrite.")
    if final.exists() and not final.is_dir():
        raise CheckpointError(f"{final} is a file. Choose another output folder.")


def replace_folder(folder: Path, final: Path) -> None:
    """Renames `folder` to `final`; a folder that is there is first moved aside and then removed."""
    if not final.exists():
        os.rename(folder, final)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{final.name}.partial-", dir=final.parent))
    os.rename(final, aside / "old")
    try:
        os.rename(folder, final)
    except OSError:
        os.rename(aside / "old", final)
        raise
    finally:
        shutil.rmtree(aside)
