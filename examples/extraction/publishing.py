# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Features of a run beside the model they came from, in `verification/` of its folder or its repo on the Hub."""

import json
import os
import shutil
import tempfile
from pathlib import Path

from examples.extraction.files import read_json


VERIFICATION_FOLDER = "verification"
# What a run consists of; nothing else in the folder is published.
PUBLISHED = (
    *("metadata.json", "features_hf.npz", "features_packing.npz", "report.json", "report.txt"),
    *("index.jsonl", "index.parquet", "failures.jsonl", "pictures/report.html"),
    # Not what a killed run was writing, `.partial-*`.
    *("shards/[!.]*.safetensors", "shards/[!.]*.npz", "shards/[!.]*.jsonl"),
)
_PATH_FIELDS = ("path", "source", "_name_or_path")


def is_folder(destination: str) -> bool:
    """Whether a destination is a folder, and not a repo id: it exists, or is written as a path."""
    return Path(destination).is_dir() or destination.startswith((".", "~", os.sep)) or Path(destination).is_absolute()


def publish(features_dir: Path, destination: str, create_pr: bool = False) -> str:
    """Stores a run in `verification/` of a folder or, as one commit, of an existing model repo.

    Paths of this machine are reduced to file names. What an earlier run left there is removed.

    Args:
        destination: a folder or a repo id.
        create_pr: open a pull request in place of a commit to the main branch.

    Returns:
        Where it is.

    Raises:
        ValueError: if the folder holds no run, or the commit is refused.
    """
    if not (features_dir / "metadata.json").exists():
        raise ValueError(f"{features_dir}: no metadata.json, so nothing to publish. Run extract_features.py first.")
    with tempfile.TemporaryDirectory() as temporary:
        files = _without_local_paths(features_dir, Path(temporary))
        if is_folder(destination):
            return _replace(files, Path(destination).expanduser() / VERIFICATION_FOLDER)
        return _upload(files, destination, create_pr)


def find_published(reference: str, revision: str | None = None) -> Path:
    """The folder of another run's features.

    Args:
        reference: a folder with features, a model folder with `verification/`, or a repo id.
        revision: of the repo.

    Raises:
        ValueError: if there are none.
    """
    if is_folder(reference):
        folder = Path(reference).expanduser()
        inner = folder / VERIFICATION_FOLDER
        return inner if (inner / "metadata.json").exists() and not (folder / "metadata.json").exists() else folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = snapshot_download(reference, revision=revision, allow_patterns=[f"{VERIFICATION_FOLDER}/*"])
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(f"--reference {reference}: no such folder, and the repo cannot be read: {error}") from error
    found = Path(folder) / VERIFICATION_FOLDER
    if not (found / "metadata.json").exists():
        raise ValueError(f"--reference {reference}: the repo has no {VERIFICATION_FOLDER}/metadata.json.")
    return found


def _without_local_paths(features_dir: Path, scratch: Path) -> dict[str, Path]:
    """The files of a run by their names in it: those with paths rewritten in `scratch`, the others as they are."""
    files = {}
    for file in (file for pattern in PUBLISHED for file in sorted(features_dir.glob(pattern))):
        name = file.relative_to(features_dir).as_posix()
        files[name] = file
        if file.name != "metadata.json" and file.suffix != ".jsonl":
            continue
        files[name] = target = scratch / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.name == "metadata.json":
            text = json.dumps(_without_paths(read_json(file)), indent=2) + "\n"
            target.write_text(text, encoding="utf-8")
        else:
            with open(file, encoding="utf-8") as lines, open(target, "w", encoding="utf-8") as stream:
                stream.writelines(json.dumps(_without_paths(json.loads(line))) + "\n" for line in lines)
    return files


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


def _replace(files: dict[str, Path], target: Path) -> str:
    """Puts files into a folder; what was there before goes only when the new one is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside, old = (target.with_name(f".{target.name}.{part}") for part in ("partial", "old"))
    for leftover in (beside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    for name, file in files.items():
        (beside / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, beside / name)
    if target.exists():
        # Other files that someone keeps there stay.
        for file in target.rglob("*"):
            if file.is_file() and not any(file.relative_to(target).match(pattern) for pattern in PUBLISHED):
                kept = beside / file.relative_to(target)
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, kept)
        target.rename(old)
    beside.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return str(target)


def _upload(files: dict[str, Path], repo_id: str, create_pr: bool) -> str:
    from conversion.common.model_folder import PublishError
    from conversion.publishing.one_commit import publish_files

    message = "Add features for verification"
    try:
        return publish_files(repo_id, VERIFICATION_FOLDER, files, PUBLISHED, message, create_pr)
    except (PublishError, OSError) as error:
        raise ValueError(f"--publish {repo_id}: {error}") from error
