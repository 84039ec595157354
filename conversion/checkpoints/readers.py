# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Readers of single weight files: lazily, memory-mapped, and without running code from them.

Mappings are renewed now and then, so that the pages already read do not stay resident.
"""

import argparse
import math
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors
import torch
from packaging.version import Version


LAST_UNSOUND_TORCH = "2.9.1"
"""Last torch release with a published bypass of `weights_only` (CVE-2025-32434, GHSA-63cw-57p8-fm3p)."""

PICKLE_SUFFIXES = (".pt", ".pth", ".bin")
WRAPPER_KEYS = ("model", "state_dict")
HARMLESS = [argparse.Namespace]
"""Classes that training scripts save beside the weights and that do nothing but hold attributes."""

# Mapped bytes handed out before a mapping is renewed.
_WINDOW_BYTES = 2**27
# What the restricted unpickler and the zip reader raise on damaged or foreign bytes.
_UNPICKLING_ERRORS = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    struct.error,
)
_SAFETENSORS_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file or the weights and says what to do."""


class TensorSpec(NamedTuple):
    """Shape and dtype of a stored tensor. A dtype that no weight of this encoder has is given by its name."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * (self.dtype.itemsize if isinstance(self.dtype, torch.dtype) else 1)


class MemoryReader:
    """A state dict in memory, with the interface of a file."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]):
        self._tensors = tensors

    def specs(self) -> dict[str, TensorSpec]:
        return {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name]


class SafetensorsReader:
    """One safetensors file, memory-mapped."""

    def __init__(self, path: Path):
        self.path = path
        self._handle = None
        self._handed_out = 0

    def specs(self) -> dict[str, TensorSpec]:
        handle = self._open()
        specs = {}
        for name in handle.keys():
            part = handle.get_slice(name)
            dtype = part.get_dtype()
            specs[name] = TensorSpec(tuple(part.get_shape()), _SAFETENSORS_DTYPES.get(dtype, dtype))
        return specs

    def read(self, name: str) -> torch.Tensor:
        if self._handed_out > _WINDOW_BYTES:
            self._handle, self._handed_out = None, 0
        tensor = self._open().get_tensor(name)
        self._handed_out += tensor.nbytes
        return tensor

    def _open(self):
        if self._handle is None:
            try:
                self._handle = safetensors.safe_open(self.path, framework="pt", device="cpu")
            except (safetensors.SafetensorError, OSError, ValueError) as error:
                raise CheckpointError(
                    f"{self.path} cannot be read as a safetensors file: {error}. It may be damaged, cut short, or of "
                    "another format; get it again, or name it by its format (.safetensors, .pt, .pth)."
                ) from error
        return self._handle


