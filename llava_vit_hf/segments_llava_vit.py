# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Attention within the samples of a pack. Both models attend through this file.

A batch of the dense model is a pack whose samples have equal lengths, so there is one path for both, and on one
device, dtype and attention implementation both give the same bits for the same samples. On a CPU the bits of a
sample's attention do not depend on what else is in the pack; on CUDA they may, as varlen attention splits its work by
the whole pack. Matrix products of few rows may round otherwise than those of many. So a sample alone and the same in a
pack agree to rounding.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


# Attention weights that a backward works out at a time where there is no fused one.
WEIGHTS_AT_ONCE = 2**24


@dataclass(frozen=True, eq=False)
class Segments:
    """The samples of a pack as attention sees them, made once per forward and never inside a layer.

    Attributes:
        cu_seqlens: `(samples + 1,)` int32, boundaries of the samples among the rows.
        max_seqlen: tokens of the longest sample.
        kernel: how this forward attends, from `attention_kernel`.
        runs: `(count, length)` for each run of `count` adjacent samples of equal `length`, integers on the host; empty
            where the kernel needs `cu_seqlens` only.
    """

    cu_seqlens: torch.Tensor
    max_seqlen: int
    kernel: Callable
    runs: tuple[tuple[int, int], ...] = ()

    @property
    def samples(self) -> int:
        return self.cu_seqlens.shape[0] - 1

    def to(self, device: torch.device, non_blocking: bool = False) -> "Segments":
        """The same on another device; what accelerate calls when layers live on several."""
        return replace(self, cu_seqlens=self.cu_seqlens.to(device, non_blocking=non_blocking))


def on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on `device`. CUDA is not waited for; on other accelerators that would not be safe."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def runs_of(lengths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """`(count, length)` of each run of adjacent equal lengths."""
    return tuple((len(list(group)), length) for length, group in groupby(lengths))


def attention_kernel(
    implementation: str, states: torch.Tensor, dropout: float, batch: bool = False, compiled: bool = False
) -> Callable:
    """How to attend over such states, decided once per forward: one of the `attend_by_...` below.

    A kernel takes the module that attends (transformers' functions read `is_causal` from it), queries, keys and values
    `(tokens, heads, head_dim)`, the [`Segments`], a dropout rate, and whether it is `pooling`: with one query per
    sample. It returns rows like the queries, and with `eager` the weights `(count, heads, queries, keys)` of each run.

    Args:
        batch: the samples have one length, so a compiler sees one run whatever their number.
        compiled: whether what attends is compiled, though this forward is not.
    """
    if implementation == "sdpa" and dropout == 0:
        if (varlen := varlen_attention(states)) is not None:
            return partial(attend_by_varlen, varlen)
        if (compiled or torch.compiler.is_compiling()) and not batch:
            return attend_by_operator
    return partial(attend_by_flash if "flash" in implementation else attend_by_run, attention_function(implementation))


def needs_lengths(kernel: Callable) -> bool:
    """Whether a kernel takes the runs of a pack, whose lengths are then read on the host; others take `cu_seqlens`."""
    return getattr(kernel, "func", kernel) is attend_by_run


def attend_by_run(function, module, query, key, value, segments, dropout=0.0, pooling=False):
    """Each run of equal lengths is a batch for `function`, an attention function of transformers."""
    arguments = {"attention_mask": None, "scaling": query.shape[-1] ** -0.5, "dropout": dropout}
    return _attend_to_runs(partial(function, module, **arguments), query, key, value, segments.runs, pooling)


def attend_by_operator(module, query, key, value, segments, dropout=0.0, pooling=False):
    """In a compiled forward: one operator, which reads the lengths when it runs."""
    return segment_attention(query, key, value, segments.cu_seqlens), None


def attend_by_varlen(varlen, module, query, key, value, segments, dropout=0.0, pooling=False):
    """By PyTorch's own attention over samples of any lengths."""
    boundaries, longest = _query_boundaries(segments, pooling)
    return varlen(query, key, value, boundaries, segments.cu_seqlens, longest, segments.max_seqlen), None


def attend_by_flash(function, module, query, key, value, segments, dropout=0.0, pooling=False):
    """By a flash attention of transformers, whose own varlen path takes the boundaries."""
    boundaries, longest = _query_boundaries(segments, pooling)
    output, _ = function(
        module,
        *(states.transpose(0, 1)[None] for states in (query, key, value)),  # (1, heads, tokens, head_dim)
        attention_mask=None,
        scaling=query.shape[-1] ** -0.5,
        dropout=dropout,
        cu_seq_lens_q=boundaries,
        cu_seq_lens_k=segments.cu_seqlens,
        max_length_q=longest,
        max_length_k=segments.max_seqlen,
    )
    return output[0], None


def _query_boundaries(segments: Segments, pooling: bool) -> tuple[torch.Tensor, int]:
    if not pooling:
        return segments.cu_seqlens, segments.max_seqlen
    return torch.arange(segments.samples + 1, dtype=torch.int32, device=segments.cu_seqlens.device), 1


def _attend_to_runs(function, query, key, value, runs, pooling) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
    outputs, weights = [], []
    for states in zip(_by_run(query, runs, pooling), _by_run(key, runs), _by_run(value, runs), strict=True):
        output, weight = function(*states)
        outputs.append(output.flatten(0, 1))
        weights.append(weight)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs), None if weights[0] is None else weights


