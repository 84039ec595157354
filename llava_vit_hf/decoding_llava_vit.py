# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Video files to sampled frames.

Frames are sampled over the number of frames that can really be decoded, whatever a file's header says, and only the
sampled ones are held in memory.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from transformers.image_utils import ChannelDimension
from transformers.video_utils import load_video

from .pixels_llava_vit import channel_format, check_pixels
from .settings_llava_vit import LlavaViTSettings


BACKENDS = ("decord", "pyav", "torchcodec", "opencv")
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# FFmpeg's names of what decord was measured to seek in exactly. Elsewhere (MPEG-TS, AVI, HEVC, MPEG-4 with B-frames)
# it returns other frames than asked for, without a word.
SEEKABLE_FORMATS = {"mov", "mp4", "matroska", "webm"}
SEEKABLE_CODECS = {"h264", "vp8", "vp9"}
# FFmpeg's names of formats that hold no video but name other files, which it would open.
PLAYLIST_FORMATS = {"concat", "concatf", "dash", "hls", "imf", "sdp", "webm_dash_manifest"}

# FFmpeg's names of the codecs whose decoders export both motion vectors and quantisers.
EXPORTING_CODECS = ("h264", "mpeg4")

# Called with (sampled frames, height, width) before they are decoded; raises to refuse them.
SizeCheck = Callable[[int, int, int], None]
# From the times of all frames in seconds, `None` where they are unknown, to the indices of those that are sampled.
Sampler = Callable[[Sequence[float | None]], list[int]]
# Times are rounded to microseconds.
TICK = 1e-6


class VideoError(ValueError):
    """A file that one decoder could not read."""


def sample_frame_indices(total: int, num_frames: int | str) -> np.ndarray:
    """Indices of `num_frames` frames spread evenly over `total`, first and last included; `"all"` takes every frame.

    `linspace(0, total - 1, num_frames)`, rounded down: `(num_frames,)` int. Fewer frames than asked for repeat.

    Raises:
        ValueError: if either is not positive.
    """
    if isinstance(total, bool) or not isinstance(total, int | np.integer) or total < 1:
        raise ValueError(f"total must be at least 1 frame, found {total!r}.")
    if isinstance(num_frames, str) and num_frames == "all":
        return np.arange(total)
    if isinstance(num_frames, bool) or not isinstance(num_frames, int | np.integer) or num_frames < 1:
        raise ValueError(f"num_frames must be an integer of at least 1, or 'all', found {num_frames!r}.")
    return np.linspace(0, total - 1, num_frames, dtype=int)


def sample_by_time(times: Sequence[float | None], fps: float, most: int) -> np.ndarray:
    """Indices of the frames that are shown at 0, 1 / fps, 2 / fps, ... seconds after the first one, each once.

    Where these are more than `most`, that many of them, spread evenly, first and last included.

    Args:
        times: of all frames, in seconds.

    Raises:
        ValueError: if times are unknown.
    """
    if None in times:
        raise ValueError(
            f"fps={fps:g}: the times of the frames are unknown. Pass num_frames, or with frames decoded elsewhere "
            'video_metadata={"fps": ...}.'
        )
    starts = np.asarray(times) - times[0] - TICK
    ends = np.append(starts[1:], starts[-1] + 2 * TICK)
    # A frame is taken if the first step from its start on comes before its end.
    indices = np.flatnonzero(np.ceil(starts * fps) / fps < ends)
    return indices if len(indices) <= most else indices[sample_frame_indices(len(indices), most)]


def regular_times(total: int, fps: float | None) -> list[float | None]:
    """Times in seconds of `total` frames at a steady rate, `None` each without one."""
    return [round(index / fps, 6) for index in range(total)] if fps else [None] * total


def check_frames(name: str, found: int | str, frames: int, limit: int) -> None:
    """Raises a ValueError for a video of more frames than the limit; `found` is `frames` in words."""
    if frames > limit:
        raise ValueError(
            f"{name}: {found} frames, more than max_frames={limit}. Raise max_frames, or give a shorter video or a "
            "smaller num_frames."
        )


