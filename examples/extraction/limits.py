# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""How large inputs and files of others may be, so that none fills the memory; and reading them, without pickle."""

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO

import numpy as np
import PIL.Image


# The processor's arguments that a command line has under another name, or has not.
HERE = "Here max_tokens is --max_sample_tokens, and nothing is resized."


def check_positive(name: str, value: int | None) -> None:
    """Refuses a size or a number below 1; None is for what was not given.

    Raises:
        ValueError: naming the option.
    """
    if value is not None and value < 1:
        raise ValueError(f"--{name} must be at least 1, found {value}.")


@dataclass(frozen=True)
class FileLimits:
    """How large files from elsewhere may be, in bytes; each is an option of the command lines that read such files.

    Attributes:
        max_archive_bytes: an `.npz` expanded, and as a file.
        max_json_bytes: a JSON file.
        max_manifest_bytes: a list of inputs, or the index of a run; of Parquet the expanded columns.
        max_line_bytes: one line of them.
    """

    max_archive_bytes: int = 4 * 2**30
    max_json_bytes: int = 64 * 2**20
    max_manifest_bytes: int = 2**30
    max_line_bytes: int = 16 * 2**20

    def __post_init__(self):
        for field in fields(self):
            check_positive(field.name, getattr(self, field.name))


DEFAULT_LIMITS = FileLimits()


class LimitError(ValueError):
    """A file that is larger than a limit; the message names the option that raises it."""


def check_bytes(where: str | Path, found: int, limits: FileLimits, name: str) -> None:
    """Refuses what is too large.

    Raises:
        LimitError: naming the file and the option.
    """
    limit = getattr(limits, name)
    if found > limit:
        raise LimitError(f"{where}: {found} bytes, more than {name}={limit}. Raise --{name} if you trust the file.")


def read_lines(path: Path, limits: FileLimits = DEFAULT_LIMITS, encoding: str = "utf-8") -> Iterator[str]:
    """The lines of a text file, with their ends as they are.

    Raises:
        OSError: if it cannot be read.
        LimitError: if it, or a line, is too large.
        ValueError: if it is not UTF-8.
    """
    check_bytes(path, path.stat().st_size, limits, "max_manifest_bytes")
    with open(path, encoding=encoding, newline="") as stream:
        number = 0
        # A character is a byte or more.
        while line := stream.readline(limits.max_line_bytes + 1):
            number += 1
            size = len(line) if line.isascii() else len(line.encode())
            check_bytes(f"{path}, row {number}", size, limits, "max_line_bytes")
            yield line


def read_npz(path: Path, limits: FileLimits = DEFAULT_LIMITS, names: list[str] | None = None) -> dict[str, np.ndarray]:
    """Reads an `.npz`, or some of its arrays, without pickle; sizes are checked before anything is allocated.

    Raises:
        LimitError: if it is too large.
        ValueError: if it is no archive of plain arrays.
        OSError, zipfile.BadZipFile, KeyError: if it is damaged, or has no such array.
    """
    check_bytes(path, path.stat().st_size, limits, "max_archive_bytes")
    try:
        return _read_npz(path, limits, names)
    except (RuntimeError, TypeError, OverflowError, MemoryError, struct.error, zlib.error) as error:
        # What damage or encryption of single members comes out as.
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error


def _read_npz(path: Path, limits: FileLimits, names: list[str] | None) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        check_bytes(
            f"{path}, expanded", sum(member.file_size for member in archive.infolist()), limits, "max_archive_bytes"
        )
        for member in archive.infolist():
            with archive.open(member) as stream:
                _check_array(f"{path}, {member.filename}", stream, member.file_size)
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in (arrays.files if names is None else names)}


def _check_array(where: str, stream: IO[bytes], size: int) -> None:
    """Refuses what is no plain array of exactly the bytes that are there: NumPy allocates what the header says."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in readers:
        raise ValueError(f"{where}: version {version} of the array format; expected 1.0 or 2.0.")
    try:
        shape, _, dtype = readers[version](stream)
    # NumPy reads the header as Python's tokens.
    except (tokenize.TokenError, SyntaxError, RecursionError) as error:
        raise ValueError(f"{where}: its header is damaged ({error}).") from error
    if dtype.hasobject:
        raise ValueError(f"{where}: an array of Python objects, which could run code; expected numbers.")
    count = 1
    for side in shape:
        count *= side
    if min(shape, default=0) < 0 or stream.tell() + count * dtype.itemsize != size:
        raise ValueError(
            f"{where}: its header says shape {shape} of {dtype}, which is not what its {size} bytes hold."
        )


@dataclass(frozen=True)
class SampleLimits:
    """The processor's limits of one sample; `None`: as saved in its configuration.

    Attributes:
        max_sample_tokens: the processor's `max_tokens`: a sample of more patches is refused.
        max_image_pixels: an image or frame of more pixels is refused before it is decoded.
        max_frames: a video of more frames is refused.
    """

    max_sample_tokens: int | None = None
    max_image_pixels: int | None = None
    max_frames: int | None = None

    def __post_init__(self):
        for field in fields(self):
            check_positive(field.name, getattr(self, field.name))

    def arguments(self) -> dict[str, int]:
        """What a call of the processor takes."""
        named = (("max_tokens", self.max_sample_tokens), ("max_image_pixels", self.max_image_pixels))
        return {name: value for name, value in (*named, ("max_frames", self.max_frames)) if value is not None}

    def apply_to_pillow(self) -> None:
        """Raises Pillow's own limit in this process too, where a higher one was asked for."""
        if self.max_image_pixels is not None:
            PIL.Image.MAX_IMAGE_PIXELS = max(PIL.Image.MAX_IMAGE_PIXELS or 0, self.max_image_pixels)


def with_options(message: str) -> str:
    """A message of the processor and, if it advises what is called otherwise on the command line, what it is there."""
    advises = any(name in message for name in ("max_tokens", "max_patches", "min_patches", "native_resolution"))
    return f"{message} {HERE}" if advises else message
