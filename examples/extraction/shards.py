# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Features on disk: shards of tensors, and an index that says where each sample's are.

    metadata.json           what was run: inputs, models, settings, versions
    index.jsonl             one line per sample: id, shard, keys, grid, frames, hashes (index.parquet if asked for)
    failures.jsonl          one line per file that gave no sample: id, path, error
    shards/00000.*          the tensors of a run of consecutive inputs, and a .jsonl that says the shard is complete

A shard's tensors are written first and its `.jsonl` last, each under its name only when whole. So a run that is killed
at any moment leaves complete shards, and files that nobody reads.

Shards in Parquet are tables by themselves, of the columns id, kind, grid `(3,)` and of each layer `layer_-2` and so on
`(N, C)` or `pooler` `(C,)`, which datasets, DuckDB and others read at once.
"""

import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from conversion.common.files import write_atomically
from conversion.common.json_files import check_shape
from examples.extraction.limits import DEFAULT_LIMITS, FileLimits, LimitError, check_bytes, read_npz
from examples.extraction.stage_times import StageTimes


INDEX_FILE, FAILURES_FILE, PARQUET_FILE, SHARDS_FOLDER = "index.jsonl", "failures.jsonl", "index.parquet", "shards"
FORMATS = ("safetensors", "npz", "parquet")
# numpy and Arrow have no bfloat16.
FORMATS_WITHOUT_BFLOAT16 = ("npz", "parquet")
_HEADER = {"files": {str: int}}
_RECORD = {"id": str, "tokens": int, "row?": int, "keys": {str: str}}
_FAILURE = {"error": str}
# A shard's tensors are in memory until they are written; past this size they go to one more file.
MAX_FILE_BYTES = 256 * 2**20
# Of Parquet, what is read at once to get one sample.
ROW_GROUP_BYTES = 8 * 2**20


def shard_path(folder: Path, shard: int) -> Path:
    """The file that says that a shard is complete."""
    return folder / SHARDS_FOLDER / f"{shard:05d}.jsonl"


def column_of(layer: int | str) -> str:
    """The column of a table that holds a layer's features: `layer_-2`, or `pooler`."""
    return "pooler" if layer == "pooler" else f"layer_{layer}"


class ShardWriter:
    """Collects the samples of one shard.

    Args:
        folder: of the run.
        file_format: one of `FORMATS`.
        do: carries out what takes time, in order and perhaps later, such as `Background.do`.
    """

    def __init__(
        self,
        folder: Path,
        shard: int,
        file_format: str,
        do: Callable[[Callable[[], None]], None] = lambda job: job(),
        max_file_bytes: int = MAX_FILE_BYTES,
    ):
        self._folder, self._shard, self._format, self._limit = folder, shard, file_format, max_file_bytes
        self._do = do
        self._tensors: dict[str, torch.Tensor] = {}
        self._bytes, self._begun = 0, 0
        self._files: dict[str, int] = {}
        self._records: list[dict] = []
        self._layers: list[str] = []
        self._rows: list[dict] = []
        (folder / SHARDS_FOLDER).mkdir(parents=True, exist_ok=True)

    def add(self, index: int, record: dict, features: dict[str, torch.Tensor]) -> None:
        """Adds a sample: what the index says of it, and its tensors by layer."""
        keys = {layer: f"{index:08d}.{layer}" for layer in features}
        place = {}
        if self._format == "parquet":
            place, self._layers = {"row": len(self._rows)}, list(features)
            self._rows.append({name: record[name] for name in ("id", "kind", "grid_thw")})
        # Copies: views of one pack would keep all of it in memory.
        self._tensors.update({keys[layer]: tensor.clone() for layer, tensor in features.items()})
        self._bytes += sum(tensor.numel() * tensor.element_size() for tensor in features.values())
        self._records.append({"index": index, **record, "shard": self._file_name(), **place, "keys": keys})
        if self._bytes >= self._limit:
            self._write_tensors()

    def fail(self, index: int, record: dict) -> None:
        """Adds a file that gave no sample."""
        self._records.append({"index": index, **record})

    def finish(self) -> None:
        """Writes what is left, and that the shard is complete."""
        if self._tensors:
            self._write_tensors()
        self._do(self._write_records)

    def _write_records(self) -> None:
        header = {"shard": self._shard, "files": self._files}
        lines = [header, *sorted(self._records, key=lambda record: record["index"])]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomically(shard_path(self._folder, self._shard), lambda stream: stream.write(text.encode()))

    def _file_name(self) -> str:
        part = f"-{self._begun}" if self._begun else ""
        return f"{SHARDS_FOLDER}/{self._shard:05d}{part}.{self._format}"

    def _write_tensors(self) -> None:
        self._do(partial(self._write_file, self._file_name(), self._tensors, self._rows))
        self._tensors, self._bytes, self._rows = {}, 0, []
        self._begun += 1

    def _write_file(self, name: str, tensors: dict[str, torch.Tensor], rows: list[dict]) -> None:
        path = self._folder / name
        if self._format == "npz":
            arrays = {key: tensor.numpy() for key, tensor in tensors.items()}
            write_atomically(path, lambda stream: np.savez(stream, **arrays))
        elif self._format == "parquet":
            write_atomically(path, lambda stream: _write_table(stream, rows, self._layers, list(tensors.values())))
        else:
            content = save(tensors)
            write_atomically(path, lambda stream: stream.write(content))
        self._files[name] = path.stat().st_size


