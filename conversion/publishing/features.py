# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The features of a run as they are published: in `verification/` beside the model that they are of.

Of the paths of this machine only file names are published. The published `metadata.json` lists the SHA-256 of every
other file, so that its own hash names them all.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from conversion.common.files import sha256_of_file
from conversion.common.json_files import NONE, check_shape, read_json_object
from conversion.common.model_folder import ModelFile, ModelFolder, PublishError, PublishInputError, processor_sha256


FEATURES_FOLDER = "verification"
METADATA_FILE = "metadata.json"
# The index as a table, the only one with paths.
TABLE_FILE = "index.parquet"
# What a run consists of; nothing else in its folder is published.
FEATURE_FILES = (
    *(METADATA_FILE, "features_hf.npz", "features_packing.npz", "report.json", "report.txt"),
    *("index.jsonl", TABLE_FILE, "failures.jsonl", "pictures/report.html", "inputs/*"),
    # Not what a killed run was writing, `.partial-*`.
    *(f"shards/[!.]*.{suffix}" for suffix in ("safetensors", "npz", "parquet", "jsonl")),
)
_PATH_FIELDS = ("path", "source", "_name_or_path")
_HASHES = {str: str}
_MODEL = {"weights_sha256": _HASHES, "code_sha256": _HASHES, "processor_sha256": (str, NONE)}
_RUN = {"dtype": str, "models": {str: _MODEL}, "files?": {str: str}}
_OF_FOUR = {
    "num_frames": int,
    "inputs": {str: {"dense": {"file": str, "sha256": str}, "packing": {"source": (str, NONE)}}},
}
_OF_MANY = {"layers": [str], "counts": {"samples": int}}


@dataclass(frozen=True)
class Features:
    """Features of a run, ready to be published.

    Attributes:
        metadata: what `metadata.json` says.
        files: by their names below `verification/`.
    """

    metadata: dict
    files: dict[str, ModelFile]

    @property
    def name(self) -> str:
        """Twelve digits that stand for exactly these files."""
        return features_name(self.files[METADATA_FILE].content)

    @property
    def in_repo(self) -> list[ModelFile]:
        """The files under their paths in a repo."""
        return [file.under(FEATURES_FOLDER) for file in self.files.values()]


@contextmanager
def read_features(folder: Path, with_inputs: bool = False) -> Iterator[Features]:
    """The features in a run's folder. What they hold of it is rewritten without paths, and gone after the block.

    Args:
        with_inputs: publish the four images and videos, too.

    Raises:
        PublishInputError: if the folder holds no finished run, an input is not what the run had, or is to be published
            of a run over many.
        PublishError: if dense and packing features did not agree.
        OSError: if a file cannot be read.
    """
    folder = Path(folder)
    if not (folder / METADATA_FILE).exists():
        raise PublishInputError(
            f"{folder}: no {METADATA_FILE}, so nothing to publish. Run examples/extract_features.py first."
        )
    metadata = read_json_object(folder / METADATA_FILE, PublishInputError, advice="Extract again.")
    check_metadata(metadata, folder / METADATA_FILE, PublishInputError)
    _check_passed(folder, metadata)
    with tempfile.TemporaryDirectory() as scratch:
        files = {}
        for path in (path for pattern in FEATURE_FILES for path in sorted(folder.glob(pattern))):
            name = path.relative_to(folder).as_posix()
            if path.suffix == ".jsonl":
                path = _rewritten(path, Path(scratch, name))
            elif name == TABLE_FILE:
                path = _rewritten_table(path, Path(scratch, name))
            files[name] = ModelFile.at(path, name)
        if with_inputs:
            files |= {file.name: file for file in _inputs(folder, metadata)}
        del files[METADATA_FILE]
        metadata = _without_paths(metadata)
        metadata["files"] = {name: file.sha256 for name, file in sorted(files.items())}
        text = json.dumps(metadata, indent=2) + "\n"
        yield Features(metadata, {METADATA_FILE: ModelFile.from_bytes(METADATA_FILE, text.encode()), **files})