def _by_run(states: torch.Tensor, runs: Sequence[tuple[int, int]], pooling: bool = False) -> list[torch.Tensor]:
    """Rows `(tokens, heads, head_dim)`, or one per sample, to a `(count, heads, length, head_dim)` for each run."""
    sizes = [count if pooling else count * length for count, length in runs]
    parts = states.split(sizes) if len(runs) > 1 else [states]
    return [part.unflatten(0, (count, -1)).transpose(1, 2) for part, (count, _) in zip(parts, runs, strict=True)]


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


def varlen_attention(states: torch.Tensor) -> Callable | None:
    """PyTorch's own attention over samples of any lengths, or `None` where it cannot take such states: it wants CUDA,
    half precision, an Ampere GPU or newer, and PyTorch 2.10. It knows no dropout."""
    if states.device.type != "cuda" or states.dtype not in (torch.float16, torch.bfloat16):
        return None
    if torch.version.hip is not None or torch.cuda.get_device_properties(states.device).major < 8:
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def _runs(query: torch.Tensor, cu_seqlens: torch.Tensor) -> tuple:
    """Runs, read from the boundaries, and whether there is one query per sample."""
    return runs_of(cu_seqlens.diff().tolist()), len(query) == len(cu_seqlens) - 1


def _segment_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seqlens: torch.Tensor
) -> torch.Tensor:
    """As `attend_by_run`, with lengths that are read from `cu_seqlens`; contiguous."""
    runs, pooling = _runs(query, cu_seqlens)

    def function(*states: torch.Tensor) -> tuple[torch.Tensor, None]:
        return nn.functional.scaled_dot_product_attention(*states).transpose(1, 2), None

    return _attend_to_runs(function, query, key, value, runs, pooling)[0].contiguous()


def _segment_attention_gradients(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seqlens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of `_segment_attention`, of each run as a batch."""
    runs, pooling = _runs(query, cu_seqlens)
    gradients: tuple[list[torch.Tensor], ...] = ([], [], [])
    parts = (_by_run(gradient, runs, pooling), _by_run(query, runs, pooling), _by_run(key, runs), _by_run(value, runs))
    function = _fused_gradients if query.device.type == "cpu" else _gradients_in_blocks
    for states in zip(*parts, strict=True):
        for rows, part in zip(gradients, function(*states), strict=True):
            rows.append(part.transpose(1, 2).flatten(0, 1).to(query.dtype))
    return tuple(torch.cat(rows) for rows in gradients)


def _fused_gradients(
    out: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """By the backward of PyTorch's fused attention for CPUs, after its forward once more: no weights are kept."""
    aten = torch.ops.aten
    states, sums = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, False)
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(out, query, key, value, states, sums, 0.0, False)


def _gradients_in_blocks(
    out: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """With the weights `P` worked out again for some queries at a time, so that memory grows with the tokens alone:
    `dV = P^T dO`, `dS = P (dP - sum(P dP))` for `dP = dO V^T`, `dQ = scale dS K`, `dK = scale dS^T Q`."""
    precise, scale = torch.promote_types(query.dtype, torch.float32), query.shape[-1] ** -0.5
    k, v = key.to(precise), value.to(precise)
    of_keys, of_values, of_queries = torch.zeros_like(k), torch.zeros_like(v), []
    at_once = max(1, WEIGHTS_AT_ONCE // (query.shape[:2].numel() * key.shape[2]))
    for q, o in zip(query.split(at_once, dim=2), out.split(at_once, dim=2), strict=True):
        q, o = q.to(precise), o.to(precise)
        weights = (scale * q @ k.transpose(2, 3)).softmax(-1)
        change = o @ v.transpose(2, 3)
        change = weights * (change - (weights * change).sum(-1, keepdim=True))
        of_queries.append(scale * change @ k)
        of_keys += scale * change.transpose(2, 3) @ q
        of_values += weights.transpose(2, 3) @ o
    return torch.cat(of_queries, dim=2), of_keys, of_values


def _segment_attention_shape(query: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    """What compilers and exporters run in place of `_segment_attention`."""
    refuse_onnx()
    return torch.empty_like(query, memory_format=torch.contiguous_format)


def refuse_onnx() -> None:
    """Raises a ValueError during an export to ONNX."""
    if torch.onnx.is_in_onnx_export():
        raise ValueError(
            "The packing model cannot be exported to ONNX, which has no attention within samples of any lengths. "
            "Export the dense model of the same weights, which the project's conversion/convert_back.py makes."
        )


def segment_attention_operator():
    """`_segment_attention` as an operator that compilers call without looking inside.

    What a compiler would see inside is a loop over lengths, which it unrolls, so each new pack would be compiled anew.
    A process may load this file from several model folders. The operator's name holds the hash of the file, so that
    equal files share it, and another revision has its own.
    """
    name = f"segment_attention_{hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]}"
    if hasattr(torch.ops.llava_vit_hf, name):
        return getattr(torch.ops.llava_vit_hf, name)
    full_name = f"llava_vit_hf::{name}"
    operator = torch.library.custom_op(full_name, _segment_attention, mutates_args=())
    backward = torch.library.custom_op(f"{full_name}_backward", _segment_attention_gradients, mutates_args=())
    contiguous = {"memory_format": torch.contiguous_format}
    operator.register_fake(_segment_attention_shape)
    backward.register_fake(lambda _, *inputs: tuple(torch.empty_like(states, **contiguous) for states in inputs[:3]))
    operator.register_autograd(
        lambda ctx, gradient: (*backward(gradient, *ctx.saved_tensors), None),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    )
    return getattr(torch.ops.llava_vit_hf, name)


segment_attention = segment_attention_operator()