class Background:
    """Does one thing after another beside the caller, of whom it is at most one thing behind.

        with Background(times) as background:
            background.do(job)

    Args:
        times: in which the seconds are noted, as writing.
    """

    def __init__(self, times: StageTimes):
        self._times = times
        self._executor = ThreadPoolExecutor(max_workers=1)
        self._waiting: Future | None = None

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._executor.shutdown(cancel_futures=kind is not None)
        if kind is None:
            self._wait()

    def do(self, job: Callable[[], None]) -> None:
        """Has `job` done, after what came before.

        Raises:
            Exception: that an earlier one raised.
        """
        self._wait()
        self._waiting = self._executor.submit(self._timed, job)

    def _wait(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.result()

    def _timed(self, job: Callable[[], None]) -> None:
        with self._times.timed("writing"):
            job()


def read_shard(folder: Path, shard: int) -> Iterator[dict]:
    """The header of a complete shard, then its records.

    Raises:
        ValueError: if the file is damaged.
    """
    path, shape = shard_path(folder, shard), _HEADER
    with open(path, "rb") as stream:
        for line in stream:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}: not JSON ({error}). Remove it and run again, which continues.") from error
            check_shape(value, _FAILURE if isinstance(value, dict) and "error" in value else shape, path)
            # No file outside the folder, and none that no file system can hold.
            names = value["files"] if shape is _HEADER and "error" not in value else ()
            if any(name != f"{SHARDS_FOLDER}/{Path(name).name}" or len(name) > 200 for name in names):
                raise ValueError(f"{path}: {max(names, key=len)[:80]!r} is no file in {SHARDS_FOLDER}/. Remove it.")
            if value.get("tokens", 0) < 0:
                raise ValueError(f"{path}: tokens is {value['tokens']}, below 0. Remove the file and run again.")
            yield value
            shape = _RECORD
    if shape is _HEADER:
        raise ValueError(f"{path} is empty. Remove it and run again, which continues.")


def is_complete(folder: Path, shard: int) -> bool:
    """Whether a shard and all of its files are there."""
    if not shard_path(folder, shard).exists():
        return False
    header = next(read_shard(folder, shard))
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == size for name, size in header["files"].items()
    )


def merge_shards(folder: Path, shards: int, parquet: bool = False) -> dict[str, int]:
    """Writes the index and the failures of all shards. Returns the counts of samples, failures and tokens.

    Raises:
        ImportError: for a Parquet index without pyarrow.
    """
    counts = {"samples": 0, "failures": 0, "tokens": 0}

    def records(failed: bool) -> Iterator[dict]:
        for shard in range(shards):
            lines = read_shard(folder, shard)
            next(lines)
            yield from (record for record in lines if ("error" in record) == failed)

    def write_index(stream) -> None:
        for record in records(failed=False):
            counts["samples"] += 1
            counts["tokens"] += record["tokens"]
            stream.write((json.dumps(record) + "\n").encode())

    def write_failures(stream) -> None:
        for record in records(failed=True):
            counts["failures"] += 1
            stream.write((json.dumps(record) + "\n").encode())

    write_atomically(folder / FAILURES_FILE, write_failures)
    if parquet:
        write_atomically(folder / PARQUET_FILE, lambda stream: _write_parquet(stream, records(failed=False)))
    write_atomically(folder / INDEX_FILE, write_index)
    return counts


