# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Attention within the samples of a pack. Both models attend through this file.

A batch of the dense model is a pack whose samples have equal lengths, so there is one path for both, and on one
device, dtype and attention implementation both give the same bits.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .grid_llava_vit import cumulative_lengths


# Rows that a layer takes at a time for inference on a CPU. Larger intermediate states leave the caches, and from
# 32 MiB on glibc maps and clears new memory for each; with fewer rows it weighs more that every matrix product lays
# out its weights anew.
CPU_ROWS = 2048


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
    def from_lengths(cls, lengths: list[int], device: torch.device, only_boundaries: bool = False) -> "Segments":
        """Segments of the given lengths. Samples of equal length that are apart are brought together, once for all
        layers, so that one attention call serves them all, unless attention needs `only_boundaries` anyway."""
        if only_boundaries:
            return cls(on_device(cumulative_lengths(lengths), device), max(lengths))
        order = None
        if len(_runs(lengths)) > len(set(lengths)):
            order = sorted(range(len(lengths)), key=lengths.__getitem__)
            starts = cumulative_lengths(lengths)[:-1].long()[order]
            lengths = [lengths[index] for index in order]
        cu_seqlens = cumulative_lengths(lengths)
        segments = cls(on_device(cu_seqlens, device), max(lengths), runs=_runs(lengths))
        if order is None:
            return segments
        sizes = torch.tensor(lengths)
        rows = torch.arange(int(cu_seqlens[-1])) + (starts - cu_seqlens[:-1]).repeat_interleave(sizes)
        return replace(
            segments,
            sample_order=on_device(torch.tensor(order), device),
            row_order=on_device(rows, device),
            inverse_row_order=on_device(rows.argsort(), device),
        )

    @property
    def samples(self) -> int:
        return self.cu_seqlens.shape[0] - 1

    @cached_property
    def parts(self) -> tuple[tuple[slice, "Segments"], ...]:
        """Rows and segments of whole samples, at most `CPU_ROWS` rows together or one longer sample."""
        parts, runs = [], []
        for sample, row, count, length in self.runs:
            most = max(1, CPU_ROWS // length)
            for first in range(0, count, most):
                taken = min(most, count - first)
                end = row + (first + taken) * length
                if runs and end - runs[0][1] > CPU_ROWS:
                    parts.append(runs)
                    runs = []
                runs.append((sample + first, row + first * length, taken, length))
        return tuple(self._part(runs) for runs in [*parts, runs] if runs)

    def _part(self, runs: list[tuple[int, int, int, int]]) -> tuple[slice, "Segments"]:
        first_sample, first_row = runs[0][:2]
        runs = tuple((sample - first_sample, row - first_row, *rest) for sample, row, *rest in runs)
        sample, row, count, length = runs[-1]
        boundaries = self.cu_seqlens[first_sample : first_sample + sample + count + 1] - first_row
        longest = max(length for *_, length in runs)
        return slice(first_row, first_row + row + count * length), Segments(boundaries, longest, runs)

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


def on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on `device`. CUDA is not waited for; on other accelerators that would not be safe."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def _runs(lengths: list[int]) -> tuple[tuple[int, int, int, int], ...]:
    runs, sample, row = [], 0, 0
    for length, group in groupby(lengths):
        count = len(list(group))
        runs.append((sample, row, count, length))
        sample, row = sample + count, row + count * length
    return tuple(runs)


def needs_only_boundaries(implementation: str, states: torch.Tensor, dropout: float) -> bool:
    """Whether attention over `states` takes `cu_seqlens` and needs no lengths on the host."""
    if implementation == "sdpa":
        return torch.compiler.is_compiling() or varlen_attention(states, dropout) is not None
    return "flash" in implementation


def varlen_attention(states: torch.Tensor, dropout: float):
    """PyTorch's own attention over segments of any lengths, or `None` where it cannot take such states: it wants CUDA,
    half precision, an Ampere GPU or newer, no dropout, and PyTorch 2.10."""
    if states.device.type != "cuda" or states.dtype not in (torch.float16, torch.bfloat16) or dropout > 0:
        return None
    if torch.version.hip is not None or torch.cuda.get_device_properties(states.device).major < 8:
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def _batches(cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor):
    """For each run of segments of equal lengths: rows of queries, rows of keys, and how many segments."""
    queries, keys = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    lengths = [(q1 - q0, k1 - k0) for q0, q1, k0, k1 in zip(queries, queries[1:], keys, keys[1:], strict=False)]
    first = 0
    for _, group in groupby(lengths):
        last = first + len(list(group))
        yield slice(queries[first], queries[last]), slice(keys[first], keys[last]), last - first
        first = last


def _by_segment(states: torch.Tensor, count: int) -> torch.Tensor:
    """`(count * length, heads, head_dim)` to `(count, heads, length, head_dim)`."""
    return states.unflatten(0, (count, -1)).transpose(1, 2)


def _segment_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor
) -> torch.Tensor:
    """Attention of each segment's queries to its keys, `(rows, heads, head_dim)` each; the lengths are read here."""
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    for rows, key_rows, count in _batches(cu_seqlens_q, cu_seqlens_k):
        states = (_by_segment(states, count) for states in (query[rows], key[key_rows], value[key_rows]))
        attended = nn.functional.scaled_dot_product_attention(*states)
        output[rows] = attended.transpose(1, 2).flatten(0, 1)
    return output


