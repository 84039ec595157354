# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Where the inputs of a run come from: a list of files, which may grow, or a stream of datasets or WebDataset.

datasets and webdataset are imported only where they are asked for. Both give the stored bytes, undecoded: they are
read in the processes that read files.
"""

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from conversion.common.files import write_atomically
from conversion.common.hub_revision import split_revision
from conversion.common.json_files import check_shape
from examples.extraction.inputs import IMAGE_SUFFIXES, KINDS, VIDEO_SUFFIXES, Item, inputs_digest
from examples.extraction.limits import FileLimits, read_lines
from examples.extraction.requests import BulkRequest


INPUTS_FILE = "inputs.jsonl"
_LISTED = {"id": str, "num_frames": int, "part": int}


class Source(Protocol):
    """What a run is about, cut into shards.

    Attributes:
        description: of the inputs; a run only continues if it is the same.
        count: of the inputs; None where only reading them tells.
        shards: how many there are; of a stream, once `walk` has come to its end.
    """

    description: dict
    count: int | None
    shards: int

    def walk(self, is_wanted: Callable[[int], bool]) -> Iterator[Item]:
        """The items of the wanted shards, in order."""


class ListedInputs:
    """Items of parts that each begin a new shard: the first is what the run began with, others were added later.

    Args:
        continues: whether the run in the folder is to be one of these inputs, when it is not yet.
    """

    def __init__(self, parts: list[list[Item]], shard_size: int, continues: bool = False):
        self.continues = continues
        items = [item for part in parts for item in part]
        self.description = {"count": len(items), "sha256": inputs_digest(items)}
        if len(parts) > 1:
            self.description["parts"] = [len(part) for part in parts]
        self.count = len(items)
        cut = [shard for part in parts for shard in cut_into_shards(part, shard_size)]
        self.shards = len(cut)
        places = ((number, item) for number, shard in enumerate(cut) for item in shard)
        self._items = [replace(item, index=index, shard=number) for index, (number, item) in enumerate(places)]
        self._parts = [number for number, part in enumerate(parts) for _ in part]

    def walk(self, is_wanted: Callable[[int], bool]) -> Iterator[Item]:
        """The items of the wanted shards, in order."""
        return (item for item in self._items if is_wanted(item.shard))

    def write(self, folder: Path) -> None:
        """Notes the order of the items and their parts, so that a run finds its shards when the list has grown."""

        def write_lines(stream) -> None:
            for item, part in zip(self._items, self._parts, strict=True):
                line = {"id": item.id, "kind": item.kind, "num_frames": item.num_frames, "part": part}
                stream.write((json.dumps(line) + "\n").encode())

        write_atomically(folder / INPUTS_FILE, write_lines)


def cut_into_shards(items: list[Item], shard_size: int) -> list[list[Item]]:
    """Consecutive items, `shard_size` at a time."""
    return [items[start : start + shard_size] for start in range(0, len(items), shard_size)]


def list_inputs(items: list[Item], request: BulkRequest) -> ListedInputs:
    """The items in the order of the run in the output folder, if there is one that they continue.

    Raises:
        ValueError: if the run has others, or some are new to it and the request does not say `resume`.
    """
    folder = request.output_dir
    path = folder / INPUTS_FILE
    if request.overwrite or not path.exists():
        return ListedInputs([items], request.shard_size)
    left = {item.id: item for item in items}
    parts: list[list[Item]] = []
    for line in _read_listed(path, request.file_limits):
        item = left.pop(line["id"], None)
        if difference := _difference(line, item):
            raise ValueError(
                f"--output_dir {folder} holds a run that differs in inputs: {line['id']} {difference}. Give another "
                "folder, the same inputs to continue, or --overwrite to start again."
            )
        while len(parts) <= line["part"]:
            parts.append([])
        parts[line["part"]].append(item)
    if left:
        if not request.resume:
            raise ValueError(
                f"--output_dir {folder} holds a run of {len(items) - len(left)} of these {len(items)} inputs. Give "
                "--resume to add the others to it, another folder, or --overwrite to start again."
            )
        parts.append(list(left.values()))
    return ListedInputs(parts, request.shard_size, request.resume)


def _difference(line: dict, item: Item | None) -> str:
    """What sets an input of the run apart from that of the same id here; empty if nothing does."""
    if item is None:
        return "is not among these"
    changed = [name for name in ("kind", "num_frames") if line[name] != getattr(item, name)]
    return ", ".join(f"has {name}={line[name]} there and {getattr(item, name)} here" for name in changed)


def _read_listed(path: Path, limits: FileLimits) -> Iterator[dict]:
    last = 0
    for line in read_lines(path, limits):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not JSON ({error}). Give another folder, or --overwrite.") from error
        check_shape(value, {**_LISTED, "kind": object}, path)
        if not last <= value["part"] <= last + 1:
            raise ValueError(f"{path}: part {value['part']} after {last}. Give another folder, or --overwrite.")
        last = value["part"]
        yield value


@dataclass(frozen=True)
class Row:
    """One row of a stream: its id, where it is from, and what may be its sample, by kind, as name and value."""

    id: str
    path: str
    values: dict[str, list[tuple[str, object]]]


class StreamedInputs:
    """Rows of a stream as items, whose ids are all different.

    Args:
        rows: begins the stream.
    """

    def __init__(self, option: str, rows: Callable[[], Iterable[Row]], description: dict, request: BulkRequest):
        self.description, self.count, self.shards = description, None, 0
        self._option, self._rows = option, rows
        self._size, self._num_frames = request.shard_size, request.num_frames

    def walk(self, is_wanted: Callable[[int], bool]) -> Iterator[Item]:
        """The items of the wanted shards, in order.

        Raises:
            ValueError: if the stream cannot be read on, is empty, or has an id twice.
        """
        seen: set[bytes] = set()
        index = -1
        try:
            for index, row in enumerate(self._rows()):
                # Hashes, as the ids of a long stream fill memory.
                digest = hashlib.blake2b(row.id.encode(), digest_size=8).digest()
                if digest in seen:
                    raise ValueError(f"the id {row.id!r} comes twice, the second time in {row.path}.")
                seen.add(digest)
                shard = index // self._size
                if is_wanted(shard):
                    yield Item(index, row.id, row.path, None, self._num_frames, shard, row.values)
        except (ValueError, OSError, RuntimeError, EOFError, tarfile.TarError) as error:
            raise ValueError(f"{self._option}: {error}") from error
        if index < 0:
            raise ValueError(f"{self._option}: no rows.")
        self.shards = index // self._size + 1


def open_dataset(request: BulkRequest) -> StreamedInputs:
    """The rows of a dataset, streamed.

    Raises:
        ImportError: without datasets.
        ValueError: if it, its split or its columns cannot be had.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError("--dataset needs datasets (pip install datasets).") from error
    option = f"--dataset {request.dataset}"
    name, revision = split_revision("--dataset", request.dataset, None)
    try:
        if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
            stored = datasets.load_from_disk(name)
            if isinstance(stored, datasets.DatasetDict):
                if request.split not in stored:
                    raise ValueError(f"no split {request.split!r}; there are {', '.join(stored)}.")
                stored = stored[request.split]
            stream = stored.to_iterable_dataset()
        else:
            stream = datasets.load_dataset(
                name, request.dataset_config, split=request.split, revision=revision, streaming=True
            )
    except (ValueError, OSError, RuntimeError) as error:
        raise ValueError(f"{option}: {error}") from error
    stream = stream if stream.features else stream._resolve_features()
    names = dict(zip(KINDS, (request.image_column, request.video_column), strict=True))
    columns = {kind: column for kind, column in names.items() if column in stream.features}
    if not columns:
        raise ValueError(
            f"{option}: its columns are {', '.join(stream.features)}; expected {' or '.join(names.values())}. Name "
            "yours by --image_column or --video_column."
        )
    asked = {"id_column": request.id_column} | {
        f"{kind}_column": column for kind, column in names.items() if column != kind
    }
    for name_of_option, column in asked.items():
        if column is not None and column not in stream.features:
            raise ValueError(f"{option}: --{name_of_option} {column}: its columns are {', '.join(stream.features)}.")
    # What is in the others is not read, nor decoded.
    stream = stream.select_columns([column for column in (*columns.values(), request.id_column) if column is not None])
    for column in columns.values():
        # Others are bytes, paths or lists, as they are.
        kind = type(stream.features[column])
        if kind in (datasets.Image, datasets.Video):
            stream = stream.cast_column(column, kind(decode=False))

    def rows() -> Iterator[Row]:
        for number, row in enumerate(stream):
            values = {
                kind: [(column, row[column])] if row[column] is not None else [] for kind, column in columns.items()
            }
            row_id = str(number if request.id_column is None else row[request.id_column])
            yield Row(row_id, f"{name}[{number}]", values)

    description = {"dataset": name, "config": request.dataset_config, "split": request.split, "revision": revision}
    return StreamedInputs(option, rows, {**description, "columns": columns, "id_column": request.id_column}, request)


