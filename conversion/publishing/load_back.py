# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Features of a folder, and of a published repo, each from a new process; and the two compared bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from huggingface_hub import get_token

from conversion.common.model_folder import PublishError


SCRIPT = Path(__file__).with_name("load_back_worker.py")


def folder_features(folder: Path, hashes: dict[str, str]) -> dict[str, np.ndarray]:
    """Features of a local folder, from a new process that has its code from there alone.

    Args:
        hashes: SHA-256 that its files must have.

    Raises:
        PublishError: if a file has other contents, or the model or processor cannot be loaded and run.
    """
    return _features(str(folder.resolve()), None, hashes)


def check_published(repo_id: str, commit: str, hashes: dict[str, str], expected: dict[str, np.ndarray]) -> None:
    """Downloads `repo_id` at `commit` into an empty cache, in a new process, and compares it.

    Args:
        hashes: SHA-256 that every published file must have.
        expected: what `folder_features` returned.

    Raises:
        PublishError: if a file or a single bit of the features differs, or the repo cannot be loaded.
    """
    published = _features(repo_id, commit, hashes)
    differing = sorted(
        name
        for name in published.keys() | expected.keys()
        if name not in published or name not in expected or not _same_bits(published[name], expected[name])
    )
    if differing:
        raise PublishError(
            f"{repo_id} at {commit} computes other features than the folder: {', '.join(differing)} differ. Every "
            "file is as it was uploaded, so something else in the repo changes the model."
        )


def _features(source: str, revision: str | None, hashes: dict[str, str]) -> dict[str, np.ndarray]:
    with TemporaryDirectory(prefix="llava_vit_check_") as scratch:
        output = Path(scratch, "features.npz")
        _run({"source": source, "revision": revision, "files": hashes, "output": str(output)}, Path(scratch))
        with np.load(output, allow_pickle=False) as arrays:
            return dict(arrays)


def _run(request: dict, scratch: Path) -> None:
    token = get_token()
    process = subprocess.run(
        [sys.executable, str(SCRIPT)],
        input=json.dumps(request),
        env=_environment(scratch, token),
        # A folder named like the repo must not be taken for it.
        cwd=scratch,
        capture_output=True,
        text=True,
    )
    if process.returncode != 0:
        words = "\n".join(process.stderr.strip().splitlines()[-8:])
        where = " at ".join(filter(None, (request["source"], request["revision"])))
        raise PublishError(f"{where} could not be loaded:\n{words.replace(token, '***') if token else words}")


def _environment(scratch: Path, token: str | None) -> dict[str, str]:
    """Caches below `scratch`, and the token of the login, which lies in the cache that is left."""
    caches = ("HF_HUB_CACHE", "HF_XET_CACHE", "HF_ASSETS_CACHE", "HF_MODULES_CACHE")
    older = ("HUGGINGFACE_HUB_CACHE", "HUGGINGFACE_ASSETS_CACHE", "TRANSFORMERS_CACHE")
    kept = {name: value for name, value in os.environ.items() if name not in (*caches, *older)}
    return {**kept, "HF_HOME": str(scratch / "cache"), **({"HF_TOKEN": token} if token else {})}


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
