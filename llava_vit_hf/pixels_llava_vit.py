# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""From whatever a user calls an image to RGB pixels, and from those to normalized float32.

Pixels stay `uint8` until the very last step: rescaling and normalizing them takes the steps of transformers' own
functions, which gives their bits, where they end up, a few rows at a time.
"""

import base64
import io
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from transformers.image_transforms import center_crop, get_resize_output_image_size, normalize, rescale, resize
from transformers.image_utils import ChannelDimension, PILImageResampling, infer_channel_dimension_format
from transformers.utils import logging

from .grid_llava_vit import budget_grid
from .settings_llava_vit import LlavaViTSettings


logger = logging.get_logger(__name__)
DOWNLOAD_SECONDS = 60
# Filters that PyTorch knows too.
TORCH_FILTERS = {PILImageResampling.BILINEAR: "bilinear", PILImageResampling.BICUBIC: "bicubic"}
# What was warned of.
_WARNED: list[str] = []
# Values that are normalized in one go: few enough for the caches, and enough for the threads.
PIXELS_AT_ONCE = 2**20
# From this size on numpy asks for huge pages.
HUGE_BYTES = 2**22
# What Pillow raises for damaged files of the formats it reads.
DAMAGED_IMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error)


def check_pixels(name: str, height: int, width: int, limit: int) -> None:
    """Raises a ValueError, before anything is decoded, for an image or frame of more pixels than the limit."""
    if height * width > limit:
        raise ValueError(
            f"{name}: {width}x{height} (width x height) are {height * width} pixels, more than "
            f"max_image_pixels={limit}. Raise max_image_pixels if you trust the file, or make the picture smaller."
        )


def open_image(image: Any, name: str, max_image_pixels: int) -> Any:
    """Opens a path, a URL or a file's bytes; anything else is returned as it is. Its pixels are not decoded yet.

    Args:
        max_image_pixels: a file of more pixels is an error; so is one that Pillow refuses, of more than twice its own
            `PIL.Image.MAX_IMAGE_PIXELS`. From once that number on Pillow warns.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a readable image, or has too many pixels.
    """
    if not isinstance(image, str | Path | bytes):
        return image
    if isinstance(image, bytes):
        source, content = label_of(image), io.BytesIO(image)
    elif str(image).startswith(("http://", "https://", "data:image/")):
        source, content = label_of(image), io.BytesIO(fetch(str(image), name, max_image_pixels))
    else:
        source = content = Path(image)
        if source.is_dir():
            raise ValueError(f"{name}: {source} is a folder. Pass a folder of frames as a video.")
        if not source.exists():
            raise FileNotFoundError(f"{name}: there is no file {source}.")
    try:
        opened = PIL.Image.open(content)
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{name}: {source} is too large to be opened safely: {error} If you trust the file, raise "
            f"max_image_pixels={max_image_pixels} and Pillow's own PIL.Image.MAX_IMAGE_PIXELS."
        ) from error
    except DAMAGED_IMAGE_ERRORS as error:
        raise ValueError(f"{name}: {source} cannot be read as an image: {error}") from error
    if opened.format == "EPS":
        # A program: Pillow would start Ghostscript to run it.
        raise ValueError(f"{name}: {source} is PostScript, which is not run. Convert it to PNG or JPEG first.")
    check_pixels(f"{name} ({source})", opened.height, opened.width, max_image_pixels)
    return opened


def label_of(image: str | Path | bytes) -> str:
    """A path or URL as messages name it: an image inside a URL is cut short, and bytes are counted."""
    if isinstance(image, bytes):
        return f"{len(image)} bytes"
    text = str(image)
    return f"{text[:40]}..." if text.startswith("data:") and len(text) > 43 else text


def fetch(url: str, name: str, max_image_pixels: int) -> bytes:
    """The bytes of a URL, at most as many as an image within the limit has uncompressed.

    Raises:
        ValueError: if there is no answer, or a larger one.
    """
    if url.startswith("data:"):
        header, _, content = url.partition(",")
        try:
            return base64.b64decode(content, validate=False) if header.endswith(";base64") else b""
        except ValueError as error:
            raise ValueError(f"{name}: {label_of(url)} is not base64: {error}") from error
    import urllib.request

    # 16 bit in four channels, and a header.
    most = 8 * max_image_pixels + 2**20
    request = urllib.request.Request(url, headers={"User-Agent": "llava_vit_hf"})
    try:
        with urllib.request.urlopen(request, timeout=DOWNLOAD_SECONDS) as response:
            content = response.read(most + 1)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: {url} cannot be fetched: {error}") from error
    if len(content) > most:
        raise ValueError(
            f"{name}: {url} is larger than {most} bytes; raise max_image_pixels={max_image_pixels} if you trust it."
        )
    return content


def channel_format(array: np.ndarray | torch.Tensor, name: str, input_data_format: str | None) -> ChannelDimension:
    """Where the channels of an array `(..., H, W, C)` or `(..., C, H, W)` are; `C` is 1, 3 or 4."""
    if input_data_format is not None:
        return ChannelDimension(input_data_format)
    try:
        return infer_channel_dimension_format(array, num_channels=(1, 3, 4))
    except ValueError as error:
        raise ValueError(
            f"{name}: shape {tuple(array.shape)} has no axis of 1, 3 or 4 channels; expected (H, W, C) or (C, H, W)."
        ) from error


def image_size(image: Any, name: str, input_data_format: str | None = None) -> tuple[int, int]:
    """`(height, width)` of a PIL image or an array, without decoding it.

    Raises:
        TypeError, ValueError: if it is no image, or its shape is not an image's.
    """
    if isinstance(image, PIL.Image.Image):
        return image.height, image.width
    if not isinstance(image, np.ndarray | torch.Tensor):
        raise TypeError(
            f"{name}: found {type(image).__name__}; expected a PIL image, a numpy array, a torch tensor or a path."
        )
    if image.ndim == 2:
        height, width = image.shape
    elif image.ndim == 3:
        last = channel_format(image, name, input_data_format) == ChannelDimension.LAST
        height, width = image.shape[:2] if last else image.shape[1:]
    else:
        raise ValueError(f"{name}: an image has 2 or 3 dimensions, found shape {tuple(image.shape)}.")
    if height == 0 or width == 0:
        raise ValueError(f"{name}: an image of shape {tuple(image.shape)} has no pixels.")
    return height, width


def to_rgb(image: Any, name: str, settings: LlavaViTSettings, upright: bool = False) -> PIL.Image.Image | np.ndarray:
    """Decodes and converts one image.

    Alpha is dropped. 16-bit grey is scaled to 8 bit (Pillow's own conversion would clip it to white).

    Args:
        image: PIL image, or array `(H, W)`, `(H, W, C)` or `(C, H, W)`.
        upright: apply the EXIF orientation, in place.

    Returns:
        A PIL image of mode RGB, or an array `(H, W, 3)` of uint8, float32 or float64.

    Raises:
        ValueError: if the file is damaged, the mode unknown, or the values outside what the settings say.
    """
    if isinstance(image, PIL.Image.Image):
        try:
            if upright:
                PIL.ImageOps.exif_transpose(image, in_place=True)
            if image.mode == "RGB":
                image.load()
                return image
            if not settings.do_convert_rgb:
                raise ValueError(f"mode {image.mode} is not RGB and do_convert_rgb is False")
            if image.mode != "F" and not image.mode.startswith("I"):
                return image.convert("RGB")
            # Pillow reads 16-bit PNG as mode I in some versions; PNG has no 32-bit grey.
            sixteen_bit = image.mode == "I" and image.format == "PNG"
            image = np.array(image).astype(np.uint16) if sixteen_bit else np.array(image)
        except DAMAGED_IMAGE_ERRORS as error:
            raise ValueError(f"{name}: the image cannot be decoded to RGB: {error}") from error
    elif isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.dtype in (torch.bfloat16, torch.float16) else image).numpy()
    image_size(image, name, settings.input_data_format)
    if image.ndim == 2:
        image = image[..., None]
    elif channel_format(image, name, settings.input_data_format) == ChannelDimension.FIRST:
        image = np.moveaxis(image, 0, -1)
    image = _eight_bit(image, name)
    low, high = (0, 255) if image.dtype == np.uint8 else (float(image.min()), float(image.max()))
    # A black image is black on either scale. NaN is within no limits.
    if settings.do_rescale and (not 0 <= low <= high <= 255 or 0 < high <= 1):
        raise ValueError(
            f"{name}: do_rescale=True divides float pixels by 255, so they must lie in 0...255, without NaN; found "
            f"{low:.4g}...{high:.4g}. Pass do_rescale=False for 0...1, and do_normalize=False too for normalized ones."
        )
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image[..., :3]


def _eight_bit(array: np.ndarray, name: str) -> np.ndarray:
    """Integers as uint8; floats stay floats of at least 32 bits."""
    if array.dtype == np.uint8 or array.dtype in (np.float32, np.float64):
        return array
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name}: pixels of dtype {array.dtype} are not supported; expected integers or floats.")
    low, high = array.min(), array.max()
    if low < 0 or high > 255:
        raise ValueError(f"{name}: {array.dtype} pixels must lie in 0...255, found {low}...{high}. Scale them first.")
    return array.astype(np.uint8)


def resized_size(height: int, width: int, settings: LlavaViTSettings) -> tuple[int, int]:
    """`(height, width)` after resizing, before cropping."""
    if settings.fitted:
        unit, area = settings.unit, settings.merge_size**2
        least, most = settings.budget
        blocks = (None if least is None else -(-least // area), None if most is None else max(1, most // area))
        grid = budget_grid(height, width, unit, *blocks)
        kept = grid == (height // unit, width // unit)
        return (height, width) if kept else (grid[0] * unit, grid[1] * unit)
    if settings.native or not settings.do_resize:
        return height, width
    if "shortest_edge" not in settings.size:
        return settings.size["height"], settings.size["width"]
    # Only the shape is read, so nothing is decoded or copied for it.
    shape = np.broadcast_to(np.uint8(0), (height, width, 3))
    return get_resize_output_image_size(
        shape, settings.size["shortest_edge"], default_to_square=False, input_data_format=ChannelDimension.LAST
    )


def output_size(height: int, width: int, settings: LlavaViTSettings) -> tuple[int, int]:
    """`(height, width)` of what an image is made into, before what fills no patch is dropped."""
    if settings.do_center_crop and not settings.native:
        return settings.crop_size["height"], settings.crop_size["width"]
    return resized_size(height, width, settings)


def check_tokens(name: str, frames: int, height: int, width: int, settings: LlavaViTSettings) -> None:
    """Raises a ValueError for a sample smaller than a patch or of too many, by its size as the model gets it."""
    unit = settings.unit
    tokens = frames * math.prod(settings.grid(height, width))
    if tokens == 0:
        what = "patch" if settings.merge_size == 1 else f"block of {settings.merge_size}x{settings.merge_size} patches"
        raise ValueError(
            f"{name}: {width}x{height} pixels (width x height) is smaller than one {what} of {unit}x{unit}. Enlarge "
            "it, or pass min_patches=1 or native_resolution=False to resize."
        )
    if tokens > settings.max_tokens:
        raise ValueError(
            f"{name}: {frames} frame(s) of {width}x{height} pixels (width x height) are {tokens} tokens, more than "
            f"max_tokens={settings.max_tokens}. Raise max_tokens, or pass max_patches (of one frame) or "
            "native_resolution=False to resize, or fewer frames."
        )


def check_sample(name: str, frames: int, height: int, width: int, settings: LlavaViTSettings) -> None:
    """Raises a ValueError for a sample over a limit or too small, by its size before it is decoded."""
    check_pixels(name, height, width, settings.max_image_pixels)
    check_pixels(f"{name}, resized", *resized_size(height, width, settings), settings.max_image_pixels)
    check_tokens(name, frames, *output_size(height, width, settings), settings)


def resize_image(image: PIL.Image.Image | np.ndarray, settings: LlavaViTSettings) -> PIL.Image.Image | np.ndarray:
    """An RGB image at its `resized_size`: as in CLIP by transformers' own function, to a budget by PyTorch's, which is
    faster and differs from it by a value or two of 255."""
    layout = ChannelDimension.LAST
    height, width = image_size(image, "image", layout)
    size = resized_size(height, width, settings)
    if settings.native and size == (height, width):
        return image
    eight_bit = isinstance(image, PIL.Image.Image) or image.dtype == np.uint8
    if settings.native and eight_bit and settings.resample in TORCH_FILTERS:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        mode = TORCH_FILTERS[settings.resample]
        return torch.nn.functional.interpolate(pixels, size, mode=mode, antialias=True)[0].permute(1, 2, 0).numpy()
    try:
        return resize(image, size, resample=settings.resample, input_data_format=layout)
    except ValueError as error:
        raise ValueError(
            f"images or videos: an array of {image.dtype} with these values cannot be resized ({error}). Pass "
            "uint8, floats from 0 to 1, or native_resolution=True without a budget of patches."
        ) from error


def centre(array: np.ndarray, settings: LlavaViTSettings) -> np.ndarray:
    """CLIP's centre crop of `(H, W, 3)`, by transformers' own function: what it lacks becomes black."""
    height, width = array.shape[:2]
    crop = (settings.crop_size["height"], settings.crop_size["width"])
    black = 1 - min(height, crop[0]) * min(width, crop[1]) / (crop[0] * crop[1])
    if black and not _WARNED:
        _WARNED.append("crop_size")
        logger.warning(
            f"{black:.0%} of a picture is black: {width}x{height} pixels (width x height) were centred on "
            f"crop_size={settings.crop_size}, as CLIP does. Pass a crop_size no larger than size. (Said once.)"
        )
    return center_crop(array, crop, input_data_format=ChannelDimension.LAST)


def to_frame(image: PIL.Image.Image | np.ndarray, settings: LlavaViTSettings) -> torch.Tensor:
    """One RGB image as `(3, H, W)`: raw uint8, or rescaled and normalized float32 if it came as floats."""
    if settings.do_resize:
        image = resize_image(image, settings)
    array = np.array(image) if isinstance(image, PIL.Image.Image) else image
    if settings.native:
        rows, columns = array.shape[0] // settings.unit, array.shape[1] // settings.unit
        array = array[: rows * settings.unit, : columns * settings.unit]
    elif settings.do_center_crop:
        array = centre(array, settings)
    if array.dtype != np.uint8:
        array = rescale_and_normalize(array, settings)
    # torch takes no negative strides, and warns about arrays it may not write to.
    if not array.flags.writeable or min(array.strides) < 0:
        array = array.copy()
    return torch.from_numpy(array).permute(2, 0, 1)


def rescale_and_normalize(array: np.ndarray, settings: LlavaViTSettings) -> np.ndarray:
    """Pixels `(H, W, 3)` as float32, by transformers' own functions."""
    if settings.do_rescale:
        array = rescale(array, settings.rescale_factor, input_data_format=ChannelDimension.LAST)
    if settings.do_normalize:
        array = normalize(array, settings.image_mean, settings.image_std, input_data_format=ChannelDimension.LAST)
    return array.astype(np.float32)


def mean_and_std(settings: LlavaViTSettings, device: torch.device | str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """What is subtracted and divided by, `(3, 1, 1)` float32 each."""
    values = (settings.image_mean, settings.image_std)
    return tuple(torch.tensor(value, dtype=torch.float32, device=device).expand(3).view(3, 1, 1) for value in values)


def empty_pixels(shape: tuple[int, ...], device: torch.device | str | None) -> torch.Tensor:
    """Room for float32 pixels; `None` is PyTorch's default device."""
    device = torch.get_default_device() if device is None else torch.device(device)
    if device.type == "cpu" and 4 * math.prod(shape) >= HUGE_BYTES:
        # numpy asks Linux for huge pages, PyTorch does not, and clearing small ones takes longer than normalizing.
        return torch.from_numpy(np.empty(shape, np.float32))
    return torch.empty(shape, device=device)


def write_pixels(
    out: torch.Tensor, pixels: torch.Tensor, settings: LlavaViTSettings, mean: torch.Tensor, std: torch.Tensor
) -> None:
    """Rescales and normalizes pixels, a few rows at a time so that no second image is held.

    Args:
        out: `(rows, ..., 3, a, b)` float32 on any device, is written to.
        pixels: the same shape, as `to_frame` gives them: raw uint8, or float32 that is only copied.
        mean, std: from `mean_and_std`, on the device of `out`.
    """
    if pixels.dtype != torch.uint8:
        out.copy_(pixels)
        return
    at_once = max(1, PIXELS_AT_ONCE // pixels[0].numel()) if out.device.type == "cpu" else len(pixels)
    for part, written in zip(pixels.split(at_once), out.split(at_once), strict=True):
        # First laid out as `out` is, while a pixel is a byte.
        written.copy_(part.contiguous())
        if settings.do_rescale and settings.rescale_factor == 1 / 255:
            # For whole numbers up to 255 this has the bits of the product in float64.
            written.div_(255)
        elif settings.do_rescale:
            written.copy_(written.double() * settings.rescale_factor)
        if settings.do_normalize:
            written.sub_(mean).div_(std)
