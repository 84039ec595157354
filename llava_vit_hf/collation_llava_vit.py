# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""From the samples of a call to model inputs: a pack of flat patches, or a dense batch.

Patches may be chosen, by a mask or as the best by a score (as a video codec's motion or residuals give). A selection
names patches of each sample's full `(t, h, w)` grid; what is kept stays in `(t, h, w)` order.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import BatchFeature

from .grid_llava_vit import block_order, check_integers, cumulative_lengths, frame_positions, patch_view
from .inputs_llava_vit import sample_lengths
from .pixels_llava_vit import empty_pixels, mean_and_std, write_pixels
from .settings_llava_vit import LlavaViTSettings


# The arguments of a call that say what comes back, and those that choose patches.
OUTPUT = ("return_tensors", "return_metadata", "device", "return_visible_indices")
SELECTION = ("keep", "scores", "top_k")
# What every pack has beside its `pixel_values`; of these, a dense batch may have the last.
PACK = ("grid_thw", "cu_seqlens", "max_seqlen", "patch_positions")


@dataclass
class Sample:
    """One image or clip: `frames` of `(3, H, W)` each, at temporal positions `times` `(T,)` (`None`: an image).

    `kept` `(K,)` holds the indices of the patches that are kept (`None`: all).
    """

    frames: list[torch.Tensor]
    times: torch.Tensor | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    kept: torch.Tensor | None = None

    def grid(self, patch_size: int) -> list[int]:
        height, width = self.frames[0].shape[-2:]
        return [len(self.frames), height // patch_size, width // patch_size]

    def describe(self, patch_size: int) -> dict[str, Any]:
        kept = {} if self.kept is None else {"kept_patches": self.kept.tolist()}
        times = [0] if self.times is None else self.times.tolist()
        return {**self.metadata, "grid_thw": self.grid(patch_size), "temporal_positions": times, **kept}

    def positions(self, patch_size: int, merge_size: int = 1) -> torch.Tensor:
        """`(t, h, w)` of the patches that are kept, `(K, 3)`, as rows come."""
        frames, rows, columns = self.grid(patch_size)
        positions = frame_positions(torch.arange(frames) if self.times is None else self.times, rows, columns)
        if merge_size > 1:
            return positions[block_order([frames, rows, columns], merge_size)]
        return positions if self.kept is None else positions[self.kept]


def collate(
    samples: list[Sample],
    settings: LlavaViTSettings,
    return_tensors: str | None = "pt",
    return_metadata: bool = False,
    device: torch.device | str | None = None,
    return_visible_indices: bool = False,
    **selection,
) -> BatchFeature:
    """Normalizes the samples' pixels and lays them out for the model, in order.

    Args:
        device: of `pixel_values`, which are normalized there. The rest stays on the CPU, where the models read it.
        return_visible_indices: as `LlavaViTProcessor.__call__` says.
        selection: `keep`, `scores` and `top_k`, as `kept_patches` takes them.

    Raises:
        ValueError: if a dense batch cannot be stacked, for an unknown `return_tensors`, or by `kept_patches`.
    """
    kept = kept_patches([sample.grid(settings.patch_size) for sample in samples], **selection)
    samples = [replace(sample, kept=rows) for sample, rows in zip(samples, kept, strict=True)]
    kind = getattr(return_tensors, "value", return_tensors)
    if kind not in (None, "pt", "np"):
        raise ValueError(f"return_tensors must be 'pt' or 'np', found {return_tensors!r}.")
    data = (_pack if settings.packing else _stack)(samples, settings, device)
    if return_visible_indices:
        data = _with_visible_indices(data, samples, settings)
    if kind == "np":
        data = {
            key: value.numpy(force=True) if isinstance(value, torch.Tensor) else value for key, value in data.items()
        }
    if return_metadata:
        data["metadata"] = [sample.describe(settings.patch_size) for sample in samples]
    return BatchFeature(data)


def _kept_per_frame(sample: Sample, patch_size: int, merge_size: int) -> Iterator[torch.Tensor]:
    """Patches of each frame: `(rows, columns, 3, P, P)`, a view, in blocks `(h / m, w / m, m, m, 3, P, P)`, or
    `(K, 1, 3, P, P)` of those that are kept."""
    for index, frame in enumerate(sample.frames):
        patches = patch_view(frame, patch_size)
        if merge_size > 1:
            patches = patches.unflatten(1, (-1, merge_size)).unflatten(0, (-1, merge_size)).transpose(1, 2)
        if sample.kept is not None:
            rows, columns = patches.shape[:2]
            kept = sample.kept[sample.kept // (rows * columns) == index] % (rows * columns)
            patches = patches[kept // columns, kept % columns].unsqueeze(1)
        yield patches


def _pack(samples: list[Sample], settings: LlavaViTSettings, device: torch.device | str | None) -> dict[str, Any]:
    patch = settings.patch_size
    merge = settings.merge_size
    if merge > 1:
        _check_blocks(samples, patch, merge)
    positions = [sample.positions(patch, merge) for sample in samples]
    lengths = [len(rows) for rows in positions]
    pixel_values = empty_pixels((sum(lengths), 3, patch, patch), device)
    scale, start = mean_and_std(settings, device), 0
    for patches in (patches for sample in samples for patches in _kept_per_frame(sample, patch, merge)):
        end = start + patches.shape[:-3].numel()
        if end > start:
            write_pixels(pixel_values[start:end].view(patches.shape), patches, settings, *scale)
        start = end
    return {
        "pixel_values": pixel_values.flatten(1),
        "grid_thw": torch.tensor([sample.grid(patch) for sample in samples]),
        "patch_positions": torch.cat(positions),
        "cu_seqlens": cumulative_lengths(lengths),
        "max_seqlen": max(lengths),
    }


def _check_blocks(samples: list[Sample], patch_size: int, merge_size: int) -> None:
    """Checks that samples are whole, and whole blocks fill them."""
    for index, sample in enumerate(samples):
        _, rows, columns = sample.grid(patch_size)
        if sample.kept is not None:
            raise ValueError(
                f"keep or scores with merge_size={merge_size}: blocks need whole frames. Put what a codec chose onto "
                "canvases (examples/codec_assets.py), each an image of its own."
            )
        if rows % merge_size or columns % merge_size:
            raise ValueError(
                f"samples[{index}] has {rows} x {columns} patches, which blocks of merge_size={merge_size} do not "
                "fill. Pass native_resolution=True, or a crop_size of whole blocks."
            )


def _stack(samples: list[Sample], settings: LlavaViTSettings, device: torch.device | str | None) -> dict[str, Any]:
    clips = [sample.times is not None for sample in samples]
    if any(clips) and not all(clips):
        raise ValueError(
            "images and videos cannot share one dense batch. Call the processor once for the images and once for the "
            "videos, or use the packing model."
        )
    sizes = [(len(sample.frames), *sample.frames[0].shape[-2:]) for sample in samples]
    if len(set(sizes)) > 1:
        listed = ", ".join(f"{width}x{height}" + f" ({t} frames)" * any(clips) for t, height, width in sizes)
        raise ValueError(
            f"A dense batch needs equal sizes, found (width x height) {listed}. Pass native_resolution=False to "
            "resize, or make one call per size, or use the packing model."
        )
    frames, height, width = sizes[0]
    pixel_values = empty_pixels((len(samples), 3, frames, height, width), device)
    scale = mean_and_std(settings, device)
    for index, sample in enumerate(samples):
        for time, frame in enumerate(sample.frames):
            rows = (image.transpose(0, 1).unsqueeze(2) for image in (pixel_values[index, :, time], frame))
            write_pixels(*rows, settings, *scale)  # (height, 3, 1, width)
    data = {"pixel_values": pixel_values if any(clips) else pixel_values[:, :, 0]}
    selected = any(sample.kept is not None for sample in samples)
    if selected:
        every = torch.arange(frames * (height // settings.patch_size) * (width // settings.patch_size))
        indices = [every if sample.kept is None else sample.kept for sample in samples]
        counts = [len(kept) for kept in indices]
        if len(set(counts)) > 1:
            raise ValueError(
                f"keep: in a dense batch all samples keep the same number of patches, found {counts}. Use scores with "
                "top_k, make one call per number, or use the packing model."
            )
        data["visible_indices"] = torch.stack(indices)
    if selected or any(clips):
        data["patch_positions"] = torch.stack([sample.positions(settings.patch_size) for sample in samples])
    return data


def _with_visible_indices(data: dict[str, Any], samples: list[Sample], settings: LlavaViTSettings) -> dict[str, Any]:
    """A dense batch with indices into the grid of the whole context in place of positions."""
    if settings.packing or any(sample.kept is not None for sample in samples):
        raise ValueError(
            "return_visible_indices is for whole samples of the dense model: the packing model takes patch_positions, "
            "and so do samples that keep only some patches (keep, scores)."
        )
    positions = torch.stack([sample.positions(settings.patch_size) for sample in samples])
    if (last := int(positions[..., 0].max())) >= settings.temporal_context:
        raise ValueError(
            f"return_visible_indices: a frame is at t = {last}, beyond the {settings.temporal_context} frames of "
            f'temporal_context. With temporal_rule={settings.temporal_rule!r} pass patch_positions on, or use "round".'
        )
    _, rows, columns = samples[0].grid(settings.patch_size)
    indices = (positions[..., 0] * rows + positions[..., 1]) * columns + positions[..., 2]
    return {"pixel_values": data["pixel_values"], "visible_indices": indices}


def join_inputs(inputs: Sequence[Mapping[str, Any]]) -> BatchFeature:
    """Joins model inputs that were made one by one to what one call with all their samples gives, bit for bit.

    Args:
        inputs: outputs of the processor for one of the models, each of one sample or several. Other keys, such as
            labels, are joined too if they are tensors with a row per sample, or lists.

    Returns:
        Tensors and lists one after another in the order given, `cu_seqlens` of all rows, and the largest `max_seqlen`.

    Raises:
        ValueError: for an empty list, and for inputs of both models, without a key, of another dtype, device or shape
            than the first, or that do not fit together; the message names which and the key.
    """
    _check_keys(inputs)
    columns = {key: [one[key] for one in inputs] for key in inputs[0]}
    for key, values in columns.items():
        if key != "max_seqlen" and not all(isinstance(value, list) for value in values):
            _check_alike(key, values)
    for index, one in enumerate(inputs if "cu_seqlens" in columns else ()):
        try:
            sample_lengths(len(one["pixel_values"]), **{key: one[key] for key in PACK})
            check_integers("patch_positions", one["patch_positions"], len(one["pixel_values"]), 3)
        except ValueError as error:
            raise ValueError(f"inputs[{index}]: {error}") from error
    return BatchFeature({key: _join(key, values) for key, values in columns.items()})


def _join(key: str, values: list[Any]) -> Any:
    if key == "max_seqlen":
        return max(map(int, values))
    if key == "cu_seqlens":
        return cumulative_lengths(torch.cat([value.diff() for value in values]))
    return [item for value in values for item in value] if isinstance(values[0], list) else torch.cat(values)


def _check_keys(inputs: Sequence[Mapping[str, Any]]) -> None:
    """Checks that all of a list of inputs have the keys of the first, and those that its model needs."""
    if not isinstance(inputs, list | tuple) or not inputs or not all(isinstance(one, Mapping) for one in inputs):
        several = isinstance(inputs, list | tuple)
        found = f"a list of {[type(one).__name__ for one in inputs]}" if several else type(inputs).__name__
        raise ValueError(f"inputs must be a list of at least one output of the processor, found {found}.")
    keys = [{key for key, value in one.items() if value is not None} for one in inputs]
    packed = [not own.isdisjoint(PACK[:-1]) for own in keys]
    if len(set(packed)) > 1:
        raise ValueError(
            f"inputs[0] and inputs[{packed.index(not packed[0])}] are for different models, dense and packing. Make "
            "all of them by one processor."
        )
    expected = {"pixel_values", *keys[0], *(PACK if packed[0] else ())}
    for index, own in enumerate(keys):
        missing, more = sorted(expected - own), sorted(own - expected)
        if missing or more:
            found = " and ".join([f"no {key}" for key in missing] + more)
            raise ValueError(
                f"inputs[{index}] has {found}; expected in each: {', '.join(sorted(expected))}."
                + " A dense batch cannot hold both images and clips." * (not packed[0])
            )


def _check_alike(key: str, values: list[Any]) -> None:
    """Checks that values of `inputs` are tensors that can be joined along the first dimension."""
    for index, value in enumerate(values):
        if not isinstance(value, torch.Tensor) or value.ndim == 0:
            found = f"{type(value).__name__} of shape {tuple(getattr(value, 'shape', ()))}"
            raise ValueError(
                f"inputs[{index}]: {key} must be a tensor of at least one dimension, as return_tensors='pt' makes it, "
                f"found {found}."
            )
        kinds = [(one.dtype, str(one.device)) for one in (values[0], value)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"{key}: found {kinds[0]} in inputs[0] and {kinds[1]} in inputs[{index}]; expected one kind."
            )
        shapes = [tuple(one.shape) for one in (values[0], value)]
        if shapes[0][1:] != shapes[1][1:]:
            raise ValueError(
                f"{key}: found the shapes {shapes[0]} in inputs[0] and {shapes[1]} in inputs[{index}]; only the first "
                "number may differ. Packs need one patch size, and a dense batch images or clips of one size: pass "
                "native_resolution=False to resize them, or use the packing model."
            )


def kept_patches(
    grids: Sequence[Sequence[int]], keep: Any = None, scores: Any = None, top_k: int | Sequence[int] | None = None
) -> list[torch.Tensor | None]:
    """Indices of the patches that every sample of a pack keeps.

    Args:
        grids: `(t, h, w)` of every sample, in patches.
        keep: one boolean mask per sample, `(t, h, w)` or flat `(t * h * w,)`, numpy or torch; `None` in place of a
            mask keeps the whole sample. For a single sample the mask itself will do.
        scores: in place of `keep`, one array of real numbers per sample, shaped likewise; higher is better.
        top_k: with `scores`, how many patches a sample keeps, or one number per sample. A smaller sample keeps all
            it has. Of equal scores the first in `(t, h, w)` order win.

    Returns:
        Per sample `(K,)` int64, ascending, or `None` for all its patches.

    Raises:
        ValueError: for a selection that does not fit the samples or keeps nothing; the message names the argument.
    """
    if scores is None and top_k is None:
        keep = [None] * len(grids) if keep is None else keep
        return [
            None if mask is None else _from_mask(_flat(mask, f"keep[{index}]", grid), f"keep[{index}]")
            for index, (mask, grid) in enumerate(zip(_per_sample(keep, "keep", grids), grids, strict=True))
        ]
    if keep is not None or scores is None or top_k is None:
        given = {"keep": keep, "scores": scores, "top_k": top_k}
        found = " and ".join(name for name, value in given.items() if value is not None)
        raise ValueError(f"found {found}; pass keep alone, or scores and top_k: one mask or array per sample.")
    counts = list(top_k) if isinstance(top_k, list | tuple | np.ndarray) else [top_k] * len(grids)
    if len(counts) != len(grids):
        raise ValueError(f"top_k: found {len(counts)} numbers for {len(grids)} samples; expected one each, or an int.")
    for count in counts:
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
            raise ValueError(f"top_k must be an integer of at least 1, found {count!r}.")
    ranked = zip(_per_sample(scores, "scores", grids), grids, counts, strict=True)
    return [
        None if values is None else _best(_flat(values, f"scores[{index}]", grid), int(count), f"scores[{index}]")
        for index, (values, grid, count) in enumerate(ranked)
    ]


def _per_sample(values: Any, name: str, grids: Sequence[Sequence[int]]) -> list[Any]:
    array = isinstance(values, np.ndarray | torch.Tensor)
    if array and len(grids) == 1 and (values.ndim == 1 or tuple(values.shape) == tuple(grids[0])):
        return [values]
    several = isinstance(values, list | tuple) or (array and values.ndim > 0)
    if not several or len(values) != len(grids):
        found = len(values) if several else type(values).__name__
        raise ValueError(
            f"{name}: found {found} for {len(grids)} sample(s); expected a list of one array per sample, first of the "
            "images, then of the videos."
        )
    return list(values)


def _flat(values: Any, name: str, grid: Sequence[int]) -> torch.Tensor:
    try:
        values = torch.as_tensor(values).detach().cpu()
    # A RuntimeError is what torch says of a dict or of None.
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: found {type(values).__name__}, which is no array of numbers: {error}") from error
    flat = (grid[0] * grid[1] * grid[2],)
    if tuple(values.shape) not in (tuple(grid), flat):
        raise ValueError(
            f"{name}: found shape {tuple(values.shape)}; expected the sample's (t, h, w) in patches, {tuple(grid)} or "
            f"flat {flat}."
        )
    return values.flatten()


def _from_mask(mask: torch.Tensor, name: str) -> torch.Tensor:
    if mask.dtype != torch.bool:
        raise ValueError(f"{name}: found {mask.dtype}; expected booleans. Numbers are for scores, with top_k.")
    if not mask.any():
        raise ValueError(f"{name} keeps no patch; leave the sample out, or keep at least one.")
    return mask.nonzero()[:, 0]


def _best(scores: torch.Tensor, count: int, name: str) -> torch.Tensor:
    if scores.dtype == torch.bool or scores.is_complex() or (scores != scores).any():  # noqa: PLR0124  only NaN differs
        raise ValueError(f"{name}: found {scores.dtype}; expected real numbers without NaN. Booleans are for keep.")
    return scores.argsort(descending=True, stable=True)[:count].sort().values