class PickleReader:
    """One `torch.save` file, read by the restricted unpickler; memory-mapped unless in the format before torch 1.6."""

    def __init__(self, path: Path):
        self.path = path
        require_sound_torch(path)
        self._mapped = self._is_zip()
        self._tensors = None
        self._handed_out = 0

    def specs(self) -> dict[str, TensorSpec]:
        return {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in self._load().items()}

    def read(self, name: str) -> torch.Tensor:
        if self._mapped and self._handed_out > _WINDOW_BYTES:
            self._tensors, self._handed_out = None, 0
        tensor = self._load()[name].detach()
        self._handed_out += tensor.nbytes
        return tensor

    def _is_zip(self) -> bool:
        try:
            with open(self.path, "rb") as file:
                start = file.read(4)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}.") from error
        if start != b"PK\x03\x04" and start[:1] != b"\x80":
            raise CheckpointError(
                f"{self.path} is not a PyTorch checkpoint: it starts with {start!r}. Expected a file written by "
                "torch.save."
            )
        return start[:1] != b"\x80"

    def _load(self) -> dict[str, torch.Tensor]:
        if self._tensors is None:
            if self._mapped:
                self._check_archive()
            try:
                with torch.serialization.safe_globals(HARMLESS):
                    content = torch.load(self.path, map_location="cpu", weights_only=True, mmap=self._mapped)
            except _UNPICKLING_ERRORS as error:
                raise CheckpointError(self._explain(error)) from error
            self._tensors = unwrap_state_dict(content, self.path)
            self._check_size()
        return self._tensors

    def _check_archive(self) -> None:
        """Refuses a zip whose members expand: torch.save does not compress."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                expanded = sum(member.file_size for member in archive.infolist())
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise CheckpointError(self._explain(error)) from error
        size = self.path.stat().st_size
        if expanded > size:
            raise CheckpointError(
                f"{self.path} expands from {size} to {expanded} bytes, which no file of torch.save does. Save it "
                "again, best as safetensors."
            )

    def _check_size(self) -> None:
        """Refuses tensors that say more than the file holds, by repeating one storage."""
        size = self.path.stat().st_size
        total = sum(tensor.nbytes for tensor in self._tensors.values())
        if total > size:
            raise CheckpointError(
                f"{self.path}: its tensors add up to {total} bytes, but the file has {size}. Save it again "
                "with a clone() of every tensor, best as safetensors."
            )

    def _explain(self, error: Exception) -> str:
        forbidden = re.search(r"(?:GLOBAL|callable|class|type) ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and forbidden:
            return (
                f"{self.path} holds more than weights: loading it would need {forbidden.group(1)}, which may execute "
                "code, so it was refused and nothing was run. Save the bare state dict, best as safetensors."
            )
        # The unpickler's own text advises weights_only=False, which is what must not be done.
        is_pickle_error = isinstance(error, pickle.UnpicklingError) or not str(error)
        reason = type(error).__name__ if is_pickle_error else str(error).split("\n")[0]
        return (
            f"{self.path} cannot be read as a PyTorch checkpoint ({reason}). "
            "The file may be damaged or cut short; compare its size and hash with the original."
        )


def require_sound_torch(path: str | Path) -> None:
    """Refuses to unpickle on a torch whose `weights_only` has a published bypass.

    Raises:
        CheckpointError: naming the version to install.
    """
    if Version(torch.__version__).release <= Version(LAST_UNSOUND_TORCH).release:
        raise CheckpointError(
            f"{path} is a pickle, and torch {torch.__version__} can be made to execute code from one even with "
            f"weights_only=True (fixed after {LAST_UNSOUND_TORCH}). Install torch>=2.10, or convert the checkpoint to "
            "safetensors on a machine that has it; safetensors files are read by any torch."
        )


def unwrap_state_dict(content: object, location: str | Path) -> dict[str, torch.Tensor]:
    """Finds the state dict in what `torch.load` returned, inside `{"model": ...}` or `{"state_dict": ...}` if need be.

    Raises:
        CheckpointError: if there is none, or entries of it are no plain CPU tensors.
    """
    while isinstance(content, Mapping) and not any(isinstance(value, torch.Tensor) for value in content.values()):
        wrapped = [key for key in WRAPPER_KEYS if isinstance(content.get(key), Mapping)]
        if len(wrapped) != 1:
            break
        content = content[wrapped[0]]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{location} holds no state dict but a {type(content).__name__}. Expected names mapped to tensors, bare "
            f"or under one of the keys {WRAPPER_KEYS}."
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{location} holds no state dict: its entry {name!r} is a {type(value).__name__}, not a tensor. "
                f"Expected names mapped to tensors, bare or under one of the keys {WRAPPER_KEYS}."
            )
        if value.layout != torch.strided or value.device.type != "cpu":
            raise CheckpointError(f"{location}: {name} is no dense CPU tensor ({value.layout}, {value.device}).")
    return dict(content)


def reader_of(path: Path) -> SafetensorsReader | PickleReader:
    """Opens a weight file by its suffix.

    Raises:
        CheckpointError: if the suffix or the file's first bytes are not those of a known format.
    """
    if path.suffix == ".safetensors":
        return SafetensorsReader(path)
    if path.suffix in PICKLE_SUFFIXES:
        return PickleReader(path)
    raise CheckpointError(f"{path} ends in {path.suffix!r}; expected .pt, .pth, .bin or .safetensors.")