def decode_file(
    path: Path, sample: Sampler, backend: str | None, check: SizeCheck, limits: LlavaViTSettings
) -> tuple[np.ndarray, dict[str, Any]]:
    """Samples frames of one file: `(T, H, W, 3)` uint8 and metadata, as `decode_video` describes.

    Raises:
        ImportError: if the package of a chosen backend is missing.
        ValueError: for a file that cannot be read as a video, or over `limits`.
    """
    if path.suffix.lower() in FRAME_SUFFIXES:
        raise ValueError(f"videos: {path} is an image. Pass it as images=, or wrap a clip's frames in a list.")
    if path.stat().st_size == 0:
        raise ValueError(f"videos: {path} is empty (0 bytes).")
    chosen = backend or ("decord" if importlib.util.find_spec("decord") else "pyav")
    decoders = {"decord": _decode_decord, "pyav": _decode_pyav}
    try:
        if chosen not in decoders:
            return _decode_transformers(path, sample, chosen, check, limits)
        return decoders[chosen](path, sample, check, limits)
    except VideoError as error:
        if backend is not None or chosen == "pyav":
            raise ValueError(f"videos: {chosen} cannot read {path}: {error}") from error
        reason = str(error)
    try:
        frames, metadata = _decode_pyav(path, sample, check, limits)
    except VideoError as error:
        raise ValueError(f"videos: {path} cannot be read as a video: {error} (decord: {reason})") from error
    return frames, {**metadata, "decoder_fallback": f"decord: {reason}"}


def _module(name: str, package: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"Reading video files with {name} needs the package {package}: {error}") from error


def import_av():
    """PyAV, or an ImportError that says what it is for."""
    return _module("av", "av")


def stream_frames(path: Path, limits: LlavaViTSettings, options: dict[str, str]) -> tuple[str, Iterator[Any]]:
    """FFmpeg's name of a file's codec, and PyAV's frames of all that decodes, in presentation order.

    Args:
        options: of the decoder.

    Raises:
        ImportError: if PyAV is missing.
        ValueError: for a file that cannot be read as a video, or over `limits`; also while the frames are read.
    """
    av = import_av()

    def frames() -> Iterator[Any]:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            # Frames that are decoded side by side get vectors of each other: other ones on every run.
            stream.thread_type = "SLICE" if stream.codec_context.name in EXPORTING_CODECS else "AUTO"
            stream.codec_context.options = {**_pixel_limit(stream, limits), **options}
            for frame in _decodable_frames(av, container, lambda: _check_stream(path, stream, limits)):
                check_pixels(f"videos ({path})", frame.height, frame.width, limits.max_image_pixels)
                yield frame

    try:
        _scan(av, path, limits)
        with av.open(str(path)) as container:
            codec = container.streams.video[0].codec_context.name
    except (av.error.FFmpegError, OSError, VideoError) as error:
        raise ValueError(f"videos: pyav cannot read {path}: {_first_line(error)}") from error
    return codec, frames()


def packet_sizes(path: Path) -> dict[int | None, int]:
    """Bytes of the packets of a readable file, by their time; `None` at the key `None`, for those without."""
    av = import_av()
    with av.open(str(path)) as container:
        return {packet.pts: packet.size for packet in _packets(av, container)} | {None: None}


def _pixel_limit(stream, limits: LlavaViTSettings) -> dict[str, str]:
    """The decoder's option that keeps frames from being larger than the header says."""
    width, height = stream.codec_context.width, stream.codec_context.height
    # Decoders count in whole blocks, of up to 128 pixels.
    return {"max_pixels": str(limits.max_image_pixels + 128 * (width + height + 128))}


def _scan(av, path, limits) -> tuple[list[float | None], str | None]:
    """Times in seconds of a file's frames, by its packets; and why seeking in it would miss frames, or `None`.

    Raises:
        ValueError: if there are more frames, or larger ones, than the limits allow.
        VideoError: if there are none.
    """
    with av.open(str(path)) as container:
        if PLAYLIST_FORMATS.intersection(container.format.name.split(",")):
            raise VideoError(f"it is a playlist ({container.format.name}), which names other files; pass those")
        if not container.streams.video:
            raise VideoError("it has no video stream")
        stream = container.streams.video[0]
        _check_stream(path, stream, limits)
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
            check_frames(f"videos ({path})", f"at least {len(ticks)}", len(ticks), limits.most_frames)
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


def _check_stream(path, stream, limits) -> None:
    """Refuses the size that a stream states or has last decoded to."""
    codec = stream.codec_context
    check_pixels(f"videos ({path}), its frames", codec.height, codec.width, limits.max_image_pixels)


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


