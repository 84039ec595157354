# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Checks of what the models are given, as far as they need no device synchronisation.

All raise a ValueError (of an unknown argument a TypeError) that names the argument, what was found and what was
expected.
"""

import math
from collections.abc import Iterable

import torch
from torch import nn
from transformers.configuration_utils import PretrainedConfig
from transformers.utils import logging

from .grid_llava_vit import TEMPORAL_CONTEXT, check_grid, check_integers


logger = logging.get_logger(__name__)
# Arguments that wrappers pass of themselves, and what to do about them.
OF_WRAPPERS = {
    "num_items_in_batch": "Trainer passes num_items_in_batch to what computes a loss, and this model computes none: "
    "let the forward of your module around it take the argument, and not pass it on.",
    "interpolate_pos_encoding": "interpolate_pos_encoding is for position embeddings of one image size; the rotary "
    "ones here take any size as it is: leave the argument out.",
}


def refuse_unexpected(model: nn.Module, unexpected: Iterable[str], hint: str) -> None:
    """Raises a TypeError if there are unexpected arguments; `hint` is about those that wrappers do not pass."""
    if names := sorted(unexpected):
        hints = dict.fromkeys(OF_WRAPPERS.get(name, hint) for name in names)
        raise TypeError(f"{type(model).__name__}.forward() takes no {', '.join(names)}. {' '.join(hints)}")


def check_images(model: nn.Module, pixel_values: torch.Tensor, **others: torch.Tensor | None) -> None:
    """Checks `(B, 3, H, W)` or `(B, 3, T, H, W)` pixels, and that `others` are tensors with contents."""
    _check_tensors(model, pixel_values, others)
    channels, patch = model.config.num_channels, model.config.patch_size
    if pixel_values.ndim not in (4, 5) or pixel_values.shape[1] != channels or 0 in pixel_values.shape:
        raise ValueError(
            f"pixel_values must have shape (B, {channels}, H, W) or (B, {channels}, T, H, W), found "
            f"{tuple(pixel_values.shape)}. Flat patches (tokens, {channels * patch**2}) are for the packing model."
        )


def check_patches(model: nn.Module, pixel_values: torch.Tensor, **others: torch.Tensor | None) -> None:
    """Checks `(total_tokens, 3 * P * P)` pixels, and that `others` are tensors with contents."""
    _check_tensors(model, pixel_values, others)
    flat = model.config.num_channels * model.config.patch_size**2
    if pixel_values.ndim != 2 or pixel_values.shape[1] != flat or pixel_values.shape[0] == 0:
        raise ValueError(
            f"pixel_values must be flat patches of shape (total_tokens, {flat}), found {tuple(pixel_values.shape)}. "
            "The processor of this repo makes them; whole images (B, 3, H, W) are for the dense model."
        )


def _check_tensors(model: nn.Module, pixel_values: object, others: dict[str, object]) -> None:
    """Meta tensors have shapes alone: fine where the pixels and the whole model are such, and nowhere else."""
    if not isinstance(pixel_values, torch.Tensor) or not pixel_values.is_floating_point():
        found = getattr(pixel_values, "dtype", type(pixel_values).__name__)
        raise ValueError(f"pixel_values must be a floating point tensor, found {found}. Use the processor.")
    if pixel_values.is_meta and not next(model.parameters()).is_meta:
        raise ValueError("pixel_values is on the meta device, which holds no numbers, and the model is not.")
    for name, value in others.items():
        if value is not None and not isinstance(value, torch.Tensor):
            raise ValueError(f"{name} must be a tensor, found {type(value).__name__}. Use the processor.")
        # Attention needs the numbers of `cu_seqlens` even for shapes.
        if value is not None and value.is_meta and not (pixel_values.is_meta and name != "cu_seqlens"):
            raise ValueError(f"{name} is on the meta device, which holds no numbers. Pass it on the CPU.")


def check_visible_indices(
    visible_indices: torch.Tensor, pixel_values: torch.Tensor, patch_size: int, context: int | None = None
) -> bool:
    """Checks `(B, K)` indices into the tokens of `(B, 3, T, H, W)`; those on an accelerator are not read, nor those of
    a compiled call.

    Args:
        context: frames of the grid that the indices count, where positions are theirs to give; `None` for the pixels'.

    Returns:
        Whether the indices only give positions, on the context's grid, as there is one for every patch of the pixels.
    """
    check_integers("visible_indices", visible_indices, len(pixel_values), "K")
    frames, height, width = pixel_values.shape[2:]
    per_frame = (height // patch_size) * (width // patch_size)
    kept, tokens = visible_indices.shape[1], frames * per_frame
    places = context is not None and kept == tokens
    limit = context * per_frame if places else tokens
    if visible_indices.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = map(int, visible_indices.aminmax())
        if low < 0 or high >= limit:
            shape = tuple(pixel_values.shape)
            meant = ""
            if places:
                meant = f" As many as patches, they give positions in {context} frames (rope_temporal_size)."
            elif context is not None:
                meant = (
                    f" {kept} of {tokens} patches, they choose among those of the pixels. To give positions in "
                    f"{context} frames (rope_temporal_size), pass one for every patch, or patch_positions."
                )
            raise ValueError(
                f"visible_indices must be from 0 to {limit - 1} for {shape}, found {low} to {high}.{meant}"
            )
    return places


def check_blocks(
    config: PretrainedConfig,
    rows: int,
    grid_thw: torch.Tensor | None,
    patch_positions: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
) -> None:
    """Checks what windows and blocks of patches need of a pack: whole samples, in blocks, at places of their own."""
    window, merge = config.attention_window, config.merge_size
    if window is None and merge == 1:
        return
    needs = f"attention_window={window}" if window is not None else f"merge_size={merge}"
    if grid_thw is None:
        raise ValueError(f"grid_thw is missing: {needs} in the config needs it, beside cu_seqlens too.")
    grids = check_grid(grid_thw)
    tokens = sum(math.prod(grid) for grid in grids)
    if tokens != rows:
        raise ValueError(
            f"grid_thw adds up to {tokens} tokens, but pixel_values has {rows} rows, and {needs} in the config needs "
            "whole samples. What a codec chose goes onto canvases, each a sample of one frame."
        )
    if merge > 1:
        for _, height, width in grids:
            if height % merge or width % merge:
                raise ValueError(
                    f"grid_thw has {height} x {width} patches, which blocks of merge_size={merge} do not fill. This "
                    "repo's processor makes such grids."
                )
        if patch_positions is None:
            raise ValueError(f"patch_positions is missing: {needs} in the config says that rows come in blocks.")
    if patch_positions is not None and _readable(patch_positions) and int(patch_positions.min()) < 0:
        raise ValueError(
            "patch_positions has -1, which marks the padding of canvases. Leave those rows out, or give them places."
        )


def warn_of_plain_times(frames: Iterable[int]) -> None:
    """Warns once, where samples of so many frames have no positions, that their times are not the processor's."""
    if not torch.compiler.is_compiling() and set(frames) - {1, TEMPORAL_CONTEXT}:
        logger.warning_once(
            "A clip came without patch_positions, so its frames are at t = 0 ... T - 1. The processor spreads them, "
            f"as in training, over {TEMPORAL_CONTEXT} positions (8 frames: 0, 9, ... 63), and features differ: pass "
            "its patch_positions."
        )


