# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Video part of the LLaVA-ViT processor: every kind of video to sampled frames at their temporal positions.

A plain class that the processor builds: without torchvision neither transformers 4.57 nor 5.x accepts a video
processor as a component.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.image_processing_utils import BatchFeature

from .collation_llava_vit import SELECTION, Sample, collate
from .decoding_llava_vit import BACKENDS, FRAME_SUFFIXES, SizeCheck, check_frames, decode_file, sample_frame_indices
from .grid_llava_vit import temporal_positions
from .image_processing_llava_vit import LlavaViTImageProcessor
from .pixels_llava_vit import (
    channel_format,
    check_pixels,
    check_sample,
    check_tokens,
    image_size,
    open_image,
    to_frame,
    to_rgb,
)
from .settings_llava_vit import LlavaViTSettings


# Frames that are decoded without a processor may be floats of any scale.
PLAIN_SETTINGS = LlavaViTSettings(do_rescale=False)


def decode_video(
    video: Any,
    num_frames: int | str = 8,
    backend: str | None = None,
    check: SizeCheck = lambda frames, height, width: None,
    settings: LlavaViTSettings = PLAIN_SETTINGS,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Samples frames of one video.

    Args:
        video: path of a file, path of a folder of frames (images in natural order of their names), a list of frames
            (PIL, arrays, tensors, paths), or an array or tensor `(T, H, W, C)` or `(T, C, H, W)`.
        num_frames: how many, or `"all"`.
        backend: for files: `"decord"`, `"pyav"`, `"torchcodec"` or `"opencv"`. `None`: decord where it is installed,
            and PyAV otherwise and for files that decord cannot read, or in which its seeking would miss frames.
        check: called with (sampled frames, height, width) before they are decoded; may raise.
        settings: how given frames are read, and the limits `max_image_pixels` and `max_frames`.

    Returns:
        Frames `(T, H, W, 3)`, uint8 (float if floats were given), upright as the file's rotation says; and metadata:
        `frame_indices`, `timestamps` (seconds, `None` if unknown), `decoder`, `fps`, `total_frames`, `height`,
        `width`, `source`; where PyAV had to step in, why as `decoder_fallback`; for a damaged file
        `undecodable_frames`, how many were left out.

    Raises:
        FileNotFoundError, TypeError, ValueError: for a missing file, what is no video, and for an unreadable one,
            frames of unequal size, an unknown backend, more or larger frames than the limits allow.
    """
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"video_backend must be one of {', '.join(BACKENDS)} or None, found {backend!r}.")
    if not isinstance(num_frames, str):
        check_frames("num_frames", str(num_frames), num_frames, settings.max_frames)
    path = Path(video) if isinstance(video, str | Path) else None
    if path is None:
        frames, metadata = _read_frames(video, num_frames, check, "videos", settings)
    elif path.is_dir():
        frames, metadata = _read_frames(frame_files(path), num_frames, check, f"videos: {path}", settings)
    elif path.exists():
        frames, metadata = decode_file(path, num_frames, backend, check, settings)
    else:
        raise FileNotFoundError(f"videos: there is no file or folder {path}.")
    source = None if path is None else str(video)
    return frames, {**metadata, "height": frames.shape[1], "width": frames.shape[2], "source": source}


def frame_files(folder: Path) -> list[Path]:
    """The images in a folder, in natural order of their names."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in FRAME_SUFFIXES]
    if not files:
        raise ValueError(f"videos: the folder {folder} has no frames; expected images ({', '.join(FRAME_SUFFIXES)}).")
    # frame10 comes after frame9; split leaves the numbers at the odd places.
    parts = {path: re.split(r"(\d+)", path.name) for path in files}
    return sorted(files, key=lambda path: [int(part) if i % 2 else part for i, part in enumerate(parts[path])])


def _read_frames(video, num_frames, check, name, settings) -> tuple[np.ndarray, dict[str, Any]]:
    if not isinstance(video, list | tuple | np.ndarray | torch.Tensor):
        raise TypeError(f"{name}: found {type(video).__name__}; expected a path, a list of frames or an array.")
    if isinstance(video, np.ndarray | torch.Tensor):
        if video.ndim != 4:
            raise ValueError(f"{name}: a video array is (T, H, W, C) or (T, C, H, W), found {tuple(video.shape)}.")
        layout = channel_format(video, name, settings.input_data_format)
        settings = replace(settings, input_data_format=layout.value)
    if len(video) == 0:
        raise ValueError(f"{name}: the video has no frames.")
    check_frames(name, str(len(video)), len(video), settings.max_frames)
    indices = sample_frame_indices(len(video), num_frames).tolist()
    frames, first = {}, None
    for index in dict.fromkeys(indices):
        label = f"{name}, frame {index}"
        opened = open_image(video[index], label, settings.max_image_pixels)
        height, width = image_size(opened, label, settings.input_data_format)
        check_pixels(label, height, width, settings.max_image_pixels)
        if not frames:
            check(len(indices), height, width)
        frames[index] = np.asarray(to_rgb(opened, label, settings, upright=opened is not video[index]))
        first = first or frames[index].shape
        # Here, as many large frames would not fit in memory.
        if frames[index].shape != first:
            sizes = ", ".join(sorted(f"{shape[1]}x{shape[0]}" for shape in (first, frames[index].shape)))
            raise ValueError(f"{name}: all frames must have one size, found (width x height) {sizes}.")
    metadata = {"frame_indices": indices, "timestamps": None, "decoder": "frames", "fps": None}
    return np.stack([frames[index] for index in indices]), {**metadata, "total_frames": len(video)}


class LlavaViTVideoProcessor:
    """Turns videos into model inputs, with the settings of an image processor.

    Args:
        image_processor: holds the settings.
    """

    def __init__(self, image_processor: LlavaViTImageProcessor):
        self.image_processor = image_processor

    def __call__(self, videos: Any, video_backend: str | None = None, **kwargs) -> BatchFeature:
        """As `LlavaViTProcessor.__call__` with `videos`, a `video_backend`, and without images."""
        outputs = ("return_tensors", "return_metadata", *SELECTION)
        collation = {name: kwargs.pop(name) for name in outputs if name in kwargs}
        settings = self.image_processor.settings(**kwargs)
        return collate(self.prepare(videos, settings, video_backend), settings, **collation)

    def prepare(self, videos, settings: LlavaViTSettings, video_backend: str | None = None) -> list[Sample]:
        """One `Sample` per video; its pixels are not yet normalized."""
        return [self._sample(video, settings, video_backend) for video in split_videos(videos)]

    def _sample(self, video, settings: LlavaViTSettings, video_backend: str | None) -> Sample:
        name = f"videos ({video})" if isinstance(video, str | Path) else "videos"

        def check(frames: int, height: int, width: int) -> None:
            check_sample(name, frames, height, width, settings)

        arrays, metadata = decode_video(video, settings.num_frames, video_backend, check, settings)
        frames = [to_frame(array, settings) for array in arrays]
        check_tokens(name, len(frames), *frames[0].shape[-2:], settings)
        times = temporal_positions(len(frames), settings.temporal_context)
        return Sample(frames, times, {"kind": "video", **metadata})


def _is_frame(item: Any) -> bool:
    if isinstance(item, str | Path):
        return Path(item).suffix.lower() in FRAME_SUFFIXES and not Path(item).is_dir()
    if isinstance(item, PIL.Image.Image):
        return True
    return isinstance(item, np.ndarray | torch.Tensor) and item.ndim in (2, 3)


def split_videos(videos: Any) -> list[Any]:
    """A list of videos from one video or several: a list of frames is one video, an array of 5 dimensions several.

    Raises:
        ValueError: for a single image, an empty list, or frames and videos in one list.
    """
    if isinstance(videos, str | Path):
        return [videos]
    if isinstance(videos, np.ndarray | torch.Tensor) and videos.ndim == 5:
        return list(videos)
    if _is_frame(videos):
        raise ValueError("videos: found a single image. Pass it as images=, or wrap a clip's frames in a list.")
    if not isinstance(videos, list | tuple):
        return [videos]
    if len(videos) == 0:
        raise ValueError("videos: the list is empty; expected a video, or frames.")
    frames = [_is_frame(item) for item in videos]
    if all(frames):
        return [list(videos)]
    if any(frames):
        raise ValueError(
            "videos: the list mixes single frames and videos; wrap the frames of each clip in a list of their own."
        )
    return [video for item in videos for video in ([item] if isinstance(item, list | tuple) else split_videos(item))]
