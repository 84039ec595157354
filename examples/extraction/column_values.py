# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Values of `image` and `video` columns, as datasets, Ray and people store them, as the processor takes them."""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from examples.extraction.files import sha256_of_input


def only_value(values: Mapping[str, Sequence[tuple[str, object]]]) -> tuple[str, object]:
    """The kind and the value of a row, which has an image or a video.

    Args:
        values: by kind, the names and values of what may be it.

    Raises:
        ValueError: if there is none, or more than one.
    """
    found = [(kind, value) for kind, named in values.items() for _, value in named]
    if len(found) != 1:
        names = " and ".join(name for named in values.values() for name, _ in named)
        raise ValueError(f"{names or ' or '.join(values)}: found {len(found)} values in the row; expected one.")
    return found[0]


def sha256_of_value(value) -> str | None:
    """SHA-256 of the file that a value is, or names; None where it is neither."""
    if isinstance(value, Mapping):
        value, _ = _content(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return hashlib.sha256(value).hexdigest()
    return sha256_of_input(Path(value)) if isinstance(value, str | Path) else None


@contextmanager
def readable(kind: str, value) -> Iterator:
    """What the processor is given for one value of a column. A video's bytes lie in a file until the end.

    Args:
        kind: `image` or `video`.
        value: a path, the bytes of a file, `{"bytes", "path"}` of which one may be None, a PIL image, an array or a
            tensor, nested lists of numbers, or a list of frames. A text is a path: nothing is fetched.

    Raises:
        ValueError: for a mapping with neither, and, with its name in place of the temporary file's, what reading a
            video's bytes raises.
        TypeError: for a video that has been opened already.
    """
    name = None
    if isinstance(value, Mapping):
        value, name = _content(value)
    if isinstance(value, bytes | bytearray | memoryview):
        if kind == "video":
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "video")
                path.write_bytes(value)
                try:
                    yield path
                except ValueError as error:
                    raise ValueError(str(error).replace(str(path), name or f"{len(value)} bytes")) from error
            return
        yield bytes(value)
    elif isinstance(value, list | tuple):
        yield _frames_or_array(value)
    elif kind == "video" and hasattr(value, "get_frames_at"):
        raise TypeError("found an opened video; expected its file: cast_column(name, datasets.Video(decode=False)).")
    else:
        yield Path(value) if isinstance(value, str) else value


def _content(value: Mapping) -> tuple[bytes | str, str | None]:
    content, path = value.get("bytes"), value.get("path")
    if content is None and not path:
        raise ValueError(f"found a mapping of {sorted(map(str, value))} without content; expected bytes or path.")
    return (path if content is None else content), path


def _frames_or_array(value: list | tuple):
    """Frames, each as an image is given; or, of nested lists of numbers, the array that they spell."""
    innermost = value
    while isinstance(innermost, list | tuple) and innermost:
        innermost = innermost[0]
    if isinstance(innermost, int | float):
        array = np.asarray(value)
        # Pixels that were stored as lists come back as wide integers.
        return array.astype(np.uint8) if array.dtype.kind == "i" and 0 <= array.min() <= array.max() < 256 else array
    return [_frame(frame) for frame in value]


def _frame(frame):
    return _content(frame)[0] if isinstance(frame, Mapping) else frame
