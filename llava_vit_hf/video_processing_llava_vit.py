# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Video part of the LLaVA-ViT processor: every kind of video to sampled frames at their temporal positions.

A plain class that the processor builds: without torchvision neither transformers 4.57 nor 5.x accepts a video
processor as a component. With it `AutoVideoProcessor` loads this class as any other.
"""

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.image_processing_utils import BatchFeature

from .collation_llava_vit import OUTPUT, SELECTION, Sample, collate
from .decoding_llava_vit import (
    BACKENDS,
    FRAME_SUFFIXES,
    SizeCheck,
    check_frames,
    decode_file,
    sample_by_time,
    sample_frame_indices,
)
from .grid_llava_vit import temporal_positions
from .image_processing_llava_vit import LlavaViTImageProcessor
from .pixels_llava_vit import (
    channel_format,
    check_pixels,
    check_sample,
    check_tokens,
    fetch,
    image_size,
    label_of,
    open_image,
    to_frame,
    to_rgb,
)
from .settings_llava_vit import LlavaViTSettings
from .video_metadata_llava_vit import each_metadata, frame_numbers


# The arguments of a call that say how videos are read.
READING = ("video_backend", "video_metadata", "do_sample_frames")
# Frames that are decoded without a processor may be floats of any scale.
PLAIN_SETTINGS = LlavaViTSettings(do_rescale=False)


def decode_video(
    video: Any,
    num_frames: int | str = 8,
    backend: str | None = None,
    check: SizeCheck = lambda frames, height, width: None,
    settings: LlavaViTSettings = PLAIN_SETTINGS,
    fps: float | None = None,
    video_metadata: Mapping[str, Any] | None = None,
    do_sample_frames: bool | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Samples frames of one video.

    Args:
        video: path or URL of a file, path of a folder of frames (images in natural order of their names), a list of
            frames (PIL, arrays, tensors, paths), or an array or tensor `(T, H, W, C)` or `(T, C, H, W)`.
        num_frames: how many, or `"all"`.
        backend: for files: `"decord"`, `"pyav"`, `"torchcodec"` or `"opencv"`. `None`: decord where it is installed,
            and PyAV otherwise and for files that decord cannot read, or in which its seeking would miss frames.
        check: called with (sampled frames, height, width) before they are decoded; may raise.
        settings: how given frames are read, and the limits `max_image_pixels` and `max_frames`.
        fps: in place of `num_frames`, frames sampled from a second.
        video_metadata: of frames decoded elsewhere: a dict or transformers' `VideoMetadata`, with `fps`,
            `total_num_frames` of the video that they are from, and `frames_indices`, one for each frame, in it.
        do_sample_frames: `False` takes all frames. `None`: as if given frames with `frames_indices` were sampled.

    Returns:
        Frames `(T, H, W, 3)`, uint8 (float if floats were given), upright as the file's rotation says; and metadata:
        `frame_indices`, `timestamps` (seconds, `None` if unknown), `decoder`, `fps`, `total_frames`, `height`,
        `width`, `source`; where PyAV had to step in, why as `decoder_fallback`; for a damaged file
        `undecodable_frames`, how many were left out.

    Raises:
        FileNotFoundError, TypeError, ValueError: for a missing file, what is no video, and for an unreadable one,
            frames of unequal size, an unknown backend, more or larger frames than the limits allow, or metadata that
            contradicts the frames.
    """
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"video_backend must be one of {', '.join(BACKENDS)} or None, found {backend!r}.")
    named = (video_metadata or {}).get("frames_indices") is not None
    if do_sample_frames is False or (do_sample_frames is None and named):
        num_frames, fps = "all", None
    if fps is None and not isinstance(num_frames, str):
        check_frames("num_frames", str(num_frames), num_frames, settings.max_frames)

    def sample(times: Sequence[float | None]) -> list[int]:
        if fps is None:
            return sample_frame_indices(len(times), num_frames).tolist()
        return sample_by_time(times, fps, settings.max_frames).tolist()

    source = label_of(video) if isinstance(video, str | Path) else None
    path = Path(video) if source and not is_url(video) else None
    if source is None:
        frames, metadata = _read_frames(video, sample, check, "videos", settings, video_metadata)
    elif path and path.is_dir():
        frames, metadata = _read_frames(frame_files(path), sample, check, f"videos: {path}", settings, video_metadata)
    elif video_metadata is not None:
        raise ValueError(f"video_metadata is of frames decoded elsewhere, but {source} is decoded here.")
    elif path is None:
        frames, metadata = _decode_url(video, sample, backend, check, settings)
    elif path.exists():
        frames, metadata = decode_file(path, sample, backend, check, settings)
    else:
        raise FileNotFoundError(f"videos: there is no file or folder {path}.")
    return frames, {**metadata, "height": frames.shape[1], "width": frames.shape[2], "source": source}


def is_url(video: str | Path) -> bool:
    """Whether it is fetched: by http, or out of the URL itself."""
    return isinstance(video, str) and video.startswith(("http://", "https://", "data:video/"))


def _decode_url(url: str, sample, backend, check, settings) -> tuple[np.ndarray, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "video")
        path.write_bytes(fetch(url, "videos", settings.max_image_pixels))
        try:
            return decode_file(path, sample, backend, check, settings)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), label_of(url))) from error