def _decode_decord(path, sample, check, limits) -> tuple[np.ndarray, dict[str, Any]]:
    av, decord = _module("av", "av"), _module("decord", "decord")
    try:
        times, fault = _scan(av, path, limits)
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(_first_line(error)) from error
    if fault is not None:
        raise VideoError(f"it could return wrong frames, because of {fault}")
    try:
        reader = decord.VideoReader(str(path))
        if len(reader) != len(times):
            raise VideoError(f"it counts {len(reader)} frames of {len(times)}")
        indices = sample(times)
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
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _decode_pyav(path, sample, check, limits) -> tuple[np.ndarray, dict[str, Any]]:
    av = _module("av", "av")
    lost = {}
    try:
        times = _scan(av, path, limits)[0]
        indices = sample(times)
        frames, decoded, fps = _read_pyav(av, path, indices, check, limits)
        if 0 < len(decoded) != len(times):
            # Packets need not all decode (a truncated or damaged file): sample what does.
            lost, times = {"undecodable_frames": len(times) - len(decoded)}, decoded
            indices = sample(times)
            frames, _, fps = _read_pyav(av, path, indices, check, limits)
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(_first_line(error)) from error
    if not all(index in frames for index in indices):
        raise VideoError("no frame could be decoded")
    arrays, shown = zip(*(frames[index] for index in indices), strict=True)
    metadata = {"frame_indices": indices, "timestamps": list(shown), "fps": fps, "decoder": "pyav"}
    return np.stack(arrays), {**metadata, "total_frames": len(times), **lost}


def _read_pyav(av, path, indices, check, limits) -> tuple[dict[int, tuple], list, float | None]:
    """One pass over the file: the frames at `indices` with their times, the times of all that decode, and the rate."""
    wanted, frames, times, first = set(indices), {}, [], None
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        width, height = stream.codec_context.width, stream.codec_context.height
        if width and height:
            check(len(indices), height, width)
        stream.codec_context.options = _pixel_limit(stream, limits)
        start, tick = stream.start_time or 0, stream.time_base
        for frame in _decodable_frames(av, container, lambda: _check_stream(path, stream, limits)):
            turns = round(frame.rotation / 90)  # counter-clockwise, as rot90 turns
            size = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
            index = len(times)
            if index == 0:
                check(len(indices), *size)
            check_pixels(f"videos ({path}), frame {index}", *size, limits.max_image_pixels)
            times.append(None if frame.pts is None else round(float((frame.pts - start) * tick), 6))
            if index in wanted:
                first = first or size
                if size != first:
                    raise ValueError(
                        f"videos ({path}): all frames must have one size, found (width x height) "
                        f"{first[1]}x{first[0]} and {size[1]}x{size[0]}. Cut the video where its size changes."
                    )
                frames[index] = (np.rot90(frame.to_ndarray(format="rgb24"), turns), times[index])
        fps = float(stream.average_rate) if stream.average_rate else None
    return frames, times, fps


def _packets(av, container) -> Iterator[Any]:
    """Packets of the first video stream, up to where the file can be read."""
    try:
        yield from (packet for packet in container.demux(container.streams.video[0]) if packet.size)
    except av.error.InvalidDataError:
        return


def _decodable_frames(av, container, check_stream: Callable[[], None]) -> Iterator[Any]:
    """Frames in presentation order, past packets that are damaged; those of too many pixels raise."""
    # Without a packet the decoder hands out the frames it still holds.
    for packet in chain(_packets(av, container), [None]):
        try:
            yield from container.streams.video[0].decode(packet)
        except av.error.InvalidDataError:
            # Refusing a frame for its size looks like damage, but leaves the size.
            check_stream()


def _decode_transformers(path, sample, backend, check, limits) -> tuple[np.ndarray, dict[str, Any]]:
    """By torchcodec or OpenCV, through transformers' readers; they trust the header's frame count."""
    sampled: list[int] = []

    def indices_of(metadata, **_) -> list[int]:
        if metadata.total_num_frames < 1:
            raise VideoError("its header says 0 frames; use the pyav backend")
        total = int(metadata.total_num_frames)
        check_frames(f"videos ({path})", str(total), total, limits.most_frames)
        sampled.extend(sample(regular_times(total, metadata.fps)))
        if metadata.height and metadata.width:
            size = (int(metadata.height), int(metadata.width))
            check_pixels(f"videos ({path}), its frames", *size, limits.max_image_pixels)
            check(len(sampled), *size)
        # The readers return a repeated frame once.
        return sorted(set(sampled))

    try:
        frames, metadata = load_video(str(path), backend=backend, sample_indices_fn=indices_of)
    except RuntimeError as error:
        raise VideoError(_first_line(error)) from error
    frames, unique = np.asarray(frames), sorted(set(sampled))
    if len(frames) != len(unique):
        raise VideoError(f"only {len(frames)} of {len(unique)} frames could be decoded; use the pyav backend")
    if channel_format(frames, "videos", None) == ChannelDimension.FIRST:
        frames = np.moveaxis(frames, 1, -1)
    fps, times = metadata.fps, regular_times(int(metadata.total_num_frames), metadata.fps)
    return frames[np.searchsorted(unique, sampled)], {
        "frame_indices": sampled,
        "timestamps": [times[index] for index in sampled] if fps else None,
        "decoder": backend,
        "fps": float(fps) if fps else None,
        "total_frames": int(metadata.total_num_frames),
    }
