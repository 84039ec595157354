# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The mistakes that implementations of this encoder are known for, planted in the oracle.

`faults.py` plants a few of them in the model under test, to show that the checks can fail. Here the oracle computes
what an implementation with the mistake puts out, so that a wrong output can be told by the mistake it is nearest to.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch import nn
from torch.nn import functional as F

from conversion.source import encoder as source
from conversion.source.encoder import SourceEncoder
from conversion.verification.cases import CLIP_MEAN, CLIP_STD, CONTEXT_FRAMES, Sample
from conversion.verification.faults import FAULTS


@dataclass(frozen=True)
class OracleFault:
    """A mistake, by the stages of the computation that it changes.

    Attributes:
        description: completes "looks like ...".
        pixels: changes the normalized pixels `(3, T, H, W)` of a sample.
        positions: changes the positions `(N, 3)` of a sample.
        plant: a context manager that changes the oracle.
        runs: from positions `(N, 3)` and lengths of all samples, which tokens attend to each other; see `run_oracle`.
        outputs: changes the arrays that `run_oracle` returns; gets the oracle, the arrays, positions and lengths.
    """

    name: str
    description: str
    pixels: Callable[[torch.Tensor], torch.Tensor] | None = None
    positions: Callable[[torch.Tensor], torch.Tensor] | None = None
    plant: Callable[[SourceEncoder], AbstractContextManager] | None = None
    runs: Callable[[torch.Tensor, list[int]], list[torch.Tensor]] | None = None
    outputs: Callable[[SourceEncoder, dict, torch.Tensor, list[int]], dict] | None = None


def run_oracle(
    encoder: SourceEncoder, samples: Iterable[Sample], faults: Sequence[OracleFault] = ()
) -> dict[str, torch.Tensor]:
    """What the oracle, with faults planted in it, makes of the samples of a pack.

    Returns:
        `embeddings` `(tokens, C)`, before `ln_pre`; `hidden_states` `(layers + 1, tokens, C)`; `last_hidden_state`
        `(tokens, C)`; `pooled` `(samples, C)`, where there is a head.
    """
    with ExitStack() as stack:
        for fault in (fault for fault in faults if fault.plant):
            stack.enter_context(fault.plant(encoder))
        embedded, placed = zip(*(_embed(encoder, sample, faults) for sample in samples), strict=True)
        lengths = [len(tokens) for tokens in embedded]
        tokens, positions = torch.cat(embedded), torch.cat(placed)
        runs = _whole_samples(positions, lengths)
        for fault in (fault for fault in faults if fault.runs):
            runs = fault.runs(positions, lengths)
        arrays = _encode(encoder, tokens, positions, runs)
        if encoder.config.use_head:
            arrays["pooled"] = _pool(encoder, arrays["last_hidden_state"], lengths)
        for fault in (fault for fault in faults if fault.outputs):
            arrays |= fault.outputs(encoder, arrays, positions, lengths)
    return arrays


