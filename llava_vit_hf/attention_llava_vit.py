# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Attention within the samples of a pack, with the 3D rotary embedding. Both models attend through this file.

A batch of the dense model is a pack whose samples have equal lengths, so there is one path for both, and on one
device, dtype and attention implementation both give the same bits.
"""

from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_llava_vit import LlavaViTConfig
from .grid_llava_vit import cumulative_lengths


def rotary_embedding(positions: torch.Tensor, head_dim: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and signed sines of the 3D rotary embedding, in float32 whatever the model's dtype.

    Half of a head's channels is split t:h:w = 4:6:6; per axis of `n` channels the frequencies are
    `theta ** (-arange(n) / n)`. They are made here from the config: a buffer would come back as uninitialised memory
    from a meta-device load and would lose its precision in `.to(bfloat16)`.

    Args:
        positions: `(tokens, 3)` integer `(t, h, w)`.

    Returns:
        Two `(tokens, 1, head_dim)` float32 tensors for `apply_rotary`.
    """
    axes = []
    for axis, share in enumerate((4, 6, 6)):
        channels = head_dim // 2 * share // 16
        steps = torch.arange(channels, dtype=torch.float32, device=positions.device)
        axes.append(positions[:, axis, None].float() * (1.0 / theta ** (steps / channels)))
    # Half-duplicated angles with a rotation of neighbouring pairs (see `apply_rotary`) is not the textbook rotary
    # embedding, in which one of the two differs, but it is what the weights were trained with.
    angles = torch.cat(axes * 2, dim=-1)[:, None]
    sines = angles.sin()
    sines[..., 0::2].neg_()
    return angles.cos(), sines


