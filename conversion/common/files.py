# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Hashing, locking and atomic writing of files. Imports nothing heavy, so that publishing starts without torch."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def appearing_when_complete(path: Path) -> Iterator[Path]:
    """Gives a name beside `path`, with the same ending, for a file that gets the name `path` when the block ends well.

    A block that fails leaves nothing beside `path`, and what was at `path` is still there.
    """
    beside = path.with_name(f".partial-{path.name}")
    try:
        yield beside
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Calls `write(stream)` on a file beside `path`, then gives it that name, so that no file is ever half written.

    Raises:
        OSError: if writing fails; what was at `path` is still there, and nothing is left beside it.
    """
    with appearing_when_complete(path) as beside, open(beside, "wb") as stream:
        write(stream)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def exclusive(path: Path, held: Exception) -> Iterator[None]:
    """Holds the lock file `path`, which is gone afterwards. What a killed process leaves of it holds nobody up.

    Args:
        held: raised if another process holds it.

    Raises:
        OSError: if the folder cannot be written to.
    """
    # The lock itself takes a read-only folder for one that is held.
    path.touch()
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise held from None
    try:
        yield
    finally:
        # Removed while it is held. Whoever opened it before that gets a lock on nothing, and at worst loses what is
        # unfinished to the next process: what has its final name is complete with or without locks.
        with suppress(PermissionError):  # Windows keeps a file that is open.
            path.unlink(missing_ok=True)
        lock.release()
