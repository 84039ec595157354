# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The arguments of the processor: names, defaults and checks, in one place."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling

from .grid_llava_vit import TEMPORAL_CONTEXT, TEMPORAL_RULES


# Above twice its `PIL.Image.MAX_IMAGE_PIXELS` (89,478,485 unless changed) Pillow itself opens no file.
MAX_IMAGE_PIXELS = 178_956_970
MAX_FRAMES = 1_000_000
# Two names for one thing: of a pair a call gives one, which replaces whatever was saved of both.
ALTERNATIVES = (("num_frames", "fps"), ("max_patches", "max_pixels"), ("min_patches", "min_pixels"))
CODEC_SCORES = ("motion+residual", "motion", "residual", "bits")


@dataclass(frozen=True)
class LlavaViTSettings:
    """How images and videos are read and preprocessed: what a processor saves, with what one call changes.

    Args:
        patch_size: side of a patch in pixels.
        packing: return flat patches of all samples one after another, instead of a batch.
        native_resolution: keep images at their size, dropping what does not fill a patch at the right and bottom
            edge. `None`: as `packing`.
        do_resize, size, resample, do_center_crop, crop_size: CLIP preprocessing, used if not `native_resolution`.
            `size` is an int or `{"shortest_edge": n}`, or `{"height": h, "width": w}`. Default: 448.
        do_rescale, rescale_factor, do_normalize, image_mean, image_std: as in CLIP.
        do_convert_rgb: convert other modes to RGB; if `False` they are an error.
        max_patches: at native resolution, an image or frame of more patches is resized to at most these, keeping its
            aspect (`budget_grid` has the rule), with `resample`. `None`, the default: nothing is resized.
        min_patches: likewise, one of fewer patches is enlarged to at least these.
        max_pixels, min_pixels: the same in pixels, as Qwen's processors name them: `max_pixels` of 1024 patches of 14
            pixels are 1024 * 14 * 14. Of `max_patches` and `max_pixels` one is given, and so of the others.
        max_tokens: a sample (image or clip) of more patches is an error. Nothing is resized silently.
        max_image_pixels: an image or frame of more pixels is an error, before it is decoded; also one that resizing
            would make that large. Default: 178,956,970, above which Pillow opens no file either.
        max_frames: a video (file, folder or list) of more frames is an error, and so is a `num_frames` above it.
            Default: 1,000,000, nine hours at 30 frames a second. With `fps` it is the most that are sampled.
        num_frames: frames sampled from a video, or `"all"`.
        fps: in place of `num_frames`, frames sampled from a second of a video.
        temporal_context: frames of the context that a clip's sampled frames are spread over.
        temporal_rule: from frames to temporal positions: `"round"`, `"floor"` or `"index"`, see `temporal_positions`.
        codec_score: what `scores="codec"` scores by: `"motion+residual"`, `"motion"`, `"residual"` or `"bits"`.
        keep_first_frame: by `scores="codec"` keep a clip's first frame whole, of its `top_k`.
        merge_size: of a packing repo whose model takes patches in blocks of `merge_size x merge_size`: a frame is cut
            to whole blocks, and its patches come in their order. 1, the default: row by row.
        block: by `scores="codec"` keep single patches (1), or 2 x 2 at a time (2).
        input_data_format: `"channels_first"` or `"channels_last"`, for arrays whose shape does not tell. Not saved.

    Raises:
        ValueError: for a value that cannot be; the message names the argument.
    """

    patch_size: int = 14
    packing: bool = False
    native_resolution: bool | None = None
    do_resize: bool = True
    size: int | dict[str, int] | None = None
    resample: PILImageResampling | int = PILImageResampling.BICUBIC
    do_center_crop: bool = True
    crop_size: int | dict[str, int] | None = None
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: float | list[float] | None = None
    image_std: float | list[float] | None = None
    do_convert_rgb: bool = True
    max_patches: int | None = None
    min_patches: int | None = None
    max_pixels: int | None = None
    min_pixels: int | None = None
    max_tokens: int = 65536
    num_frames: int | str = 8
    fps: float | None = None
    temporal_context: int = TEMPORAL_CONTEXT
    temporal_rule: str = "round"
    max_image_pixels: int = MAX_IMAGE_PIXELS
    max_frames: int = MAX_FRAMES
    codec_score: str = "motion+residual"
    keep_first_frame: bool = True
    block: int = 1
    merge_size: int = 1
    input_data_format: str | None = None

    def __post_init__(self):
        normal = {
            "size": _size_dict("size", 448 if self.size is None else self.size),
            "crop_size": _size_dict("crop_size", 448 if self.crop_size is None else self.crop_size),
            "image_mean": list(OPENAI_CLIP_MEAN) if self.image_mean is None else self.image_mean,
            "image_std": list(OPENAI_CLIP_STD) if self.image_std is None else self.image_std,
        }
        for name, value in normal.items():
            object.__setattr__(self, name, value)
        for name, value in vars(self).items():
            # Files that transformers writes may have null for False.
            if name.startswith("do_") or name in ("packing", "native_resolution", "keep_first_frame"):
                if value is not None and not isinstance(value, bool | np.bool_):
                    raise ValueError(f"{name} must be True or False, found {value!r}.")
            elif name in ("max_patches", "min_patches", "max_pixels", "min_pixels"):
                if value is not None:
                    check_positive(name, value)
            elif name.startswith("max_") or name in ("patch_size", "temporal_context", "merge_size"):
                check_positive(name, value)
        filters = [int(choice) for choice in PILImageResampling]
        if isinstance(self.resample, bool) or not isinstance(self.resample, int) or self.resample not in filters:
            raise ValueError(f"resample must be one of Pillow's filters, {filters}, found {self.resample!r}.")
        object.__setattr__(self, "resample", int(self.resample))
        if not isinstance(self.num_frames, str) or self.num_frames != "all":
            check_positive("num_frames", self.num_frames)
        if self.fps is not None:
            _check_numbers("fps", self.fps, single=True)
            if self.fps <= 0:
                raise ValueError(f"fps must be above 0, found {self.fps!r}.")
        if not isinstance(self.temporal_rule, str) or self.temporal_rule not in TEMPORAL_RULES:
            raise ValueError(f"temporal_rule must be one of {TEMPORAL_RULES}, found {self.temporal_rule!r}.")
        for name, choices in (("codec_score", CODEC_SCORES), ("block", (1, 2))):
            value = getattr(self, name)
            if isinstance(value, bool) or value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, found {value!r}.")
        if self.merge_size > 1 and not self.packing:
            raise ValueError(f"merge_size={self.merge_size} is for packing: a dense model takes whole frames.")
        self._check_budget()
        _check_numbers("rescale_factor", self.rescale_factor, single=True)
        _check_numbers("image_mean", self.image_mean)
        _check_numbers("image_std", self.image_std)
        if 0 in np.atleast_1d(self.image_std):
            raise ValueError(f"image_std must not be 0, found {self.image_std!r}.")
        layout = self.input_data_format
        if layout is not None and not (isinstance(layout, str) and layout in ("channels_first", "channels_last")):
            raise ValueError(f"input_data_format must be 'channels_first' or 'channels_last', found {layout!r}.")

    @property
    def native(self) -> bool:
        """Whether images keep their size."""
        return bool(self.packing if self.native_resolution is None else self.native_resolution)

    @property
    def unit(self) -> int:
        """Side in pixels of what a frame is cut into: a patch, or a block of them."""
        return self.patch_size * self.merge_size

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches of a frame of so many pixels, along its height and width, in whole blocks."""
        return height // self.unit * self.merge_size, width // self.unit * self.merge_size

    @property
    def budget(self) -> tuple[int | None, int | None]:
        """The fewest and the most patches that an image or frame is fitted to; `None` where there is no such bound."""
        area = self.patch_size**2
        least = self.min_patches if self.min_pixels is None else -(-self.min_pixels // area)
        most = self.max_patches if self.max_pixels is None else self.max_pixels // area
        return least, most

    @property
    def fitted(self) -> bool:
        """Whether images are resized to a budget of patches."""
        return self.native and self.do_resize and self.budget != (None, None)

    @property
    def most_frames(self) -> int:
        """Frames that a video may have, of which some are sampled."""
        return self.max_frames if self.fps is None else max(self.max_frames, MAX_FRAMES)

    def _check_budget(self) -> None:
        for one, other in ALTERNATIVES[1:]:
            given = {name: getattr(self, name) for name in (one, other)}
            if None not in given.values():
                raise ValueError(f"{_listed(given)} are two names for one budget: pass one of them.")
        least, most = self.budget
        patch = self.patch_size
        if most == 0:
            raise ValueError(
                f"max_pixels={self.max_pixels} is less than one patch of {patch}x{patch} = {patch**2} pixels."
            )
        if least is not None and most is not None and least > most:
            names = ("min_patches", "min_pixels", "max_patches", "max_pixels")
            given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
            raise ValueError(f"{_listed(given)}: the least, {least} patches, is above the most, {most}.")


def override(saved: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`saved` settings with those that one call or one load gives; `None` means as saved.

    Raises:
        ValueError: if two are given of which one replaces the other.
    """
    given = {name: value for name, value in given.items() if value is not None}
    replaced = {}
    for pair in ALTERNATIVES:
        found = {name: given[name] for name in pair if name in given}
        if len(found) == len(pair):
            raise ValueError(f"{_listed(found)} exclude each other: pass one of them.")
        if found:
            replaced |= {name: getattr(LlavaViTSettings, name) for name in pair}
    return {**saved, **replaced, **given}


def _listed(values: dict[str, Any]) -> str:
    return " and ".join(f"{name}={value!r}" for name, value in values.items())


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


def _check_numbers(name: str, value: Any, single: bool = False) -> None:
    """A finite number, or a list of one for each of three channels."""
    several = isinstance(value, list | tuple) and len(value) == 3 and not single
    for number in value if several else [value]:
        if not isinstance(number, int | float) or isinstance(number, bool) or not abs(number) < 1e30:
            expected = "a finite number" + " or three of them" * (not single)
            raise ValueError(f"{name} must be {expected}, found {value!r}.")


def check_positive(name: str, value: Any) -> None:
    """Raises a ValueError unless the value is a count."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value < 2**31:
        raise ValueError(f"{name} must be an integer of at least 1 and below 2**31, found {value!r}.")
