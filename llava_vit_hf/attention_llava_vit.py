# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Self-attention of the encoder layers with its 3D rotary embedding, and the attention of the pooling head."""

import torch
from torch import nn

from .configuration_llava_vit import LlavaViTConfig
from .segments_llava_vit import Segments


# In a sample of more tokens heads attend in so many groups for inference on a CPU: a group's queries, keys and values
# are what a layer holds beside its input and its output.
GROUPED_TOKENS, HEAD_GROUPS = 4096, 4


def rotary_embedding(
    positions: torch.Tensor, head_dim: int, theta: float, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The 3D rotary embedding of tokens at `positions`, for `apply_rotary`.

    Half of a head's channels is split t:h:w = 4:6:6; per axis of `n` channels the frequencies are
    `theta ** (-arange(n) / n)`. They are made here from the config, in float32 whatever the model's dtype: a buffer
    would come back as uninitialised memory from a meta-device load and would lose its precision in `.to(bfloat16)`.

    Args:
        positions: `(tokens, 3)` integer `(t, h, w)`.
        dtype: what `apply_rotary` computes in, float32 or float64.

    Returns:
        `(tokens, 1, 3 * head_dim)`: what a channel, the next one and the one before are multiplied by.
    """
    axes = []
    for position, share in zip(positions.unbind(-1), (4, 6, 6), strict=True):
        channels = head_dim // 2 * share // 16
        steps = torch.arange(channels, dtype=torch.float32, device=positions.device)
        axes.append(position.float().unsqueeze(-1) * (1.0 / theta ** (steps / channels)))
    # Half-duplicated angles with a rotation of neighbouring pairs (see `apply_rotary`) is not the textbook rotary
    # embedding, in which one of the two differs, but it is what the weights were trained with.
    angles = torch.cat(axes * 2, dim=-1).unsqueeze(1)
    cosines, sines = angles.cos().to(dtype), angles.sin().to(dtype)
    first = torch.arange(head_dim, device=angles.device) % 2 == 0
    # In one tensor because compilers keep what is concatenated, and would work out the rest again for every head.
    return torch.cat((cosines, torch.where(first, -sines, 0.0), torch.where(first, 0.0, sines)), dim=-1)


def apply_rotary(states: torch.Tensor, rotary: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Rotates neighbouring pairs of channels: `(x0, x1) -> (x0 cos0 - x1 sin0, x1 cos1 + x0 sin1)`.

    Queries or keys `(tokens, heads, head_dim)` keep their shape and dtype; this computes in that of `rotary`, which is
    from `rotary_embedding`.

    Args:
        out: where to write the result, which is then this; without gradients only.
    """
    cosines, next_sines, previous_sines = rotary.chunk(3, dim=-1)
    wide = states.to(cosines.dtype)
    in_place = out is not None and out.dtype == cosines.dtype
    rotated = torch.mul(wide, cosines, out=out) if in_place else wide * cosines
    # A pair's other channel is the next one or the one before: whole rows read at an offset, and none rearranged.
    most = states.shape[-1] - 1
    rotated.narrow(-1, 0, most).addcmul_(wide.narrow(-1, 1, most), next_sines.narrow(-1, 0, most))
    rotated.narrow(-1, 1, most).addcmul_(wide.narrow(-1, 0, most), previous_sines.narrow(-1, 1, most))
    if out is None:
        return rotated.to(states.dtype)
    return out if in_place else out.copy_(rotated)


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
        # As many heads as there are: of a model whose projections are split over processes each has some.
        rows = (project(hidden_states).flatten(0, -2) for project in self.projections())
        return tuple(row.unflatten(-1, (-1, self.head_dim)) for row in rows)

    def project_heads(self, hidden_states: torch.Tensor, heads: slice) -> tuple[torch.Tensor, ...]:
        """As `project`, by the rows of the projections' weights that belong to some heads."""
        states = hidden_states.flatten(0, -2)
        weights, biases = self.projection_parameters()
        return tuple(
            nn.functional.linear(
                states,
                weight.unflatten(0, (-1, self.head_dim))[heads].flatten(0, 1),
                bias.unflatten(0, (-1, self.head_dim))[heads].flatten(),
            ).unflatten(-1, (-1, self.head_dim))
            for weight, bias in zip(weights, biases, strict=True)
        )

    def projections(self) -> tuple[nn.Module, ...]:
        return self.q_proj, self.k_proj, self.v_proj

    def projection_parameters(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Weights `(C, C)` and biases `(C,)` of queries, keys and values."""
        return [module.weight for module in self.projections()], [module.bias for module in self.projections()]

    def head_groups(self, tokens: int) -> list[slice | None]:
        """Heads that are projected and attend at a time: all, unless the longest sample has so many tokens that its
        attention takes most of the time anyway. Adapters and quantised projections have no rows to take."""
        if tokens <= GROUPED_TOKENS or any(type(module) is not nn.Linear for module in self.projections()):
            return [None]
        heads = self.config.num_attention_heads
        size = -(-heads // HEAD_GROUPS)
        return [slice(start, start + size) for start in range(0, heads, size)]

    def project_output(self, states: torch.Tensor) -> torch.Tensor:
        return self.out_proj(states)

    def forward(
        self, hidden_states: torch.Tensor, rotary: torch.Tensor, segments: Segments
    ) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
        """`(..., C)` to `(..., C)`, and with `eager` the weights of each run."""
        states, weights = self.attend(*self.rotated(hidden_states, rotary), segments)
        return self.project_output(states.reshape(*hidden_states.shape[:-1], -1)), weights

    def rotated(
        self,
        hidden_states: torch.Tensor,
        rotary: torch.Tensor,
        places: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None),
        heads: slice | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`(..., C)` to queries and keys with their rotary embedding, and values, each `(tokens, heads, head_dim)`.

        Args:
            places: where to write queries and keys; without gradients only.
            heads: some of the heads; None for all.
        """
        projected = self.project(hidden_states) if heads is None else self.project_heads(hidden_states, heads)
        query, key, value = projected
        query, key = apply_rotary(query, rotary, places[0]), apply_rotary(key, rotary, places[1])
        if value.dtype == torch.float16:
            # The one check for finite numbers: fused kernels may turn scores of -inf, of what is beyond float16, into
            # finite values. 0 * inf is NaN, which shows, and adding zero changes nothing else.
            value = value + 0 * query + 0 * key
        return query, key, value

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments
    ) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
        """What the kernel makes of what `rotated` gives: `(tokens, heads, head_dim)`, and with `eager` the weights."""
        dropout = self.config.attention_dropout if self.training else 0.0
        return segments.kernel(self, query, key, value, segments, dropout)

    def attend_in_parts(
        self, rows: torch.Tensor, norm: nn.Module, rotary: torch.Tensor, segments: Segments, most: int
    ) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
        """As `attend(*rotated(norm(rows), rotary))`, for rows `(tokens, C)`, of which `most` are projected at a time:
        beside them there is memory for queries, keys, values and what comes out, and for nothing between. Of many
        tokens in a sample it is some heads at a time."""
        groups = self.head_groups(segments.max_seqlen)
        if groups == [None]:
            return self.attend(*self.rotated_in_parts(rows, norm, rotary, most), segments)
        output = rows.new_empty(len(rows), self.config.num_attention_heads, self.head_dim)
        weights = []
        for heads in groups:
            output[:, heads], found = self.attend(*self.rotated_in_parts(rows, norm, rotary, most, heads), segments)
            weights.append(found)
        return output, None if weights[0] is None else [torch.cat(of_run, 1) for of_run in zip(*weights, strict=True)]

    def rotated_in_parts(
        self, rows: torch.Tensor, norm: nn.Module, rotary: torch.Tensor, most: int, heads: slice | None = None
    ) -> list[torch.Tensor]:
        """As `rotated(norm(rows), rotary)`, `most` rows at a time."""
        whole = None
        for start in range(0, len(rows), most):
            part = slice(start, start + most)
            places = (None, None) if whole is None else (whole[0][part], whole[1][part])
            projected = self.rotated(norm(rows[part]), rotary[part], places, heads)
            if whole is None:
                whole = [rows.new_empty(len(rows), *states.shape[1:], dtype=states.dtype) for states in projected]
            for states, place, written in zip(projected, (*places, None), whole, strict=True):
                if states is not place:
                    written[part] = states
        return whole


class LlavaViTPackingAttention(LlavaViTAttention):
    """The same attention with one fused query, key and value projection (packing checkpoints)."""

    def add_projections(self, channels: int) -> None:
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def projections(self) -> tuple[nn.Module, ...]:
        return (self.qkv,)

    def projection_parameters(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return list(self.qkv.weight.chunk(3)), list(self.qkv.bias.chunk(3))

    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.qkv(hidden_states).view(-1, 3, self.config.num_attention_heads, self.head_dim).unbind(1)

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

    def forward(self, probe: torch.Tensor, hidden_states: torch.Tensor, segments: Segments) -> torch.Tensor:
        """Probe `(1, 1, C)` and tokens `(tokens, C)` to `(samples, C)`."""
        channels = probe.shape[-1]
        heads = (self.config.num_attention_heads, channels // self.config.num_attention_heads)
        query_weight, memory_weight = self.in_proj_weight.split((channels, 2 * channels))
        query_bias, memory_bias = self.in_proj_bias.split((channels, 2 * channels))
        query = nn.functional.linear(probe.squeeze(0), query_weight, query_bias).view(1, *heads)
        key, value = nn.functional.linear(hidden_states, memory_weight, memory_bias).view(-1, 2, *heads).unbind(1)
        query = query.expand(segments.samples, -1, -1)
        states, _ = segments.kernel(self, query, key, value, segments, pooling=True)
        return self.out_proj(states.reshape(-1, channels))
