# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The 3D rotary embedding, which is not quite the textbook one."""

import torch
from torch import nn


def rotary_embedding(
    positions: torch.Tensor, head_dim: int, theta: float, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """The 3D rotary embedding of tokens at `positions`, for `apply_rotary`.

    Half of a head's channels is split t:h:w = 4:6:6; per axis of `n` channels the frequencies are
    `theta ** (-arange(n) / n)`. They are made here from the config, in float32 whatever the model's dtype: a buffer
    would come back as uninitialised memory from a meta-device load and would lose its precision in `.to(bfloat16)`.

    Args:
        positions: `(tokens, 3)` integer `(t, h, w)`.
        dtype: what `apply_rotary` computes in, float32 or float64.

    Returns:
        Cosines, and sines whose sign is that of the rotation, `(tokens, 1, head_dim)` each. In eager mode they are two
        complex tensors `(tokens, 1, head_dim / 2)` instead, which turn a pair of channels in one product.
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
    # Compilers fuse the real form and know no complex numbers; eagerly the complex form is several times faster.
    if torch.compiler.is_compiling() or positions.device.type not in ("cpu", "cuda"):
        signed = sines * (torch.arange(head_dim, device=sines.device) % 2 * 2 - 1)  # -1, 1, -1, 1, ...
        # Concatenated because compilers keep what is, and would work out anything else again for every head and layer.
        return torch.cat((cosines, signed), dim=-1).chunk(2, dim=-1)
    (cosine0, cosine1), (sine0, sine1) = (x.unflatten(-1, (-1, 2)).unbind(-1) for x in (cosines, sines))
    return (
        torch.complex((cosine0 + cosine1) / 2, (sine0 + sine1) / 2),
        torch.complex((cosine0 - cosine1) / 2, (sine1 - sine0) / 2),
    )


def apply_rotary(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotates neighbouring pairs of channels: `(x0, x1) -> (x0 cos0 - x1 sin0, x1 cos1 + x0 sin1)`.

    The two angles of a pair differ, so with `z = x0 + i x1` this is not a product but `a z + b conj(z)`, where
    `2 a = cos0 + cos1 + i (sin0 + sin1)` and `2 b = cos0 - cos1 + i (sin1 - sin0)`.

    Args:
        states: queries or keys, `(tokens, heads, head_dim)`; or `(heads, tokens, head_dim)`, with the first two
            dimensions of the other arguments exchanged as well.
        cosines, sines: from `rotary_embedding`; in complex form `a` and `b`.

    Returns:
        The shape and dtype of `states`, computed in float32 or float64.
    """
    if cosines.is_complex():
        wide = states.to(cosines.real.dtype, memory_format=torch.contiguous_format)
        pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
        rotated = torch.view_as_real(pairs.conj_physical().mul_(sines).addcmul_(pairs, cosines))
        return rotated.flatten(-2).to(states.dtype)
    # The neighbour is the next channel of an even one and the one before of an odd one: two shifted reads, which
    # compilers make vectors of, as they do not of an index.
    padded = nn.functional.pad(states, (1, 1))
    even = torch.arange(states.shape[-1], device=states.device) % 2 == 0
    neighbours = torch.where(even, padded[..., 2:], padded[..., :-2])
    return (states * cosines + neighbours * sines).to(states.dtype).contiguous()
