# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Which images and videos a run is about: files, folders, globs and manifests, as a list with unique ids."""

import csv
import glob
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from examples.extraction.limits import DEFAULT_LIMITS, FileLimits, check_bytes, read_lines


MANIFEST_SUFFIXES = (".jsonl", ".csv", ".parquet")
IMAGE_SUFFIXES = tuple(".avif .bmp .gif .jfif .jpeg .jpg .jp2 .pgm .png .ppm .tif .tiff .webp".split())
VIDEO_SUFFIXES = tuple(".3gp .avi .flv .m4v .mkv .mov .mp4 .mpeg .mpg .ogv .ts .webm .wmv".split())
KINDS = ("image", "video")


@dataclass(frozen=True, slots=True)
class Item:
    """One image or video of a run.

    Attributes:
        index: place in the run.
        kind: `image`, `video`, or `None` where the file's content decides.
        num_frames: frames to sample, if it is a video.
        shard: that its features go into.
        values: where it is no file, what may be it, by kind, as names and values; `path` then says where it is from.
    """

    index: int
    id: str
    path: str
    kind: str | None
    num_frames: int
    shard: int = 0
    values: dict[str, list[tuple[str, object]]] | None = None

    @property
    def place(self) -> str:
        """Where it is from, for records: the absolute path of a file."""
        return os.path.abspath(self.path) if self.values is None else self.path


def collect_inputs(entries: list[str], num_frames: int = 8, limits: FileLimits = DEFAULT_LIMITS) -> list[Item]:
    """The items that the entries name, in their order; folders and globs are sorted.

    An id is a file's name, its path below the folder or the glob's fixed part, or what a manifest says: the same on
    every machine that has the same folder somewhere. A path that several entries name counts once.

    Args:
        entries: files, folders (searched recursively for known suffixes), globs, and manifests (`.jsonl`, `.csv`,
            `.parquet`) with the fields `path` (relative to the manifest), and optionally `id`, `num_frames`, `kind`.
        limits: `max_manifest_bytes` and `max_line_bytes` of manifests.

    Raises:
        ValueError: if an entry names nothing, a manifest is wrong, or one id stands for two files.
        ImportError: for a Parquet manifest without pyarrow.
    """
    items, seen = [], {}
    for item_id, path, fields, where in _all_entries(entries, limits):
        frames = _frame_count(fields.get("num_frames"), num_frames, where)
        kind = fields.get("kind") or None
        if kind not in (None, *KINDS):
            raise ValueError(f"{where}: kind must be one of {', '.join(KINDS)}, found {kind!r}.")
        if item_id in seen:
            if seen[item_id] == (path, frames):
                continue
            raise ValueError(
                f"{where}: the id {item_id!r} stands for {seen[item_id][0]} and for {path}. Give them different ids "
                "in a manifest."
            )
        seen[item_id] = (path, frames)
        items.append(Item(len(items), item_id, path, kind, frames))
    if not items:
        raise ValueError("--inputs: no images or videos found.")
    return items


