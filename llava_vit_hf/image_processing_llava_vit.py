# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Image processor of LLaVA-ViT, for the dense and the packing model.

Two independent switches: `packing` says what comes out (a batch, or flat patches with their grid), and
`native_resolution` says whether images are resized to CLIP's square or kept as they are.
"""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling

# Out of a local folder transformers 4 fetches only the files that this one imports itself, so all are named here.
from .collation_llava_vit import Sample, collate, select
from .decoding_llava_vit import MAX_FRAMES
from .grid_llava_vit import TEMPORAL_CONTEXT
from .pixels_llava_vit import (
    MAX_IMAGE_PIXELS,
    check_pixels,
    image_size,
    label_of,
    open_image,
    output_size,
    resized_size,
    to_frame,
    to_rgb,
)
from .selection_llava_vit import kept_patches  # noqa: F401


MAX_TOKENS = 65536
SWITCHES = (
    *("packing", "native_resolution", "do_resize", "do_center_crop", "do_rescale", "do_normalize"),
    "do_convert_rgb",
)
# The arguments that mean nothing at native resolution.
RESIZING = ("do_resize", "size", "resample", "do_center_crop", "crop_size")


class LlavaViTImageProcessor(BaseImageProcessor):
    """Turns images into the inputs of `LlavaViTModel` (`packing=False`) or `LlavaViTPackingModel` (`packing=True`).

    Every argument is saved in `preprocessor_config.json` and can be overridden in a call.

    Args:
        patch_size: side of a patch in pixels.
        packing: return flat patches of all samples one after another, instead of a batch.
        native_resolution: keep images at their size, dropping what does not fill a patch at the right and bottom
            edge. `None`: as `packing`.
        do_resize, size, resample, do_center_crop, crop_size: CLIP preprocessing, used if not `native_resolution`.
            `size` is an int or `{"shortest_edge": n}`, or `{"height": h, "width": w}`.
        do_rescale, rescale_factor, do_normalize, image_mean, image_std: as in CLIP.
        do_convert_rgb: convert other modes to RGB; if `False` they are an error.
        max_tokens: a sample (image or clip) of more patches is an error. Nothing is resized silently.
        max_image_pixels: an image or frame of more pixels is an error, before it is decoded; also one that resizing
            would make that large. Default: Pillow's, 178,956,970. Files are held to Pillow's own limit too.
        max_frames: a video (file, folder or list) of more frames is an error, and so is a `num_frames` above it.
            Default: 1,000,000, nine hours at 30 frames a second.
        num_frames: frames sampled from a video, or `"all"`.
        temporal_context: frames of the context that a clip's sampled frames are spread over.
    """

    settings_names = (
        *("patch_size", "packing", "native_resolution", "num_frames", "temporal_context"),
        *("max_tokens", "max_image_pixels", "max_frames"),
        *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_convert_rgb"),
        *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
    )

    def __init__(
        self,
        patch_size: int = 14,
        packing: bool = False,
        native_resolution: bool | None = None,
        do_resize: bool = True,
        size: int | dict[str, int] | None = None,
        resample: PILImageResampling | int = PILImageResampling.BICUBIC,
        do_center_crop: bool = True,
        crop_size: int | dict[str, int] | None = None,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: float | list[float] | None = None,
        image_std: float | list[float] | None = None,
        do_convert_rgb: bool = True,
        max_tokens: int = MAX_TOKENS,
        num_frames: int | str = 8,
        temporal_context: int = TEMPORAL_CONTEXT,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        max_frames: int = MAX_FRAMES,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.patch_size = patch_size
        self.packing = packing
        self.native_resolution = native_resolution
        self.do_resize = do_resize
        self.size = _size_dict("size", 448 if size is None else size)
        self.resample = _resample(resample)
        self.do_center_crop = do_center_crop
        self.crop_size = _size_dict("crop_size", 448 if crop_size is None else crop_size)
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.image_mean = list(OPENAI_CLIP_MEAN) if image_mean is None else image_mean
        self.image_std = list(OPENAI_CLIP_STD) if image_std is None else image_std
        self.do_convert_rgb = do_convert_rgb
        self.max_tokens = max_tokens
        self.num_frames = num_frames
        self.temporal_context = temporal_context
        self.max_image_pixels = max_image_pixels
        self.max_frames = max_frames
        self.settings()

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
        return super().from_dict({**image_processor_dict, **overrides}, **kwargs)

    def settings(self, input_data_format: str | None = None, **overrides) -> SimpleNamespace:
        """The processor's arguments with those of one call, checked; `None` means as saved.

        Raises:
            TypeError: for an unknown argument.
            ValueError: for a value that cannot be.
        """
        unknown = sorted(set(overrides) - set(self.settings_names))
        if unknown:
            known = ", ".join((*self.settings_names, "input_data_format"))
            raise TypeError(f"Unknown argument {', '.join(unknown)}; expected some of {known}.")
        given = {name: value for name, value in overrides.items() if value is not None}
        settings = SimpleNamespace(**{name: given.get(name, getattr(self, name)) for name in self.settings_names})
        settings.input_data_format = input_data_format
        if settings.native_resolution is None:
            settings.native_resolution = settings.packing
        settings.size = _size_dict("size", settings.size)
        settings.crop_size = _size_dict("crop_size", settings.crop_size)
        settings.resample = _resample(settings.resample)
        for name in SWITCHES:
            _check_switch(name, getattr(settings, name))
        _check_numbers("rescale_factor", settings.rescale_factor, single=True)
        _check_numbers("image_mean", settings.image_mean)
        _check_numbers("image_std", settings.image_std)
        if 0 in np.atleast_1d(settings.image_std):
            raise ValueError(f"image_std must not be 0, found {settings.image_std!r}.")
        known = isinstance(input_data_format, str) and input_data_format in ("channels_first", "channels_last")
        if input_data_format is not None and not known:
            raise ValueError(
                f"input_data_format must be 'channels_first' or 'channels_last', found {input_data_format!r}."
            )
        for name in ("patch_size", "max_tokens", "max_image_pixels", "max_frames", "temporal_context"):
            _check_positive(name, getattr(settings, name))
        if not isinstance(settings.num_frames, str) or settings.num_frames != "all":
            _check_positive("num_frames", settings.num_frames)
        resizing = [name for name in RESIZING if given.get(name) is not None and given[name] is not False]
        if settings.native_resolution and resizing:
            raise ValueError(
                f"{', '.join(resizing)} was given, but nothing is resized at native resolution. Pass "
                "native_resolution=False to resize."
            )
        return settings

    def preprocess(
        self,
        images: Any,
        return_tensors: str | None = "pt",
        keep: Any = None,
        scores: Any = None,
        top_k: int | Sequence[int] | None = None,
        **kwargs,
    ) -> BatchFeature:
        """Prepares images for `model(**inputs)`.

        Args:
            images: one image or a list: PIL, numpy or torch `(H, W)`, `(H, W, C)`, `(C, H, W)`, path or URL. An array
                or tensor of 4 dimensions is a batch.
            return_tensors: `"pt"` (also `None`) or `"np"`.
            keep, scores, top_k: which patches are kept, as in `LlavaViTProcessor.__call__`.
            kwargs: any argument of the constructor, and `input_data_format` for arrays whose layout is ambiguous.

        Returns:
            Dense: `pixel_values` `(B, 3, H, W)`. Packing: `pixel_values` `(total_tokens, 3 * P * P)`, `grid_thw`
            `(samples, 3)`, `patch_positions` `(total_tokens, 3)`, `cu_seqlens` `(samples + 1,)` int32 and
            `max_seqlen`, an int. Where patches are chosen, as `LlavaViTProcessor.__call__` says.

        Raises:
            FileNotFoundError: for a missing file.
            TypeError: for what is no image, and for unknown arguments.
            ValueError: for unreadable images, images smaller than a patch or over a limit, and, if dense, images of
                different sizes.
        """
        settings = self.settings(**kwargs)
        samples = select(self.prepare(images, settings), settings, keep, scores, top_k)
        return collate(samples, settings, return_tensors)

    def prepare(self, images, settings: SimpleNamespace) -> list[Sample]:
        """One `Sample` per image; its pixels are not yet normalized."""
        samples = [_image_sample(image, f"images[{i}]", settings) for i, image in enumerate(_flatten(images))]
        if not samples:
            raise ValueError("images: the list is empty; expected at least one image.")
        return samples


def _size_dict(name: str, value: int | dict[str, int]) -> dict[str, int]:
    if isinstance(value, int) and value > 0 and not isinstance(value, bool):
        return {"shortest_edge": value} if name == "size" else {"height": value, "width": value}
    # transformers 5 hands its own mapping around, with None for the sides not given.
    pairs = dict(value) if hasattr(value, "keys") else {}
    size = {key: side for key, side in pairs.items() if side is not None}
    allowed = [{"height", "width"}] + ([{"shortest_edge"}] if name == "size" else [])
    if set(size) not in allowed or any(
        not isinstance(side, int) or isinstance(side, bool) or side < 1 for side in size.values()
    ):
        expected = " or ".join(str(sorted(keys)) for keys in allowed)
        raise ValueError(f"{name} must be an int, or a dict of pixels with the keys {expected}, found {value!r}.")
    return size


def _resample(value: Any) -> int:
    """The number of one of Pillow's filters."""
    known = [int(choice) for choice in PILImageResampling]
    if isinstance(value, bool) or not isinstance(value, int) or value not in known:
        raise ValueError(f"resample must be one of Pillow's filters, {known}, found {value!r}.")
    return int(value)