def _segment_attention_gradients(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of `_segment_attention`, with the weights `P` worked out again: `dV = P^T dO`,
    `dS = P (dP - sum(P dP))` for `dP = dO V^T`, `dQ = scale dS K`, `dK = scale dS^T Q`."""
    gradients = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value))
    precise, scale = torch.promote_types(query.dtype, torch.float32), query.shape[-1] ** -0.5
    for rows, key_rows, count in _batches(cu_seqlens_q, cu_seqlens_k):
        q, k, v, out = (
            _by_segment(states, count).to(precise)
            for states in (query[rows], key[key_rows], value[key_rows], gradient[rows])
        )
        weights = (scale * q @ k.transpose(2, 3)).softmax(-1)
        change = out @ v.transpose(2, 3)
        change = weights * (change - (weights * change).sum(-1, keepdim=True))
        found = (scale * change @ k, scale * change.transpose(2, 3) @ q, weights.transpose(2, 3) @ out)
        for states, part, place in zip(found, gradients, (rows, key_rows, key_rows), strict=True):
            part[place] = states.transpose(1, 2).flatten(0, 1)
    return gradients


def segment_attention_operator():
    """`_segment_attention` as an operator that compilers call without looking inside.

    What a compiler would see inside is a loop over lengths, which it unrolls, so each new pack would be compiled anew.
    Defined once in a process, though this file may be loaded from several model folders.
    """
    if hasattr(torch.ops.llava_vit_hf, "segment_attention"):
        return torch.ops.llava_vit_hf.segment_attention
    signature = "(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens_q, Tensor cu_seqlens_k) -> "
    operator = torch.library.custom_op(
        "llava_vit_hf::segment_attention", _segment_attention, mutates_args=(), schema=signature + "Tensor"
    )

    backward = torch.library.custom_op(
        "llava_vit_hf::segment_attention_backward",
        _segment_attention_gradients,
        mutates_args=(),
        schema="(Tensor gradient, " + signature[1:] + "(Tensor, Tensor, Tensor)",
    )
    contiguous = {"memory_format": torch.contiguous_format}
    operator.register_fake(lambda query, *_: torch.empty_like(query, **contiguous))
    backward.register_fake(lambda _, *inputs: tuple(torch.empty_like(states, **contiguous) for states in inputs[:3]))
    operator.register_autograd(
        lambda ctx, gradient: (*backward(gradient, *ctx.saved_tensors), None, None),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    )
    return torch.ops.llava_vit_hf.segment_attention


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
    varlen = varlen_attention(query, arguments["dropout"]) if implementation == "sdpa" else None
    if "flash" in implementation or varlen or not segments.runs:
        boundaries, longest = segments.cu_seqlens, segments.max_seqlen
        if pooling:
            boundaries = torch.arange(segments.samples + 1, dtype=torch.int32, device=query.device)
            longest = 1
        if varlen:
            return varlen(query, key, value, boundaries, segments.cu_seqlens, longest, segments.max_seqlen), None
        if implementation == "sdpa":
            return segment_attention(query, key, value, boundaries, segments.cu_seqlens), None
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


segment_attention = segment_attention_operator()
