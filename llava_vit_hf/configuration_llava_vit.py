# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Configurations of the two LLaVA-ViT models, dense and packing."""

import math

from transformers.activations import ACT2FN
from transformers.configuration_utils import PretrainedConfig

from .grid_llava_vit import TEMPORAL_RULES


NORM_TYPES = ("layer_norm", "rms_norm")
# The rotary embedding splits half of a head's channels t:h:w = 4:6:6, so half a head is a multiple of 16.
HEAD_DIM_MULTIPLE = 32
# Fields that are positive integers where they are not `None`.
OPTIONAL_SIZES = ("rope_temporal_size", "attention_window", "merger_output_size")


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
        rope_temporal_size: frames of the grid that `visible_indices` without `patch_positions` count, as in the
            released OneVision-Encoder; `None`: those of the pixels. Converted folders have 64.
        use_post_norm: whether `layernorm_post` follows the last layer; the towers of later VLMs have none.

    Raises:
        ValueError: for values that no model can be built from; the message names the field.
    """

    model_type = "llava_vit"
    # How `tp_plan="auto"` splits the layers over processes: by heads, and by channels inside the MLP. transformers 4
    # takes the digits of fc1 and fc2 for layers' numbers, and leaves the MLP whole.
    base_model_tp_plan = {
        "encoder.layers.*.self_attn.q_proj": "colwise",
        "encoder.layers.*.self_attn.k_proj": "colwise",
        "encoder.layers.*.self_attn.v_proj": "colwise",
        "encoder.layers.*.self_attn.out_proj": "rowwise",
        "encoder.layers.*.mlp.fc1": "colwise",
        "encoder.layers.*.mlp.fc2": "rowwise",
    }

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
        rope_temporal_size: int | None = None,
        use_post_norm: bool = True,
        **kwargs,
    ):
        if kwargs.get("attention_window") is not None:
            raise ValueError(
                f"attention_window={kwargs['attention_window']!r}: the dense model attends over whole clips. Load a "
                "packing folder, which has windows."
            )
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
        self.rope_temporal_size = rope_temporal_size
        self.use_post_norm = use_post_norm
        check_llava_vit_config(self)
        super().__init__(chunk_size_feed_forward=chunk_size_feed_forward, **kwargs)


class LlavaViTPackingConfig(LlavaViTConfig):
    """Configuration of [`LlavaViTPackingModel`]: the fields of [`LlavaViTConfig`], and those of VLMs' towers.

    `spatial_merge_size` and `temporal_patch_size` of old folders are kept as they are, like any field this class
    does not know; the model reads neither.

    Args:
        attention_window: frames that attend to each other: a clip of more is cut into windows of so many, the last
            one shorter. `None`: a whole clip.
        merge_size: the patches of a frame come in blocks of `merge_size x merge_size`, blocks and the patches in them
            row by row; 1 for row by row.
        merger_output_size: channels of the merger, which makes one token of a block; `None` for no merger.
        temporal_rule: from frames to temporal positions as in training, which the processor applies: see
            `temporal_positions`. `None`: the processor's default.
    """

    model_type = "llava_vit_packing"
    # Its one projection of queries, keys and values holds the heads of the three one after another.
    base_model_tp_plan = None

    def __init__(
        self,
        attention_window: int | None = None,
        merge_size: int = 1,
        merger_output_size: int | None = None,
        temporal_rule: str | None = None,
        **kwargs,
    ):
        self.attention_window = attention_window
        self.merge_size = merge_size
        self.merger_output_size = merger_output_size
        self.temporal_rule = temporal_rule
        super().__init__(**kwargs)


def check_llava_vit_config(config: LlavaViTConfig) -> None:
    """Raises a ValueError that names the field if no model can be built from `config`."""
    sizes = (
        "hidden_size",
        "num_attention_heads",
        "num_hidden_layers",
        "intermediate_size",
        "patch_size",
        "image_size",
        *(["merge_size"] if isinstance(config, LlavaViTPackingConfig) else []),
    )
    for name, least, expected in (
        *((size, 1, "a positive integer") for size in (*sizes, "num_channels")),
        *(
            (size, 1, "a positive integer or None")
            for size in OPTIONAL_SIZES
            if getattr(config, size, None) is not None
        ),
        ("chunk_size_feed_forward", 0, "an integer of at least 0"),
    ):
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be {expected}, found {value!r}.")
        if value >= 2**31:
            raise ValueError(f"{name} must be below 2**31, found {value!r}.")
    for name, allowed, expected in (
        ("layer_norm_eps", lambda value: 0 < value < math.inf, "a positive number"),
        ("head_norm_eps", lambda value: 0 < value < math.inf, "a positive number"),
        # As the base of a tensor's exponents an integer has 64 bits.
        ("rope_theta", lambda value: 0 < value < 2**53, "a positive number below 2**53"),
        ("attention_dropout", lambda value: 0 <= value < 1, "in [0, 1)"),
        ("initializer_range", lambda value: 0 <= value < math.inf, "a number of at least 0"),
    ):
        value = getattr(config, name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not allowed(value):
            raise ValueError(f"{name} must be {expected}, found {value!r}.")
    for name, choices in (("layer_norm_type", NORM_TYPES), ("hidden_act", sorted(ACT2FN))):
        value = getattr(config, name)
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, found {value!r}.")
    for name in ("use_head", "use_post_norm"):
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"{name} must be True or False, found {getattr(config, name)!r}.")
    rule = getattr(config, "temporal_rule", None)
    if rule is not None and rule not in TEMPORAL_RULES:
        raise ValueError(f"temporal_rule must be one of {TEMPORAL_RULES} or None, found {rule!r}.")
    head_dim, rest = divmod(config.hidden_size, config.num_attention_heads)
    if rest != 0:
        raise ValueError(
            f"hidden_size={config.hidden_size} is not divisible by num_attention_heads={config.num_attention_heads}."
        )
    if head_dim % HEAD_DIM_MULTIPLE != 0:
        raise ValueError(
            f"hidden_size / num_attention_heads = {head_dim} must be a multiple of {HEAD_DIM_MULTIPLE}: the rotary "
            "embedding splits half of it t:h:w = 4:6:6."
        )