def _check_switch(name: str, value: Any) -> None:
    # Files that transformers writes may have null for False.
    if value is not None and not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, found {value!r}.")


def _check_numbers(name: str, value: Any, single: bool = False) -> None:
    """A finite number, or one for each of three channels."""
    values = list(value) if isinstance(value, list | tuple) and not single else [value]
    numbers = all(isinstance(number, int | float) and not isinstance(number, bool) for number in values)
    if len(values) not in (1, 3) or not numbers or not all(abs(number) < 1e30 for number in values):
        expected = "a finite number" + " or three of them" * (not single)
        raise ValueError(f"{name} must be {expected}, found {value!r}.")
    if len(values) == 1 and isinstance(value, list | tuple):
        raise ValueError(f"{name} must be a finite number or three of them, found {value!r}.")


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value < 2**31:
        raise ValueError(f"{name} must be an integer of at least 1 and below 2**31, found {value!r}.")


def _flatten(images: Any) -> Iterator[Any]:
    batched = isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4
    if isinstance(images, list | tuple) or batched:
        for image in images:
            yield from _flatten(image)
    else:
        yield images


def check_size(name: str, frames: int, height: int, width: int, settings: SimpleNamespace) -> None:
    """Refuses a sample smaller than a patch or over the cap, from its size alone.

    Raises:
        ValueError: naming the sample and the switch.
    """
    patch = settings.patch_size
    rows, columns = height // patch, width // patch
    if rows == 0 or columns == 0:
        raise ValueError(
            f"{name}: {width}x{height} pixels (width x height) is smaller than one patch of {patch}x{patch}. "
            "Enlarge it, or pass native_resolution=False to resize."
        )
    if frames * rows * columns > settings.max_tokens:
        raise ValueError(
            f"{name}: {frames} frame(s) of {width}x{height} pixels (width x height) are {frames * rows * columns} "
            f"tokens, more than max_tokens={settings.max_tokens}. Raise max_tokens, or pass native_resolution=False "
            "to resize, or fewer frames."
        )


def check_sample(name: str, frames: int, height: int, width: int, settings: SimpleNamespace) -> None:
    """Refuses a sample over a limit or too small, by its size before it is decoded.

    Raises:
        ValueError: naming the sample and the switch.
    """
    check_pixels(name, height, width, settings.max_image_pixels)
    check_pixels(f"{name}, resized", *resized_size(height, width, settings), settings.max_image_pixels)
    check_size(name, frames, *output_size(height, width, settings), settings)


def _image_sample(image: Any, name: str, settings: SimpleNamespace) -> Sample:
    opened = open_image(image, name, settings.max_image_pixels)
    from_file = opened is not image
    name = f"{name} ({label_of(image)})" if from_file else name
    check_sample(name, 1, *image_size(opened, name, settings.input_data_format), settings)
    rgb = to_rgb(opened, name, settings, upright=from_file)
    height, width = image_size(rgb, name, "channels_last")
    frame = to_frame(rgb, settings)
    check_size(name, 1, *frame.shape[-2:], settings)
    metadata = {"kind": "image", "source": label_of(image) if from_file else None, "height": height, "width": width}
    return Sample([frame], metadata=metadata)
