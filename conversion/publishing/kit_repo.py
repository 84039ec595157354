# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Publishes a conformance kit as a dataset repo: in one commit, and compared with what comes back from the Hub."""

import argparse
import sys
from functools import partialmethod
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, constants, snapshot_download

from conversion.common.files import sha256_of_file
from conversion.common.json_files import check_shape, read_json_object
from conversion.common.model_folder import ModelFile, PublishError, PublishInputError
from conversion.publishing.hub_client import HubClient, RepoState, differing
from conversion.publishing.one_commit import (
    MAIN,
    Target,
    check_arguments,
    check_listing,
    check_private,
    commit_files,
    nothing_to_propose,
    open_target,
    repo_state,
    require_token,
)
from conversion.publishing.publish import PublishResult


KIT_FILE = "kit.json"
# Options of publishing that are about models.
FOR_MODELS = (
    *("push_revision", "base_model", "allow_unverified", "sibling", "project_url", "features", "with_inputs"),
    *("remove_features", "card_out"),
)


class DatasetApi(HfApi):
    """The calls of `HubClient`, for dataset repos."""

    model_info = HfApi.dataset_info
    create_repo = partialmethod(HfApi.create_repo, repo_type="dataset")
    list_repo_tree = partialmethod(HfApi.list_repo_tree, repo_type="dataset")
    create_commit = partialmethod(HfApi.create_commit, repo_type="dataset")
    create_pull_request = partialmethod(HfApi.create_pull_request, repo_type="dataset")


def read_kit(folder: Path) -> tuple[list[ModelFile], dict[str, str]]:
    """The files of a kit, and what else lies in its folder, with the reason why it is left out.

    Raises:
        PublishInputError: if the folder holds no kit.
        PublishError: if a file is missing or is not as it was made.
    """
    missing = "Make one with conversion/make_conformance_kit.py."
    stated = read_json_object(folder / KIT_FILE, PublishInputError, missing)
    check_shape(stated, {"sha256": {str: str}}, folder / KIT_FILE, PublishInputError)
    files = []
    for name, sha256 in stated["sha256"].items():
        path = folder / name
        if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            raise PublishError(f"{path} is no file of the folder, but {KIT_FILE} names it. Make the kit anew.")
        files.append(ModelFile.at(path, name))
        if files[-1].sha256 != sha256:
            raise PublishError(f"{path} is not as it was made: its SHA-256 is another than in {KIT_FILE}.")
    files.append(ModelFile.at(folder / KIT_FILE, KIT_FILE))
    names = {file.name for file in files}
    others = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return files, {name: "not part of the kit" for name in others if name not in names}


def publish_kit(
    folder: Path,
    repo_id: str,
    private: bool = False,
    create_pr: bool = False,
    message: str | None = None,
    dry_run: bool = False,
) -> PublishResult:
    """Publishes a kit's folder, with the login's token.

    Args:
        repo_id: `user/name` of a dataset repo, made if it does not exist.
        private: make a new repo private.
        create_pr: open a pull request (a draft) instead of committing to main.
        dry_run: write nothing; say what would be published.

    Raises:
        PublishInputError: if the arguments or the folder cannot be.
        PublishError: if the kit is damaged, the Hub refuses, or what comes back differs; only then is the commit in.
        OSError: if a file cannot be read.
    """
    check_arguments(repo_id, None, create_pr)
    files, left_out = read_kit(folder)
    url = f"{constants.ENDPOINT}/datasets/{repo_id}"
    if dry_run:
        return PublishResult(url, None, MAIN, tuple(files), (), left_out)
    require_token()
    client = HubClient()
    client.api = DatasetApi()
    before = repo_state(client, repo_id, None, private)
    check_private(repo_id, before, private)
    deleted = _replaced(files, before)
    message = message or "Publish the conformance kit"
    if not create_pr:
        target = Target(MAIN, url)
    elif differing(files, before.files) or deleted:
        target = open_target(client, repo_id, None, True, message)
    else:
        raise nothing_to_propose(repo_id)
    commit = commit_files(client, repo_id, target, before, files, deleted, message, "close it and publish again")
    check_listing(client, repo_id, commit, before, files, deleted)
    _compare_with_download(client, repo_id, commit, files)
    return PublishResult(target.url, commit, commit, tuple(files), tuple(deleted), left_out)


def _replaced(files: list[ModelFile], before: RepoState) -> list[str]:
    """What an older kit left in the folders of this one; all other files of the repo stay."""
    names = {file.name for file in files}
    folders = {name.split("/")[0] for name in names if "/" in name}
    return sorted(name for name in before.files if name not in names and name.split("/")[0] in folders)


def _compare_with_download(client: HubClient, repo_id: str, commit: str, files: list[ModelFile]) -> None:
    with TemporaryDirectory() as cache:
        folder = client.call(
            f"Loading {repo_id} back",
            snapshot_download,
            repo_id,
            repo_type="dataset",
            revision=commit,
            cache_dir=cache,
        )
        wrong = [file.name for file in files if sha256_of_file(Path(folder, file.name)) != file.sha256]
    if wrong:
        raise PublishError(f"{repo_id} is at commit {commit}, but came back with other bytes: {', '.join(wrong)}.")


def push_kit_from_options(options: argparse.Namespace) -> PublishResult:
    """Publishes as the options of `add_publish_arguments` say, and prints files, URL and commit.

    Raises:
        PublishInputError: also for an option that is about models.
        PublishError, OSError: as `publish_kit`.
    """
    for name in FOR_MODELS:
        if getattr(options, name):
            option = {"push_revision": "revision"}.get(name, name)
            raise PublishInputError(f"--{option} is for model repos; drop it, or --repo_type dataset.")
    if len(options.targets) != 2:
        raise PublishInputError("a conformance kit is published alone: expected FOLDER REPO_ID.")
    folder, repo_id = options.targets
    print(f"hashing {folder}", file=sys.stderr)
    result = publish_kit(
        Path(folder), repo_id, options.private, options.create_pr, options.commit_message, options.dry_run
    )
    print(result.describe())
    if result.commit is None:
        print(f"dry run: nothing was sent to {result.url}")
    else:
        print(f"{result.url}\ncommit {result.commit}, loaded back and equal")
    return result
