# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Planted faults: the controls that a verification must tell from the real model, on every run."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from conversion.source.encoder import SourceConfig
from conversion.verification.cases import BATCH, MIXED


@dataclass(frozen=True)
class Fault:
    """A fault, and the case that is there to show it.

    Attributes:
        kind: `"structural"`, judged in float32, or `"numeric"`, judged in float64.
        edit_positions: changes the positions `(N, 3)` that the model is given.
        plant: a context manager that changes the model.
        leak: samples attend to each other.
        array: where it shows.
    """

    name: str
    description: str
    case: str
    kind: str = "structural"
    edit_positions: Callable[[torch.Tensor], torch.Tensor] | None = None
    plant: Callable | None = None
    leak: bool = False
    array: str = "last_hidden_state"

    def __post_init__(self):
        # At import: later, a typing error would look like a model folder that does not run.
        for field, known in (("kind", tuple(DTYPE_OF_KIND)), ("case", FAULT_CASES)):
            if (found := getattr(self, field)) not in known:
                raise ValueError(f"fault {self.name}: {field}={found!r}, expected one of {', '.join(known)}.")


DTYPE_OF_KIND = {"structural": "float32", "numeric": "float64"}

# The smallest with images, which are not square, and the smallest with a clip: a fault shows there as well, sooner.
FAULT_CASES = (BATCH, MIXED)


@contextmanager
def rotated_halves(model: nn.Module) -> Iterator[None]:
    """Rotates the two halves of a head against each other, as the textbook embedding does, and not its pairs."""
    module = sys.modules[type(model.encoder.layers[0].self_attn).__module__]
    original = module.apply_rotary

    def rotate_halves(states: torch.Tensor, *rotary: torch.Tensor) -> torch.Tensor:
        # Channel i and channel i + half become neighbours, are rotated as such, and go back.
        rotated = original(torch.stack(states.chunk(2, dim=-1), dim=-1).flatten(-2), *rotary)
        return torch.cat(rotated.unflatten(-1, (-1, 2)).unbind(-1), dim=-1)

    with patch.object(module, "apply_rotary", rotate_halves):
        yield