def inputs_digest(items: list[Item]) -> str:
    """SHA-256 over ids, kinds and frame counts, to tell whether two runs are about the same list."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.id, item.kind, item.num_frames]).encode())
    return digest.hexdigest()


def kind_of(item: Item) -> str:
    """Whether a file is an image or a video, by its content where that tells and by its suffix otherwise.

    Raises:
        ValueError: if it is neither a file nor a folder, or a video that is named as an image.
        OSError: if it cannot be read.
    """
    path = Path(item.path)
    if path.is_dir():
        return "video"
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}.")
    # Opening a named pipe waits for a writer; a device never ends.
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file.")
    if item.kind is not None:
        return item.kind
    try:
        with PIL.Image.open(path) as image:
            # Pillow knows MPEG streams by name only.
            return "video" if image.format == "MPEG" else "image"
    except (OSError, ValueError, SyntaxError, EOFError, PIL.Image.DecompressionBombError):
        with open(path, "rb") as stream:
            head = stream.read(12)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return "video"
    if _is_video_container(head):
        # The processor would take it for a frame.
        raise ValueError(f"{path} is a video with the suffix of an image. Rename it.")
    return "image"


def _is_video_container(head: bytes) -> bool:
    iso_media = head[4:8] == b"ftyp" and head[8:12] not in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
    return iso_media or head.startswith(b"\x1aE\xdf\xa3") or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")


def _all_entries(entries: list[str], limits: FileLimits) -> Iterator[tuple[str, str, dict, str]]:
    """Id, path, other fields and where they were named, of every input."""
    for entry in entries:
        path = Path(entry)
        if path.suffix.lower() in MANIFEST_SUFFIXES and not path.is_dir():
            yield from _read_manifest(path, limits)
        elif path.is_dir():
            yield from _below(path, _walk(path), entry)
        elif path.exists():
            yield path.name, str(path), {}, entry
        elif glob.has_magic(entry):
            matches = sorted(glob.glob(entry, recursive=True))
            if not matches:
                raise ValueError(f"--inputs {entry}: nothing matches.")
            # The parts before the first wildcard.
            parts = path.parts
            first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
            for match in matches:
                found = _walk(Path(match)) if os.path.isdir(match) else [match]
                yield from _below(Path(*parts[:first]), found, entry)
        else:
            raise ValueError(f"--inputs {entry}: no such file or folder.")


def _walk(folder: Path) -> Iterator[str]:
    """Files below a folder with the suffix of an image or a video, sorted."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(IMAGE_SUFFIXES + VIDEO_SUFFIXES):
                yield os.path.join(place, name)


def _below(root: Path, paths, where: str) -> Iterator[tuple[str, str, dict, str]]:
    for path in paths:
        yield Path(os.path.relpath(path, root)).as_posix(), str(path), {}, where


def _read_manifest(path: Path, limits: FileLimits) -> Iterator[tuple[str, str, dict, str]]:
    readers = {".jsonl": _jsonl_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
    if not path.exists():
        raise ValueError(f"--inputs {path}: no such file or folder.")
    for number, row in readers[path.suffix.lower()](path, limits):
        where = f"{path}, row {number}"
        if not isinstance(row, dict) or not isinstance(row.get("path"), str) or not row["path"]:
            raise ValueError(f"{where}: expected a field path, found {row!r}.")
        item_id = row.get("id")
        item_id = row["path"] if item_id is None or item_id == "" else str(item_id)
        yield item_id, str(path.parent / row["path"]), row, where


def _jsonl_rows(path: Path, limits: FileLimits) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(_text_lines(path, limits), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, row {number}: not JSON ({error}).") from error
        yield number, row


def _csv_rows(path: Path, limits: FileLimits) -> Iterator[tuple[int, dict]]:
    number, rows = 0, csv.DictReader(_text_lines(path, limits))
    try:
        for number, row in enumerate(rows, start=1):
            yield number, row
    except csv.Error as error:
        raise ValueError(f"{path}, row {number + 1}: not CSV ({error}).") from error


def _text_lines(path: Path, limits: FileLimits) -> Iterator[str]:
    try:
        yield from read_lines(path, limits, "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}).") from error


def _parquet_rows(path: Path, limits: FileLimits) -> Iterator[tuple[int, dict]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"{path}: reading Parquet needs pyarrow (pip install pyarrow).") from error
    check_bytes(path, path.stat().st_size, limits, "max_manifest_bytes")
    try:
        number, file = 0, pyarrow.parquet.ParquetFile(path)
        for batch in file.iter_batches(_rows_at_once(path, file.metadata, limits)):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    # Damaged files give errors of all three kinds.
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as Parquet ({error}).") from error


def _rows_at_once(path: Path, metadata, limits: FileLimits) -> int:
    """How many rows cannot expand to more than the limit: a value that is stored once may stand in every row."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    expanded = sum(group.total_byte_size for group in groups)
    check_bytes(f"{path}, expanded", expanded, limits, "max_manifest_bytes")
    columns = (group.column(index) for group in groups for index in range(group.num_columns))
    largest = max((column.total_uncompressed_size for column in columns), default=1)
    return max(1, min(65536, limits.max_manifest_bytes // max(largest, 1)))


def _frame_count(value, default: int, where: str) -> int:
    if value is None or value == "":
        return default
    try:
        count = int(value)
    except (TypeError, ValueError):
        count = 0
    if count < 1:
        raise ValueError(f"{where}: num_frames must be an integer of at least 1, found {value!r}.")
    return count
