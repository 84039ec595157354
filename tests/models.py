# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Tiny models with peaked attention, and planted faults, for the tests.

Fresh weights at a standard deviation of 0.02 agree with anything, a zeroed rotary embedding included. These attend as
sharply as trained weights do, so a fault shows.
"""

import torch

from llava_vit_hf import LlavaViTConfig, LlavaViTModel, LlavaViTPackingConfig, LlavaViTPackingModel


TINY = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 128,
    "patch_size": 4,
    "image_size": 32,
}


def sharpen(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Redraws all weights so that attention scores spread over several units and every layer matters."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.state_dict().items():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            parameter.copy_(1 + 0.2 * noise)
        elif parameter.ndim == 1:
            parameter.copy_(0.1 * noise)
        elif "q_proj" in name or "k_proj" in name:
            parameter.copy_(noise * 2.5 / parameter.shape[1] ** 0.5)
        else:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return model.eval()


def dense_model(**overrides) -> LlavaViTModel:
    return sharpen(LlavaViTModel(LlavaViTConfig(**{**TINY, **overrides})))


def as_packing(dense: LlavaViTModel) -> LlavaViTPackingModel:
    """The packing model with the weights of `dense`, renamed here by hand, apart from the conversion's tables."""
    config = LlavaViTPackingConfig(**{name: getattr(dense.config, name) for name in vars(LlavaViTConfig(**TINY))})
    weights = dense.state_dict()
    renamed = {"patch_embed.proj.weight": weights.pop("embeddings.patch_embedding.weight")}
    for index in range(config.num_hidden_layers):
        prefix = f"encoder.layers.{index}.self_attn."
        for kind in ("weight", "bias"):
            renamed[f"{prefix}qkv.{kind}"] = torch.cat([weights.pop(f"{prefix}{name}_proj.{kind}") for name in "qkv"])
            renamed[f"{prefix}proj.{kind}"] = weights.pop(f"{prefix}out_proj.{kind}")
    model = LlavaViTPackingModel(config)
    model.load_state_dict({**renamed, **weights}, strict=True)
    return model.to(dense.dtype).eval()


def random_pixels(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def min_cosine(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Smallest cosine between corresponding tokens."""
    return torch.nn.functional.cosine_similarity(actual.double(), expected.double(), dim=-1).min().item()


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def check_same_but_for_rounding(found: torch.Tensor, expected: torch.Tensor) -> None:
    """For a sample alone and among others: on some CPUs, an Intel Xeon for one, a product of few rows rounds otherwise
    than one of many."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
