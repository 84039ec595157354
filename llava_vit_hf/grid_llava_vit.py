# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Everything that follows from how many patches a sample has: flat patches, positions, segments.

Pure functions, used by the models, the processors and whoever packs by hand. Conventions, stated once:

* Tokens are in `(t, h, w)` row-major order: frame after frame, row after row, left to right.
* A flat patch is `(channels, P, P).flatten()`: channel, row, column.
* What does not fill a patch at the right and bottom edge is dropped, as a strided convolution does.
* One *segment* is one sample: all frames of a clip attend to each other (`t * h * w` tokens), and no token
  sees another sample. This is not Qwen-VL's convention, which is one segment per frame.
"""

import math
from bisect import bisect_right
from numbers import Integral

import numpy as np
import torch


# A clip sits in a context of this many frames, whatever number of its frames is sampled.
TEMPORAL_CONTEXT = 64
# How the time of a frame becomes its position: the pretraining code's, the released OneVision snippet's, and that of
# the VLMs built on it.
TEMPORAL_RULES = ("round", "floor", "index")


def patch_view(pixel_values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Views images as grids of patches, without a copy.

    Args:
        pixel_values: `(..., channels, height, width)`, any dtype.
        patch_size: side `P` of a square patch, in pixels.

    Returns:
        `(..., height // P, width // P, channels, P, P)`.

    Raises:
        ValueError: if an image is smaller than one patch.
    """
    height, width = pixel_values.shape[-2:]
    rows, columns = height // patch_size, width // patch_size
    if rows == 0 or columns == 0:
        raise ValueError(
            f"pixel_values: images of height {height} and width {width} are smaller than one patch. "
            f"Pass images of at least {patch_size}x{patch_size} pixels."
        )
    # (..., C, H, W) -> (..., C, h, w, P, P) -> (..., h, w, C, P, P)
    patches = pixel_values.unfold(-2, patch_size, patch_size).unfold(-2, patch_size, patch_size)
    return patches.movedim(-5, -3)


