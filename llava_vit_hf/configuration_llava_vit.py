# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Configurations of the two LLaVA-ViT models, dense and packing."""

from transformers.activations import ACT2FN
from transformers.configuration_utils import PretrainedConfig


NORM_TYPES = ("layer_norm", "rms_norm")
# The rotary embedding splits half of a head's channels t:h:w = 4:6:6, so half a head is a multiple of 16.
HEAD_DIM_MULTIPLE = 32


class LlavaViTConfig(PretrainedConfig):
    """Configuration of [`LlavaViTModel`], the dense (non-packing) model.

    Args:
        hidden_size: channels `C` of a token.
        num_attention_heads: heads; `hidden_size / num_attention_heads` must be a multiple of 32.
        num_hidden_layers: encoder layers.
        intermediate_size: channels inside the MLP.
        patch_size: side of a square patch, in pixels.
        image_size: the processor's default image side, in pixels. The model takes any size and does not read it.
        num_channels: channels of the input.
        hidden_act: activation of the MLPs, a name of transformers' `ACT2FN`. The weights were trained with `"gelu"`,
            the exact (erf) one.
        layer_norm_type: `"layer_norm"` or `"rms_norm"`, the encoder's norms. The head's is always an RMSNorm.
        layer_norm_eps: epsilon of the encoder's norms.
        head_norm_eps: epsilon of the pooling head's norm; `None` means `layer_norm_eps`.
        rope_theta: base of the rotary frequencies.
        use_head: whether the model has the attention pooling head (`pooler_output`).
        attention_dropout: dropout of the attention weights during training.
        initializer_range: standard deviation of newly initialised weights.
        chunk_size_feed_forward: tokens that an encoder layer's MLP takes at a time, for less memory; 0 for all.

    Raises:
        ValueError: for values that no model can be built from; the message names the field.
    """

    model_type = "llava_vit"

    def __init__(
        self,
        hidden_size: int = 1024,
        num_attention_heads: int = 16,
        num_hidden_layers: int = 24,
        intermediate_size: int = 4096,
        patch_size: int = 14,
        image_size: int = 448,
        num_channels: int = 3,
        hidden_act: str = "gelu",
        layer_norm_type: str = "layer_norm",
        layer_norm_eps: float = 1e-6,
        head_norm_eps: float | None = None,
        rope_theta: float = 10000.0,
        use_head: bool = True,
        attention_dropout: float = 0.0,
        initializer_range: float = 0.02,
        chunk_size_feed_forward: int = 0,
        **kwargs,
    ):
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.num_hidden_layers = num_hidden_layers
        self.intermediate_size = intermediate_size
        self.patch_size = patch_size
        self.image_size = image_size
        self.num_channels = num_channels
        self.hidden_act = hidden_act
        self.layer_norm_type = layer_norm_type
        self.layer_norm_eps = layer_norm_eps
        self.head_norm_eps = layer_norm_eps if head_norm_eps is None else head_norm_eps
        self.rope_theta = rope_theta
        self.use_head = use_head
        self.attention_dropout = attention_dropout
        self.initializer_range = initializer_range
        self.chunk_size_feed_forward = chunk_size_feed_forward
        check_llava_vit_config(self)
        super().__init__(chunk_size_feed_forward=chunk_size_feed_forward, **kwargs)


class LlavaViTPackingConfig(LlavaViTConfig):
    """Configuration of [`LlavaViTPackingModel`]: the fields of [`LlavaViTConfig`].

    `spatial_merge_size` and `temporal_patch_size` of old folders are kept as they are, like any field this class
    does not know; the model merges no tokens and reads neither.
    """

    model_type = "llava_vit_packing"

    # transformers 5 would generate an `__init__` that forgets the parent's fields for a subclass without one.
    def __init__(self, **kwargs):
        super().__init__(**kwargs)


def check_llava_vit_config(config: LlavaViTConfig) -> None:
    """Raises a ValueError that names the field if no model can be built from `config`."""
    for name in (
        "hidden_size",
        "num_attention_heads",
        "num_hidden_layers",
        "intermediate_size",
        "patch_size",
        "image_size",
        "num_channels",
    ):
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer, found {value!r}.")
        if value >= 2**31:
            raise ValueError(f"{name} must be below 2**31, found {value!r}.")
    if config.hidden_size % config.num_attention_heads != 0:
        raise ValueError(
            f"hidden_size={config.hidden_size} is not divisible by num_attention_heads={config.num_attention_heads}."
        )
    head_dim = config.hidden_size // config.num_attention_heads
    if head_dim % HEAD_DIM_MULTIPLE != 0:
        raise ValueError(
            f"hidden_size / num_attention_heads = {head_dim} must be a multiple of {HEAD_DIM_MULTIPLE}: the rotary "
            "embedding splits half of it t:h:w = 4:6:6."
        )
    if not isinstance(config.layer_norm_type, str) or config.layer_norm_type not in NORM_TYPES:
        raise ValueError(f"layer_norm_type must be one of {NORM_TYPES}, found {config.layer_norm_type!r}.")
    if not isinstance(config.hidden_act, str) or config.hidden_act not in ACT2FN:
        raise ValueError(f"hidden_act must be one of {sorted(ACT2FN)}, found {config.hidden_act!r}.")
    for name in ("layer_norm_eps", "head_norm_eps", "rope_theta"):
        value = getattr(config, name)
        if not _is_number(value) or not 0 < value < float("inf"):
            raise ValueError(f"{name} must be a positive number, found {value!r}.")
    # As a tensor's exponent base an integer has 64 bits.
    if config.rope_theta >= 2**53:
        raise ValueError(f"rope_theta must be below 2**53, found {config.rope_theta!r}.")
    chunk = config.chunk_size_feed_forward
    if not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 0:
        raise ValueError(f"chunk_size_feed_forward must be an integer of at least 0, found {chunk!r}.")
    if chunk >= 2**31:
        raise ValueError(f"chunk_size_feed_forward must be below 2**31, found {chunk!r}.")
    if not _is_number(config.attention_dropout) or not 0.0 <= config.attention_dropout < 1.0:
        raise ValueError(f"attention_dropout must be in [0, 1), found {config.attention_dropout!r}.")
    if not _is_number(config.initializer_range) or not 0.0 <= config.initializer_range < float("inf"):
        raise ValueError(f"initializer_range must be a number of at least 0, found {config.initializer_range!r}.")
    if not isinstance(config.use_head, bool):
        raise ValueError(f"use_head must be True or False, found {config.use_head!r}.")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
