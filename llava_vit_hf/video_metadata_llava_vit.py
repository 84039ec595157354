# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What is known of frames that were decoded elsewhere, in transformers' own form of `video_metadata`."""

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np


# Of transformers' VideoMetadata.
METADATA_FIELDS = {
    *("total_num_frames", "fps", "width", "height", "duration", "video_backend", "frames_indices"),
}


def frame_numbers(count: int, video_metadata: Mapping[str, Any] | None) -> tuple[list[int], dict[str, Any]]:
    """Which frames of their video `count` given ones are, and what is known of it.

    `width`, `height` and `duration` are the file's own, whose frames may have been resized or cut: they are not read.

    Raises:
        ValueError: for metadata that cannot be, or contradicts the number of frames.
    """
    known = {"timestamps": None, "decoder": "frames", "fps": None, "total_frames": count}
    if video_metadata is None:
        return list(range(count)), known
    if unknown := sorted(set(video_metadata) - METADATA_FIELDS):
        raise ValueError(
            f"video_metadata: found {', '.join(map(str, unknown))}; expected some of "
            f"{', '.join(sorted(METADATA_FIELDS))}."
        )
    fps, total, numbers = map(video_metadata.get, ("fps", "total_num_frames", "frames_indices"))
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 1e30):
        raise ValueError(f"video_metadata: fps must be above 0, found {fps!r}.")
    if total is not None and (isinstance(total, bool) or not isinstance(total, int | np.integer) or total < 1):
        raise ValueError(f"video_metadata: total_num_frames must be at least 1, found {total!r}.")
    if numbers is None:
        if total not in (None, count):
            raise ValueError(
                f"video_metadata: total_num_frames is {total}, but {count} frames were given: frames_indices must say "
                "which."
            )
        numbers = range(count)
    else:
        try:
            numbers = [operator.index(number) for number in numbers]
        except TypeError as error:
            raise ValueError(f"video_metadata: frames_indices must be integers, found {numbers!r}.") from error
        rising = all(number <= later for number, later in zip(numbers, numbers[1:], strict=False))
        if total is None or len(numbers) != count or not rising or numbers[0] < 0 or numbers[-1] >= total:
            raise ValueError(
                f"video_metadata: frames_indices must be {count} numbers, one for each frame, rising from 0 to below "
                f"total_num_frames={total}, found {len(numbers)}: {numbers}."
            )
    decoder = video_metadata.get("video_backend") or "frames"
    return list(numbers), {**known, "decoder": decoder, "fps": fps and float(fps), "total_frames": int(total or count)}


def each_metadata(video_metadata: Any, videos: list[Any]) -> list[Any]:
    """One `video_metadata`, or `None`, for each video.

    Raises:
        ValueError: for another number of them, and what is no metadata.
    """
    if video_metadata is None:
        return [None] * len(videos)
    if isinstance(video_metadata, Mapping):
        video_metadata = [video_metadata]
    if isinstance(video_metadata, list | tuple):
        # transformers nests them as it does the videos of a batch of texts.
        nested = (entry if isinstance(entry, list | tuple) else [entry] for entry in video_metadata)
        video_metadata = [entry for entries in nested for entry in entries]
    if not isinstance(video_metadata, list) or len(video_metadata) != len(videos):
        found = len(video_metadata) if isinstance(video_metadata, list) else type(video_metadata).__name__
        raise ValueError(f"video_metadata: found {found} for {len(videos)} video(s); expected one each.")
    for entry in video_metadata:
        if entry is not None and not isinstance(entry, Mapping):
            found = type(entry).__name__
            raise ValueError(f"video_metadata: found {found}; expected a dict or VideoMetadata for each video.")
    return video_metadata
