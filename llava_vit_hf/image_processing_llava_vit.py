# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Image processor of LLaVA-ViT, for the dense and the packing model."""

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

# Out of a local folder transformers 4 fetches only the files that this one imports itself, so all are named here.
from .collation_llava_vit import OUTPUT, SELECTION, Sample, collate
from .grid_llava_vit import patch_view  # noqa: F401
from .inputs_llava_vit import sample_lengths  # noqa: F401
from .pixels_llava_vit import (
    check_sample,
    check_tokens,
    image_size,
    label_of,
    open_image,
    output_size,
    to_frame,
    to_rgb,
)
from .settings_llava_vit import LlavaViTSettings, check_positive, override


# The arguments that mean nothing at native resolution; the first two do where there is a budget of patches.
RESIZING = ("do_resize", "resample", "size", "do_center_crop", "crop_size")
BUDGET = ("max_patches", "min_patches", "max_pixels", "min_pixels")


class LlavaViTImageProcessor(BaseImageProcessor):
    """Turns images into the inputs of `LlavaViTModel` (`packing=False`) or `LlavaViTPackingModel` (`packing=True`).

    Its arguments are those of [`LlavaViTSettings`], by name. Every one is an attribute, is saved in
    `preprocessor_config.json` and can be overridden in a call.
    """

    settings_names = tuple(field.name for field in fields(LlavaViTSettings) if field.name != "input_data_format")

    def __init__(self, **kwargs):
        given = {name: kwargs.pop(name) for name in self.settings_names if name in kwargs}
        super().__init__(**kwargs)
        settings = LlavaViTSettings(**given)
        for name in self.settings_names:
            setattr(self, name, getattr(settings, name))

    @property
    def model_input_names(self) -> list[str]:
        """Keys of the output for images."""
        if not self.packing:
            return ["pixel_values"]
        return ["pixel_values", "grid_thw", "patch_positions", "cu_seqlens", "max_seqlen"]

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs):
        """Overrides given to `from_pretrained` go through the constructor, so they are checked in both majors."""
        overrides = {name: kwargs.pop(name) for name in cls.settings_names if name in kwargs}
        return super().from_dict({**override(image_processor_dict, overrides), **overrides}, **kwargs)

    def settings(self, **overrides: Any) -> LlavaViTSettings:
        """The processor's arguments with those of one call; `None` means as saved.

        Raises:
            TypeError: for an unknown argument.
            ValueError: for a value that cannot be, and for resizing at native resolution.
        """
        known = (*self.settings_names, "input_data_format")
        if unknown := sorted(set(overrides) - set(known)):
            raise TypeError(f"Unknown argument {', '.join(unknown)}; expected some of {', '.join(known)}.")
        given = {name: value for name, value in overrides.items() if value is not None}
        merged = override({name: getattr(self, name) for name in self.settings_names}, given)
        # A size of another processor's form is told of the budget first, and of its form then.
        settings = LlavaViTSettings(**{**merged, "size": self.size})
        resizing = [name for name in RESIZING[2 * settings.fitted :] if given.get(name, False) is not False]
        if settings.native and resizing:
            raise ValueError(
                f"{', '.join(resizing)} was given, but at native resolution an image is resized to a budget only. "
                "Pass max_patches or max_pixels (min_patches or min_pixels), which keep its aspect, or "
                "native_resolution=False to resize as CLIP does."
            )
        if not settings.native and (budget := [name for name in BUDGET if name in given]):
            raise ValueError(
                f"{', '.join(budget)} was given, but this call resizes to size={settings.size}. Pass "
                "native_resolution=True for a budget of patches."
            )
        return replace(settings, size=given["size"]) if "size" in given else settings

    def grid_for(self, height: int, width: int, frames: int = 1, **kwargs) -> list[int]:
        """`[t, h, w]`, the patches of an image of so many pixels, or of a clip of so many sampled frames.

        Args:
            height, width: in pixels, upright.
            frames: of the clip.
            kwargs: any argument of [`LlavaViTSettings`], as in a call.

        Raises:
            ValueError: as the call itself, for a size that is over a limit or too small.
        """
        settings = self.settings(**kwargs)
        for name, value in (("height", height), ("width", width), ("frames", frames)):
            check_positive(name, value)
        check_sample("grid_for", frames, height, width, settings)
        return [frames, *settings.grid(*output_size(height, width, settings))]

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> int:
        """Patches of an image of so many pixels, as transformers' processors count them."""
        return math.prod(self.grid_for(height, width, **(images_kwargs or {})))

    def preprocess(self, images: Any, return_tensors: str | None = "pt", **kwargs) -> BatchFeature:
        """As `LlavaViTProcessor.__call__` with `images` only: `kwargs` may hold `return_metadata`, `device`, `keep`,
        `scores`, `top_k` and any argument of [`LlavaViTSettings`]. An array or tensor of 4 dimensions is a batch.

        Returns:
            Dense: `pixel_values` `(B, 3, H, W)`. Packing: `pixel_values` `(total_tokens, 3 * P * P)`, `grid_thw`
            `(samples, 3)`, `patch_positions` `(total_tokens, 3)`, `cu_seqlens` `(samples + 1,)` int32 and
            `max_seqlen`, an int. With `return_tensors="np"` arrays.
        """
        collation = {name: kwargs.pop(name) for name in (*OUTPUT, *SELECTION) if name in kwargs}
        settings = self.settings(**kwargs)
        return collate(self.prepare(images, settings), settings, return_tensors, **collation)

    def prepare(self, images, settings: LlavaViTSettings) -> list[Sample]:
        """One `Sample` per image; its pixels are not yet normalized."""
        samples = [_image_sample(image, f"images[{i}]", settings) for i, image in enumerate(_flatten(images))]
        if not samples:
            raise ValueError("images: the list is empty; expected at least one image.")
        return samples


def _flatten(images: Any) -> Iterator[Any]:
    batched = isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4
    if isinstance(images, list | tuple) or batched:
        for image in images:
            yield from _flatten(image)
    else:
        yield images


def _image_sample(image: Any, name: str, settings: LlavaViTSettings) -> Sample:
    opened = open_image(image, name, settings.max_image_pixels)
    from_file = opened is not image
    name = f"{name} ({label_of(image)})" if from_file else name
    check_sample(name, 1, *image_size(opened, name, settings.input_data_format), settings)
    rgb = to_rgb(opened, name, settings, upright=from_file)
    height, width = image_size(rgb, name, "channels_last")
    frame = to_frame(rgb, settings)
    check_tokens(name, 1, *frame.shape[-2:], settings)
    metadata = {"kind": "image", "source": label_of(image) if from_file else None, "height": height, "width": width}
    return Sample([frame], metadata=metadata)
