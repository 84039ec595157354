# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Video files to sampled frames.

Frames are sampled over the number of frames that can really be decoded, whatever a file's header says, and only the
sampled ones are held in memory.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from transformers.image_utils import ChannelDimension
from transformers.video_utils import load_video

from .pixels_llava_vit import channel_format


BACKENDS = ("decord", "pyav", "torchcodec", "opencv")
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# FFmpeg's names of what decord was measured to seek in exactly. Elsewhere (MPEG-TS, AVI, HEVC, MPEG-4 with B-frames)
# it returns other frames than asked for, without a word.
SEEKABLE_FORMATS = {"mov", "mp4", "matroska", "webm"}
SEEKABLE_CODECS = {"h264", "vp8", "vp9"}

# Called with (sampled frames, height, width) before they are decoded; raises to refuse them.
SizeCheck = Callable[[int, int, int], None]


class VideoError(ValueError):
    """A file that one decoder could not read."""


def sample_frame_indices(total: int, num_frames: int | str) -> np.ndarray:
    """Indices of `num_frames` frames spread evenly over `total`, first and last included; `"all"` takes every frame.

    `linspace(0, total - 1, num_frames)`, rounded down: `(num_frames,)` int. Fewer frames than asked for repeat.

    Raises:
        ValueError: if either is not positive.
    """
    if total < 1:
        raise ValueError(f"total must be at least 1 frame, found {total}.")
    if num_frames == "all":
        return np.arange(total)
    if isinstance(num_frames, str) or num_frames < 1:
        raise ValueError(f"num_frames must be an integer of at least 1, or 'all', found {num_frames!r}.")
    return np.linspace(0, total - 1, num_frames, dtype=int)


def decode_file(
    path: Path, num_frames: int | str, backend: str | None = None, check: SizeCheck | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Samples frames of one file: `(T, H, W, 3)` uint8 and metadata, as `decode_video` describes.

    Raises:
        ImportError: if the package of a chosen backend is missing.
        ValueError: for a file that cannot be read as a video.
    """
    if path.suffix.lower() in FRAME_SUFFIXES:
        raise ValueError(f"videos: {path} is an image. Pass it as images=, or in a list of frames.")
    if path.stat().st_size == 0:
        raise ValueError(f"videos: {path} is empty (0 bytes).")
    chosen = backend or ("decord" if importlib.util.find_spec("decord") else "pyav")
    decoders = {"decord": _decode_decord, "pyav": _decode_pyav}
    try:
        if chosen not in decoders:
            return _decode_transformers(path, num_frames, chosen, check)
        return decoders[chosen](path, num_frames, check)
    except VideoError as error:
        if backend is not None or chosen == "pyav":
            raise ValueError(f"videos: {chosen} cannot read {path}: {error}") from error
        reason = str(error)
    try:
        frames, metadata = _decode_pyav(path, num_frames, check)
    except VideoError as error:
        raise ValueError(f"videos: {path} cannot be read as a video: {error} (decord: {reason})") from error
    return frames, {**metadata, "decoder_fallback": f"decord: {reason}"}


def _module(name: str, package: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"Reading video files with {name} needs the package {package}: {error}") from error


def _scan(av, path) -> tuple[list[float | None], str | None]:
    """Times in seconds of a file's frames, by its packets; and why seeking in it would miss frames, or `None`."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise VideoError("it has no video stream")
        stream = container.streams.video[0]
        codec, setup = stream.codec_context.name, stream.codec_context.extradata or b""
        if not SEEKABLE_FORMATS.intersection(container.format.name.split(",")) or codec not in SEEKABLE_CODECS:
            fault = f"{codec} video in a {container.format.name} file"
        else:
            fault = None
        ticks, keyframe = [], None
        for packet in _packets(av, container):
            if packet.is_discard:
                fault = fault or "frames hidden by an edit list"
                continue
            ticks.append(packet.pts)
            if packet.is_keyframe:
                keyframe = packet.pts
                fault = fault or _open_gop(codec, setup, bytes(packet))
            elif None in (packet.pts, keyframe) or packet.pts < keyframe:
                fault = fault or "frames shown before the keyframe they follow"
        start, tick = stream.start_time or 0, stream.time_base
    if not ticks:
        raise VideoError("it has no frames")
    if None in ticks:
        return [None] * len(ticks), fault or "frames without a time"
    return [round(float((pts - start) * tick), 6) for pts in sorted(ticks)], fault


def _open_gop(codec: str, setup: bytes, packet: bytes) -> str | None:
    """What is wrong with an H.264 keyframe that is no IDR picture: decoders drop frames when they start there."""
    if codec != "h264":
        return None
    if setup[:1] != b"\x01" or len(setup) < 5:
        return "H.264 without an avcC header"
    # NAL units, each after its length; its type is in the low 5 bits of its first byte.
    prefix, place = (setup[4] & 3) + 1, 0
    while place + prefix < len(packet):
        if packet[place + prefix] & 31 == 5:
            return None
        place += prefix + int.from_bytes(packet[place : place + prefix], "big")
    return "keyframes that are not IDR pictures (open GOP)"


def _decode_decord(path, num_frames, check) -> tuple[np.ndarray, dict[str, Any]]:
    av, decord = _module("av", "av"), _module("decord", "decord")
    try:
        times, fault = _scan(av, path)
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(_first_line(error)) from error
    if fault is not None:
        raise VideoError(f"it could return wrong frames, because of {fault}")
    try:
        reader = decord.VideoReader(str(path))
        if len(reader) != len(times):
            raise VideoError(f"it counts {len(reader)} frames of {len(times)}")
        indices = sample_frame_indices(len(times), num_frames).tolist()
        if check is not None:
            check(len(indices), *reader[0].shape[:2])
        batch = reader.get_batch(indices)
        fps = reader.get_avg_fps()
    except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, IndexError) as error:
        raise VideoError(_first_line(error)) from error
    # decord.bridge may have been set to another framework elsewhere in the process.
    frames = batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)
    metadata = {"frame_indices": indices, "timestamps": [times[index] for index in indices], "fps": float(fps)}
    return frames, {**metadata, "decoder": "decord", "total_frames": len(times)}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _decode_pyav(path, num_frames, check) -> tuple[np.ndarray, dict[str, Any]]:
    av = _module("av", "av")
    try:
        total = len(_scan(av, path)[0])
        indices, frames, decoded, metadata = _read_pyav(av, path, total, num_frames, check)
        if 0 < decoded != total:
            # Packets need not all decode (a truncated or damaged file): sample what does.
            lost, total = total - decoded, decoded
            indices, frames, decoded, metadata = _read_pyav(av, path, total, num_frames, check)
            metadata["undecodable_frames"] = lost
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(_first_line(error)) from error
    if not all(index in frames for index in indices):
        raise VideoError("no frame could be decoded")
    metadata["timestamps"] = [frames[index][1] for index in indices]
    metadata["frame_indices"] = indices
    return np.stack([frames[index][0] for index in indices]), {**metadata, "total_frames": total}


