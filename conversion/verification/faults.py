# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Planted faults: the controls that a verification must tell from the real model, on every run."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from conversion.verification.cases import BATCH, MIXED


@dataclass(frozen=True)
class Fault:
    """A fault, and the case that is there to show it.

    Attributes:
        kind: `"structural"`, judged in float32, or `"numeric"`, judged in float64.
        edit_positions: changes the positions `(N, 3)` that the model is given.
        plant: a context manager that changes the model.
        leak: samples attend to each other.
    """

    name: str
    description: str
    case: str
    kind: str = "structural"
    edit_positions: Callable[[torch.Tensor], torch.Tensor] | None = None
    plant: Callable | None = None
    leak: bool = False

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

    module.apply_rotary = rotate_halves
    try:
        yield
    finally:
        module.apply_rotary = original


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
