# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Puts a tower back into a VLM's checkpoint: the bytes of its tensors in their places, and not a byte beside them.

The VLM's files are copied, and what the tower holds of them is overwritten where the header of each safetensors file
says that it is. Nothing else is read into memory, and nothing else is written anew.
"""

import json
import os
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from conversion.checkpoints.checkpoint import Checkpoint, CheckpointError
from conversion.checkpoints.rename_tables import DROPPED_MERGER, table_between
from conversion.checkpoints.renaming import RenamedTensor, check_coverage, rename
from conversion.checkpoints.source_config import Source


# What a download or a clone leaves in a folder, and is no part of the model.
NOT_COPIED = (".git", ".cache")

_COPIED_BYTES = 2**24


@dataclass(frozen=True)
class PutBack:
    """What `put_tower` did.

    Attributes:
        replaced: names in the VLM whose tensors were replaced.
        kept: names of its tower that were left as they are: the merger's, where the packing folder has none.
        cast: the dtypes that tensors were cast from, to those that the VLM has.
        files: weight files that were written to.
    """

    replaced: tuple[str, ...]
    kept: tuple[str, ...]
    cast: tuple[str, ...]
    files: tuple[str, ...]


@dataclass(frozen=True)
class _Place:
    """Where a tensor's bytes are: in which file, from which byte, and how many."""

    file: str
    start: int
    length: int


def put_tower(packing: Source, vlm: Source, folder: Path) -> PutBack:
    """Writes the VLM's files into an empty folder, with the tower of a packing model in place of its own.

    Args:
        packing: the packing folder.
        vlm: the VLM's tower, with or without merger as the packing folder has it.
        folder: exists, and is empty.

    Raises:
        CheckpointError: if the two have other configurations, names or shapes, the VLM's weights are not in
            safetensors files, or weights are NaN, infinite, or too large for the VLM's dtype.
        OSError: if copying fails.
    """
    tower = vlm.checkpoint
    _check_same_encoder(packing, vlm)
    tensors = _tensors_for(packing, tower)
    stored = tower.stored_names_by_name
    places = _places(tower.files)
    copy_folder(tower.path, folder)
    cast = set()
    for tensor in tqdm(tensors, desc="put in", unit="tensor"):
        spec = tower.specs[tensor.name]
        loaded = tensor.load()
        if loaded.dtype != spec.dtype:
            cast.add(str(loaded.dtype).removeprefix("torch."))
        data = loaded.to(spec.dtype).contiguous()
        if not torch.isfinite(data).all():
            raise CheckpointError(
                f"{packing.checkpoint.location}: {', '.join(tensor.sources)} has NaN or infinite values, or is too "
                f"large for {spec.dtype}, which the VLM has. Nothing was written."
            )
        place = places[stored[tensor.name]]
        with open(folder / place.file, "r+b") as file:
            file.seek(place.start)
            file.write(memoryview(data.reshape(-1).view(torch.uint8).numpy()))
    replaced = tuple(stored[tensor.name] for tensor in tensors)
    kept = tuple(sorted(set(stored.values()) - set(replaced)))
    files = tuple(sorted({places[name].file for name in replaced}))
    return PutBack(replaced, kept, tuple(sorted(cast)), files)


def differing_tensors(vlm: Path, written: Path, files: tuple[str, ...]) -> list[str]:
    """Names of the tensors whose bytes differ between two folders, in files that both have, read piece by piece.

    Raises:
        CheckpointError: if headers differ, so that tensors are not at the same places.
    """
    differing = []
    for name in files:
        if _header(vlm / name) != _header(written / name):
            raise CheckpointError(f"{written / name}: its header is not that of {vlm / name}.")
        with open(vlm / name, "rb") as before, open(written / name, "rb") as after:
            for tensor, place in _places((vlm / name,)).items():
                before.seek(place.start)
                after.seek(place.start)
                left = place.length
                while left:
                    piece = min(left, _COPIED_BYTES)
                    if before.read(piece) != after.read(piece):
                        differing.append(tensor)
                        break
                    left -= piece
    return differing


def copy_folder(source: Path, target: Path) -> None:
    """Copies all files of a model folder, following links, with a bar."""
    files = [
        path
        for path in sorted(source.rglob("*"))
        if path.is_file() and not set(path.relative_to(source).parts) & set(NOT_COPIED)
    ]
    total = sum(path.stat().st_size for path in files)
    free = shutil.disk_usage(target).free
    if total > free:
        raise OSError(
            f"{target.parent} has {free:,} bytes free, but {source} has {total:,}. Choose another --output_dir."
        )
    with tqdm(total=total, desc=f"copy {source.name}", unit="B", unit_scale=True) as bar:
        for path in files:
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
            bar.update(path.stat().st_size)


def _check_same_encoder(packing: Source, vlm: Source) -> None:
    ours, theirs = vars(packing.config), vars(vlm.config)
    # Without a head its epsilon says nothing.
    wrong = [name for name in ours if ours[name] != theirs[name] and (name != "head_norm_eps" or ours["use_head"])]
    if wrong:
        found = ", ".join(f"{name}={ours[name]!r}" for name in wrong)
        expected = ", ".join(f"{name}={theirs[name]!r}" for name in wrong)
        raise CheckpointError(
            f"{packing.checkpoint.location} has {found}, but the tower of {vlm.checkpoint.location} has {expected}. "
            "Only the tower that was taken out of this VLM, or one trained from it, can be put back."
        )


def _tensors_for(packing: Source, tower: Checkpoint) -> list[RenamedTensor]:
    """The packing model's tensors under the names of the VLM's tower, which they must be, but for a merger."""
    if any(file.suffix != ".safetensors" for file in tower.files):
        names = ", ".join(file.name for file in tower.files)
        raise CheckpointError(f"{tower.location} has its weights in {names}. Save it as safetensors first.")
    with_merger = packing.config.has_merger
    tensors = rename(packing.checkpoint, table_between(packing.checkpoint.layout, tower.layout, with_merger))
    may_stay = () if with_merger else dict(DROPPED_MERGER)
    expected = {name: spec.shape for name, spec in tower.specs.items() if name not in may_stay}
    check_coverage(tensors, expected, f"{packing.checkpoint.location}, to be put into {tower.location},")
    return tensors


def _places(files: tuple[Path, ...]) -> dict[str, _Place]:
    """Where each tensor of some safetensors files is, by its stored name."""
    places = {}
    for path in files:
        header = _header(path)
        start = 8 + len(header)
        for name, entry in json.loads(header).items():
            if name != "__metadata__":
                first, end = entry["data_offsets"]
                places[name] = _Place(path.name, start + first, end - first)
    return places


def _header(path: Path) -> bytes:
    """The JSON header of a safetensors file, which safetensors itself has checked when it was opened."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return file.read(min(length, os.fstat(file.fileno()).st_size))
