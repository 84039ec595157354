# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints in every place and wrapping they are found in: files, model folders, repositories on the Hub.

Tensors are handed out one by one from memory-mapped files, so that converting never holds two copies of the weights.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from conversion.checkpoints.readers import (
    PICKLE_SUFFIXES,
    CheckpointError,
    MemoryReader,
    TensorSpec,
    reader_of,
    unwrap_state_dict,
)
from conversion.checkpoints.rename_tables import LAYOUT_MARKERS, VISION_CONFIG, VISION_DEFAULTS, VISION_FIXED
from conversion.common.files import sha256_of_file
from conversion.common.hub_revision import split_revision
from conversion.common.json_files import MAX_JSON_BYTES, read_json_object


KEY_PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put in front of every name."""

FLOAT_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

PROCESSOR_CONFIG = "preprocessor_config.json"
KEPT_OF_A_VLM = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "do_convert_rgb")
"""Of a VLM's processor, which may be of another class that means other things by sizes."""

_REPO_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_REPO_FILES = ["*.json", "*.safetensors", "*.txt"]
_REPO_CONFIGS = ["*.json", "*.txt"]


class Checkpoint:
    """A state dict whose tensors are read when asked for, under their names without wrapper prefixes.

    Attributes:
        location: what was asked for: a path, or the repository's id.
        path: the file or folder that was opened, for a repository that of the download; None for weights in memory.
        files: the files that hold the weights; empty for weights in memory.
        config: the `config.json` beside them, or None; of a VLM, its tower's part under our names.
        layout: one of `LAYOUTS`, told by the names.
        is_tower: whether `config` is part of a VLM's.
        specs: name to `TensorSpec`, for every tensor.
        stored_names: of all tensors, as the files have them.
        prefix: that was asked for; tensors without it are left out.
    """

    def __init__(
        self,
        location: str,
        readers: list,
        path: Path | None = None,
        files: tuple[Path, ...] = (),
        config: dict | None = None,
        prefix: str = "",
    ):
        self.location, self.path, self.files, self.config, self.prefix = location, path, files, config, prefix
        self.is_tower = bool(prefix) and config is not None and "vision_config" in config
        if self.is_tower:
            self.config = tower_config(config, location)
        readers_by_name, specs = {}, {}
        for reader in readers:
            for name, spec in reader.specs().items():
                if name in specs:
                    raise CheckpointError(f"{location}: {name} is stored twice, in different files.")
                readers_by_name[name], specs[name] = reader, spec
        stripped = strip_prefixes(list(specs))
        if prefix:
            stripped = _below(prefix, stripped, location)
        self.stored_names = set(specs)
        self._origins = {name: (readers_by_name[stored], stored) for name, stored in stripped.items()}
        self.specs: dict[str, TensorSpec] = {name: specs[stored] for name, stored in stripped.items()}
        self.layout = detect_layout(self.specs, location)
        self._check_dtypes()

    @classmethod
    def from_state_dict(cls, tensors: Mapping[str, torch.Tensor], config: dict | None = None) -> "Checkpoint":
        """Takes weights in memory as a checkpoint."""
        return cls("state dict", [MemoryReader(unwrap_state_dict(tensors, "state dict"))], config=config)

    def tensor(self, name: str) -> torch.Tensor:
        """Reads one tensor, on the CPU, in its stored dtype. It may be a mapped file: do not write to it.

        Raises:
            KeyError: if there is no such tensor.
        """
        reader, stored = self._origins[name]
        return reader.read(stored)

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Reads all tensors, one after another."""
        return ((name, self.tensor(name)) for name in self.specs)

    @property
    def stored_names_by_name(self) -> dict[str, str]:
        """Names of the tensors to those that the files have for them."""
        return {name: stored for name, (_, stored) in self._origins.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(spec.nbytes for spec in self.specs.values())

    @property
    def dtypes(self) -> set[torch.dtype]:
        """The dtypes that occur."""
        return {spec.dtype for spec in self.specs.values()}

    def sha256(self) -> dict[str, str]:
        """SHA-256 of each weight file, by file name. Reads the files once; of a VLM only the tower, which has one
        hash: of the sorted names, dtypes, shapes and bytes of its tensors."""
        if not self.is_tower:
            return {path.name: sha256_of_file(path) for path in self.files}
        digest = hashlib.sha256()
        for name in sorted(self.specs):
            spec = self.specs[name]
            digest.update(f"{name} {spec.dtype} {spec.shape}\n".encode())
            digest.update(self.tensor(name).contiguous().reshape(-1).view(torch.uint8).numpy())
        return {f"{self.prefix}*": digest.hexdigest()}

    def _check_dtypes(self) -> None:
        foreign = sorted(name for name, spec in self.specs.items() if spec.dtype not in FLOAT_DTYPES.values())
        if foreign:
            found = ", ".join(f"{name} ({self.specs[name].dtype})" for name in foreign[:5])
            raise CheckpointError(
                f"{self.location}: {len(foreign)} tensors are not of a floating dtype ({', '.join(FLOAT_DTYPES)}): "
                f"{found}. Quantized checkpoints cannot be converted; use the original weights."
            )


def read_checkpoint(
    path: str | Path, revision: str | None = None, max_json_bytes: int = MAX_JSON_BYTES, prefix: str = ""
) -> Checkpoint:
    """Opens a checkpoint; weights are read when asked for.

    Args:
        path: a `.pt`, `.pth`, `.bin` or `.safetensors` file, a model folder (safetensors, in shards or not, or
            `pytorch_model.bin`), or the id of a repository on the Hub, `user/name` or `user/name@revision`, of which
            only JSON, safetensors and text files are fetched. What exists locally is preferred.
        revision: branch, tag or commit of the repository; only for an id.
        max_json_bytes: a larger `config.json` or index beside the weights is an error.
        prefix: of the encoder's names in a larger model, such as `visual.trunk.`: tensors without it are left out,
            and shards without one of them neither fetched nor opened. `module.` and `_orig_mod.` in front of all
            names, and of these, go by themselves.

    Raises:
        CheckpointError: if it is missing, unreadable, cut short, of another architecture, not a plain state dict, or
            a pickle that would run code (it is not run) or that this torch cannot be trusted with.
    """
    try:
        name, revision = split_revision("the checkpoint", str(path), revision)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    location = Path(name)
    if location.is_dir():
        return _read_folder(location, str(location), max_json_bytes, prefix)
    if location.is_file():
        return Checkpoint(str(location), [reader_of(location)], location, (location,), prefix=prefix)
    if _REPO_ID.fullmatch(name) and location.suffix not in (*PICKLE_SUFFIXES, ".safetensors"):
        return _read_folder(_download(name, revision, max_json_bytes, prefix), str(path), max_json_bytes, prefix)
    raise CheckpointError(
        f"{path} does not exist. Expected a .pt, .pth or .safetensors file, a model folder, or a repository id "
        "(user/name)."
    )


def stored_processor(checkpoint: Checkpoint) -> dict | None:
    """The processor configuration beside the `config.json` of a checkpoint, of a VLM's what is ours too, or None.

    Raises:
        CheckpointError: if it is no JSON object.
    """
    if checkpoint.path is None or checkpoint.config is None:
        return None
    path = checkpoint.path / PROCESSOR_CONFIG
    if not path.is_file():
        return None
    stored = read_json_object(path, CheckpointError, advice="Remove it to have one made.")
    if checkpoint.is_tower:
        return {name: stored[name] for name in KEPT_OF_A_VLM if name in stored}
    return stored


def strip_prefixes(names: list[str]) -> dict[str, str]:
    """Maps names without the prefixes that all of them share, in any order and number, to the stored names."""
    stripped = {name: name for name in names}
    while stripped:
        prefix = next((p for p in KEY_PREFIXES if all(name.startswith(p) for name in stripped)), None)
        if prefix is None:
            break
        stripped = {name.removeprefix(prefix): stored for name, stored in stripped.items()}
    return stripped


def _below(prefix: str, stripped: dict[str, str], location: str) -> dict[str, str]:
    """Of names mapped to stored names those with a prefix, without it."""
    below = {name.removeprefix(prefix): stored for name, stored in stripped.items() if name.startswith(prefix)}
    if not below:
        found = sorted({name.split(".")[0] for name in stripped})
        raise CheckpointError(
            f"{location} has no name that starts with {prefix!r}; names start with {', '.join(found[:8])} ..."
        )
    return {name: below[given] for name, given in strip_prefixes(list(below)).items()}


def detect_layout(names: Mapping[str, object], location: str) -> str:
    """Tells which of the known layouts the names belong to.

    Raises:
        CheckpointError: if to none; the message lists some of the names.
    """
    for layout, markers in LAYOUT_MARKERS.items():
        if all(marker in names for marker in markers):
            return layout
    for markers in LAYOUT_MARKERS.values():
        prefixes = [{name.removesuffix(marker) for name in names if name.endswith(f".{marker}")} for marker in markers]
        for prefix in sorted(set.intersection(*prefixes)):
            raise CheckpointError(
                f"{location} holds the encoder among {len(names)} tensors, under the prefix {prefix!r}. Give it as "
                f"--prefix {prefix} (only {' and '.join(KEY_PREFIXES)} are taken off unasked)."
            )
    expected = "; ".join(f"{layout}: {', '.join(markers)}" for layout, markers in LAYOUT_MARKERS.items())
    raise CheckpointError(
        f"{location} is a checkpoint of another architecture, or an incomplete one. It has {len(names)} tensors: "
        f"{', '.join(sorted(names)[:6])} ... Expected all names of one of these layouts: {expected}."
    )


def _read_folder(folder: Path, location: str, max_json_bytes: int, prefix: str) -> Checkpoint:
    files, indexed = _weight_files(folder, max_json_bytes, prefix)
    config_file = folder / "config.json"
    config = _read_json(config_file, max_json_bytes) if config_file.is_file() else None
    checkpoint = Checkpoint(location, [reader_of(file) for file in files], folder, tuple(files), config, prefix)
    missing = sorted(set(indexed) - checkpoint.stored_names)
    if missing:
        raise CheckpointError(f"{location}: the index lists {', '.join(missing[:5])}, which no file holds.")
    return checkpoint


def tower_config(config: Mapping, location: str) -> dict:
    """The fields of a VLM's `config.json` that describe its tower, under the names of the packing model.

    Raises:
        CheckpointError: if its `vision_config` is that of another kind of tower.
    """
    vision = config["vision_config"]
    if not isinstance(vision, Mapping):
        raise CheckpointError(f"config.json of {location}: vision_config must be an object, found {vision!r}.")
    if vision.get("temporal_patch_size", 1) != 1:
        raise CheckpointError(
            f"config.json of {location}: vision_config has temporal_patch_size={vision['temporal_patch_size']!r}, as "
            f"towers of another family do ({config.get('model_type')!r}); this encoder takes frames one by one."
        )
    renamed = {VISION_CONFIG.get(name, name): value for name, value in vision.items() if name != "model_type"}
    return {**VISION_DEFAULTS, **renamed, **VISION_FIXED}


def _weight_files(folder: Path, max_json_bytes: int, prefix: str) -> tuple[list[Path], Iterable[str]]:
    """The weight files of a model folder that hold names with a prefix, by transformers' order of preference, and
    those of the names that their index lists."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{stem}.index.json"
        if (folder / stem).is_file():
            return [folder / stem], ()
        if index.is_file():
            weight_map = _weight_map(index, max_json_bytes, prefix)
            return _shards(index, set(weight_map.values())), weight_map
    raise CheckpointError(
        f"{folder} is no model folder: expected model.safetensors, model.safetensors.index.json or pytorch_model.bin."
    )