@torch.no_grad()
def _embed(encoder: SourceEncoder, sample: Sample, faults: Sequence[OracleFault]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens `(N, C)` of the kept patches and their positions `(N, 3)`."""
    pixels, positions = sample.pixels(), sample.positions(encoder.config.patch_size)
    for fault in faults:
        pixels = fault.pixels(pixels) if fault.pixels else pixels
        positions = fault.positions(positions) if fault.positions else positions
    tokens, _ = encoder.embed(pixels.to(encoder.conv1.weight.dtype))
    return tokens if sample.kept is None else tokens[torch.from_numpy(sample.kept)], positions


@torch.no_grad()
def _encode(
    encoder: SourceEncoder, tokens: torch.Tensor, positions: torch.Tensor, runs: list[torch.Tensor]
) -> dict[str, torch.Tensor]:
    outputs = [encoder.encode(tokens[run], positions[run]) for run in runs]
    # Back from the order of the runs to that of the tokens.
    order = torch.cat(runs).argsort()
    states = torch.cat([torch.stack(states) for states, _ in outputs], dim=1)
    return {
        "embeddings": tokens,
        "hidden_states": states[:, order],
        "last_hidden_state": torch.cat([last for _, last in outputs])[order],
    }


@torch.no_grad()
def _pool(encoder: SourceEncoder, tokens: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    return torch.stack([encoder.head(sample) for sample in tokens.split(lengths)])


# Which tokens attend to each other.


def _whole_samples(positions: torch.Tensor, lengths: list[int]) -> list[torch.Tensor]:
    return list(torch.arange(len(positions)).split(lengths))


def _frames_apart(positions: torch.Tensor, lengths: list[int]) -> list[torch.Tensor]:
    return [
        sample[positions[sample, 0] == time]
        for sample in _whole_samples(positions, lengths)
        for time in positions[sample, 0].unique()
    ]


def _all_together(positions: torch.Tensor, lengths: list[int]) -> list[torch.Tensor]:
    return [torch.arange(len(positions))]


# Positions.


def _at_time(positions: torch.Tensor, times: Callable[[torch.Tensor, int], torch.Tensor]) -> torch.Tensor:
    """Positions at other times: `times` gets the number of each token's frame, from 0, and the count of frames."""
    known, frames = positions[:, 0].unique(return_inverse=True)
    return torch.cat([(known[0] + times(frames, len(known)))[:, None], positions[:, 1:]], dim=1)


def _truncated(frames: torch.Tensor, count: int) -> torch.Tensor:
    return frames * (CONTEXT_FRAMES - 1) // max(count - 1, 1)


# Pixels.


def _by_channel(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values)[:, None, None, None]


def _raw(pixels: torch.Tensor) -> torch.Tensor:
    """Normalized pixels `(3, T, H, W)` back to 0 ... 1."""
    return pixels * _by_channel(CLIP_STD) + _by_channel(CLIP_MEAN)


def _imagenet_normalized(pixels: torch.Tensor) -> torch.Tensor:
    return (_raw(pixels) - _by_channel((0.485, 0.456, 0.406))) / _by_channel((0.229, 0.224, 0.225))


def _blue_first(pixels: torch.Tensor) -> torch.Tensor:
    return (_raw(pixels).flip(0) - _by_channel(CLIP_MEAN)) / _by_channel(CLIP_STD)


# Weights. An implementation that reads its input or its projection in another order computes what the right one
# computes with the weights in that order.


@contextmanager
def _with_data(parameter: nn.Parameter, data: torch.Tensor) -> Iterator[None]:
    original = parameter.data
    parameter.data = data
    try:
        yield
    finally:
        parameter.data = original


def _reordered(reorder: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[SourceEncoder], AbstractContextManager]:
    """Takes flat patches in another order; `reorder` gets `(C, 3, P, P)` and returns the same shape."""
    return lambda encoder: _with_data(encoder.conv1.weight, reorder(encoder.conv1.weight.data))


def _in_projections(change: Callable[[nn.Parameter, int], torch.Tensor]):
    """Changes weight and bias of q, k and v in every layer; `change` also gets the number of heads."""

    def plant(encoder: SourceEncoder) -> AbstractContextManager:
        stack = ExitStack()
        for layer in encoder.transformer.layers:
            for parameter in layer.attn.in_proj.parameters():
                stack.enter_context(_with_data(parameter, change(parameter.data, layer.attn.num_heads)))
        return stack

    return plant


def _key_query_value(stacked: torch.Tensor, heads: int) -> torch.Tensor:
    query, key, value = stacked.chunk(3)
    return torch.cat([key, query, value])


def _by_head(stacked: torch.Tensor, heads: int) -> torch.Tensor:
    """As if q, k and v of a head lay side by side: (heads, 3, D) and not (3, heads, D)."""
    return stacked.unflatten(0, (heads, 3, -1)).transpose(0, 1).reshape(stacked.shape)


def _without_bias(stacked: torch.Tensor, heads: int) -> torch.Tensor:
    return torch.zeros_like(stacked) if stacked.ndim == 1 else stacked


# Rotary embedding.


def _replaced(name: str, function: Callable) -> Callable[[SourceEncoder], AbstractContextManager]:
    """Puts `function(original, ...)` in place of a function of the oracle's module."""
    original = getattr(source, name)
    return lambda encoder: patch.object(source, name, lambda *arguments: function(original, *arguments))


def _rotate_halves(_, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _interleaved_angles(original, positions: torch.Tensor, head_dim: int, theta: float) -> torch.Tensor:
    return original(positions, head_dim, theta)[:, : head_dim // 2].repeat_interleave(2, dim=1)


def _angles_with(channels: tuple[int, int, int], positions: torch.Tensor, theta: float, whole: bool = False):
    """Angles of another split, or (`whole`) with one row of frequencies for the three axes together."""
    half, first, parts = sum(channels), 0, []
    for axis, n in enumerate(channels):
        steps = torch.arange(first, first + n) / half if whole else torch.arange(n) / n
        parts.append(positions[:, axis, None].float() / theta ** steps[None])
        first += n
    return torch.cat(parts * 2, dim=1)


def _split_6_6_4(_, positions: torch.Tensor, head_dim: int, theta: float) -> torch.Tensor:
    sixteenth = head_dim // 32
    return _angles_with((6 * sixteenth, 6 * sixteenth, 4 * sixteenth), positions, theta)


def _one_row_of_frequencies(_, positions: torch.Tensor, head_dim: int, theta: float) -> torch.Tensor:
    sixteenth = head_dim // 32
    return _angles_with((4 * sixteenth, 6 * sixteenth, 6 * sixteenth), positions, theta, whole=True)


# Attention.


def _causal(_, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    later = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1) @ v


# Norms, activation and head.


def _block_norms(encoder: SourceEncoder) -> list[nn.Module]:
    of_layers = [norm for layer in encoder.transformer.layers for norm in (layer.ln_1, layer.ln_2)]
    return [encoder.ln_pre, *of_layers, encoder.ln_post]


def _with_forward(module: nn.Module, forward: Callable) -> AbstractContextManager:
    """Gives a module `forward(original, x)` in place of its own."""
    original = module.forward
    return patch.object(module, "forward", lambda x: forward(original, x))


def _epsilon(encoder: SourceEncoder) -> AbstractContextManager:
    stack = ExitStack()
    for norm in _block_norms(encoder):
        stack.enter_context(patch.object(norm, "eps", 1e-6))
    return stack


def _other_norm(encoder: SourceEncoder) -> AbstractContextManager:
    stack = ExitStack()
    for norm in _block_norms(encoder):

        def forward(original, x: torch.Tensor, norm=norm) -> torch.Tensor:
            if not isinstance(norm, nn.LayerNorm):
                return original(x - x.mean(-1, keepdim=True))
            return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias

        stack.enter_context(_with_forward(norm, forward))
    return stack


def _activation(function: Callable[[Callable, torch.Tensor], torch.Tensor]):
    """Puts `function(gelu, x)` in place of GELU, in the layers and in the head."""
    gelu = F.gelu
    return lambda encoder: patch.object(F, "gelu", lambda x, approximate="none": function(gelu, x))


def _head_epsilon(encoder: SourceEncoder) -> AbstractContextManager:
    return patch.object(encoder.head.norm, "eps", 1e-5) if encoder.config.use_head else nullcontext()


def _head_without_residual(encoder: SourceEncoder) -> AbstractContextManager:
    if not encoder.config.use_head:
        return nullcontext()
    head = encoder.head

    def forward(_, tokens: torch.Tensor) -> torch.Tensor:
        attended, _ = head.attention(head.probe, tokens[None], tokens[None], need_weights=False)
        return head.mlp(head.norm(attended))[0, 0]

    return _with_forward(head, forward)


# What is put out.


def _states_after_layers(encoder: SourceEncoder, arrays: dict, positions: torch.Tensor, lengths: list[int]) -> dict:
    return {"hidden_states": torch.cat([arrays["hidden_states"][1:], arrays["last_hidden_state"][None]])}


def _pooled_before_post_norm(
    encoder: SourceEncoder, arrays: dict, positions: torch.Tensor, lengths: list[int]
) -> dict:
    return {"pooled": _pool(encoder, arrays["hidden_states"][-1], lengths)} if encoder.config.use_head else {}


def _mean_pooled(encoder: SourceEncoder, arrays: dict, positions: torch.Tensor, lengths: list[int]) -> dict:
    samples = arrays["last_hidden_state"].split(lengths)
    return {"pooled": torch.stack([tokens.mean(0) for tokens in samples])} if encoder.config.use_head else {}


def _column_by_column(encoder: SourceEncoder, arrays: dict, positions: torch.Tensor, lengths: list[int]) -> dict:
    """The tokens of each frame in the order of (w, h)."""
    order = []
    for sample in _whole_samples(positions, lengths):
        t, h, w = positions[sample].T.tolist()
        order += (sample[0] + torch.tensor(sorted(range(len(sample)), key=lambda i: (t[i], w[i], h[i])))).tolist()
    return {name: array[..., order, :] for name, array in arrays.items() if name != "pooled"}


_EDITS = {fault.name: fault.edit_positions for fault in FAULTS}

ORACLE_FAULTS = (
    # Pixels and patches.
    OracleFault("bgr", "blue and red exchanged (BGR)", pixels=_blue_first),
    OracleFault("not_normalized", "pixels in 0 ... 1, not normalized", pixels=_raw),
    OracleFault(
        "imagenet_normalization", "ImageNet's mean and deviation in place of CLIP's", pixels=_imagenet_normalized
    ),
    OracleFault(
        "patch_channels_last",
        "patches flattened as (row, column, channel)",
        plant=_reordered(lambda weight: weight.flatten(1).unflatten(1, (*weight.shape[2:], 3)).permute(0, 3, 1, 2)),
    ),
    OracleFault(
        "weight_channels_last",
        "the weight of the patches flattened as (row, column, channel)",
        plant=_reordered(lambda weight: weight.permute(0, 2, 3, 1).reshape(weight.shape)),
    ),
    OracleFault("patch_transposed", "patches transposed", plant=_reordered(lambda weight: weight.transpose(2, 3))),
    OracleFault("column_by_column", "tokens in the order (t, w, h)", outputs=_column_by_column),
    # Positions.
    OracleFault("height_width_swapped", "h and w exchanged", positions=_EDITS["height_width_swapped"]),
    OracleFault("axes_reversed", "positions (w, h, t) for (t, h, w)", positions=lambda positions: positions.flip(1)),
    OracleFault("time_zeroed", "every frame at t = 0", positions=_EDITS["time_zeroed"]),
    OracleFault(
        "frame_numbers",
        "frames at t = 0, 1, 2, ... and not spread over the context of 64",
        positions=lambda positions: _at_time(positions, lambda frames, count: frames),
    ),
    OracleFault(
        "times_truncated",
        "times rounded down, not to the nearest",
        positions=lambda positions: _at_time(positions, _truncated),
    ),
    OracleFault("rows_shifted", "every row one patch further down", positions=_EDITS["rows_shifted"]),
    OracleFault(
        "positions_from_one",
        "rows and columns counted from 1",
        positions=lambda positions: positions + torch.tensor([0, 1, 1]),
    ),
    # Rotary embedding.
    OracleFault("no_rotation", "no rotary embedding", plant=_replaced("rotate", lambda _, x, cos, sin: x)),
    OracleFault(
        "rotate_half",
        "the textbook rotation: halves of a head and not neighbouring pairs",
        plant=_replaced("rotate", _rotate_halves),
    ),
    OracleFault(
        "interleaved_angles",
        "angles repeated pair by pair and not by halves",
        plant=_replaced("rotary_angles", _interleaved_angles),
    ),
    OracleFault(
        "rotated_backwards",
        "the rotation in the other direction",
        plant=_replaced("rotate", lambda rotate, x, cos, sin: rotate(x, cos, -sin)),
    ),
    OracleFault(
        "split_6_6_4", "channels split t:h:w = 6:6:4 and not 4:6:6", plant=_replaced("rotary_angles", _split_6_6_4)
    ),
    OracleFault(
        "one_row_of_frequencies",
        "one row of frequencies for the whole head and not one for each axis",
        plant=_replaced("rotary_angles", _one_row_of_frequencies),
    ),
    OracleFault(
        "rope_theta",
        "rope theta 1,000,000",
        plant=_replaced("rotary_angles", lambda angles, positions, head_dim, theta: angles(positions, head_dim, 1e6)),
    ),
    OracleFault(
        "bfloat16_angles",
        "rotary angles rounded to bfloat16",
        plant=_replaced("rotary_angles", lambda angles, *arguments: angles(*arguments).bfloat16().float()),
    ),
    # Attention.
    OracleFault("query_key_exchanged", "q and k exchanged in every layer", plant=_in_projections(_key_query_value)),
    OracleFault(
        "qkv_by_head", "q, k and v stacked as (heads, 3, D) and not as (3, heads, D)", plant=_in_projections(_by_head)
    ),
    OracleFault("no_qkv_bias", "the biases of q, k and v left out", plant=_in_projections(_without_bias)),
    OracleFault(
        "not_scaled",
        "attention scores not scaled by D ** -0.5",
        plant=_replaced("softmax_attention", lambda attend, q, k, v: attend(q * q.shape[-1] ** 0.5, k, v)),
    ),
    OracleFault(
        "scaled_by_width",
        "attention scores scaled by C ** -0.5 and not by D ** -0.5",
        plant=_replaced("softmax_attention", lambda attend, q, k, v: attend(q * len(q) ** -0.5, k, v)),
    ),
    OracleFault("causal", "causal attention", plant=_replaced("softmax_attention", _causal)),
    OracleFault("frames_apart", "attention frame by frame and not over the whole clip", runs=_frames_apart),
    OracleFault("leak", "attention across the samples of a pack", runs=_all_together),
    # Norms and MLP.
    OracleFault("epsilon", "epsilon 1e-6 in the norms of the encoder", plant=_epsilon),
    OracleFault("other_norm", "LayerNorm for RMSNorm, or the other way round", plant=_other_norm),
    OracleFault(
        "no_pre_norm",
        "the norm before the first layer left out",
        plant=lambda encoder: _with_forward(encoder.ln_pre, lambda norm, x: x),
    ),
    OracleFault(
        "no_post_norm",
        "the norm after the last layer left out",
        plant=lambda encoder: _with_forward(encoder.ln_post, lambda norm, x: x),
    ),
    OracleFault(
        "post_norm_twice",
        "the norm after the last layer applied twice",
        plant=lambda encoder: _with_forward(encoder.ln_post, lambda norm, x: norm(norm(x))),
    ),
    OracleFault(
        "tanh_gelu",
        "tanh approximation for the exact GELU",
        plant=_activation(lambda gelu, x: gelu(x, approximate="tanh")),
    ),
    OracleFault(
        "quick_gelu",
        "CLIP's quick GELU for the exact one",
        plant=_activation(lambda gelu, x: x * (1.702 * x).sigmoid()),
    ),
    # Head and outputs.
    OracleFault("head_epsilon", "epsilon 1e-5 in the norm of the pooling head", plant=_head_epsilon),
    OracleFault("head_without_residual", "the residual of the pooling head left out", plant=_head_without_residual),
    OracleFault("mean_pooled", "the mean of the tokens in place of the pooling head", outputs=_mean_pooled),
    OracleFault(
        "pooled_before_post_norm", "the head on tokens before the last norm", outputs=_pooled_before_post_norm
    ),
    OracleFault(
        "states_after_layers",
        "hidden states counted from the output of the first layer, the last one after the last norm",
        outputs=_states_after_layers,
    ),
)

COMMON_PAIRS = (
    ("height_width_swapped", "frame_numbers"),
    ("height_width_swapped", "positions_from_one"),
    ("height_width_swapped", "rotate_half"),
    ("height_width_swapped", "frames_apart"),
    ("frame_numbers", "positions_from_one"),
    ("frame_numbers", "rotate_half"),
    ("positions_from_one", "frames_apart"),
    ("rotate_half", "frames_apart"),
    ("bgr", "height_width_swapped"),
    ("bgr", "rotate_half"),
)
"""Made together often enough that they are known as pairs. Of two that cannot be told from one, such as a shift under
the textbook rotation, which is relative, there is none."""


def fault_combinations() -> dict[str, tuple[OracleFault, ...]]:
    """Every fault, and every pair of the commonest, by name."""
    known = {fault.name: fault for fault in ORACLE_FAULTS}
    pairs = {f"{one}+{other}": (known[one], known[other]) for one, other in COMMON_PAIRS}
    return {name: (fault,) for name, fault in known.items()} | pairs
