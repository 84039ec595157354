# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Hashes of files, files that are never seen half written, and folders that one run writes at a time."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conversion.common import files as shared_files
from conversion.common.files import sha256_of_file, write_atomically
from conversion.common.json_files import read_json_object
from examples.extraction.limits import DEFAULT_LIMITS, FileLimits, check_bytes


def sha256_of_input(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder of frames."""
    if not path.is_dir():
        return sha256_of_file(path)
    digest = hashlib.sha256()
    for file in sorted(filter(Path.is_file, path.iterdir())):
        digest.update(file.name.encode())
        with open(file, "rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Makes `folder` and keeps other runs out of it. What a killed run leaves, `.lock`, holds nobody up.

    Raises:
        ValueError: if another process holds it.
        OSError: if the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = f"--output_dir {folder} is being written by another run. Wait for it, or give another folder."
    with shared_files.exclusive(folder / ".lock", ValueError(held)):
        yield


def write_json(path: Path, value) -> None:
    """Writes JSON, atomically."""
    text = json.dumps(value, indent=2, default=str) + "\n"
    write_atomically(path, lambda stream: stream.write(text.encode()))


def read_json(path: Path, limits: FileLimits = DEFAULT_LIMITS) -> dict:
    """Reads a JSON object.

    Raises:
        ValueError: if the file is missing, over `max_json_bytes`, or holds none.
    """
    if path.is_file():
        check_bytes(path, path.stat().st_size, limits, "max_json_bytes")
    return read_json_object(
        path,
        missing="Run examples/extract_features.py first.",
        advice="Extract again.",
        max_json_bytes=limits.max_json_bytes,
    )