def import_pyarrow(option: str):
    """pyarrow, or an ImportError that says how to get it.

    Args:
        option: that needs it, as it was given.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"{option} needs pyarrow (pip install pyarrow).") from error
    return pyarrow


def _write_parquet(stream, records: Iterator[dict]) -> None:
    """The index as a table of plain columns; the key of a layer's tensor is in `layer_-2_key` and so on."""
    pa = import_pyarrow("--index parquet")
    first = next(records, None)
    layers = {} if first is None else {layer: f"{column_of(layer)}_key" for layer in first["keys"]}
    integers = pa.list_(pa.int64())
    columns = {
        **{name: pa.string() for name in ("id", "path", "kind", "shard", "decoder", "sha256", "pixels_sha256")},
        **{name: pa.string() for name in ("codec_score", "codec_way")},
        **{name: pa.int64() for name in ("index", "row", "tokens", "width", "height")},
        **{name: integers for name in ("grid_thw", "frame_indices", "temporal_positions", "kept_patches")},
        "timestamps": pa.list_(pa.float64()),
        **{column: pa.string() for column in layers.values()},
    }
    schema = pa.schema(columns)
    records = chain([] if first is None else [first], records)
    with pa.parquet.ParquetWriter(stream, schema) as writer:
        while rows := list(islice(records, 10_000)):
            rows = [record | {column: record["keys"][layer] for layer, column in layers.items()} for record in rows]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _write_table(stream, rows: list[dict], layers: list[str], tensors: list[torch.Tensor]) -> None:
    """Samples as a table.

    Args:
        tensors: of the first row, one for each of `layers`, then of the next.
    """
    pa = import_pyarrow("--format parquet")
    columns = {name: pa.array([row[name] for row in rows], pa.string()) for name in ("id", "kind")}
    columns["grid"] = pa.array([row["grid_thw"] for row in rows], pa.list_(pa.int64(), 3))
    for place, layer in enumerate(layers):
        columns[column_of(layer)] = _as_lists(pa, tensors[place :: len(layers)], is_vector=layer == "pooler")
    table = pa.table(columns)
    size = max(1, len(rows) * ROW_GROUP_BYTES // max(table.nbytes, 1))
    # Numbers that hardly repeat are neither worth a dictionary nor compression.
    with pa.parquet.ParquetWriter(stream, table.schema, use_dictionary=False, compression="none") as writer:
        writer.write_table(table, row_group_size=size)


def _as_lists(pa, tensors: list[torch.Tensor], is_vector: bool):
    """A column of `(C,)` as lists of fixed size, or of `(..., C)` as lists of these."""
    tokens = [tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]
    values = pa.array(torch.cat(tokens).flatten().numpy())
    vectors = pa.FixedSizeListArray.from_arrays(values, tokens[0].shape[-1])
    if is_vector:
        return vectors
    ends = np.concatenate([[0], np.cumsum([len(part) for part in tokens])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), vectors)


def _read_cell(path: Path, record: dict, column: str, limits: FileLimits) -> np.ndarray:
    """One sample's features of a table: `(C,)`, or `(N, C)`.

    Raises:
        LimitError: if what has to be read for it is too large.
        ValueError, OSError: if the file is damaged, or has no such row or column.
    """
    pa = import_pyarrow(str(path))
    row = record["row"]
    if row < 0:
        raise ValueError(f"row {row} is below 0")
    try:
        with pa.parquet.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                facts = file.metadata.row_group(group)
                if row < facts.num_rows:
                    check_bytes(path, facts.total_byte_size, limits, "max_archive_bytes")
                    cell = file.read_row_group(group, columns=[column]).column(column)[row]
                    break
                row -= facts.num_rows
            else:
                raise ValueError(f"row {record['row']} is not in it")
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    return _cell_array(pa, cell)


def load_tensor(folder: Path, record: dict, layer: str, limits: FileLimits = DEFAULT_LIMITS) -> np.ndarray:
    """One sample's features of one layer: `(t, h, w, C)`, or `(C,)` for the pooler; bfloat16 comes as float32.

    Args:
        record: the sample's line of the index.

    Raises:
        ValueError: if the shard is missing, damaged or too large.
    """
    key, path = record["keys"][layer], folder / record["shard"]
    try:
        if path.suffix == ".npz":
            return read_npz(path, limits, [key])[key]
        if path.suffix == ".parquet":
            values = _read_cell(path, record, column_of(layer), limits)
            # As in the other formats, by their places unless only some patches were kept.
            return values if layer == "pooler" or "kept_patches" in record else values.reshape(*record["grid_thw"], -1)
        with safe_open(path, framework="pt") as shard:
            tensor = shard.get_tensor(key)
    except LimitError:
        raise
    except (SafetensorError, ValueError, TypeError, OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: {key} cannot be read from it ({error}). Extract again.") from error
    return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def load_tensors(
    folder: Path, records: Sequence[dict], layer: str, limits: FileLimits = DEFAULT_LIMITS
) -> Iterator[np.ndarray]:
    """As `load_tensor`, of many samples of one file, which is read once and for Parquet held as a whole.

    Raises:
        ValueError: as `load_tensor`.
    """
    path = folder / records[0]["shard"]
    if path.suffix == ".safetensors":
        yield from (load_tensor(folder, record, layer, limits) for record in records)
        return
    try:
        if path.suffix == ".npz":
            keys = [record["keys"][layer] for record in records]
            arrays = read_npz(path, limits, keys)
            yield from (arrays[key] for key in keys)
            return
        pa = import_pyarrow(str(path))
        with pa.parquet.ParquetFile(path) as file:
            groups = (file.metadata.row_group(group) for group in range(file.num_row_groups))
            check_bytes(path, sum(group.total_byte_size for group in groups), limits, "max_archive_bytes")
            column = file.read(columns=[column_of(layer)]).column(0)
        for record in records:
            if not 0 <= record["row"] < len(column):
                raise ValueError(f"row {record['row']} is not in it")
            yield _cell_array(pa, column[record["row"]])
    except LimitError:
        raise
    except (ValueError, OSError, RuntimeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        # Arrow's errors are some of these.
        raise ValueError(f"{path}: {layer} cannot be read from it ({error}). Extract again.") from error


def _cell_array(pa, cell) -> np.ndarray:
    """`(C,)`, or `(N, C)`, of a value of a table."""
    if pa.types.is_fixed_size_list(cell.type):
        return cell.values.to_numpy(zero_copy_only=False)
    return cell.values.flatten().to_numpy(zero_copy_only=False).reshape(len(cell.values), -1)