def features_name(metadata: bytes) -> str:
    """Twelve digits for the features whose published `metadata.json` this is."""
    return hashlib.sha256(metadata).hexdigest()[:12]


def tag_name(content: str, features: str | None) -> str:
    """The tag of a model whose name is `content`, with features of this name or with none."""
    return content if features is None else f"{content}-{features}"


def not_of_model(metadata: dict, folder: ModelFolder) -> list[str]:
    """Which of a model's files are others than those that features were made with; empty if they are of this model."""
    hashes = {name: file.sha256 for name, file in folder.files.items()}
    return differing_origin(metadata, folder.layout, hashes, folder.processor)


def differing_origin(metadata: dict, layout: str, hashes: dict[str, str], processor: dict) -> list[str]:
    """As `not_of_model`, for a model of which only this is known.

    Args:
        hashes: SHA-256 of its files, by name.
        processor: what its `preprocessor_config.json` says.
    """
    facts = metadata.get("models", {}).get(layout)
    if facts is None:
        return [f"they are of no {layout} model"]
    known = facts.get("weights_sha256", {}) | facts.get("code_sha256", {})
    compared = sorted(name for name in hashes if name.endswith((".safetensors", ".py")))
    differing = [f"{name} is another" for name in compared if known.get(name) != hashes[name]]
    if facts.get("processor_sha256") != processor_sha256(processor):
        differing.append("the processor has other settings")
    return differing


def check_metadata(metadata: dict, where: object, error: type[PublishError] = PublishError) -> None:
    """Checks the fields of a run's `metadata.json` that are read here and for the card.

    Raises:
        PublishError: or `error`, which names `where` it is from.
    """
    check_shape(metadata, _RUN | (_OF_MANY if "layers" in metadata else _OF_FOUR), where, error)


def _check_passed(folder: Path, metadata: dict) -> None:
    if "layers" in metadata:
        if metadata["counts"]["samples"] < 1:
            raise PublishInputError(f"{folder} holds a run without a sample.")
        return
    report = read_json_object(folder / "report.json", PublishInputError, "Run examples/extract_features.py first.")
    if report.get("passed") is not True:
        raise PublishError(
            f"{folder}: dense and packing features do not agree (report.txt), so they are not published."
        )


def _inputs(folder: Path, metadata: dict) -> Iterator[ModelFile]:
    """The four inputs under the names of the features; their paths are those that the run recorded."""
    if "layers" in metadata:
        raise PublishInputError(f"{folder} is a run over many inputs; only those of a run over four can be published.")
    for name, facts in metadata["inputs"].items():
        path = Path(facts["packing"]["source"] or "")
        if not path.is_file() or sha256_of_file(path) != facts["dense"]["sha256"]:
            raise PublishInputError(f"{name} was {path}, now no file or another one. Put it there, or extract again.")
        yield ModelFile.at(path, f"inputs/{name}{path.suffix}")


def _rewritten(lines: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(lines, encoding="utf-8") as source, open(target, "w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(_without_paths(json.loads(line))) + "\n" for line in source)
    return target


def _rewritten_table(table: Path, target: Path) -> Path:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise PublishInputError(f"{table} holds paths, and taking them out needs pyarrow (pip install it).") from error
    try:
        content = pyarrow.parquet.read_table(table)
    except (pyarrow.ArrowException, OSError) as error:
        raise PublishInputError(f"{table} is no readable table ({error}). Extract again.") from error
    for place, name in enumerate(content.column_names):
        if name in _PATH_FIELDS:
            values = [_without_paths({name: value})[name] for value in content.column(name).to_pylist()]
            content = content.set_column(place, content.schema.field(name), pyarrow.array(values, pyarrow.string()))
    pyarrow.parquet.write_table(content, target)
    return target


def _without_paths(value):
    if isinstance(value, list):
        return [_without_paths(part) for part in value]
    if not isinstance(value, dict):
        return value
    return {
        name: Path(part).name
        if name in _PATH_FIELDS and isinstance(part, str) and os.path.exists(part)
        else _without_paths(part)
        for name, part in value.items()
    }