def _weight_map(index: Path, max_json_bytes: int, prefix: str) -> dict[str, str]:
    """Stored names with a prefix to the files that hold them."""
    weight_map = _read_json(index, max_json_bytes).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; expected tensor names mapped to file names.")
    if not all(isinstance(name, str) and name == Path(name).name for name in weight_map.values()):
        raise CheckpointError(f"{index} names files outside its folder; expected bare file names in weight_map.")
    if not prefix:
        return weight_map
    wanted = _below(prefix, strip_prefixes(list(weight_map)), str(index))
    return {stored: weight_map[stored] for stored in wanted.values()}


def _shards(index: Path, names: set[str]) -> list[Path]:
    present = {path.name for path in index.parent.iterdir() if path.is_file()}
    missing = [name[:200] for name in sorted(names) if name not in present]
    if missing:
        raise CheckpointError(f"{index} names files that are missing: {', '.join(missing)}. Download them again.")
    return [index.parent / name for name in sorted(names)]


def _read_json(path: Path, max_json_bytes: int) -> dict:
    return read_json_object(path, CheckpointError, advice="Get it again.", max_json_bytes=max_json_bytes)


def _download(repo_id: str, revision: str | None, max_json_bytes: int, prefix: str) -> Path:
    """The folder of a repository's files in the cache; with a prefix without the shards that lack it."""
    try:
        if not prefix:
            return Path(snapshot_download(repo_id, revision=revision, allow_patterns=_REPO_FILES))
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=_REPO_CONFIGS))
        index, wanted = folder / "model.safetensors.index.json", ["*.safetensors"]
        if index.is_file():
            wanted = sorted(set(_weight_map(index, max_json_bytes, prefix).values()))
        # The commit of the first call, which names the folder: the branch may have moved on.
        return Path(snapshot_download(repo_id, revision=folder.name, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(
            f"{repo_id} is neither a file nor a folder here, and could not be fetched from the Hub: "
            f"{str(error).splitlines()[0]}"
        ) from error
