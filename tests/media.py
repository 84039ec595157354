# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Small images and videos made by formula, the same at every run."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image


def pattern(height: int, width: int, shift: int = 0) -> np.ndarray:
    """An RGB image `(height, width, 3)` uint8 in which every patch, channel and side differs."""
    rows, columns = np.mgrid[:height, :width]
    channels = (7 * rows + 3 * columns, rows * columns // 5 + 40, 11 * columns - 5 * rows)
    return (np.stack(channels, axis=-1) + 13 * shift).astype(np.uint8)


def image(width: int, height: int, mode: str = "RGB") -> PIL.Image.Image:
    """The pattern as a PIL image; modes with alpha are half transparent."""
    picture = PIL.Image.fromarray(pattern(height, width))
    if mode == "RGBA":
        picture.putalpha(128)
        return picture
    return picture.convert(mode)


def frames(count: int, height: int = 64, width: int = 64) -> np.ndarray:
    """`(count, height, width, 3)`: frame `i` is grey of level `6 * i`, red in the top left quarter's corner."""
    video = np.empty((count, height, width, 3), np.uint8)
    video[:] = (6 * np.arange(count) % 256)[:, None, None, None]
    video[:, : height // 4, : width // 4] = (255, 0, 0)
    return video


def moving_square(count: int, start: int, step: tuple[int, int], height: int = 96, width: int = 128) -> np.ndarray:
    """`(count, height, width, 3)`: a textured square of 32 pixels at (32, 32), on a still, textured ground; from frame
    `start` on it moves by `step` `(down, right)` pixels a frame."""
    random = np.random.default_rng(0)
    ground, square = random.integers(60, 120, (height, width, 1)), random.integers(0, 256, (8, 8, 1))
    video = np.broadcast_to(ground, (count, height, width, 3)).astype(np.uint8)
    for index, frame in enumerate(video):
        top, left = (32 + side * max(index - start + 1, 0) for side in step)
        frame[top : top + 32, left : left + 32] = square.repeat(4, 0).repeat(4, 1)
    return video


def frame_numbers(video: np.ndarray) -> list[int]:
    """Which frame of `frames` each one is (fewer than 42), read from the grey at the centre."""
    centre = video[:, video.shape[1] // 2, video.shape[2] // 2].mean(axis=-1)
    return np.round(centre / 6).astype(int).tolist()


def red_corner(frame: np.ndarray) -> str:
    """Where the red corner is: `top left`, `top right`, `bottom left` or `bottom right`."""
    spots = {"top left": (2, 2), "top right": (2, -3), "bottom left": (-3, 2), "bottom right": (-3, -3)}
    return max(spots, key=lambda name: int(frame[spots[name]][0]) - int(frame[spots[name]][1]))


def write_video(
    path: Path,
    video: np.ndarray,
    times_ms: list[int] | None = None,
    faststart: bool = False,
    x264: str = "bframes=3",
    pixel_format: str = "yuv420p",
    container_format: str | None = None,
    codec: str = "libx264",
) -> Path:
    """Encodes `(T, H, W, 3)` uint8 at 10 frames per second, or at the given times: as H.264 with closed GOPs of 10, or
    with another encoder as it is."""
    options = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", format=container_format, options=options) as container:
        chosen = {"g": "10", "x264-params": x264} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=10, options=chosen)
        stream.height, stream.width, stream.pix_fmt = video.shape[1], video.shape[2], pixel_format
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, array in enumerate(video):
            frame = av.VideoFrame.from_ndarray(array, "rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_audio(path: Path) -> Path:
    """A second of silence without a video stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_rotated(path: Path, video: np.ndarray, degrees: int) -> Path:
    """A video whose header asks players to turn it clockwise by `degrees`, as phones write it."""
    write_video(path, video)
    one = 1 << 16
    cosine, sine = {90: (0, one), 180: (-one, 0), 270: (0, -one)}[degrees]
    data = bytearray(path.read_bytes())
    # Version 0 of the track header: the matrix stands 40 bytes after the name.
    start = data.find(b"tkhd") + 44
    data[start : start + 36] = struct.pack(">9i", cosine, sine, 0, -sine, cosine, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def write_trimmed(path: Path, video: np.ndarray, hidden: int) -> Path:
    """A video whose edit list hides the first frames, as cutting without re-encoding leaves it."""
    write_video(path, video)
    data = bytearray(path.read_bytes())
    # Version 0 of each box: units per second 16 bytes after the name; the edit's duration and start 12 bytes after.
    (movie_units,) = struct.unpack_from(">I", data, data.find(b"mvhd") + 16)
    (media_units,) = struct.unpack_from(">I", data, data.find(b"mdhd") + 16)
    edit = data.find(b"elst") + 12
    duration, start = struct.unpack_from(">Ii", data, edit)
    struct.pack_into(">Ii", data, edit, duration - hidden * movie_units // 10, start + hidden * media_units // 10)
    path.write_bytes(data)
    return path


def write_damaged(path: Path, video: np.ndarray, from_part: float) -> Path:
    """A video whose header counts all frames, but whose data is zeros from that part on."""
    write_video(path, video, faststart=True)
    data = bytearray(path.read_bytes())
    start = data.find(b"mdat") + 8
    start += int((len(data) - start) * from_part)
    data[start:] = bytes(len(data) - start)
    path.write_bytes(data)
    return path
