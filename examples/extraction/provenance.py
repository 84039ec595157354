# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What a run was made from, by hashes: enough for a stranger to tell whether theirs was made from the same."""

import hashlib
import json
import platform
import re
from pathlib import Path

import accelerate
import numpy as np
import PIL
import torch
import transformers

from conversion.common.files import sha256_of_file
from examples.extraction.files import read_json


# What both majors write into a processor's configuration without an effect on pixels.
_NOT_SETTINGS = (
    "auto_map",
    "processor_class",
    "image_processor_type",
    "feature_extractor_type",
    "_valid_processor_keys",
    "max_image_pixels",
    "max_frames",
)


def check_model_path(option: str, model_path: str) -> None:
    """Refuses what is neither a folder nor looks like a repo id, before a name is asked for on the Hub.

    Raises:
        ValueError: naming the option.
    """
    if not Path(model_path).is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model_path):
        raise ValueError(f"--{option} {model_path}: no such folder, and not a repo id (user/name).")


def model_folder(model_path: str, revision: str | None) -> Path:
    """The folder with a model's files; a repo id is fetched at the revision, or found in the cache.

    Raises:
        OSError: if the repo cannot be had.
    """
    folder = Path(model_path)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model_path, revision=revision, allow_patterns=["*.safetensors", "*.json", "*.py"]))


def describe_model(model, model_path: str, revision: str | None) -> dict:
    """Paths, config and hashes of a loaded model and its processor, as JSON types."""
    folder = model_folder(model_path, revision)
    return {
        "path": str(folder.resolve()) if Path(model_path).is_dir() else model_path,
        "revision": revision,
        "commit": getattr(model.config, "_commit_hash", None),
        "config": json.loads(model.config.to_json_string(use_diff=False)),
        "weights_sha256": {file.name: sha256_of_file(file) for file in sorted(folder.glob("*.safetensors"))},
        "processor_sha256": _processor_hash(folder),
        "code_sha256": {file.name: sha256_of_file(file) for file in sorted(folder.glob("*.py"))},
        "attn_implementation": model.config._attn_implementation,
    }


def _processor_hash(folder: Path) -> str | None:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return None
    settings = read_json(path)
    settings = {name: value for name, value in settings.items() if name not in _NOT_SETTINGS}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


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
