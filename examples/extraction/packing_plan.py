# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Which samples share a forward pass: packs of at most so many tokens, and the model's inputs for one pack."""

from collections.abc import Sequence

import numpy as np
import torch


def plan_packs(lengths: Sequence[int], pack_tokens: int) -> list[list[int]]:
    """Fills packs with samples, longest first, each into the first pack with room (first-fit decreasing).

    Args:
        lengths: tokens of each sample.
        pack_tokens: of a pack; a longer sample gets a pack of its own.

    Returns:
        Indices into `lengths`, one list per pack. The same lengths give the same packs.

    Raises:
        ValueError: if `pack_tokens` is not positive.
    """
    if pack_tokens < 1:
        raise ValueError(f"pack_tokens must be at least 1, found {pack_tokens}.")
    packs: list[list[int]] = []
    rooms: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        pack = next((pack for pack, room in enumerate(rooms) if lengths[index] <= room), len(packs))
        if pack == len(packs):
            packs.append([])
            rooms.append(pack_tokens)
        packs[pack].append(index)
        rooms[pack] -= lengths[index]
    return packs


def pack_inputs(samples: Sequence) -> dict[str, torch.Tensor | int]:
    """The inputs of one forward pass.

    Args:
        samples: with `pixel_values` `(tokens, 3 * P * P)`, `patch_positions` `(tokens, 3)` and `grid_thw`.
    """
    lengths = [len(sample.pixel_values) for sample in samples]
    boundaries = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return {
        "pixel_values": torch.from_numpy(np.concatenate([sample.pixel_values for sample in samples])),
        "patch_positions": torch.from_numpy(np.concatenate([sample.patch_positions for sample in samples])),
        "grid_thw": torch.tensor([sample.grid_thw for sample in samples]),
        "cu_seqlens": torch.from_numpy(boundaries),
        "max_seqlen": max(lengths),
    }
