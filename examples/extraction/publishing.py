# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Features of a run beside the model they came from, in `verification/` of its folder or its repo on the Hub."""

import os
import shutil
from pathlib import Path

from conversion.common.hub_revision import split_revision
from conversion.common.model_folder import ModelFile, PublishError
from conversion.publishing.features import FEATURE_FILES, FEATURES_FOLDER, METADATA_FILE, read_features


def is_folder(destination: str) -> bool:
    """Whether a destination is a folder, and not a repo id: it exists, or is written as a path."""
    return Path(destination).is_dir() or destination.startswith((".", "~", os.sep)) or Path(destination).is_absolute()


def publish(features_dir: Path, destination: str, create_pr: bool = False, with_inputs: bool = False) -> str:
    """Stores a run in `verification/` of a model folder or, as one commit, of the model's repo.

    Paths of this machine are reduced to file names. What an earlier run left there is removed.

    Args:
        destination: a folder or a repo id.
        create_pr: open a pull request in place of a commit to the main branch.
        with_inputs: the run's four images and videos, too.

    Returns:
        Where it is; of a repo also what to pin.

    Raises:
        ValueError: if the folder holds no finished run, or the commit is refused.
        OSError: if a file cannot be read or written.
    """
    if is_folder(destination):
        with read_features(features_dir, with_inputs) as features:
            return _replace(features.files, Path(destination).expanduser() / FEATURES_FOLDER)
    from conversion.publishing.publish_features import publish_features

    try:
        return publish_features(features_dir, destination, create_pr, with_inputs)
    except PublishError as error:
        raise ValueError(f"--publish {destination}: {error}") from error


def find_published(reference: str, revision: str | None = None) -> Path:
    """The folder of another run's features.

    Args:
        reference: a folder with features, a model folder with `verification/`, or a repo id, `user/name@revision` too.
        revision: of the repo.

    Raises:
        ValueError: if there are none.
    """
    reference, revision = split_revision("--reference", reference, revision)
    if is_folder(reference):
        folder = Path(reference).expanduser()
        inner = folder / FEATURES_FOLDER
        return inner if (inner / METADATA_FILE).exists() and not (folder / METADATA_FILE).exists() else folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = snapshot_download(reference, revision=revision, allow_patterns=[f"{FEATURES_FOLDER}/*"])
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(f"--reference {reference}: no such folder, and the repo cannot be read: {error}") from error
    found = Path(folder) / FEATURES_FOLDER
    if not (found / METADATA_FILE).exists():
        where = "" if revision is None else f" at revision {revision}"
        raise ValueError(
            f"--reference {reference}: the repo{where} has no {FEATURES_FOLDER}/{METADATA_FILE}. Its model card names "
            "the revision that has one, if any."
        )
    return found


def _replace(files: dict[str, ModelFile], target: Path) -> str:
    """Puts files into a folder; what was there before goes only when the new one is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside, old = (target.with_name(f".{target.name}.{part}") for part in ("partial", "old"))
    for leftover in (beside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    for name, file in files.items():
        (beside / name).parent.mkdir(parents=True, exist_ok=True)
        if file.path is None:
            (beside / name).write_bytes(file.content)
        else:
            shutil.copyfile(file.path, beside / name)
    if target.exists():
        # Other files that someone keeps there stay.
        for file in target.rglob("*"):
            if file.is_file() and not any(file.relative_to(target).match(pattern) for pattern in FEATURE_FILES):
                kept = beside / file.relative_to(target)
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, kept)
        target.rename(old)
    beside.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return str(target)
