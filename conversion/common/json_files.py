# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Reading JSON from elsewhere, and whether it has the fields that its reader takes for granted."""

import json
from pathlib import Path
from typing import Any


# More than any configuration, index or report of a model has.
MAX_JSON_BYTES = 64 * 2**20

NUMBER = (int, float)
NONE = type(None)
_NAMES = {dict: "an object", list: "a list", str: "text", int: "an integer", float: "a number", bool: "true or false"}


def read_json_object(
    path: Path,
    error: type[ValueError] = ValueError,
    missing: str = "",
    advice: str = "Make it anew.",
    max_json_bytes: int = MAX_JSON_BYTES,
) -> dict:
    """Reads a JSON object from a file.

    Args:
        error: what is raised.
        missing: end of the message for a file that does not exist.
        advice: end of the message for any other.
        max_json_bytes: a larger file is not read.

    Raises:
        ValueError: or `error`, if the file is missing, too large, no JSON or no object.
    """
    try:
        size = path.stat().st_size
        if size > max_json_bytes:
            raise error(f"{path}: {size} bytes, more than max_json_bytes={max_json_bytes}. {advice}")
        content = path.read_bytes()
    except FileNotFoundError:
        raise error(f"{path} does not exist. {missing}".rstrip()) from None
    except OSError as problem:
        raise error(f"{path} cannot be read ({problem.strerror}). {advice}") from problem
    return parse_json_object(content, path, error, advice)


def parse_json_object(
    content: bytes, where: Any, error: type[ValueError] = ValueError, advice: str = "Make it anew."
) -> dict:
    """Parses a JSON object. Raises `error`, which names `where` it is from, if it is none."""
    try:
        value = json.loads(content.decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise error(f"{where} is not JSON ({problem}). {advice}") from problem
    if not isinstance(value, dict):
        raise error(f"{where} holds {_NAMES.get(type(value), 'null')}, expected a JSON object. {advice}")
    return value


def check_shape(value: Any, shape: Any, where: Any, error: type[ValueError] = ValueError, field: str = "") -> None:
    """Compares a value with what is expected of it.

    Args:
        shape: a type or a tuple of types; `[shape]` for a list of such; `{str: shape}` for an object with any names;
            `{"name": shape, "other?": shape}` for one that has these, and `other` perhaps. More fields are allowed.
        where: the file, for the message.
        error: what is raised.

    Raises:
        ValueError: or `error`; it names the file, the field, what was found and what was expected.
    """
    if isinstance(shape, dict):
        _check_type(value, (dict,), where, error, field)
        if str in shape:
            parts = ((name, shape[str]) for name in value)
        else:
            absent = [name for name in shape if not name.endswith("?") and name not in value]
            if absent:
                raise error(f"{where}: {field or 'the file'} has no field {', '.join(absent)}. Make it anew.")
            named = ((name.removesuffix("?"), part) for name, part in shape.items())
            parts = ((name, part) for name, part in named if name in value)
        for name, part in parts:
            check_shape(value[name], part, where, error, f"{field}.{name}" if field else name)
    elif isinstance(shape, list):
        _check_type(value, (list,), where, error, field)
        for index, part in enumerate(value):
            check_shape(part, shape[0], where, error, f"{field}[{index}]")
    else:
        _check_type(value, shape if isinstance(shape, tuple) else (shape,), where, error, field)


def _check_type(value: Any, types: tuple[type, ...], where: Any, error: type[ValueError], field: str) -> None:
    # True is an int to Python, but no number in JSON.
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types and object not in types):
        expected = " or ".join("null" if kind is NONE else _NAMES.get(kind, kind.__name__) for kind in types)
        raise error(f"{where}: {field or 'the file'} must be {expected}, found {repr(value)[:100]}. Make it anew.")
