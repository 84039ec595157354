# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""From the samples of a call to model inputs: a pack of flat patches, or a dense batch."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import BatchFeature

from .grid_llava_vit import cumulative_lengths, grid_positions, patch_view
from .pixels_llava_vit import pixel_table, write_pixels
from .selection_llava_vit import kept_patches


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


def select(samples: list[Sample], settings: SimpleNamespace, keep: Any, scores: Any, top_k: Any) -> list[Sample]:
    """The samples, each with the patches it keeps; see `kept_patches`."""
    kept = kept_patches([sample.grid(settings.patch_size) for sample in samples], keep, scores, top_k)
    if kept is None:
        return samples
    return [replace(sample, kept=indices) for sample, indices in zip(samples, kept, strict=True)]


def collate(
    samples: list[Sample], settings: SimpleNamespace, return_tensors: str | None = "pt", return_metadata: bool = False
) -> BatchFeature:
    """Normalizes the samples' pixels and lays them out for the model, in order.

    Raises:
        ValueError: if a dense batch cannot be stacked, or for an unknown `return_tensors`.
    """
    kind = getattr(return_tensors, "value", return_tensors)
    if kind not in (None, "pt", "np"):
        raise ValueError(f"return_tensors must be 'pt' or 'np', found {return_tensors!r}.")
    data = _pack(samples, settings) if settings.packing else _stack(samples, settings)
    if kind == "np":
        data = {key: value.numpy() if isinstance(value, torch.Tensor) else value for key, value in data.items()}
    if return_metadata:
        data["metadata"] = [_describe(sample, settings) for sample in samples]
    return BatchFeature(data)


def _describe(sample: Sample, settings: SimpleNamespace) -> dict[str, Any]:
    times = [0] if sample.times is None else sample.times.tolist()
    kept = {} if sample.kept is None else {"kept_patches": sample.kept.tolist()}
    return {**sample.metadata, "grid_thw": sample.grid(settings.patch_size), "temporal_positions": times, **kept}


def _positions(sample: Sample, patch_size: int) -> torch.Tensor:
    """`(t, h, w)` of the patches that a sample keeps, `(K, 3)`."""
    positions = grid_positions([sample.grid(patch_size)], [sample.times])
    return positions if sample.kept is None else positions[sample.kept]


def _kept_per_frame(sample: Sample, patch_size: int) -> Iterator[torch.Tensor]:
    """Patches of each frame: `(rows, columns, 3, P, P)`, a view, or `(K, 1, 3, P, P)` of those that are kept."""
    for index, frame in enumerate(sample.frames):
        patches = patch_view(frame, patch_size)
        if sample.kept is not None:
            rows, columns = patches.shape[:2]
            kept = sample.kept[sample.kept // (rows * columns) == index] % (rows * columns)
            patches = patches[kept // columns, kept % columns].unsqueeze(1)
        yield patches


def _pack(samples: list[Sample], settings: SimpleNamespace) -> dict[str, Any]:
    patch = settings.patch_size
    positions = [_positions(sample, patch) for sample in samples]
    lengths = [len(rows) for rows in positions]
    pixel_values, table, start = torch.empty(sum(lengths), 3, patch, patch), pixel_table(settings), 0
    for patches in (patches for sample in samples for patches in _kept_per_frame(sample, patch)):
        end = start + patches.shape[:2].numel()
        if end > start:
            write_pixels(pixel_values[start:end].view(patches.shape), patches, table)
        start = end
    return {
        "pixel_values": pixel_values.flatten(1),
        "grid_thw": torch.tensor([sample.grid(patch) for sample in samples]),
        "patch_positions": torch.cat(positions),
        "cu_seqlens": cumulative_lengths(lengths),
        "max_seqlen": max(lengths),
    }


def _stack(samples: list[Sample], settings: SimpleNamespace) -> dict[str, Any]:
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
    pixel_values, table = torch.empty(len(samples), 3, frames, height, width), pixel_table(settings)
    for index, sample in enumerate(samples):
        for time, frame in enumerate(sample.frames):
            rows = (image.transpose(0, 1).unsqueeze(2) for image in (pixel_values[index, :, time], frame))
            write_pixels(*rows, table)  # (height, 3, 1, width)
    data = {"pixel_values": pixel_values if any(clips) else pixel_values[:, :, 0]}
    selected = any(sample.kept is not None for sample in samples)
    if selected:
        data["visible_indices"] = _visible_indices(samples, settings.patch_size)
    if selected or any(clips):
        data["patch_positions"] = torch.stack([_positions(sample, settings.patch_size) for sample in samples])
    return data


def _visible_indices(samples: list[Sample], patch_size: int) -> torch.Tensor:
    """`(B, K)`, or a ValueError if the samples keep different numbers of patches."""
    indices = [
        torch.arange(np.prod(sample.grid(patch_size))) if sample.kept is None else sample.kept for sample in samples
    ]
    counts = [len(kept) for kept in indices]
    if len(set(counts)) > 1:
        raise ValueError(
            f"keep: in a dense batch all samples keep the same number of patches, found {counts}. Use scores with "
            "top_k, make one call per number, or use the packing model."
        )
    return torch.stack(indices)
