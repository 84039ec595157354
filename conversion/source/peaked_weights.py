# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Random source checkpoints whose attention is as peaked as that of trained weights.

With the usual random initialisation attention is nearly uniform, and a model with all of its rotary embedding zeroed
still agrees to a cosine of 0.9999. Here q and k are scaled up, so that each fault in positions shows.
"""

from collections.abc import Callable
from functools import partial

import torch

from conversion.source.encoder import SourceConfig, SourceEncoder


def peaked_state_dict(
    config: SourceConfig,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    noise: Callable[[torch.Size], torch.Tensor] | None = None,
) -> dict:
    """Draws every weight of `config`: unit-variance linear maps, q and k three times that, norms around 1.

    `seed` fixes the weights on every platform but for rounding; only the CPU generator is used.

    Args:
        noise: gives float32 values of mean 0 and variance 1 in a shape; by default normal ones of the seed.
    """
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in SourceEncoder(config).state_dict().items()}
    noise = noise or partial(torch.randn, generator=torch.Generator().manual_seed(seed))
    return {name: _scaled(name, noise(shape), config).to(dtype) for name, shape in shapes.items()}


def _scaled(name: str, noise: torch.Tensor, config: SourceConfig) -> torch.Tensor:
    if name == "head.probe":
        return noise
    if noise.ndim == 1:
        is_norm = "ln_" in name or "norm" in name
        return 0.1 * noise + (1.0 if is_norm and name.endswith("weight") else 0.0)
    weight = noise * noise[0].numel() ** -0.5
    if name.endswith("attn.in_proj.weight"):
        weight[: 2 * config.hidden_size] *= 3.0
    return weight
