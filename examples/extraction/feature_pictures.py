# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures of features: their principal components as colours, and where two sets of them differ."""

import math

import numpy as np
from PIL import Image


DIMMED = 0.3
FRAME_SIDE, GAP = 320, 6
MAX_FRAMES = 16
# Decades of the relative error of a patch that the colours of a heat map span.
LOWEST, HIGHEST = -8, 0
# Dark to bright, in equal steps of lightness.
HEAT = np.array(
    [(5, 4, 20), (72, 16, 106), (146, 38, 103), (212, 72, 66), (245, 125, 21), (250, 193, 60), (252, 255, 190)]
)


def principal_components(features: np.ndarray) -> np.ndarray:
    """The first three principal components of one sample's tokens as colours.

    Args:
        features: `(..., C)`, all of its frames; the components are those of all frames together.

    Returns:
        `(..., 3)` uint8; the middle 98 % of each component span its channel.
    """
    tokens = features.reshape(-1, features.shape[-1]).astype(np.float64)
    tokens = tokens - tokens.mean(axis=0)
    _, directions = np.linalg.eigh(tokens.T @ tokens)
    directions = directions[:, ::-1][:, :3]
    # An eigenvector's sign is arbitrary: without this, equal features could have unlike colours.
    directions = directions * np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])])
    scores = tokens @ directions
    scores = np.pad(scores, ((0, 0), (0, 3 - scores.shape[1])))
    low, high = np.percentile(scores, [1, 99], axis=0)
    colours = (scores - low) / np.where(high > low, high - low, 1)
    return (colours.clip(0, 1) * 255).astype(np.uint8).reshape(*features.shape[:-1], 3)


def on_grid(colours: np.ndarray, grid_thw: list[int], kept: list[int] | None) -> np.ndarray:
    """Colours of tokens `(K, 3)` to `(t, h, w, 3)`; patches that were not kept are black."""
    if kept is None:
        return colours.reshape(*grid_thw, 3)
    everywhere = np.zeros((math.prod(grid_thw), 3), np.uint8)
    everywhere[kept] = colours
    return everywhere.reshape(*grid_thw, 3)


def dim_dropped(frames: np.ndarray, grid_thw: list[int], kept: list[int] | None) -> np.ndarray:
    """Frames `(t, h * P, w * P, 3)` uint8 with the patches that were not kept dark and grey."""
    if kept is None:
        return frames
    mask = np.zeros(math.prod(grid_thw), bool)
    mask[kept] = True
    side = frames.shape[1] // grid_thw[1]
    mask = mask.reshape(grid_thw).repeat(side, axis=1).repeat(side, axis=2)[..., None]
    return np.where(mask, frames, (frames.mean(axis=-1, keepdims=True) * DIMMED).astype(np.uint8))


def patch_errors(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Relative error of every patch: `(t, h, w, C)` twice to `(t, h, w)`, `||a - b|| / ||b||`."""
    difference = np.linalg.norm(actual.astype(np.float64) - expected, axis=-1)
    size = np.linalg.norm(expected.astype(np.float64), axis=-1)
    return difference / np.where(size == 0, 1, size)


def heat_colours(errors: np.ndarray) -> np.ndarray:
    """Relative errors `(...)` to colours `(..., 3)` on one fixed logarithmic scale, `10**LOWEST` to `10**HIGHEST`.

    The scale does not adapt, so that rounding looks dark in every picture and a fault bright.
    """
    decades = np.log10(np.maximum(errors, 10.0**LOWEST)).clip(LOWEST, HIGHEST)
    places = (decades - LOWEST) / (HIGHEST - LOWEST) * (len(HEAT) - 1)
    channels = [np.interp(places, np.arange(len(HEAT)), HEAT[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def unpatchify(pixel_values: np.ndarray, grid_thw: list[int]) -> np.ndarray:
    """Flat patches `(t * h * w, 3 * P * P)` of pixels in 0...255 back to frames `(t, h * P, w * P, 3)` uint8."""
    t, h, w = grid_thw
    side = round((pixel_values.shape[1] // 3) ** 0.5)
    patches = pixel_values.reshape(t, h, w, 3, side, side)
    frames = patches.transpose(0, 1, 4, 2, 5, 3).reshape(t, h * side, w * side, 3)
    return frames.clip(0, 255).astype(np.uint8)


def strip(frames: np.ndarray, patches: bool) -> Image.Image:
    """Frames side by side.

    Args:
        frames: `(t, rows, columns, 3)` uint8.
        patches: whether an element is a patch, to be drawn as a square, and not a pixel.
    """
    if len(frames) > MAX_FRAMES:
        frames = frames[np.linspace(0, len(frames) - 1, MAX_FRAMES, dtype=int)]
    rows, columns = frames.shape[1:3]
    # One picture may be larger than a frame among many.
    side = FRAME_SIDE * (2 if len(frames) == 1 else 1)
    scale = side / max(rows, columns)
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    resample = Image.Resampling.NEAREST if patches else Image.Resampling.LANCZOS
    canvas = Image.new("RGBA", (len(frames) * (size[0] + GAP) - GAP, size[1]), (0, 0, 0, 0))
    for place, frame in enumerate(frames):
        canvas.paste(Image.fromarray(frame).resize(size, resample), (place * (size[0] + GAP), 0))
    return canvas if len(frames) > 1 else canvas.convert("RGB")
