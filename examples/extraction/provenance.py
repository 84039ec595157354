# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What a run was made from, by hashes: enough for a stranger to tell whether theirs was made from the same."""

import json
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import accelerate
import numpy as np
import PIL
import torch
import transformers

from conversion.common.files import sha256_of_file
from conversion.common.hub_revision import split_revision
from conversion.common.model_folder import PROCESSOR_CONFIGS, processor_sha256
from examples.extraction.files import read_json


_MODEL_FILES = ["*.safetensors", "*.json", "*.py"]


@dataclass(frozen=True)
class LocatedModel:
    """A model as it lies on this machine, before any of its code runs.

    Attributes:
        name: what the Auto classes load: a folder, or a repo id.
        folder: with the model's files; of a repo that in the cache.
        revision: that was asked for; None for a folder, or for a repo's main branch.
        commit: that the revision stood for; None for a folder.
    """

    name: str
    folder: Path
    revision: str | None = None
    commit: str | None = None

    @property
    def loading(self) -> dict:
        """Arguments of `from_pretrained`: a branch that moves meanwhile changes nothing."""
        return {"trust_remote_code": True, "revision": self.commit}


def check_model_name(option: str, name: str) -> None:
    """Refuses what is neither a folder nor looks like a repo id, before anything is asked of the Hub.

    Raises:
        ValueError: naming the option.
    """
    if not Path(name).is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise ValueError(f"--{option} {name}: no such folder, and not a repo id (user/name).")


def locate_model(option: str, name: str, revision: str | None = None) -> LocatedModel:
    """Finds a model's folder, or fetches a repo at one commit.

    Args:
        name: a folder, or a repo id, also as `user/name@revision`.

    Raises:
        ValueError: naming the option, for what is neither a folder nor looks like a repo id, or has two revisions.
        OSError: if the repo cannot be had.
    """
    name, revision = split_revision(f"--{option}", name, revision)
    check_model_name(option, name)
    if Path(name).is_dir():
        return LocatedModel(name, Path(name))
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        # Without the features that may lie beside the model.
        snapshot = snapshot_download(name, revision=revision, allow_patterns=_MODEL_FILES, ignore_patterns=["*/*"])
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        where = "" if revision is None else f" at revision {revision}"
        raise OSError(f"--{option} {name}: no such folder, and the repo{where} cannot be read: {error}") from error
    folder = Path(snapshot)
    # A snapshot's folder is named after its commit, with or without a network.
    return LocatedModel(name, folder, revision, folder.name)


def describe_model(model, located: LocatedModel) -> dict:
    """Paths, config and hashes of a loaded model and its processor, as JSON types."""
    folder = located.folder
    return {
        "path": str(folder.resolve()) if located.commit is None else located.name,
        "revision": located.revision,
        "commit": located.commit,
        "config": json.loads(model.config.to_json_string(use_diff=False)),
        "weights_sha256": {file.name: sha256_of_file(file) for file in sorted(folder.glob("*.safetensors"))},
        "processor_sha256": _processor_hash(folder),
        "code_sha256": {file.name: sha256_of_file(file) for file in sorted(folder.glob("*.py"))},
        "attn_implementation": model.config._attn_implementation,
    }


def _processor_hash(folder: Path) -> str | None:
    path = folder / PROCESSOR_CONFIGS[0]
    return processor_sha256(read_json(path)) if path.is_file() else None


def describe_device(device: torch.device | str) -> dict[str, str]:
    """The device's kind and name."""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": device.type, "device_name": name}


def versions() -> dict[str, str]:
    """Versions of what computes the features."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