def frame_files(folder: Path) -> list[Path]:
    """The images in a folder, in natural order of their names."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in FRAME_SUFFIXES]
    if not files:
        raise ValueError(f"videos: the folder {folder} has no frames; expected images ({', '.join(FRAME_SUFFIXES)}).")
    # frame10 comes after frame9; split leaves the numbers at the odd places.
    parts = {path: re.split(r"(\d+)", path.name) for path in files}
    return sorted(files, key=lambda path: [int(part) if i % 2 else part for i, part in enumerate(parts[path])])


def _read_frames(video, sample, check, name, settings, video_metadata) -> tuple[np.ndarray, dict[str, Any]]:
    if not isinstance(video, list | tuple | np.ndarray | torch.Tensor):
        raise TypeError(f"{name}: found {type(video).__name__}; expected a path, a list of frames or an array.")
    if isinstance(video, np.ndarray | torch.Tensor):
        if video.ndim != 4:
            raise ValueError(f"{name}: a video array is (T, H, W, C) or (T, C, H, W), found {tuple(video.shape)}.")
        layout = channel_format(video, name, settings.input_data_format)
        settings = replace(settings, input_data_format=layout.value)
    if len(video) == 0:
        raise ValueError(f"{name}: the video has no frames.")
    check_frames(name, str(len(video)), len(video), settings.most_frames)
    numbers, metadata = frame_numbers(len(video), video_metadata)
    rate = metadata["fps"]
    indices = sample([number / rate for number in numbers] if rate else [None] * len(video))
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
    metadata["frame_indices"] = [numbers[index] for index in indices]
    if rate:
        metadata["timestamps"] = [round(number / rate, 6) for number in metadata["frame_indices"]]
    return np.stack([frames[index] for index in indices]), metadata


class LlavaViTVideoProcessor:
    """Turns videos into model inputs, with the settings of an image processor.

    Args:
        image_processor: holds the settings.
    """

    def __init__(self, image_processor: LlavaViTImageProcessor):
        self.image_processor = image_processor

    @classmethod
    def from_pretrained(cls, *args, **kwargs) -> "LlavaViTVideoProcessor":
        """As that of the image processor, whose file holds the settings."""
        return cls(LlavaViTImageProcessor.from_pretrained(*args, **kwargs))

    @classmethod
    def from_dict(cls, *args, **kwargs) -> "LlavaViTVideoProcessor":
        """As that of the image processor: what `AutoVideoProcessor` of transformers 4 calls."""
        return cls(LlavaViTImageProcessor.from_dict(*args, **kwargs))

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoVideoProcessor") -> None:
        """Called by `AutoVideoProcessor`. The processor saves which class that loads."""

    def __call__(self, videos: Any, **kwargs) -> BatchFeature:
        """As `LlavaViTProcessor.__call__` with `videos`, its arguments for them, and without images."""
        collation = {name: kwargs.pop(name) for name in (*OUTPUT, *SELECTION) if name in kwargs}
        reading = {name: kwargs.pop(name) for name in READING if name in kwargs}
        settings = self.image_processor.settings(**kwargs)
        return collate(self.prepare(videos, settings, **asked_of_frames(reading, kwargs)), settings, **collation)

    def get_num_of_video_patches(
        self, num_frames: int, height: int, width: int, videos_kwargs: dict[str, Any] | None = None
    ) -> int:
        """Patches of a clip of so many sampled frames, by its size in pixels."""
        return math.prod(self.image_processor.grid_for(height, width, frames=num_frames, **(videos_kwargs or {})))

    # The name in transformers 4.
    get_number_of_video_patches = get_num_of_video_patches

    def prepare(
        self,
        videos: Any,
        settings: LlavaViTSettings,
        video_backend: str | None = None,
        video_metadata: Any = None,
        do_sample_frames: bool | None = None,
    ) -> list[Sample]:
        """One `Sample` per video; its pixels are not yet normalized."""
        videos = split_videos(videos)
        return [
            self._sample(video, settings, video_backend, metadata, do_sample_frames)
            for video, metadata in zip(videos, each_metadata(video_metadata, videos), strict=True)
        ]

    def _sample(self, video, settings: LlavaViTSettings, video_backend, video_metadata, do_sample_frames) -> Sample:
        name = f"videos ({label_of(video)})" if isinstance(video, str | Path) else "videos"

        def check(frames: int, height: int, width: int) -> None:
            check_sample(name, frames, height, width, settings)

        arrays, metadata = decode_video(
            video, settings.num_frames, video_backend, check, settings, settings.fps, video_metadata, do_sample_frames
        )
        frames = [to_frame(array, settings) for array in arrays]
        check_tokens(name, len(frames), *frames[0].shape[-2:], settings)
        rule, count, indices = settings.temporal_rule, len(frames), None
        # Frames that were sampled here lie evenly; of given ones, and by that rule, the numbers themselves count.
        if rule == "index" or (video_metadata or {}).get("frames_indices") is not None:
            count, indices = metadata["total_frames"], metadata["frame_indices"]
        times = temporal_positions(count, settings.temporal_context, rule, indices)
        return Sample(frames, times, {"kind": "video", **metadata, "temporal_rule": rule})


def asked_of_frames(reading: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The arguments `READING` of a call, whose other ones are `given`: a number of frames asks for sampling.

    Raises:
        ValueError: if frames are asked for, and not to be sampled.
    """
    asked = [name for name in ("num_frames", "fps") if given.get(name) is not None]
    sampling = reading.get("do_sample_frames")
    if sampling is not None and not isinstance(sampling, bool):
        raise ValueError(f"do_sample_frames must be True, False or None, found {sampling!r}.")
    if asked and sampling is False:
        raise ValueError(f"do_sample_frames=False takes every frame: leave {asked[0]} out, or do_sample_frames.")
    return {**reading, "do_sample_frames": True} if asked else reading


def _is_frame(item: Any) -> bool:
    if isinstance(item, str | Path):
        return Path(item).suffix.lower() in FRAME_SUFFIXES and not Path(item).is_dir()
    if isinstance(item, PIL.Image.Image | bytes):
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
