# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Publishes a verified model folder: gate, card, one commit, and a check of what came back from the Hub.

The way of a publication:

1. The folder is read and hashed. Unless `verification.json` says PASS for exactly these bytes, it is refused.
2. The model card is made. A commit cannot contain its own sha, so the card pins a tag whose name is a hash of the
   published bytes, `verified-<12 digits>`, and which is set on the commit at the end. In a pull request, which a tag
   would not outlive, it pins the request's own ref, `refs/pr/N`; publishing the same folder again after the merge
   changes the card alone, and sets the tag.
3. A new process loads the folder and keeps its features: what cannot be loaded here is not published.
4. One commit holds weights, code, configurations, card and report, on top of the commit that was looked at. Weight
   files and code of an older model that transformers might take for ours are deleted in the same commit.
   The Hub's own listing of the commit, with its hashes, must be exactly what was sent and what was there before.
5. In a new process with an empty cache that commit is downloaded, hashed, loaded, and its features are compared.
6. Only then is the tag set.
"""

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from huggingface_hub import constants
from huggingface_hub.errors import RevisionNotFoundError

from conversion.common.model_folder import (
    CARD,
    LAYOUTS,
    ModelFile,
    ModelFolder,
    PublishError,
    content_name,
    read_model_folder,
)
from conversion.publishing.hub_client import HubClient, RepoState, differing
from conversion.publishing.load_back import check_published, folder_features
from conversion.publishing.model_card import render_card
from conversion.publishing.one_commit import (
    Target,
    check_arguments,
    check_listing,
    commit_files,
    is_pull_request,
    nothing_to_propose,
    open_target,
    require_token,
)


# What an older publication may have left that transformers would load, or execute, in place of the new files.
REPLACED = ("*.safetensors", "*.safetensors.index.json", "*_llava_vit.py", "*_llava_vit_packing.py")
REPLACEABLE_MODELS = (None, "onevision_encoder", *LAYOUTS)


@dataclass(frozen=True)
class PublishResult:
    """What was published, or with `dry_run` would be.

    Attributes:
        url: of the repo, the branch or the pull request.
        commit: its sha; None for a dry run.
        pin: the tag, or the pull request's ref, that the card's snippets load.
        files: what the commit holds, by name.
        deleted: files of an older model that the commit removes.
        left_out: paths of the folder that are not published, with the reason.
        notes: what the user should know.
    """

    url: str
    commit: str | None
    pin: str
    files: tuple[ModelFile, ...]
    deleted: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """The listing of a dry run: sizes in bytes, hashes, names."""
        lines = [f"{file.size:>13,}  {file.sha256}  {file.name}" for file in self.files]
        lines += [f"deleted from the repo: {name}" for name in self.deleted]
        lines += [f"left out: {name} ({reason})" for name, reason in self.left_out.items()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def publish_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    base_model: str | None = None,
    dry_run: bool = False,
    allow_unverified: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> PublishResult:
    """Publishes a model folder as one commit and checks it from the Hub's side, with the login's token.

    Args:
        repo_id: `user/name` of a model repo, made if it does not exist.
        private: make the repo private; an existing public one is an error.
        revision: branch to commit to, made from main if it does not exist, or `refs/pr/N`. Default: main.
        create_pr: open a pull request (a draft) instead of committing to main.
        base_model: repo id that the model derives from, for the card.
        dry_run: write nothing; say what would be published.
        allow_unverified: publish without proof; the card then says so in its first line.
        say: called with a line before each long step.

    Raises:
        PublishInputError: if the arguments or the folder cannot be.
        PublishError: if the gate or the Hub refuses, or what comes back differs; only then is the commit in.
        OSError: if the folder cannot be read.
    """
    check_arguments(repo_id, revision, create_pr)
    say(f"hashing {folder}")
    model = _read_through_gate(folder, allow_unverified)
    if dry_run:
        return _plan(model, repo_id, revision, create_pr, private, base_model)
    require_token()
    say("loading the folder in a new process")
    features = folder_features(model.path, {name: file.sha256 for name, file in model.files.items()})
    client = HubClient()
    message = commit_message or f"Publish the {model.layout} LLaVA-ViT model"
    state = _prepare_repo(client, model, repo_id, revision, create_pr, private)
    target = _open_target(client, model, repo_id, revision, create_pr, state, message)
    # A tag would not outlive the pull request.
    pin = target.revision if is_pull_request(target.revision) else content_name(model)
    files, deleted = _contents(model, repo_id, pin, state, base_model)
    say(f"committing {len(files)} files to {target.url}")
    resume = f"publish to the revision {target.revision}"
    commit = commit_files(client, repo_id, target, state, files, deleted, message, resume)
    _check_listing(client, repo_id, commit, state, files, deleted)
    say(f"loading {repo_id} back at {commit}")
    _load_back(repo_id, commit, state.head, files, features)
    if not is_pull_request(target.revision):
        client.tag(repo_id, pin, commit, _unchanging(model))
    notes = _notes(model, state, repo_id)
    return PublishResult(target.url, commit, pin, tuple(files), tuple(deleted), model.left_out, notes)


def _read_through_gate(folder: str | Path, allow_unverified: bool) -> ModelFolder:
    """The folder, if its report proves it or need not."""
    model = read_model_folder(folder)
    if model.unverified is not None and not allow_unverified:
        raise PublishError(
            f"{model.path} is not published: {model.unverified}. Verify the folder as it is "
            "(conversion/verify_model.py ... --write_report), or pass --allow_unverified; the card then says so."
        )
    return model


def _plan(
    model: ModelFolder, repo_id: str, revision: str | None, create_pr: bool, private: bool, base_model: str | None
) -> PublishResult:
    """A dry run: looks at the repo if it can be reached, and writes nothing."""
    state, notes = None, []
    try:
        state = HubClient(waits=()).state(repo_id, revision)
        if state is None:
            notes.append(f"{repo_id} does not exist, or the token may not see it; it would be made")
    except RevisionNotFoundError:
        notes.append(f"{repo_id} has no branch {revision}; it would be made")
    except PublishError as error:
        notes.append(f"the repo was not looked at, so its README and old files are not known: {error}")
    if state is not None:
        _check_repo(model, state, repo_id, create_pr, private)
    pin = "refs/pr/N" if create_pr else revision if is_pull_request(revision) else content_name(model)
    files, deleted = _contents(model, repo_id, pin, state, base_model)
    notes += _notes(model, state, repo_id)
    if create_pr:
        notes.append(f"the pull request's number goes into {CARD}, so its hash will be another")
    url = f"{constants.ENDPOINT}/{repo_id}"
    return PublishResult(url, None, pin, tuple(files), tuple(deleted), model.left_out, tuple(notes))


def _prepare_repo(
    client: HubClient, model: ModelFolder, repo_id: str, revision: str | None, create_pr: bool, private: bool
) -> RepoState:
    """The repo at the revision, made if need be."""
    try:
        state = client.state(repo_id, revision)
        if state is None:
            client.call(f"Creating {repo_id}", client.api.create_repo, repo_id, private=private or None, exist_ok=True)
            state = client.state(repo_id, revision)
    except RevisionNotFoundError as error:
        if is_pull_request(revision):
            raise PublishError(f"{repo_id} has no pull request {revision}.") from error
        client.call(f"Creating branch {revision}", client.api.create_branch, repo_id, branch=revision, exist_ok=True)
        state = client.state(repo_id, revision)
    if state is None:
        raise PublishError(f"{repo_id} was created but is not to be seen. Check that the token may read it.")
    _check_repo(model, state, repo_id, create_pr, private)
    return state


def _check_repo(model: ModelFolder, state: RepoState, repo_id: str, create_pr: bool, private: bool) -> None:
    if private and not state.private:
        raise PublishError(f"{repo_id} exists and is public. Make it private in its settings, or drop --private.")
    replaceable = state.model_type in (None, model.config["model_type"]) or (
        state.model_type in REPLACEABLE_MODELS and model.layout == "dense" and LAYOUTS.get(state.model_type) is None
    )
    if not replaceable and not create_pr:
        raise PublishError(
            f"{repo_id} holds a model of type {state.model_type!r}, this is {model.config['model_type']!r}. Choose "
            "another repo id, or propose the change with --create_pr."
        )


def _open_target(
    client: HubClient,
    model: ModelFolder,
    repo_id: str,
    revision: str | None,
    create_pr: bool,
    state: RepoState,
    message: str,
) -> Target:
    """The branch or pull request to commit to; a pull request is opened only if there is something to propose."""
    if create_pr and not differing(_unchanging(model), state.files):
        raise nothing_to_propose(repo_id)
    return open_target(client, repo_id, revision, create_pr, message)


def _check_listing(
    client: HubClient, repo_id: str, commit: str, state: RepoState, files: list[ModelFile], deleted: list[str]
) -> None:
    try:
        check_listing(client, repo_id, commit, state, files, deleted)
    except PublishError as error:
        raise PublishError(f"{error} No tag was set.") from error


def _load_back(
    repo_id: str, commit: str, before: str, files: list[ModelFile], features: dict[str, np.ndarray]
) -> None:
    try:
        check_published(repo_id, commit, {file.name: file.sha256 for file in files}, features)
    except PublishError as error:
        raise PublishError(
            f"{repo_id} is at commit {commit} (before: {before}), but it failed the check from the Hub's side, and no "
            f"tag was set. {error}"
        ) from error


def _contents(
    model: ModelFolder, repo_id: str, pin: str, state: RepoState | None, base_model: str | None
) -> tuple[list[ModelFile], list[str]]:
    """The files of the commit, and the paths that it deletes."""
    existing = model.readme if state is None or state.readme is None else state.readme
    card = render_card(model, repo_id, pin, existing, base_model)
    files = [*_unchanging(model), ModelFile.from_bytes(CARD, card.encode())]
    names = {file.name for file in files}
    old = state.files if state is not None else ()
    deleted = sorted(
        name
        for name in old
        if name not in names and "/" not in name and any(fnmatch.fnmatch(name, pattern) for pattern in REPLACED)
    )
    return files, deleted


def _unchanging(model: ModelFolder) -> list[ModelFile]:
    """Everything but the card: the same bytes wherever the folder is published."""
    return [*model.files.values(), *model.reports.values()]


def _notes(model: ModelFolder, state: RepoState | None, repo_id: str) -> tuple[str, ...]:
    notes = []
    if model.unverified is not None:
        notes.append(f"not verified: {model.unverified}")
    if model.readme is not None and state is not None and state.readme is not None:
        notes.append(f"the README.md of {repo_id} is kept; the folder's own is not used")
    return tuple(notes)