def open_webdataset(request: BulkRequest) -> StreamedInputs:
    """The samples of tar files, by their keys; one is the image or video whose ending says so.

    Raises:
        ImportError: without webdataset.
        ValueError: for what is no tar file of this machine.
    """
    try:
        import webdataset
    except ImportError as error:
        raise ImportError("--webdataset needs webdataset (pip install webdataset).") from error
    option = f"--webdataset {request.webdataset}"
    paths = list(webdataset.shardlists.expand_urls(request.webdataset))
    absent = [path for path in paths if not Path(path).is_file()]
    if absent or not paths:
        # webdataset would take others for addresses, or for commands to run.
        raise ValueError(f"{option}: {absent[0] if absent else 'nothing'!r} is no file; expected tar files.")
    endings = {
        kind: _endings(suffixes) for kind, suffixes in zip(KINDS, (IMAGE_SUFFIXES, VIDEO_SUFFIXES), strict=True)
    }

    def rows() -> Iterator[Row]:
        # Every process takes its shards of all samples.
        stream = webdataset.WebDataset(
            paths, shardshuffle=False, nodesplitter=None, workersplitter=None, empty_check=False
        )
        for sample in stream:
            values = {
                kind: [(name, value) for name, value in sample.items() if name.lower() in endings[kind]]
                for kind in KINDS
            }
            yield Row(sample["__key__"], f"{sample['__url__']}:{sample['__key__']}", values)

    digest = hashlib.sha256(json.dumps([[Path(path).name, Path(path).stat().st_size] for path in paths]).encode())
    return StreamedInputs(option, rows, {"webdataset": request.webdataset, "sha256": digest.hexdigest()}, request)


def _endings(suffixes: Iterable[str]) -> set[str]:
    return {suffix.removeprefix(".") for suffix in suffixes}
