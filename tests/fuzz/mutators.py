# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Mutations that know a format: they keep the outside of a file valid, so that what is inside reaches the parser."""

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable


NASTY = (
    *(None, True, False, 0, -1, 1, 2, 2**31, 2**63, -(2**63) - 1, 10**30, 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), "", "x", "1", "../x", "/etc/passwd", "\x00", "\ud800", "é" * 50, "x" * 5000),
    *([], {}, [None], [[]], {"": None}, [1, 2, 3], [0, 0, 0], [2**62] * 3, {"a": {"a": {}}}),
)
NASTY_BYTES = (b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xff" * 8, b"\n", b"\r", b'"', b",", b"{", b"[" * 3000)

Mutate = Callable[[bytes, random.Random], bytes]


def flip(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut out, doubled or put in, somewhere."""
    for _ in range(rng.randint(1, 4)):
        start = rng.randint(0, len(data))
        end = min(len(data), start + rng.choice((1, 1, 2, 4, 8, 64, 1024)))
        kind = rng.randrange(6)
        if kind == 0:
            middle = bytes(rng.randrange(256) for _ in range(min(end - start, 8)))
        elif kind == 1:
            middle = b""
        elif kind == 2:
            middle = data[start:end] * 2
        elif kind == 3:
            middle = rng.choice(NASTY_BYTES) + data[start:end]
        elif kind == 4:
            return data[:start]
        else:
            middle = bytes(byte ^ (1 << rng.randrange(8)) for byte in data[start:end][:4])
        data = data[:start] + middle + data[end:]
    return data


def change(value, rng: random.Random):
    """A JSON value with one node replaced, dropped, renamed, doubled or wrapped."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.12:
            return {key: part for key, part in value.items() if key != name}
        if kind < 0.18:
            return {**value, rng.choice(("", "path", name + "x")): value[name]}
        return {**value, name: change(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        index = rng.randrange(len(value))
        kind = rng.random()
        if kind < 0.12:
            return value[:index] + value[index + 1 :]
        if kind < 0.18:
            return value + [value[index]]
        return [*value[:index], change(value[index], rng), *value[index + 1 :]]
    kind = rng.random()
    if kind < 0.1:
        return [value]
    if kind < 0.15:
        return {"x": value}
    if kind < 0.3 and isinstance(value, int | float):
        return rng.choice((-value, value + 1, value * 2**40, float(value), str(value)))
    return rng.choice(NASTY)


def json_value(data: bytes, rng: random.Random) -> bytes:
    try:
        value = json.loads(data)
        for _ in range(rng.randint(1, 3)):
            value = change(value, rng)
        text = json.dumps(value)
    except (ValueError, RecursionError, OverflowError):
        return flip(data, rng)
    if rng.random() < 0.02:
        depth = rng.choice((100, 2000, 20000))
        text = text.replace("null", "[" * depth + "]" * depth, 1)
    return text.encode()


def json_lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    index = rng.randrange(len(lines))
    return b"\n".join([*lines[:index], json_value(lines[index], rng), *lines[index + 1 :]])


def zip_members(data: bytes, rng: random.Random) -> bytes:
    """A ZIP archive, as `.npz` and `.pt` files are, with a member changed, renamed, dropped or stored twice."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(info.file_size for info in archive.infolist()) > 2**20:
                return flip(data, rng)
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    # Not an archive any more, in one of many ways.
    except Exception:
        return flip(data, rng)
    if not members:
        return flip(data, rng)
    index = rng.randrange(len(members))
    name, content = members[index]
    kind = rng.random()
    if kind < 0.7:
        # What describes the content is at the start of an `.npy`, and all of a small pickle.
        head = content[:128]
        members[index] = (name, flip(head, rng) + content[128:] if rng.random() < 0.5 else flip(content, rng))
    elif kind < 0.8:
        del members[index]
    elif kind < 0.9:
        members[index] = (rng.choice(("", "x", "../x", name + "x", name.removesuffix(".npy"))), content)
    else:
        members.append((name.replace("0", "1"), content))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members:
            archive.writestr(name or "_", content)
    return out.getvalue()


def safetensors_header(data: bytes, rng: random.Random) -> bytes:
    if len(data) < 9:
        return flip(data, rng)
    (size,) = struct.unpack("<Q", data[:8])
    if size > len(data) - 8:
        return flip(data, rng)
    header = json_value(data[8 : 8 + size], rng)
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def csv_cells(data: bytes, rng: random.Random) -> bytes:
    rows = [row.split(b",") for row in data.split(b"\n")]
    row = rng.choice(rows)
    cells = (b"", b"0", b"-1", b"nan", b"1e9", b"image", b"path", *NASTY_BYTES, b"9" * 5000, b"x" * 140000)
    row[rng.randrange(len(row))] = rng.choice(cells)
    if rng.random() < 0.2:
        row.append(b"1")
    return b"\n".join(b",".join(row) for row in rows)


def mutate(data: bytes, rng: random.Random, structured: Mutate) -> bytes:
    """One mutation: mostly one that knows the format, else of plain bytes."""
    return structured(data, rng) if rng.random() < 0.75 else flip(data, rng)
