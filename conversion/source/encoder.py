# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The oracle: the encoder as the pretraining code computes it, loaded from its own checkpoint names.

Written from the description of the encoder alone, apart from `llava_vit_hf`, so that a fault there cannot hide here:
a strided convolution for the patches, one sample at a time, explicit softmax attention in blocks of queries, and the
rotation written out pair by pair. It is made to be read and trusted, not to be fast.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


LAYER_NORM_EPS = 1e-5
"""PyTorch's default of `nn.LayerNorm`, which the pretraining code leaves as it is."""

RMS_NORM_EPS = 1.1920929e-07
"""What `eps=None` of `nn.RMSNorm` means in PyTorch 2.13 for float32, bfloat16 and float16 alike."""

# Scores held at a time, queries * keys of one head: 2**20 are 4 MiB in float32, which a processor's cache holds.
_BLOCK_SCORES = 2**20


@dataclass(frozen=True)
class SourceConfig:
    """Hyperparameters of a pretraining checkpoint.

    `layer_norm_type` is `"layer_norm"` or `"rms_norm"`; `norm_eps=None` takes the source's epsilon for that type.
    `head_norm_eps` is that of the pooling head's norm, which is an RMSNorm in every variant.

    The towers of later VLMs have no `ln_post` (`use_post_norm`), attend within windows of `attention_window` frames,
    and may have a merger, which makes tokens of `merger_output_size` channels of blocks of `merge_size x merge_size`.
    `temporal_rule` says where their frames are put, and is not read here: `"index"`, at their number in the video;
    None, in the 64-frame context.

    Raises:
        ValueError: if the heads do not divide the hidden size, the head dim is not a multiple of 32, or
            `layer_norm_type` is unknown.
    """

    hidden_size: int
    num_attention_heads: int
    num_hidden_layers: int
    intermediate_size: int
    patch_size: int
    layer_norm_type: str = "layer_norm"
    norm_eps: float | None = None
    head_norm_eps: float = RMS_NORM_EPS
    rope_theta: float = 10000.0
    use_head: bool = True
    use_post_norm: bool = True
    attention_window: int | None = None
    merge_size: int = 1
    merger_output_size: int | None = None
    temporal_rule: str | None = None

    def __post_init__(self):
        if self.layer_norm_type not in ("layer_norm", "rms_norm"):
            raise ValueError(f"layer_norm_type must be 'layer_norm' or 'rms_norm', found {self.layer_norm_type!r}.")
        if self.norm_eps is None:
            default = LAYER_NORM_EPS if self.layer_norm_type == "layer_norm" else RMS_NORM_EPS
            object.__setattr__(self, "norm_eps", default)
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} does not divide hidden_size={self.hidden_size}."
            )
        if self.head_dim % 32:
            raise ValueError(
                f"The head dim is hidden_size / num_attention_heads = {self.hidden_size} / "
                f"{self.num_attention_heads} = {self.head_dim}, but the 4:6:6 split of the rotary embedding needs a "
                "multiple of 32. Check num_attention_heads."
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def has_merger(self) -> bool:
        return self.merger_output_size is not None


class RootMeanSquareNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean_square = (x * x).mean(-1, keepdim=True)
        return x / torch.sqrt(mean_square + self.eps) * self.weight


def make_norm(config: SourceConfig) -> nn.Module:
    """The norm of the encoder's blocks, `ln_pre` and `ln_post`."""
    if config.layer_norm_type == "layer_norm":
        return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
    return RootMeanSquareNorm(config.hidden_size, config.norm_eps)


def rotary_angles(positions: torch.Tensor, head_dim: int, theta: float) -> torch.Tensor:
    """Angles of the 3D rotary embedding, in float32 as in training, whatever the encoder's dtype.

    Half of the head dim is shared out 4:6:6 between time, height and width; an axis with `n` channels turns at
    `1 / theta ** (i / n)` for `i = 0 ... n - 1`.

    Args:
        positions: `(N, 3)`, `(t, h, w)` of each token.

    Returns:
        `(N, head_dim)`: the `head_dim / 2` angles, twice.
    """
    half = head_dim // 2
    channels = (half // 16 * 4, half // 16 * 6, half // 16 * 6)
    angles = []
    for axis, n in enumerate(channels):
        steps = torch.arange(n, dtype=torch.float32, device=positions.device)
        frequencies = 1.0 / theta ** (steps / n)
        angles.append(positions[:, axis, None].float() * frequencies[None, :])
    angles = torch.cat(angles, dim=1)
    return torch.cat([angles, angles], dim=1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns neighbouring pairs `(x0, x1)` into `(x0 cos0 - x1 sin0, x1 cos1 + x0 sin1)`.

    Angles come duplicated by halves while pairs are neighbours, so the two of a pair turn by different angles. That
    is not the textbook rotary embedding; it is what the weights were trained with.

    Args:
        x: `(heads, N, head_dim)`.
        cos: `(N, head_dim)`.
        sin: `(N, head_dim)`.
    """
    result = torch.empty_like(x)
    first, second = x[..., 0::2], x[..., 1::2]
    result[..., 0::2] = first * cos[:, 0::2] - second * sin[:, 0::2]
    result[..., 1::2] = second * cos[:, 1::2] + first * sin[:, 1::2]
    return result


def softmax_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention of all queries over all keys, `(heads, N, head_dim)` each, head by head in blocks of queries."""
    keys, head_dim = k.shape[1:]
    block = max(1, _BLOCK_SCORES // keys)
    heads = []
    for query, key, value in zip(q, k, v, strict=True):
        scores = (rows @ key.t() * head_dim**-0.5 for rows in query.split(block))
        heads.append(torch.cat([torch.softmax(part, dim=-1) @ value for part in scores]))
    return torch.stack(heads)


class Attention(nn.Module):
    """Self-attention over one sample, with q, k and v stacked in `in_proj`."""

    def __init__(self, config: SourceConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.in_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        tokens, width = x.shape
        q, k, v = (
            part.view(tokens, self.num_heads, width // self.num_heads).transpose(0, 1)
            for part in self.in_proj(x).split(width, dim=1)
        )
        mixed = softmax_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        return self.out_proj(mixed.transpose(0, 1).reshape(tokens, width))


class ResidualBlock(nn.Module):
    """Pre-norm attention and MLP, each added to its input."""

    def __init__(self, config: SourceConfig):
        super().__init__()
        self.ln_1 = make_norm(config)
        self.attn = Attention(config)
        self.ln_2 = make_norm(config)
        self.mlp = nn.Sequential(
            nn.Linear(config.hidden_size, config.intermediate_size),
            nn.GELU(),
            nn.Linear(config.intermediate_size, config.hidden_size),
        )

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x), cos, sin)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """The stack of blocks; exists for its place in the parameter names."""

    def __init__(self, config: SourceConfig):
        super().__init__()
        self.layers = nn.ModuleList(ResidualBlock(config) for _ in range(config.num_hidden_layers))


class HeadMLP(nn.Module):
    """fc1, exact GELU, fc2."""

    def __init__(self, config: SourceConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class PoolingHead(nn.Module):
    """One learned probe attends over the tokens of a sample: `(N, C)` to `(C,)`."""

    def __init__(self, config: SourceConfig):
        super().__init__()
        self.probe = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.attention = nn.MultiheadAttention(config.hidden_size, config.num_attention_heads, batch_first=True)
        self.norm = RootMeanSquareNorm(config.hidden_size, config.head_norm_eps)
        self.mlp = HeadMLP(config)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        pooled, _ = self.attention(self.probe, tokens[None], tokens[None], need_weights=False)
        pooled = pooled + self.mlp(self.norm(pooled))
        return pooled[0, 0]


class Merger(nn.Module):
    """What a VLM makes of a tower's tokens: each is normed, those of a block follow each other, then an MLP."""

    def __init__(self, config: SourceConfig):
        super().__init__()
        self.merge_size = config.merge_size
        width = config.hidden_size * config.merge_size**2
        self.ln_q = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, config.merger_output_size))

    def forward(self, tokens: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """Tokens `(N, C)` at the places `(N, 3)` of a grid, row by row, to `(N / merge_size ** 2, C')`, a frame's
        blocks row by row."""
        normed = self.ln_q(tokens)
        blocks: dict[tuple[int, int, int], list[torch.Tensor]] = {}
        for token, (t, h, w) in zip(normed, grid.tolist(), strict=True):
            blocks.setdefault((t, h // self.merge_size, w // self.merge_size), []).append(token)
        return self.mlp(torch.stack([torch.cat(blocks[place]) for place in sorted(blocks)]))


class SourceEncoder(nn.Module):
    """The encoder of the pretraining code. Parameters carry the names of `backbone.pt`.

    `.double()` gives a float64 reference; the rotary angles and their sines stay float32 values, as in training.
    """

    def __init__(self, config: SourceConfig):
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv2d(3, config.hidden_size, config.patch_size, stride=config.patch_size, bias=False)
        self.ln_pre = make_norm(config)
        self.transformer = Transformer(config)
        if config.use_post_norm:
            self.ln_post = make_norm(config)
        if config.use_head:
            self.head = PoolingHead(config)
        if config.merger_output_size is not None:
            self.merger = Merger(config)

    @classmethod
    def from_state_dict(
        cls, config: SourceConfig, state_dict: Mapping[str, torch.Tensor], dtype: torch.dtype = torch.float32
    ) -> "SourceEncoder":
        """Builds the encoder in `dtype` from the weights of `backbone.pt`, every one of which must be used.

        Weights that have `dtype` already are shared with the caller, not copied: a memory-mapped file stays on disk.

        Raises:
            RuntimeError: if a name is missing or left over, or a shape differs.
        """
        with torch.device("meta"):
            encoder = cls(config)
        weights = {name: tensor.detach().to(dtype) for name, tensor in state_dict.items()}
        encoder.load_state_dict(weights, strict=True, assign=True)
        return encoder.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(
        self,
        pixels: torch.Tensor,
        positions: torch.Tensor | None = None,
        visible_indices: torch.Tensor | None = None,
    ) -> dict:
        """Encodes images or clips, each sample by itself.

        Args:
            pixels: normalized pixels: an image `(3, H, W)`, images `(B, 3, H, W)`, a clip `(3, T, H, W)` or clips
                `(B, 3, T, H, W)`. What does not fill a patch at the right and bottom edge is dropped.
            positions: `(N, 3)`, or `(B, N, 3)`, `(t, h, w)` of every token; by default frames are at `0 ... T - 1`.
            visible_indices: `(K,)` or `(B, K)`. The form of pretraining: a clip padded to its 64-frame context is
                embedded whole, then these tokens are kept, with the positions of the context's grid.

        Returns:
            `hidden_states`, a list of `layers + 1` tensors `(B, N, C)`: the input of each layer, then the output of
            the last one before `ln_post`; `last_hidden_state` `(B, N, C)`, after `ln_post`; `pooled` `(B, C)`, or
            None without a head; `merged` `(B, N / merge_size ** 2, merger_output_size)`, or None without a merger. `B`
            is 1 for an input without batch dimension.

        Raises:
            ValueError: if an argument has another shape, or both `positions` and `visible_indices` are given.
        """
        clips = as_clips(pixels)
        if positions is not None and visible_indices is not None:
            raise ValueError("positions and visible_indices were both given; kept tokens sit on the padded grid.")
        positions = per_sample(positions, "positions", len(clips), ndim=2)
        visible_indices = per_sample(visible_indices, "visible_indices", len(clips), ndim=1)
        samples = [self._encode(*sample) for sample in zip(clips, positions, visible_indices, strict=True)]
        states, tokens, pooled, merged = zip(*samples, strict=True)
        return {
            "hidden_states": [torch.stack(layer) for layer in zip(*states, strict=True)],
            "last_hidden_state": torch.stack(tokens),
            "pooled": torch.stack(pooled) if self.config.use_head else None,
            "merged": None if self.config.merger_output_size is None else torch.stack(merged),
        }

    def _encode(self, clip: torch.Tensor, positions, visible_indices):
        """One clip `(3, T, H, W)`: hidden states, tokens `(N, C)`, pooled `(C,)` and merged."""
        x, grid = self.embed(clip)
        if visible_indices is not None:
            x, grid = x[visible_indices], grid[visible_indices]
        if positions is None:
            positions = grid
        elif positions.shape != grid.shape:
            raise ValueError(f"positions must be {tuple(grid.shape)} for each sample, found {tuple(positions.shape)}.")
        if self.config.attention_window is None:
            states, x = self.encode(x, positions)
        else:
            # Frames by their number in the clip, whatever time they are at.
            windows = (grid[:, 0] // self.config.attention_window).unique_consecutive(return_counts=True)[1].tolist()
            parts = zip(x.split(windows), positions.split(windows), strict=True)
            found, ends = zip(*(self.encode(*part) for part in parts), strict=True)
            states, x = [torch.cat(layer) for layer in zip(*found, strict=True)], torch.cat(ends)
        merged = None if self.config.merger_output_size is None else self.merger(x, grid)
        return states, x, self.head(x) if self.config.use_head else None, merged

    def encode(self, x: torch.Tensor, positions: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Hidden states and the tokens after `ln_post` of embedded tokens `(N, C)` at `positions` `(N, 3)`, each
        attends to all."""
        angles = rotary_angles(positions.to(x.device), self.config.head_dim, self.config.rope_theta)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        x = self.ln_pre(x)
        states = [x]
        for layer in self.transformer.layers:
            x = layer(x, cos, sin)
            states.append(x)
        return states, self.ln_post(x) if self.config.use_post_norm else x

    def embed(self, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens `(N, C)` of a clip `(3, T, H, W)` and their places `(N, 3)` on its grid, row-major."""
        patch_size = self.config.patch_size
        if min(clip.shape[-2:]) < patch_size:
            raise ValueError(
                f"pixels: a height and width of {tuple(clip.shape[-2:])} is smaller than one patch of {patch_size}."
            )
        tokens, places = [], []
        for t, frame in enumerate(clip.unbind(1)):
            planes = F.conv2d(frame[None].to(self.conv1.weight.dtype), self.conv1.weight, stride=patch_size)[0]
            height, width = planes.shape[1:]
            tokens.append(planes.reshape(planes.shape[0], -1).t())
            places.extend([t, h, w] for h in range(height) for w in range(width))
        return torch.cat(tokens), torch.tensor(places, device=clip.device)


def as_clips(pixels: torch.Tensor) -> list[torch.Tensor]:
    """Splits what `SourceEncoder.forward` takes as pixels into clips `(3, T, H, W)`."""
    shape = tuple(pixels.shape)
    if shape[:2] == (3, 3) and len(shape) == 4:
        raise ValueError(f"pixels of shape {shape} may be three images or three frames; pass (B, 3, T, H, W).")
    if len(shape) == 3 and shape[0] == 3:
        return [pixels[:, None]]
    if len(shape) == 4 and shape[1] == 3:
        return [image[:, None] for image in pixels]
    if len(shape) == 4 and shape[0] == 3:
        return [pixels]
    if len(shape) == 5 and shape[1] == 3 and shape[0] > 0 and shape[2] > 0:
        return list(pixels)
    raise ValueError(f"pixels must be (3, H, W), (B, 3, H, W), (3, T, H, W) or (B, 3, T, H, W), found {shape}.")


def per_sample(value: torch.Tensor | None, name: str, samples: int, ndim: int) -> list:
    """One entry per sample of an optional argument that is shared by all samples (`ndim`) or given for each."""
    if value is None or value.ndim == ndim:
        return [value] * samples
    if value.ndim == ndim + 1 and len(value) == samples:
        return list(value)
    raise ValueError(f"{name} has shape {tuple(value.shape)}, which fits neither one sample nor {samples} of them.")
