# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Runs a float32 model in float64 without ever holding all of its weights twice as large.

The parameters of one module at a time are widened for its forward and put back after it, so a memory-mapped model of
4 GB costs one layer more, not 8 GB.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn


@contextmanager
def in_double(model: nn.Module) -> Iterator[None]:
    """Computes in float64 inside the block; weights are the same float32 values, and afterwards the same tensors."""
    streamed = [layer for module in model.modules() if isinstance(module, nn.ModuleList) for layer in module]
    held = {parameter for layer in streamed for parameter in layer.parameters()}
    with ExitStack() as stack:
        for layer in streamed:
            stack.enter_context(_widened_for_its_forward(layer))
        stack.enter_context(_widened([parameter for parameter in model.parameters() if parameter not in held]))
        yield


@contextmanager
def _widened(parameters: list[nn.Parameter]) -> Iterator[None]:
    narrow = _widen(parameters)
    try:
        yield
    finally:
        _put_back(parameters, narrow)


@contextmanager
def _widened_for_its_forward(layer: nn.Module) -> Iterator[None]:
    parameters, narrow = list(layer.parameters()), []

    def before(*_) -> None:
        narrow[:] = _widen(parameters)

    def after(*_) -> None:
        _put_back(parameters, narrow)
        narrow.clear()

    hooks = [layer.register_forward_pre_hook(before), layer.register_forward_hook(after, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _widen(parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    narrow = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.double()
    return narrow


def _put_back(parameters: list[nn.Parameter], narrow: list[torch.Tensor]) -> None:
    for parameter, data in zip(parameters, narrow, strict=True):
        parameter.data = data