def _read_pyav(av, path, total, num_frames, check) -> tuple[list[int], dict, int, dict[str, Any]]:
    """One pass over the file: the indices wanted of `total`, their frames and times, and how many frames decode."""
    indices = sample_frame_indices(total, num_frames).tolist()
    wanted, frames, decoded = set(indices), {}, 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        start, tick = stream.start_time or 0, stream.time_base
        for frame in _decodable_frames(av, container):
            if decoded == 0 and check is not None:
                check(len(indices), *_upright_size(frame))
            if decoded in wanted:
                time = None if frame.pts is None else round(float((frame.pts - start) * tick), 6)
                # rotation is counter-clockwise, as rot90 turns.
                frames[decoded] = (np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)), time)
            decoded += 1
        fps = float(stream.average_rate) if stream.average_rate else None
    return indices, frames, decoded, {"decoder": "pyav", "fps": fps}


def _upright_size(frame) -> tuple[int, int]:
    size = (frame.height, frame.width)
    return size[::-1] if round(frame.rotation / 90) % 2 else size


def _packets(av, container) -> Iterator[Any]:
    """Packets of the first video stream, up to where the file can be read."""
    try:
        yield from (packet for packet in container.demux(container.streams.video[0]) if packet.size)
    except av.error.InvalidDataError:
        return


def _decodable_frames(av, container) -> Iterator[Any]:
    """Frames in presentation order, past packets that are damaged."""
    # Without a packet the decoder hands out the frames it still holds.
    for packet in chain(_packets(av, container), [None]):
        try:
            yield from container.streams.video[0].decode(packet)
        except av.error.InvalidDataError:
            continue


def _decode_transformers(path, num_frames, backend, check) -> tuple[np.ndarray, dict[str, Any]]:
    """By torchcodec or OpenCV, through transformers' readers; they trust the header's frame count."""
    sampled: list[int] = []

    def sample(metadata, **_) -> list[int]:
        if metadata.total_num_frames < 1:
            raise VideoError("its header says 0 frames; use the pyav backend")
        sampled.extend(sample_frame_indices(int(metadata.total_num_frames), num_frames).tolist())
        if check is not None and metadata.height and metadata.width:
            check(len(sampled), metadata.height, metadata.width)
        # The readers return a repeated frame once.
        return sorted(set(sampled))

    try:
        frames, metadata = load_video(str(path), backend=backend, sample_indices_fn=sample)
    except RuntimeError as error:
        raise VideoError(_first_line(error)) from error
    frames, unique = np.asarray(frames), sorted(set(sampled))
    if len(frames) != len(unique):
        raise VideoError(f"only {len(frames)} of {len(unique)} frames could be decoded; use the pyav backend")
    if channel_format(frames, "videos", None) == ChannelDimension.FIRST:
        frames = np.moveaxis(frames, 1, -1)
    fps = metadata.fps
    return frames[np.searchsorted(unique, sampled)], {
        "frame_indices": sampled,
        "timestamps": [round(index / fps, 6) for index in sampled] if fps else None,
        "decoder": backend,
        "fps": float(fps) if fps else None,
        "total_frames": int(metadata.total_num_frames),
    }
