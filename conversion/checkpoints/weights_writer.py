# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Writes safetensors files one tensor at a time, so that memory is bounded by the largest tensor.

`safetensors.torch.save_file` takes a whole shard at once, which with a change of dtype is a second copy of it. The
format is fixed and small: eight bytes of header length, a JSON header, the tensors' bytes.
"""

import contextlib
import json
import os
import struct
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import split_state_dict_into_shards_factory

from conversion.checkpoints.readers import CheckpointError


INDEX_NAME = "model.safetensors.index.json"

_FILENAME_PATTERN = "model{suffix}.safetensors"
_DTYPE_CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_HEADER_ALIGNMENT = 8


class TensorToWrite(NamedTuple):
    """A tensor that is loaded only when its turn comes."""

    name: str
    shape: tuple[int, ...]
    load: Callable[[], torch.Tensor]


def write_weights(
    tensors: list[TensorToWrite], output_dir: str | Path, dtype: torch.dtype, max_shard_size: int | str = "5GB"
) -> list[Path]:
    """Writes `model.safetensors`, or shards and their index if that would be larger than `max_shard_size`.

    Files are written beside their place and renamed when all of them are complete.

    Args:
        tensors: what to write; cast to `dtype`.
        output_dir: made if absent; must hold no `model*.safetensors` yet.
        max_shard_size: bytes, or a string such as `"5GB"`.

    Returns:
        The files written, an index last.

    Raises:
        CheckpointError: if weights are NaN or infinite, as stored or after the cast; all of them are named.
        FileExistsError: if the folder holds weights already.
        OSError: if writing fails, naming the file; nothing is left behind.
    """
    if sys.byteorder != "little":
        raise OSError("safetensors files are little-endian, and this machine is not.")
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    _require_no_weights(output_dir)
    by_name = {tensor.name: tensor for tensor in sorted(tensors)}
    split = split_state_dict_into_shards_factory(
        by_name,
        get_storage_size=lambda tensor: _nbytes(tensor, dtype),
        filename_pattern=_FILENAME_PATTERN,
        max_shard_size=max_shard_size,
    )
    mark = uuid.uuid4().hex
    pending = {name: output_dir / f".{name}.{mark}.tmp" for name in split.filename_to_tensors}
    faults: list[str] = []
    try:
        for filename, path in pending.items():
            _write_file(path, [by_name[name] for name in split.filename_to_tensors[filename]], dtype, faults)
        if faults:
            raise CheckpointError(
                f"{len(faults)} weights hold NaN or infinite values: {'; '.join(faults)}. Nothing was written."
            )
        if split.is_sharded:
            pending[INDEX_NAME] = output_dir / f".{INDEX_NAME}.{mark}.tmp"
            _write_index(pending[INDEX_NAME], split.metadata, split.tensor_to_filename)
        _require_no_weights(output_dir)
        for filename, path in pending.items():
            os.replace(path, output_dir / filename)
    finally:
        for path in pending.values():
            path.unlink(missing_ok=True)
    return [output_dir / filename for filename in pending]


def _write_file(path: Path, tensors: list[TensorToWrite], dtype: torch.dtype, faults: list[str]) -> None:
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + _nbytes(tensor, dtype)
        header[tensor.name] = {
            "dtype": _DTYPE_CODES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _HEADER_ALIGNMENT)
    with _naming(path), open(path, "wb", buffering=0) as file:
        _write_all(file, struct.pack("<Q", len(encoded)) + encoded)
        for tensor in tensors:
            _write_all(file, _tensor_bytes(tensor, dtype, faults))


def _write_index(path: Path, metadata: dict, weight_map: dict[str, str]) -> None:
    text = json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True)
    with _naming(path):
        path.write_text(text + "\n", encoding="utf-8")


def _tensor_bytes(tensor: TensorToWrite, dtype: torch.dtype, faults: list[str]) -> memoryview:
    """The bytes of a loaded and cast tensor; its name is added to `faults` if a value is not finite."""
    stored = tensor.load()
    cast = stored.to(dtype).contiguous()
    if not _is_finite(cast):
        overflow = stored.dtype != dtype and _is_finite(stored)
        faults.append(f"{tensor.name} (too large for {dtype}; use bfloat16 or float32)" if overflow else tensor.name)
    return memoryview(cast.reshape(-1).view(torch.uint8).numpy())


def _is_finite(tensor: torch.Tensor) -> bool:
    # The extremes carry every NaN and infinity, in one pass and without a mask as large as the tensor.
    return tensor.numel() == 0 or all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor))


def _write_all(file, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _nbytes(tensor: TensorToWrite, dtype: torch.dtype) -> int:
    return torch.Size(tensor.shape).numel() * dtype.itemsize


def _require_no_weights(output_dir: Path) -> None:
    found = sorted(path.name for path in output_dir.glob("model*.safetensors*"))
    if found:
        raise FileExistsError(f"{output_dir} already holds weights: {', '.join(found)}. Choose an empty folder.")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Adds the file to an error of writing it, which by itself says only, for instance, that no space is left."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, f"{error.strerror} while writing", str(path)) from error
        raise
