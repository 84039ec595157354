# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Self-attention of the encoder layers and of the pooling head."""

import torch
from torch import nn

from .configuration_llava_vit import LlavaViTConfig
from .rotary_llava_vit import apply_rotary
from .segments_llava_vit import Segments, attend


class LlavaViTAttention(nn.Module):
    """Self-attention of an encoder layer, with separate query, key and value projections (dense checkpoints)."""

    # transformers' sdpa function is causal unless the module says otherwise.
    is_causal = False

    def __init__(self, config: LlavaViTConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.add_projections(config.hidden_size)

    def add_projections(self, channels: int) -> None:
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)

    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`(..., C)` to queries, keys and values, each `(tokens, heads, head_dim)`."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        return tuple(project(hidden_states).view(-1, *self.heads) for project in projections)

    def project_output(self, states: torch.Tensor) -> torch.Tensor:
        return self.out_proj(states)

    @property
    def heads(self) -> tuple[int, int]:
        return self.config.num_attention_heads, self.head_dim

    def forward(
        self,
        hidden_states: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        segments: Segments,
        implementation: str,
    ) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
        """`(..., C)` to `(..., C)`, and with `eager` the weights of each run."""
        query, key, value = self.project(hidden_states)
        # On a CPU attention is faster with each head's rows together. A traced batch keeps the plain layout: what is
        # exported with the strides of the other would not hold for a single sample.
        traced_batch = torch.compiler.is_compiling() and len(segments.runs) > 0
        by_head = query.device.type == "cpu" and not traced_batch
        if by_head:
            query, key, *rotary = (states.transpose(0, 1) for states in (query, key, *rotary))
        query, key = apply_rotary(query, *rotary), apply_rotary(key, *rotary)
        if by_head:
            query, key = query.transpose(0, 1), key.transpose(0, 1)
            if value.element_size() == 2:  # float32 kernels read values just as fast where they are
                value = value.transpose(0, 1).contiguous().transpose(0, 1)
        half = query.dtype == torch.float16
        if half:
            # A query or key beyond float16 has scores of -inf, which a fused kernel may turn into finite values. What
            # overflowed must show: 0 * inf is NaN, and adding zero changes nothing else.
            value = value + 0 * key
        states, weights = attend(self, implementation, query, key, value, segments, self.config.attention_dropout)
        if half:
            states = states + 0 * query
        return self.project_output(states.reshape(hidden_states.shape)), weights


class LlavaViTPackingAttention(LlavaViTAttention):
    """The same attention with one fused query, key and value projection (packing checkpoints)."""

    def add_projections(self, channels: int) -> None:
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.qkv(hidden_states).view(-1, 3, *self.heads).unbind(1)

    def project_output(self, states: torch.Tensor) -> torch.Tensor:
        return self.proj(states)


class LlavaViTPoolingAttention(nn.Module):
    """Attention of one probe to the tokens of each segment, with the parameters of `nn.MultiheadAttention`.

    Written with plain projections because `nn.MultiheadAttention` reads `out_proj.weight` past the module's forward,
    which breaks quantised and offloaded weights.
    """

    is_causal = False

    def __init__(self, config: LlavaViTConfig):
        super().__init__()
        channels = config.hidden_size
        self.config = config
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * channels))
        self.out_proj = nn.Linear(channels, channels)

    def forward(
        self, probe: torch.Tensor, hidden_states: torch.Tensor, segments: Segments, implementation: str
    ) -> torch.Tensor:
        """Probe `(1, 1, C)` and tokens `(tokens, C)` to `(samples, C)`."""
        channels = probe.shape[-1]
        heads = (self.config.num_attention_heads, channels // self.config.num_attention_heads)
        query_weight, memory_weight = self.in_proj_weight.split((channels, 2 * channels))
        query_bias, memory_bias = self.in_proj_bias.split((channels, 2 * channels))
        query = nn.functional.linear(probe.squeeze(0), query_weight, query_bias).view(1, *heads)
        key, value = nn.functional.linear(hidden_states, memory_weight, memory_bias).view(-1, 2, *heads).unbind(1)
        query = query.expand(segments.samples, -1, -1)
        states, _ = attend(self, implementation, query, key, value, segments, pooling=True)
        return self.out_proj(states.reshape(-1, channels))
