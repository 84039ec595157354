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
    rows_in_blocks,
    unpack_patches,
)
from conversion.verification.judging import PIXELS
from conversion.verification.loaded_model import ModelUnderTest


DEFAULT_FRAMES = 8
EXACT = Bounds(max_abs=0.0)
IMAGE_INPUT = Case(
    "processor_image",
    "an image of 640x500 with the processor's settings as saved, and with native_resolution switched",
    (image_sample(500, 640, 8.0),),
)
CLIP_INPUT = Case(
    "processor_clip",
    f"{DEFAULT_FRAMES} of a clip's 20 frames, with the processor's settings as saved and native_resolution switched",
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


def image_comparisons(
    model: ModelUnderTest, stored: dict, config: SourceConfig
) -> list[tuple[str, Comparison, Bounds]]:
    """Pixels of an image through the processor, in every mode.

    Args:
        stored: the source's own processor configuration, whose resizing is to be kept; empty for the default.
        config: of the source.
    """
    image = IMAGE_INPUT.samples[0].frames[0]
    found = []
    for name, switch, native in _modes(model):
        inputs = model.processor(images=[image], **switch)
        actual = _frames(model, inputs, config)[:, 0]
        expected = _expected_frames(model, stored, image[None], native, config)[:, 0]
        found.append((f"pixel_values{name}", compare(actual, expected), PIXELS))
    return found


def clip_comparisons(
    model: ModelUnderTest, stored: dict, config: SourceConfig
) -> list[tuple[str, Comparison, Bounds]]:
    """Which frames of a clip are sampled, and where they are put, in every mode, against both worked out here.

    Args:
        stored, config: as for `image_comparisons`.
    """
    frames = CLIP_INPUT.samples[0].frames
    numbers = np.linspace(0, len(frames) - 1, DEFAULT_FRAMES, dtype=int)
    by_number = config.temporal_rule == "index"
    sample = Sample(frames[numbers], is_clip=True, numbers=numbers if by_number else None)
    found = []
    for name, switch, native in _modes(model):
        inputs = model.processor(videos=[frames], num_frames=DEFAULT_FRAMES, **switch)
        expected = _expected_frames(model, stored, sample.frames, native, config)
        rows, columns = (side // model.patch_size for side in expected.shape[-2:])
        places = np.stack(np.meshgrid(sample.times, range(rows), range(columns), indexing="ij"), axis=-1)
        positions = inputs["patch_positions"].reshape(-1, 3)[_raster(inputs, config)]
        found.append((f"pixel_values{name}", compare(_frames(model, inputs, config), expected), PIXELS))
        found.append((f"patch_positions{name}", compare(positions, places.reshape(-1, 3)), EXACT))
    return found


def _modes(model: ModelUnderTest) -> list[tuple[str, dict, bool]]:
    """The processor as it is saved, and switched: what arrays of a mode are called, its argument, whether it keeps an
    image's size. A packing repo does so as saved, a dense one does not."""
    switched = not model.is_packing
    return [
        ("", {}, model.is_packing),
        (f", native_resolution={switched}", {"native_resolution": switched}, switched),
    ]


def _raster(inputs: dict, config: SourceConfig) -> slice | np.ndarray:
    """The rows of the one sample that inputs hold, in `(t, h, w)` order."""
    if config.merge_size == 1:
        return slice(None)
    return np.argsort(rows_in_blocks(tuple(inputs["grid_thw"][0].tolist()), config.merge_size))


def _frames(model: ModelUnderTest, inputs: dict, config: SourceConfig) -> torch.Tensor:
    """Pixels `(3, T, H, W)` of the one sample that inputs hold, in whole patches."""
    pixels = inputs["pixel_values"]
    if model.is_packing:
        grid = tuple(inputs["grid_thw"][0].tolist())
        return unpack_patches(pixels[_raster(inputs, config)], grid, model.patch_size)
    return whole_patches(pixels[0] if pixels.ndim == 5 else pixels[0][:, None], model.patch_size)


def _expected_frames(
    model: ModelUnderTest, stored: dict, frames: np.ndarray, native: bool, config: SourceConfig
) -> torch.Tensor:
    """What the processor should make of `(T, H, W, 3)` uint8: `(3, T, H', W')`, in whole patches or blocks."""
    if native:
        pixels = [normalize(frame).permute(2, 0, 1) for frame in frames]
    else:
        sizes = _resize_and_crop(stored, model.model.config.image_size, config)
        pixels = [clip_preprocessing(frame, *sizes) for frame in frames]
    return whole_patches(torch.stack(pixels, dim=1), model.patch_size * config.merge_size)


def whole_patches(pixels: torch.Tensor, patch_size: int) -> torch.Tensor:
    """`(..., H, W)` without what does not fill a patch at the right and bottom edge."""
    height, width = (side // patch_size * patch_size for side in pixels.shape[-2:])
    return pixels[..., :height, :width]


def _resize_and_crop(
    stored: dict, side: int, config: SourceConfig
) -> tuple[int | tuple[int, int] | None, tuple[int, int] | None]:
    unit = config.patch_size * config.merge_size if config.merge_size > 1 else 1
    whole = max(side // unit, 1) * unit

    def wanted(switch: str, name: str, default: int):
        if stored.get(switch) is False:
            return None
        size = stored.get(name) or default
        return size if isinstance(size, int) else size.get("shortest_edge") or (size["height"], size["width"])

    crop = wanted("do_center_crop", "crop_size", whole)
    return wanted("do_resize", "size", max(side, whole)), (crop, crop) if isinstance(crop, int) else crop
