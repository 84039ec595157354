# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Files that go wrong, or could, and what must become of each: an error, or exactly these pixels."""

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import PIL.Image

from tests import media


# The run's limit, so that a small picture can be over it.
MAX_SAMPLE_TOKENS = 3000


@dataclass(frozen=True)
class Case:
    """One file. Either `error`, part of the recorded message, or `expected`, is given.

    Attributes:
        expected: an RGB image `(H, W, 3)`, or the sampled frames of a video `(8, H, W, 3)`.
    """

    name: str
    error: str | None = None
    expected: np.ndarray | None = None


def write_cases(folder: Path) -> list[Case]:
    """Writes all files into a folder."""
    (folder / "parts").mkdir()
    return [*_unreadable_images(folder), *_odd_images(folder), *_unreadable_videos(folder), *_odd_videos(folder)]


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _unreadable_images(folder: Path) -> Iterator[Case]:
    picture = media.image(60, 44)
    picture.save(folder / "parts" / "a.jpg")
    picture.save(folder / "parts" / "a.png")
    jpeg, png = ((folder / "parts" / name).read_bytes() for name in ("a.jpg", "a.png"))
    header = struct.pack(">IIBBBBB", 60000, 60000, 1, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", header) + _png_chunk(b"IDAT", zlib.compress(bytes(100)))
    damaged = bytearray(png)
    damaged[len(png) // 2] ^= 0xFF
    for name, content, error in (
        ("zero_bytes.jpg", b"", "cannot be read as an image"),
        ("zero_bytes.png", b"", "cannot be read as an image"),
        ("text.jpg", b"this is not a picture\n", "cannot be read as an image"),
        ("page.png", b"<!doctype html><title>404</title>", "cannot be read as an image"),
        ("noise.jpg", np.random.default_rng(0).bytes(5000), "cannot be read as an image"),
        ("header_only.jpg", jpeg[:20], "cannot be"),
        ("truncated.jpg", jpeg[: len(jpeg) // 2], "truncated"),
        ("truncated.png", png[: len(png) // 2], "cannot be decoded"),
        ("damaged.png", bytes(damaged), "cannot be decoded"),
        ("bomb.png", bomb, "too large to be opened safely"),
        ("unknown_suffix.xyz", b"PK\x03\x04 something else", "cannot be read as a video"),
    ):
        (folder / name).write_bytes(content)
        yield Case(name, error)
    for name, width, height, error in (
        ("1x10000.png", 1, 10000, "smaller than one patch"),
        ("10000x3.png", 10000, 3, "smaller than one patch"),
        ("over_the_cap.png", 400, 240, f"max_tokens={MAX_SAMPLE_TOKENS}"),
    ):
        media.image(width, height).save(folder / name)
        yield Case(name, error)
    yield Case("missing.jpg", "there is no file")
    os.mkfifo(folder / "pipe.jpg")
    yield Case("pipe.jpg", "not a regular file")


def _odd_images(folder: Path) -> Iterator[Case]:
    picture = media.image(61, 42)
    pixels = np.asarray(picture)
    for name, mode in (("rgba.png", "RGBA"), ("grey_alpha.png", "LA"), ("grey.png", "L"), ("one_bit.png", "1")):
        converted = media.image(61, 42, mode)
        converted.save(folder / name)
        yield Case(name, expected=np.asarray(converted.convert("RGB")))
    palette = picture.convert("P", palette=PIL.Image.Palette.ADAPTIVE)
    palette.save(folder / "palette.png")
    yield Case("palette.png", expected=np.asarray(palette.convert("RGB")))
    palette.save(folder / "palette_transparent.png", transparency=3)
    yield Case("palette_transparent.png", expected=np.asarray(palette.convert("RGB")))
    grey = (pixels[..., 0].astype(np.uint16) * 257).astype(np.uint16)
    PIL.Image.fromarray(grey).save(folder / "16_bit.png")
    yield Case("16_bit.png", expected=np.repeat(pixels[..., :1], 3, axis=-1))

    picture.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    yield Case("cmyk.jpg", expected=_rgb(folder / "cmyk.jpg"))
    picture.save(folder / "progressive.jpg", progressive=True)
    yield Case("progressive.jpg", expected=_rgb(folder / "progressive.jpg"))
    # What turns the stored pixels upright, by the EXIF standard.
    for name, orientation, turn in (
        ("exif_rotated_6.jpg", 6, lambda stored: np.rot90(stored, -1)),
        ("exif_rotated_8.jpg", 8, lambda stored: np.rot90(stored, 1)),
        ("exif_mirrored_2.jpg", 2, lambda stored: stored[:, ::-1]),
    ):
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        picture.save(folder / name, exif=exif)
        yield Case(name, expected=turn(_rgb(folder / name)))
    picture.save(folder / "broken_exif.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    yield Case("broken_exif.jpg", expected=_rgb(folder / "broken_exif.jpg"))

    frames = [PIL.Image.fromarray(media.pattern(42, 61, shift)).quantize(64) for shift in range(3)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:], duration=100)
    yield Case("animated.gif", expected=np.asarray(frames[0].convert("RGB")))
    for name, file_format in (("png_named.jpg", "PNG"), ("no_suffix", "PNG"), ("UPPER.PNG", "PNG"), ("a.tif", "TIFF")):
        picture.save(folder / name, format=file_format)
        yield Case(name, expected=pixels)
    picture.save(folder / "png_named.mp4", format="PNG")
    yield Case("png_named.mp4", expected=pixels)
    picture.save(folder / "name with spaces é.png")
    yield Case("name with spaces é.png", expected=pixels)


def _rgb(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _unreadable_videos(folder: Path) -> Iterator[Case]:
    whole = media.write_video(folder / "parts" / "whole.mp4", media.frames(12, 34, 50)).read_bytes()
    for name, content in (
        ("zero_bytes.mp4", b""),
        ("text.mp4", b"this is not a video\n"),
        # The index of frames stands at the end.
        ("truncated.mp4", whole[: len(whole) // 2]),
        ("header_only.mp4", whole[:40]),
        ("noise.mkv", np.random.default_rng(1).bytes(5000)),
    ):
        (folder / name).write_bytes(content)
        yield Case(name, "is empty" if not content else "cannot be read as a video")
    media.write_audio(folder / "audio_only.mp4")
    yield Case("audio_only.mp4", "no video stream")
    (folder / "empty_folder").mkdir()
    yield Case("empty_folder", "has no frames")
    (folder / "unequal_frames").mkdir()
    for index in range(3):
        media.image(40 + index, 40).save(folder / "unequal_frames" / f"{index}.png")
    yield Case("unequal_frames", "one size")
    media.write_video(folder / "long_over_the_cap.mp4", media.frames(8, 100, 100))
    yield Case("long_over_the_cap.mp4", f"max_tokens={MAX_SAMPLE_TOKENS}")


def _odd_videos(folder: Path) -> Iterator[Case]:
    times = [0, 10, 200, 210, 220, 600, 610, 900, 1000, 1500]
    media.write_video(folder / "variable_rate.mp4", media.frames(10, 34, 50), times)
    media.write_video(folder / "one_frame.mp4", media.frames(1, 34, 50))
    media.write_video(folder / "three_frames.mp4", media.frames(3, 34, 50))
    media.write_video(folder / "odd_size.mp4", media.frames(9, 35, 51), pixel_format="yuv444p")
    media.write_rotated(folder / "rotated.mp4", media.frames(9, 34, 50), 90)
    media.write_damaged(folder / "damaged_end.mp4", media.frames(30, 34, 50), 0.7)
    media.write_video(folder / "video_named.jpg", media.frames(9, 34, 50), container_format="mp4")
    for name in ("variable_rate.mp4", "one_frame.mp4", "three_frames.mp4", "odd_size.mp4", "damaged_end.mp4"):
        yield Case(name, expected=_sampled(folder / name))
    yield Case("rotated.mp4", expected=np.rot90(_sampled(folder / "rotated.mp4"), -1, axes=(1, 2)))
    yield Case("video_named.jpg", "is a video with the suffix of an image")
    (folder / "frames").mkdir()
    frames = [media.pattern(42, 61, shift) for shift in range(12)]
    for index, frame in enumerate(frames):
        PIL.Image.fromarray(frame).save(folder / "frames" / f"frame{index}.png")
    yield Case("frames", expected=np.stack(frames)[np.linspace(0, 11, 8, dtype=int)])


def _sampled(path: Path) -> np.ndarray:
    """Eight frames of those that decode, as they are stored."""
    frames = []
    with av.open(str(path)) as container:
        try:
            for packet in container.demux(video=0):
                frames += [frame.to_ndarray(format="rgb24") for frame in packet.decode()]
        except av.error.InvalidDataError:
            pass
    return np.stack(frames)[np.linspace(0, len(frames) - 1, 8, dtype=int)]