@contextmanager
def exchanged_queries_and_keys(model: nn.Module) -> Iterator[None]:
    """Exchanges the query and key projections of the middle layer."""
    attention = model.encoder.layers[len(model.encoder.layers) // 2].self_attn
    _exchange(attention)
    try:
        yield
    finally:
        _exchange(attention)


@contextmanager
def larger_epsilons(model: nn.Module, factor: float = 10.0) -> Iterator[None]:
    norms = [module for module in model.modules() if isinstance(module, (nn.LayerNorm, nn.RMSNorm))]
    original = [norm.eps for norm in norms]
    for norm in norms:
        norm.eps *= factor
    try:
        yield
    finally:
        for norm, eps in zip(norms, original, strict=True):
            norm.eps = eps


@contextmanager
def tanh_gelu(model: nn.Module) -> Iterator[None]:
    blocks = [layer.mlp for layer in model.encoder.layers]
    original = [block.activation_fn for block in blocks]
    for block in blocks:
        block.activation_fn = nn.GELU(approximate="tanh")
    try:
        yield
    finally:
        for block, activation in zip(blocks, original, strict=True):
            block.activation_fn = activation


@contextmanager
def longer_windows(model: nn.Module) -> Iterator[None]:
    """Windows of a frame more."""
    model.config.attention_window += 1
    try:
        yield
    finally:
        model.config.attention_window -= 1


@contextmanager
def joined_windows(model: nn.Module) -> Iterator[None]:
    """The last two windows of a pack, of which in `MIXED` one is a sample's end and one the next one's start,
    attend to each other."""
    module = sys.modules[type(model).__module__]
    original = module.window_lengths

    def across_samples(grids: list[list[int]], window: int | None) -> list[int]:
        spans = original(grids, window)
        last = len(original(grids[-1:], window))
        before, first = spans[-last - 1], spans[-last]
        return [*spans[: -last - 1], before + first, *spans[len(spans) - last + 1 :]]

    with patch.object(module, "window_lengths", across_samples):
        yield


@contextmanager
def transposed_blocks(model: nn.Module) -> Iterator[None]:
    """The merger takes the patches of a block column by column."""
    merge = model.config.merge_size

    def transposed(_, inputs: tuple) -> tuple:
        (tokens,) = inputs
        return (tokens.view(-1, merge, merge, tokens.shape[-1]).transpose(1, 2).reshape_as(tokens),)

    handle = model.merger.register_forward_pre_hook(transposed)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def another_norm(model: nn.Module) -> Iterator[None]:
    """A norm after the last layer, where there is none."""
    original = model.layernorm_post
    model.layernorm_post = nn.LayerNorm(model.config.hidden_size, eps=1e-6, elementwise_affine=False)
    try:
        yield
    finally:
        model.layernorm_post = original


def _row_by_row(positions: torch.Tensor) -> torch.Tensor:
    """Positions of each frame row by row, whatever the order of its patches."""
    _, lengths = positions[:, 0].unique_consecutive(return_counts=True)
    frames = positions.split(lengths.tolist())
    return torch.cat([frame[torch.from_numpy(np.lexsort(frame.numpy().T[::-1]))] for frame in frames])


def _frames_from_zero(positions: torch.Tensor) -> torch.Tensor:
    """The frames of a clip at 0, 1, 2, ... and not at their numbers; images, which are at 0, stay there."""
    times = positions[:, 0]
    starts = torch.cat([torch.ones(1, dtype=torch.bool), times[1:] != times[:-1]])
    # A clip starts where time goes back, or where it leaves the 0 of images.
    clips = starts & torch.cat([times[:1] > 0, (times[1:] < times[:-1]) | (times[:-1] == 0)])
    number = starts.long().cumsum(0)
    first = torch.where(clips, number, 0).cummax(0).values
    plain = torch.where(times > 0, number - first, 0)
    return torch.cat([plain[:, None], positions[:, 1:]], dim=1)


def _exchange(attention: nn.Module) -> None:
    if hasattr(attention, "qkv"):
        for parameter in (attention.qkv.weight, attention.qkv.bias):
            query, key, value = parameter.detach().clone().chunk(3)
            parameter.data.copy_(torch.cat([key, query, value]))
    else:
        attention.q_proj, attention.k_proj = attention.k_proj, attention.q_proj


FAULTS = (
    Fault(
        "height_width_swapped",
        "positions (t, w, h) for (t, h, w)",
        BATCH,
        edit_positions=lambda positions: positions[:, [0, 2, 1]],
    ),
    Fault(
        "time_zeroed",
        "every frame at t = 0",
        MIXED,
        edit_positions=lambda positions: positions * torch.tensor([0, 1, 1]),
    ),
    Fault(
        "rows_shifted",
        "every row one patch further down",
        BATCH,
        edit_positions=lambda positions: positions + torch.tensor([0, 1, 0]),
    ),
    Fault("rotate_half", "textbook rotation of halves for that of pairs", BATCH, plant=rotated_halves),
    Fault("query_key_exchanged", "q and k of the middle layer exchanged", BATCH, plant=exchanged_queries_and_keys),
    Fault("leak", "attention across two samples", BATCH, leak=True),
    Fault("epsilon", "epsilons of all norms times 10", BATCH, "numeric", plant=larger_epsilons),
    Fault("tanh_gelu", "tanh approximation for the exact GELU", BATCH, "numeric", plant=tanh_gelu),
)

TOWER_FAULTS = (
    Fault("window_off_by_one", "windows of a frame more", MIXED, plant=longer_windows),
    Fault("window_across_samples", "a window across two samples", MIXED, plant=joined_windows),
    Fault("block_order_ignored", "positions row by row, of patches in blocks", MIXED, edit_positions=_row_by_row),
    Fault(
        "merge_transposed",
        "the patches of a block column by column in the merger",
        BATCH,
        plant=transposed_blocks,
        array="merged_hidden_state",
    ),
    Fault("post_norm_added", "a norm after the last layer", BATCH, plant=another_norm),
    Fault(
        "frames_from_zero",
        "frames at t = 0, 1, 2, ... and not at their numbers",
        MIXED,
        edit_positions=_frames_from_zero,
    ),
)
"""Of what only the towers of VLMs have."""


def faults_of(config: SourceConfig) -> tuple[Fault, ...]:
    """The faults that can be planted in a model."""
    possible = {
        # Two images are a clip of two frames then.
        "leak": config.attention_window != 1,
        "window_off_by_one": config.attention_window is not None,
        "window_across_samples": config.attention_window is not None,
        "block_order_ignored": config.merge_size > 1,
        "merge_transposed": config.merge_size > 1 and config.has_merger,
        "post_norm_added": not config.use_post_norm,
        "frames_from_zero": config.temporal_rule == "index",
    }
    return tuple(fault for fault in FAULTS + TOWER_FAULTS if possible.get(fault.name, True))