def patchify(pixel_values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Cuts images into flat patches: `(..., channels, height, width)` to `(..., tokens, channels * P * P)`.

    Raises:
        ValueError: if an image is smaller than one patch.
    """
    return patch_view(pixel_values, patch_size).flatten(-3).flatten(-3, -2)


def temporal_positions(
    num_frames: int, context: int = TEMPORAL_CONTEXT, rule: str = "round", indices: list[int] | None = None
) -> torch.Tensor:
    """Positions of frames of a clip that counts `num_frames` frames.

    Args:
        context: frames of the temporal context.
        rule: frame `i` of `n` is, by `"round"`, at `round(i * (context - 1) / (n - 1))`, half to even; by `"floor"` at
            that rounded down, which is `linspace(0, context - 1, n).long()`; a single frame is at 0. By `"index"` it
            is at `i`, whatever the context.
        indices: which of the frames. Default: all, as of uniformly sampled ones.

    Returns:
        `(frames,)` int64. For 8 frames, by either of the first two rules: 0, 9, 18, 27, 36, 45, 54, 63.

    Raises:
        ValueError: if `num_frames` or `context` is no positive integer, or the rule unknown.
    """
    for name, value in (("num_frames", num_frames), ("context", context)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be at least 1, found {value!r}.")
    if rule not in TEMPORAL_RULES:
        raise ValueError(f"rule must be one of {TEMPORAL_RULES}, found {rule!r}.")
    frames = torch.arange(num_frames) if indices is None else torch.tensor(indices)
    if rule == "index":
        return frames
    if rule == "floor":
        return frames * (context - 1) // max(num_frames - 1, 1)
    steps = frames.double() * (context - 1) / max(num_frames - 1, 1)
    return steps.round().clamp(0, context - 1).long()


def budget_grid(height: int, width: int, patch_size: int, least: int | None, most: int | None) -> tuple[int, int]:
    """Rows and columns of patches that an image is resized to, to have at least and at most so many.

    An image within the budget keeps its own: what fills no patch is dropped, and nothing is resized. Otherwise its
    longer side gets `k` patches and its shorter one the number nearest to its aspect, at least one: `k` is the largest
    with which the grid has at most `most` patches, or the smallest, no fewer than its own, with at least `least`.
    Where no grid lies between the two, `most` holds. Without `least` neither side grows.

    Returns:
        `(rows, columns)`. For 3000 x 4000 pixels, patches of 14 and at most 1024 of them: (27, 36).
    """
    long, short = max(height, width), min(height, width)
    sides = [long // patch_size, short // patch_size]
    own = sides[0] * sides[1]

    def fitted(count: int) -> list[int]:
        return [count, max(1, (2 * count * short + long) // (2 * long))]

    def largest(patches: int) -> int:
        # The longer side has at most all patches; as it grows, so does the grid.
        return bisect_right(range(1, patches + 1), patches, key=lambda count: math.prod(fitted(count)))

    if least is not None and own < least:
        count = max(largest(least - 1) + 1, sides[0])
        if most is not None:
            count = min(count, largest(most))
        sides = fitted(count)
    elif most is not None and own > most:
        sides = [min(pair) for pair in zip(fitted(largest(most)), sides, strict=True)]
    return tuple(sides) if width < height else tuple(reversed(sides))


def frame_positions(
    times: torch.Tensor, rows: int, columns: int, device: torch.device | str | None = None
) -> torch.Tensor:
    """`(t, h, w)` of every patch of one sample whose frames are at `times` `(frames,)`.

    Returns:
        `(frames * rows * columns, 3)` int64.
    """
    times = times.to(device=device, dtype=torch.long)
    heights = torch.arange(rows, device=times.device)
    widths = torch.arange(columns, device=times.device)
    grid = torch.meshgrid(times, heights, widths, indexing="ij")
    return torch.stack(grid, dim=-1).reshape(-1, 3)


def grid_positions(
    grid_thw: torch.Tensor | list, times: list[torch.Tensor | None] | None = None, device=None
) -> torch.Tensor:
    """`(t, h, w)` of every patch of a pack.

    Args:
        grid_thw: `(samples, 3)`, patches along time, height and width.
        times: per sample `(frames,)`, or `None` for frames at `0 ... t - 1`.

    Returns:
        `(total_tokens, 3)` int64, samples one after another.

    Raises:
        ValueError: if `grid_thw` is no tensor or list of positive integers of this shape.
    """
    grids = check_grid(grid_thw)
    times = times or [None] * len(grids)
    return torch.cat(
        [
            frame_positions(torch.arange(t) if time is None else time, h, w, device)
            for (t, h, w), time in zip(grids, times, strict=True)
        ]
    )


def window_lengths(grids: list[list[int]], window: int | None) -> list[int]:
    """Tokens of each stretch that attends to itself: of samples `[t, h, w]`, cut into windows of so many frames, the
    last of a sample shorter; with `None` whole samples."""
    lengths = []
    for frames, rows, columns in grids:
        span = window or frames
        lengths += [min(span, frames - start) * rows * columns for start in range(0, frames, span)]
    return lengths


def block_order(grid: list[int], merge_size: int) -> torch.Tensor:
    """Where each row of a sample in block order is in `(t, h, w)` order: `(t * h * w,)`.

    Per frame, blocks of `merge_size x merge_size` patches row by row, and row by row in a block.

    Raises:
        ValueError: if blocks do not fill the grid.
    """
    frames, rows, columns = grid
    if rows % merge_size or columns % merge_size:
        raise ValueError(
            f"grid_thw: blocks of merge_size={merge_size} do not fill {rows} x {columns} patches. The processor of "
            "this repo makes grids that they fill."
        )
    places = torch.arange(frames * rows * columns)
    split = (frames, rows // merge_size, merge_size, columns // merge_size, merge_size)
    return places.view(split).transpose(2, 3).reshape(-1)


def cumulative_lengths(lengths: list[int] | torch.Tensor, device=None) -> torch.Tensor:
    """Boundaries of segments of the given lengths: `(samples + 1,)` int32, starting at 0 (`cu_seqlens`)."""
    lengths = torch.as_tensor(lengths, dtype=torch.int32, device=device)
    return torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))


def check_integers(name: str, values: torch.Tensor, *shape: int | str) -> None:
    """Raises a ValueError unless `values` are integers of this shape; a size that may be any is a name."""
    integer = not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)
    sizes = zip(values.shape, shape, strict=False)
    fits = values.ndim == len(shape) and all(
        found == size or (isinstance(size, str) and found > 0) for found, size in sizes
    )
    if not integer or not fits:
        expected = ", ".join(map(str, shape)) + "," * (len(shape) == 1)
        raise ValueError(
            f"{name} must be an integer tensor of shape ({expected}), found {values.dtype} {tuple(values.shape)}."
        )


def check_grid(grid_thw: torch.Tensor | list) -> list[list[int]]:
    """The grid `(samples, 3)` as a list of `[t, h, w]`. One on an accelerator is copied to the host and waited for.

    Raises:
        ValueError: if it is not `(samples, 3)`, not integer, or has an entry below 1.
    """
    try:
        grid_thw = torch.as_tensor(grid_thw)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"grid_thw must be integers of shape (samples, 3), found {grid_thw!r}.") from error
    check_integers("grid_thw", grid_thw, "samples", 3)
    if grid_thw.is_meta:
        raise ValueError("grid_thw is on the meta device, which holds no numbers. Pass it on the CPU.")
    grids = grid_thw.tolist()
    for index, grid in enumerate(grids):
        if min(grid) < 1:
            raise ValueError(f"grid_thw[{index}] is {grid}; every entry of (t, h, w) must be at least 1.")
    return grids


def split_features(
    features: torch.Tensor | np.ndarray,
    grid_thw: torch.Tensor | np.ndarray | list | None = None,
    merge_size: int = 1,
) -> list[torch.Tensor | np.ndarray]:
    """Splits packed features back into one array per sample, the inverse of packing.

    Args:
        features: `(total_tokens, C)` or `(1, total_tokens, C)`; a torch tensor or a numpy array.
        grid_thw: `(samples, 3)`.
        merge_size: side of the blocks that rows come in; a repo's processor passes its own.

    Returns:
        One `(t, h, w, C)` per sample, views of `features` unless these came in blocks.

    Raises:
        ValueError: if the grid does not add up to the rows, or the features are a dense batch.
    """
    if not isinstance(features, torch.Tensor | np.ndarray):
        raise ValueError(f"features must be a torch tensor or a numpy array, found {type(features).__name__}.")
    if grid_thw is None or (features.ndim == 3 and features.shape[0] != 1):
        raise ValueError(
            f"split_features splits what is packed, by its grid_thw. Features of the dense model, found "
            f"{tuple(features.shape)}, are one sample a row already: features[i].reshape(t, h, w, -1), where "
            "t, h, w = processor.grid_for(height, width, frames, native_resolution=...) of the picture."
        )
    grids = check_grid(grid_thw)
    if features.ndim == 3 and features.shape[0] == 1:
        features = features[0]
    if features.ndim != 2:
        raise ValueError(f"features must have shape (total_tokens, channels), found {tuple(features.shape)}.")
    total = sum(t * h * w for t, h, w in grids)
    if total != features.shape[0]:
        raise ValueError(
            f"grid_thw adds up to {total} tokens, but features has {features.shape[0]} rows. Samples that keep only "
            "some of their patches cannot be laid out on the grid; split them by cu_seqlens instead."
        )
    samples, start = [], 0
    for t, h, w in grids:
        rows = features[start : start + t * h * w]
        if merge_size > 1:
            back = block_order([t, h, w], merge_size).argsort()
            rows = rows[back.numpy() if isinstance(rows, np.ndarray) else back.to(rows.device)]
        samples.append(rows.reshape(t, h, w, -1))
        start += t * h * w
    return samples
