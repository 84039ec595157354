# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Helpers for checking and saving converted models, under the names that users of the original scripts import."""

import http.client
import io
import urllib.request
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.nn import functional as F

from conversion.checkpoints.model_folder_writer import build_processor, staging_folder
from conversion.common.metrics import Bounds, compare
from conversion.verification.cases import CLIP_MEAN, CLIP_STD
from llava_vit_hf import LlavaViTConfig, LlavaViTPackingConfig
from llava_vit_hf.grid_llava_vit import TEMPORAL_CONTEXT, frame_positions


COCO_IMAGE_URL = "http://images.cocodataset.org/val2017/000000039769.jpg"

MIN_COSINE = 0.99
RELATIVE_ERROR = {"full": 1e-4, "half": 2e-2}
"""Bounds on the relative error of features in float32 and float64, and in the 16-bit types."""

LAYOUT_OF_MODEL_TYPE = {LlavaViTConfig.model_type: "dense", LlavaViTPackingConfig.model_type: "packing"}

_DOWNLOAD_TIMEOUT_SECONDS = 30
_MAX_DOWNLOAD_BYTES = 2**24


def get_real_coco_image(size: int = 448, image_path: str | Path | None = None) -> torch.Tensor:
    """A photograph, resized to a square (bicubic) and CLIP-normalized: `(1, 3, size, size)` float32.

    Args:
        size: side in pixels.
        image_path: a local image to use; without it one of COCO's validation set is downloaded.

    Raises:
        ConnectionError: if the download fails. Nothing is put in its place.
        ValueError: if what was read is no image, or `size` is not positive.
        FileNotFoundError: if `image_path` does not exist.
    """
    if size < 1:
        raise ValueError(f"size must be positive, found {size}.")
    source = COCO_IMAGE_URL if image_path is None else str(image_path)
    data = _download(COCO_IMAGE_URL) if image_path is None else Path(image_path).read_bytes()
    try:
        image = Image.open(io.BytesIO(data)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{source} cannot be read as an image: {error}") from error
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255.0
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    return ((pixels - mean[:, None, None]) / std[:, None, None]).unsqueeze(0)


def interpolate_frame_indices(
    frame_indices: torch.Tensor, total_frames: torch.Tensor, target_frames: int = TEMPORAL_CONTEXT
) -> torch.Tensor:
    """Positions of frames in a context of `target_frames`: `round(i * (target_frames - 1) / (n - 1))`, half to even.

    Args:
        frame_indices: `(B, T)` integer, index `i` of each frame in its video.
        total_frames: `(B,)` integer, frames `n` that the video counts.

    Returns:
        `(B, T)` int64 in `0 ... target_frames - 1`; a video of a single frame is at 0.

    Raises:
        ValueError: if a shape or dtype is another one, or a count is below 1.
    """
    _require_tensors(frame_indices=frame_indices, total_frames=total_frames)
    if frame_indices.ndim != 2 or total_frames.shape != frame_indices.shape[:1]:
        raise ValueError(
            f"frame_indices must be (B, T) and total_frames (B,), found {tuple(frame_indices.shape)} and "
            f"{tuple(total_frames.shape)}."
        )
    if frame_indices.is_floating_point() or total_frames.is_floating_point():
        raise ValueError("frame_indices and total_frames must be integer tensors.")
    _require_integers(target_frames=target_frames)
    if target_frames < 1 or (total_frames < 1).any():
        raise ValueError("total_frames and target_frames must be at least 1.")
    intervals = (total_frames - 1).clamp(min=1).unsqueeze(1)
    # In float64, halves are exact and nothing else rounds to one.
    positions = frame_indices.cpu().double() * (target_frames - 1) / intervals.cpu().double()
    return positions.round().clamp(0, target_frames - 1).long().to(frame_indices.device)


def get_synthesized_video(real_image_tensor: torch.Tensor, num_frames: int = 8, size: int = 224) -> torch.Tensor:
    """A clip made from an image: each frame moves it on to the left, half the width over the whole clip.

    Args:
        real_image_tensor: `(1, 3, H, W)`, resized to `size` (bilinear, antialiased).

    Returns:
        `(1, 3, num_frames, size, size)`, no two frames alike.

    Raises:
        ValueError: if the image has another shape, or `num_frames` or `size` cannot be.
    """
    _require_tensors(real_image_tensor=real_image_tensor)
    _require_integers(num_frames=num_frames, size=size)
    if real_image_tensor.ndim != 4 or tuple(real_image_tensor.shape[:2]) != (1, 3):
        raise ValueError(f"real_image_tensor must be (1, 3, H, W), found {tuple(real_image_tensor.shape)}.")
    if num_frames < 1 or size < 2 * num_frames:
        raise ValueError(f"num_frames must be in 1 ... size / 2, found num_frames={num_frames}, size={size}.")
    image = F.interpolate(real_image_tensor, (size, size), mode="bilinear", antialias=True, align_corners=False)
    shifts = torch.arange(num_frames, device=image.device) * size // (2 * num_frames)
    columns = (shifts[:, None] + torch.arange(size, device=image.device)) % size
    # (1, 3, size, T, size) -> (1, 3, T, size, size)
    return image[..., columns].transpose(2, 3).contiguous()


def compute_patch_positions_with_interpolated_temporal(
    interpolated_indices: torch.Tensor, h_patches: int, w_patches: int, device: torch.device | str
) -> torch.Tensor:
    """`(t, h, w)` of every patch of clips whose frames sit at `interpolated_indices` `(B, T)`.

    Returns:
        `(B * T * h_patches * w_patches, 3)` int64 on `device`, clip after clip, row-major.

    Raises:
        ValueError: if `interpolated_indices` has another shape.
    """
    _require_tensors(interpolated_indices=interpolated_indices)
    _require_integers(h_patches=h_patches, w_patches=w_patches)
    if not 0 <= h_patches < 2**31 or not 0 <= w_patches < 2**31:
        raise ValueError(f"h_patches and w_patches must be from 0 to 2**31 - 1, found {h_patches} and {w_patches}.")
    if interpolated_indices.ndim != 2:
        raise ValueError(f"interpolated_indices must be (B, T), found {tuple(interpolated_indices.shape)}.")
    return frame_positions(interpolated_indices.flatten(), h_patches, w_patches, device)


def compute_cosine_similarity(feat1: torch.Tensor, feat2: torch.Tensor, name: str = "Feature") -> dict:
    """Compares two arrays of features, `(..., C)`; `feat2` is the reference. Shapes must be equal.

    Returns:
        `name`, `min_cos` and `mean_cos` over tokens, `max_diff`, `relative_error`, `pass`, and `reasons`, why it is
        False. To pass: equal shapes, finite values, minimum cosine of at least 0.99, and a relative error of at most
        1e-4, or 2e-2 if one of the two is of a 16-bit type. On a mismatch of shapes the numbers are NaN.
    """
    _require_tensors(feat1=feat1, feat2=feat2)
    comparison = compare(feat1, feat2)
    precision = "half" if min(feat1.dtype.itemsize, feat2.dtype.itemsize) < 4 else "full"
    reasons = Bounds(min_cosine=MIN_COSINE, relative_error=RELATIVE_ERROR[precision]).check(comparison)
    return {
        "name": name,
        "min_cos": comparison.min_cosine,
        "mean_cos": comparison.mean_cosine,
        "max_diff": comparison.max_abs,
        "relative_error": comparison.relative_error,
        "pass": not reasons,
        "reasons": reasons,
    }


def move_model_to_device(model: torch.nn.Module, dtype: torch.dtype) -> torch.device:
    """Moves a model in place to the best device here (CUDA, MPS, CPU) and to `dtype`; returns the device."""
    if torch.cuda.is_available():
        device = torch.device("cuda")
    elif torch.backends.mps.is_available():
        device = torch.device("mps")
    else:
        device = torch.device("cpu")
    model.to(device=device, dtype=dtype)
    return device


def save_model_with_processor(model: torch.nn.Module, output_dir: str | Path, image_size: int = 448) -> None:
    """Saves a dense or packing model and its processor as a folder that loads with `trust_remote_code=True`.

    Everything is written beside `output_dir`, which appears under its name when complete.

    Args:
        output_dir: absent or an empty folder.
        image_size: side that the processor resizes to unless at native resolution.

    Raises:
        CheckpointError: if the folder holds files already.
        ValueError: if the model is neither of the two.
        OSError: if writing fails; nothing is left behind.
    """
    layout = LAYOUT_OF_MODEL_TYPE.get(model.config.model_type)
    if layout is None:
        raise ValueError(
            f"model must be of one of the types {tuple(LAYOUT_OF_MODEL_TYPE)}, found {model.config.model_type!r}."
        )
    processor = build_processor(model.config, layout, stored={"size": image_size, "crop_size": image_size})
    with staging_folder(Path(output_dir)) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


def _require_tensors(**values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} must be a torch tensor, found {type(value).__name__}.")


def _require_integers(**values: object) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"{name} must be an integer, found {value!r}.")


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_DOWNLOAD_TIMEOUT_SECONDS) as response:
            data = response.read(_MAX_DOWNLOAD_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(
            f"{url} could not be downloaded: {error}. Pass image_path with a local image instead."
        ) from error
    if len(data) > _MAX_DOWNLOAD_BYTES:
        raise ConnectionError(f"{url} is larger than {_MAX_DOWNLOAD_BYTES} bytes. Pass image_path with a local image.")
    return data