def sample_lengths(
    rows: int,
    grid_thw: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    max_seqlen: int | None,
    patch_positions: torch.Tensor | None,
) -> list[int] | None:
    """Rows of each sample of a pack of `rows`, or `None` if only an accelerator knows them."""
    if grid_thw is None and (cu_seqlens is None or patch_positions is None):
        raise ValueError("grid_thw is missing: pass it, or both cu_seqlens and patch_positions.")
    # Of what is on an accelerator, or a compiler cannot read, only as much is read as tells the lengths and positions.
    grid = boundaries = None
    enough = cu_seqlens is not None and patch_positions is not None
    if grid_thw is not None:
        check_integers("grid_thw", grid_thw, "samples", 3)
        grid = [t * h * w for t, h, w in check_grid(grid_thw)] if _readable(grid_thw) or not enough else None
    if cu_seqlens is not None:
        check_integers("cu_seqlens", cu_seqlens, "samples + 1" if grid_thw is None else len(grid_thw) + 1)
        boundaries = cu_seqlens.tolist() if _readable(cu_seqlens) or not enough else None
    lengths = _consistent_lengths(rows, grid, boundaries, enough)
    if max_seqlen is not None and not torch.compiler.is_compiling():
        # Where only an accelerator knows the lengths: the longest sample has at least their mean.
        least = max(lengths) if lengths else -(-rows // (len(cu_seqlens) - 1))
        if not hasattr(max_seqlen, "__index__") or int(max_seqlen) < least:
            raise ValueError(
                f"max_seqlen={max_seqlen!r} is no integer of at least {least}, the tokens of the longest sample. "
                "Leave it out, or pass the largest of them where packs were joined."
            )
    return lengths


def _readable(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _consistent_lengths(
    rows: int, grid: list[int] | None, boundaries: list[int] | None, chosen: bool
) -> list[int] | None:
    """Rows of each sample, from what was read: tokens of the whole samples, and boundaries of the rows.

    Args:
        chosen: samples may keep only some of their patches, as `cu_seqlens` and `patch_positions` say which.
    """
    kept = None
    if boundaries is not None:
        kept = [end - start for start, end in zip(boundaries, boundaries[1:], strict=False)]
        if not kept or boundaries[0] != 0 or boundaries[-1] != rows or min(kept) < 1:
            raise ValueError(
                f"cu_seqlens must rise from 0 to the {rows} rows of pixel_values, with at least one row a sample, "
                f"found {_shorten(boundaries)}."
            )
    if grid and not chosen and (kept != grid if kept else sum(grid) != rows):
        found = f"cu_seqlens gives the samples {_shorten(kept)} of them" if kept else f"pixel_values has {rows} rows"
        raise ValueError(
            f"grid_thw adds up to {sum(grid)} tokens, but {found}. Samples that keep only some of their patches need "
            "cu_seqlens, and patch_positions to say which."
        )
    if kept and grid and any(some > every for some, every in zip(kept, grid, strict=True)):
        raise ValueError(f"cu_seqlens gives the samples {_shorten(kept)} tokens, of {_shorten(grid)} by grid_thw.")
    return kept or (grid if grid and sum(grid) == rows else None)


def _shorten(values: list[int]) -> str:
    return str(values) if len(values) <= 8 else f"[{', '.join(map(str, values[:8]))}, ... {len(values)} in all]"