def apply_rotary(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotates neighbouring pairs of channels: `(x0, x1) -> (x0 cos0 - x1 sin0, x1 cos1 + x0 sin1)`.

    Args:
        states: queries or keys, `(tokens, heads, head_dim)`.
        cosines, sines: from `rotary_embedding`; the sines of even channels carry the minus sign.

    Returns:
        `(tokens, heads, head_dim)` in the dtype of `states`, computed in float32.
    """
    rotated = states.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (states * cosines + rotated * sines).to(states.dtype)


@dataclass(frozen=True)
class Segments:
    """The samples of a pack as attention sees them, made once per forward and never inside a layer.

    Attributes:
        cu_seqlens: `(samples + 1,)` int32, boundaries of the samples among the rows.
        max_seqlen: tokens of the longest sample.
        runs: `(first_sample, first_row, count, length)` for each run of `count` adjacent samples of equal `length`;
            integers on the host. Empty for the backends that only need `cu_seqlens`.
        sample_order: where each sample of the rows came from in the caller's pack, or `None` for the same order.
        row_order, inverse_row_order: `(tokens,)`, the same for rows, and back.
    """

    cu_seqlens: torch.Tensor
    max_seqlen: int
    runs: tuple[tuple[int, int, int, int], ...] = ()
    sample_order: torch.Tensor | None = None
    row_order: torch.Tensor | None = None
    inverse_row_order: torch.Tensor | None = field(default=None, repr=False)

    @classmethod
    def uniform(cls, samples: int, length: int, device: torch.device) -> "Segments":
        """Segments of a batch: `samples` of `length` tokens each."""
        boundaries = torch.arange(samples + 1, dtype=torch.int32, device=device) * length
        return cls(boundaries, length, runs=((0, 0, samples, length),))

    @classmethod
    def from_lengths(cls, lengths: list[int], device: torch.device) -> "Segments":
        """Segments of the given lengths. Samples of equal length that are apart are brought together, once for all
        layers, so that one attention call serves them all."""
        order = None
        if len(_runs(lengths)) > len(set(lengths)):
            order = sorted(range(len(lengths)), key=lengths.__getitem__)
            starts = cumulative_lengths(lengths)[:-1].long()[order]
            lengths = [lengths[index] for index in order]
        cu_seqlens = cumulative_lengths(lengths)
        segments = cls(cu_seqlens.to(device), max(lengths), runs=_runs(lengths))
        if order is None:
            return segments
        sizes = torch.tensor(lengths)
        rows = torch.arange(int(cu_seqlens[-1])) + (starts - cu_seqlens[:-1]).repeat_interleave(sizes)
        return replace(
            segments,
            sample_order=torch.tensor(order, device=device),
            row_order=rows.to(device),
            inverse_row_order=rows.argsort().to(device),
        )

    @property
    def samples(self) -> int:
        return self.cu_seqlens.shape[0] - 1

    def to(self, device: torch.device, non_blocking: bool = False) -> "Segments":
        """The same on another device; what accelerate calls when layers live on several."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **{name: value.to(device, non_blocking=non_blocking) for name, value in tensors.items()})

    def sort(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of the caller's pack in the order of the segments."""
        return rows if self.row_order is None else rows[self.row_order]

    def restore(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows in the order of the segments back in the order of the caller's pack."""
        return rows if self.inverse_row_order is None else rows[self.inverse_row_order]

    def restore_samples(self, samples: torch.Tensor) -> torch.Tensor:
        """One entry per segment, back in the order of the caller's samples."""
        return samples if self.sample_order is None else samples[self.sample_order.argsort()]


def _runs(lengths: list[int]) -> tuple[tuple[int, int, int, int], ...]:
    runs, sample, row = [], 0, 0
    for length, group in groupby(lengths):
        count = len(list(group))
        runs.append((sample, row, count, length))
        sample, row = sample + count, row + count * length
    return tuple(runs)


def needs_only_boundaries(implementation: str) -> bool:
    """Whether an attention implementation takes `cu_seqlens` and needs no lengths on the host."""
    return "flash" in implementation


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, the reference for the other implementations; scores and softmax in float32 or better.

    Args:
        query: `(batch, heads, queries, head_dim)`; `key` and `value` likewise with `keys` rows.

    Returns:
        `(batch, queries, heads, head_dim)` and the weights `(batch, heads, queries, keys)`.
    """
    precise = torch.promote_types(query.dtype, torch.float32)
    scores = torch.matmul(query.to(precise), key.to(precise).transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1).to(value.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def attention_function(implementation: str):
    """The function behind an attention implementation's name, from transformers' attention interface.

    Raises:
        ValueError: for a name that is not registered there.
    """
    if implementation == "eager":
        return eager_attention_forward
    if implementation not in ALL_ATTENTION_FUNCTIONS:
        names = ", ".join(["eager", *sorted(ALL_ATTENTION_FUNCTIONS)])
        raise ValueError(f"attn_implementation {implementation!r} is not known here. Choose one of: {names}.")
    return ALL_ATTENTION_FUNCTIONS[implementation]


def attend(
    module: nn.Module,
    implementation: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    dropout: float = 0.0,
    pooling: bool = False,
) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
    """Attention of every segment's queries to the same segment's keys.

    Args:
        module: passed to the attention function, which reads `is_causal` from it.
        query: `(tokens, heads, head_dim)`, or for `pooling` one per segment, `(samples, heads, head_dim)`.
        key, value: `(tokens, heads, head_dim)`.

    Returns:
        `(queries, heads, head_dim)`, and with `eager` the weights, `(count, heads, queries, keys)` per run.
    """
    function = attention_function(implementation)
    arguments = {"dropout": dropout if module.training else 0.0, "scaling": query.shape[-1] ** -0.5}
    if needs_only_boundaries(implementation):
        boundaries, longest = segments.cu_seqlens, segments.max_seqlen
        if pooling:
            boundaries = torch.arange(segments.samples + 1, dtype=torch.int32, device=query.device)
            longest = 1
        output, _ = function(
            module,
            *(states.transpose(0, 1)[None] for states in (query, key, value)),  # (1, heads, tokens, head_dim)
            None,
            cu_seq_lens_q=boundaries,
            cu_seq_lens_k=segments.cu_seqlens,
            max_length_q=longest,
            max_length_k=segments.max_seqlen,
            **arguments,
        )
        return output[0], None

    outputs, weights = [], []
    for first_sample, first_row, count, length in segments.runs:
        rows = slice(first_row, first_row + count * length)
        queries = query[first_sample : first_sample + count] if pooling else query[rows]
        output, weight = function(
            module,
            # (count, heads, length, head_dim)
            queries.unflatten(0, (count, -1)).transpose(1, 2),
            key[rows].unflatten(0, (count, length)).transpose(1, 2),
            value[rows].unflatten(0, (count, length)).transpose(1, 2),
            None,
            **arguments,
        )
        outputs.append(output.flatten(0, 1))
        weights.append(weight)
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return output, None if weights[0] is None else weights


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
        states, weights = attend(
            self,
            implementation,
            apply_rotary(query, *rotary),
            apply_rotary(key, *rotary),
            value,
            segments,
            self.config.attention_dropout,
        )
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
        query = nn.functional.linear(probe[0], query_weight, query_bias).view(1, *heads)
        key, value = nn.functional.linear(hidden_states, memory_weight, memory_bias).view(-1, 2, *heads).unbind(1)
        query = query.expand(segments.samples, -1, -1)
        states, _ = attend(self, implementation, query, key, value, segments, pooling=True)
        return self.out_proj(states.reshape(-1, channels))
