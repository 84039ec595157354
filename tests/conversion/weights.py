# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Tiny source checkpoints with peaked attention, and pixels for them."""

import torch

from conversion.source.encoder import SourceConfig
from conversion.source.peaked_weights import peaked_state_dict


__all__ = ["peaked_state_dict", "random_pixels", "tiny_config"]


def tiny_config(**overrides) -> SourceConfig:
    """Two layers of two heads of 32 channels, patches of 4 pixels, LayerNorm; `overrides` replace fields."""
    fields = {
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "patch_size": 4,
    }
    return SourceConfig(**(fields | overrides))


def random_pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    """Smooth-free noise of about the scale of normalized pixels, `shape`."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
