# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Checks of a model folder beside the encoder's outputs: epsilons by value, and the processor as it is saved."""

from pathlib import Path

import numpy as np
import torch

from conversion.common.json_files import read_json_object
from conversion.common.metrics import Bounds, Comparison, compare
from conversion.source.encoder import SourceConfig
from conversion.verification.cases import (
    Case,
    Sample,
    clip_preprocessing,
    clip_sample,
    image_sample,
    normalize,
    unpack_patches,
)
from conversion.verification.judging import PIXELS
from conversion.verification.loaded_model import ModelUnderTest


DEFAULT_FRAMES = 8
EXACT = Bounds(max_abs=0.0)
DEFAULT_IMAGE = Case(
    "processor_image", "an image of 640x500 with the processor's settings as saved", (image_sample(500, 640, 8.0),)
)
DEFAULT_CLIP = Case(
    "processor_clip",
    f"{DEFAULT_FRAMES} of a clip's 20 frames, sampled as saved, at native resolution",
    (clip_sample(61, 94, phase=2.5, frames=20),),
)


def epsilon_reasons(folder: Path, config: SourceConfig) -> tuple[list[str], list[str]]:
    """Compares epsilons by value, since outputs only show them where variances are small.

    Returns:
        Why they are wrong, and what they are.
    """
    stored = read_json_object(folder / "config.json")
    found = {name: stored.get(name) for name in ("layer_norm_eps", "head_norm_eps")}
    if found["head_norm_eps"] is None:
        found["head_norm_eps"] = found["layer_norm_eps"]
    wanted = {"layer_norm_eps": config.norm_eps, "head_norm_eps": config.head_norm_eps}
    reasons = [
        f"{name} is {found[name]!r} in config.json, the source has {wanted[name]!r}"
        for name in wanted
        if found[name] != wanted[name]
    ]
    return reasons, [f"{name} {value!r}" for name, value in found.items()]


def default_image_comparisons(model: ModelUnderTest, stored: dict) -> list[tuple[str, Comparison, Bounds]]:
    """Pixels of an image through the processor as it is saved: native for packing, CLIP's preprocessing for dense.

    Args:
        stored: the source's own processor configuration, whose resizing is to be kept; empty for the default.
    """
    image = DEFAULT_IMAGE.samples[0].frames[0]
    inputs = model.processor(images=[image])
    if model.is_packing:
        grid = tuple(inputs["grid_thw"][0].tolist())
        actual = unpack_patches(inputs["pixel_values"], grid, model.patch_size)[:, 0]
        expected = whole_patches(normalize(image).permute(2, 0, 1), model.patch_size)
    else:
        actual = inputs["pixel_values"][0]
        expected = clip_preprocessing(image, *_resize_and_crop(stored, model.model.config.image_size))
    return [("pixel_values", compare(actual, expected), PIXELS)]


def default_clip_comparisons(model: ModelUnderTest) -> list[tuple[str, Comparison, Bounds]]:
    """Which frames of a clip are sampled, and where they are put, against both worked out here."""
    frames = DEFAULT_CLIP.samples[0].frames
    inputs = model.processor(videos=[frames], native_resolution=True, num_frames=DEFAULT_FRAMES)
    sample = Sample(frames[np.linspace(0, len(frames) - 1, DEFAULT_FRAMES, dtype=int)], is_clip=True)
    positions, pixels = inputs["patch_positions"].reshape(-1, 3), inputs["pixel_values"]
    if model.is_packing:
        pixels = unpack_patches(pixels, sample.grid(model.patch_size), model.patch_size)
    else:
        pixels = whole_patches(pixels[0], model.patch_size)
    expected = whole_patches(sample.pixels(), model.patch_size)
    return [
        ("pixel_values", compare(pixels, expected), PIXELS),
        ("patch_positions", compare(positions, sample.positions(model.patch_size)), EXACT),
    ]


def whole_patches(pixels: torch.Tensor, patch_size: int) -> torch.Tensor:
    """`(..., H, W)` without what does not fill a patch at the right and bottom edge."""
    height, width = (side // patch_size * patch_size for side in pixels.shape[-2:])
    return pixels[..., :height, :width]


def _resize_and_crop(stored: dict, side: int) -> tuple[int | tuple[int, int] | None, tuple[int, int] | None]:
    def wanted(switch: str, name: str):
        if stored.get(switch) is False:
            return None
        size = stored.get(name) or side
        return size if isinstance(size, int) else size.get("shortest_edge") or (size["height"], size["width"])

    crop = wanted("do_center_crop", "crop_size")
    return wanted("do_resize", "size"), (crop, crop) if isinstance(crop, int) else crop
