# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""One way to read the features of a run, whether of four files with two models or of many with one."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from conversion.common.json_files import check_shape
from examples.extraction.files import read_json
from examples.extraction.limits import DEFAULT_LIMITS, FileLimits, LimitError, read_lines, read_npz


DENSE_FILE, PACKING_FILE, METADATA_FILE, INDEX_FILE = (
    "features_hf.npz",
    "features_packing.npz",
    "metadata.json",
    "index.jsonl",
)
DTYPES = ("float32", "bfloat16", "float16")
_RECORD = {"id": str, "shard": str, "row?": int, "keys": {str: str}, "sha256": object}
# The hashes by which two runs are told apart, in the order in which a difference explains the next.
ORIGINS = ("inputs", "frames", "processor", "weights")


@dataclass(frozen=True)
class FeatureSet:
    """The features of one run.

    Attributes:
        folder: where they are.
        metadata: what `metadata.json` says.
        labels: one `input model` or `input layer` per array.
        load: reads the array of a label.
        origins: for each of `ORIGINS`, hashes by name.
    """

    folder: Path
    metadata: dict
    labels: list[str]
    load: Callable[[str], np.ndarray]
    origins: dict[str, dict] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        return self.metadata["dtype"]


def load_features(path: Path, limits: FileLimits = DEFAULT_LIMITS) -> dict[str, np.ndarray]:
    """Reads an `.npz` without pickle.

    Raises:
        ValueError: if the file is missing, over `max_archive_bytes`, or is not an archive of plain arrays.
    """
    try:
        return read_npz(path, limits)
    except LimitError:
        raise
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file. Run examples/extract_features.py first.") from None
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise ValueError(f"{path}: not a readable .npz file of plain arrays ({error}). Extract again.") from error


def load_pair(folder: Path, limits: FileLimits = DEFAULT_LIMITS) -> tuple[dict[str, np.ndarray], ...]:
    """The dense and the packing features of four files, by name.

    Raises:
        ValueError: as `load_features`.
    """
    return tuple(load_features(folder / file, limits) for file in (DENSE_FILE, PACKING_FILE))


def load_metadata(features_dir: Path, limits: FileLimits = DEFAULT_LIMITS) -> dict:
    """Reads `metadata.json` of a features folder.

    Raises:
        ValueError: if it is missing, too large or not JSON with the dtype of the models.
    """
    metadata = read_json(features_dir / METADATA_FILE, limits)
    if metadata.get("dtype") not in DTYPES:
        raise ValueError(
            f"{features_dir / METADATA_FILE}: the field dtype must be one of {sorted(DTYPES)}, found "
            f"{metadata.get('dtype')!r}. Extract again."
        )
    check_shape(metadata, {"models?": {str: dict}}, features_dir / METADATA_FILE)
    return metadata


def is_paired(folder: Path) -> bool:
    """Whether a folder holds four files' features of both models, and not one model's of many."""
    return not (folder / INDEX_FILE).exists()


def load_index(folder: Path, limits: FileLimits = DEFAULT_LIMITS) -> list[dict]:
    """The records of a run over many inputs.

    Raises:
        ValueError: if the index is missing, too large or damaged.
    """
    path = folder / INDEX_FILE
    try:
        records = [json.loads(line) for line in read_lines(path, limits)]
    except LimitError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a readable index ({error}). Extract again; a run continues.") from error
    check_shape(records, [_RECORD], path)
    return records


def open_features(folder: Path, limits: FileLimits = DEFAULT_LIMITS) -> FeatureSet:
    """Opens the features of a run.

    Raises:
        ValueError: if the folder holds none, or a file of them is damaged or over a limit.
    """
    metadata = load_metadata(folder, limits)
    opener = _open_paired if is_paired(folder) else _open_sharded
    return opener(folder, metadata, limits)


def _open_paired(folder: Path, metadata: dict, limits: FileLimits) -> FeatureSet:
    check_shape(metadata, {"inputs?": {str: {str: dict}}}, folder / METADATA_FILE)
    arrays = {
        f"{name} {model}": array
        for model, features in zip(("dense", "packing"), load_pair(folder, limits), strict=True)
        for name, array in features.items()
    }
    reports = {
        f"{name} {model}": facts
        for name, models in metadata.get("inputs", {}).items()
        for model, facts in models.items()
    }
    origins = {
        "inputs": {label.split()[0]: facts["sha256"] for label, facts in reports.items() if "sha256" in facts},
        "frames": _frames(reports),
        **_models(metadata),
    }
    return FeatureSet(folder, metadata, sorted(arrays), arrays.__getitem__, origins)


def _open_sharded(folder: Path, metadata: dict, limits: FileLimits) -> FeatureSet:
    # Shards need safetensors and torch; the features of four files are read with numpy alone.
    from examples.extraction.shards import SHARDS_FOLDER, load_tensor

    records = {record["id"]: record for record in load_index(folder, limits)}
    for record in records.values():
        # No file outside the folder.
        if record["shard"] != f"{SHARDS_FOLDER}/{Path(record['shard']).name}":
            raise ValueError(
                f"{folder / INDEX_FILE}: {record['shard']!r} is no file in {SHARDS_FOLDER}/. Extract again."
            )
    where = {f"{name} {layer}": (record, layer) for name, record in records.items() for layer in record["keys"]}
    origins = {
        "inputs": {name: record["sha256"] for name, record in records.items()},
        "frames": _frames(records),
        **_models(metadata),
    }
    return FeatureSet(folder, metadata, list(where), lambda label: load_tensor(folder, *where[label], limits), origins)


def _frames(reports: dict[str, dict]) -> dict:
    """Which frames, and their pixels as the model got them; `None` where that was not recorded."""
    return {
        name: {"frame_indices": facts.get("frame_indices"), "pixels_sha256": facts["pixels_sha256"]}
        if "pixels_sha256" in facts
        else None
        for name, facts in reports.items()
    }


def _models(metadata: dict) -> dict[str, dict]:
    models = metadata.get("models", {})
    return {
        "processor": {name: facts.get("processor_sha256") for name, facts in models.items()},
        "weights": {name: facts.get("weights_sha256") for name, facts in models.items()},
    }
