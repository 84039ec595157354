# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Which patches of a sample are kept: by a mask, or the best by a score (as a video codec's motion or residuals give).

A selection names patches of each sample's full `(t, h, w)` grid. What is kept stays in `(t, h, w)` order.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def kept_patches(
    grids: Sequence[Sequence[int]],
    keep: Any = None,
    scores: Any = None,
    top_k: int | Sequence[int] | None = None,
) -> list[torch.Tensor | None] | None:
    """Indices of the patches that every sample of a pack keeps.

    Args:
        grids: `(t, h, w)` of every sample, in patches.
        keep: one boolean mask per sample, `(t, h, w)` or flat `(t * h * w,)`, numpy or torch; `None` in place of a
            mask keeps the whole sample. For a single sample the mask itself will do.
        scores: in place of `keep`, one array of real numbers per sample, shaped likewise; higher is better.
        top_k: with `scores`, how many patches a sample keeps, or one number per sample. A smaller sample keeps all
            it has. Of equal scores the first in `(t, h, w)` order win.

    Returns:
        Per sample `(K,)` int64, ascending, or `None` for all its patches; `None` if no selection was asked for.

    Raises:
        ValueError: for a selection that does not fit the samples or keeps nothing; the message names the argument.
    """
    if keep is None and scores is None:
        if top_k is not None:
            raise ValueError(f"top_k={top_k!r} was given without scores; pass one array of scores per sample.")
        return None
    if keep is not None and (scores is not None or top_k is not None):
        raise ValueError("keep was given beside scores or top_k; pass a mask, or scores and top_k.")
    if keep is not None:
        return [
            None if mask is None else _from_mask(_flat(mask, f"keep[{index}]", grid), f"keep[{index}]")
            for index, (mask, grid) in enumerate(zip(_per_sample(keep, "keep", grids), grids, strict=True))
        ]
    if top_k is None:
        raise ValueError("scores were given without top_k; pass how many patches a sample keeps.")
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
    if len(grids) == 1 and isinstance(values, np.ndarray | torch.Tensor):
        single = values.ndim == 1 or tuple(values.shape) == tuple(grids[0])
        values = [values] if single else values
    several = isinstance(values, list | tuple) or (isinstance(values, np.ndarray | torch.Tensor) and values.ndim > 0)
    if not several or len(values) != len(grids):
        found = f"{len(values)}" if several else type(values).__name__
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
    total = grid[0] * grid[1] * grid[2]
    if tuple(values.shape) not in (tuple(grid), (total,)):
        raise ValueError(
            f"{name}: found shape {tuple(values.shape)}; expected the sample's (t, h, w) in patches, {tuple(grid)} or "
            f"flat ({total},)."
        )
    return values.flatten()


def _from_mask(mask: torch.Tensor, name: str) -> torch.Tensor:
    if mask.dtype != torch.bool:
        raise ValueError(f"{name}: found {mask.dtype}; expected booleans. Numbers are for scores, with top_k.")
    if not mask.any():
        raise ValueError(f"{name} keeps no patch; leave the sample out, or keep at least one.")
    return mask.nonzero()[:, 0]


def _best(scores: torch.Tensor, count: int, name: str) -> torch.Tensor:
    if scores.dtype == torch.bool or scores.is_complex():
        raise ValueError(f"{name}: found {scores.dtype}; expected real numbers. Booleans are for keep.")
    if scores.is_floating_point() and scores.isnan().any():
        raise ValueError(f"{name} contains NaN; expected a number for every patch.")
    return scores.argsort(descending=True, stable=True)[:count].sort().values
