# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Publishes a verified model folder: gate, card, one commit, and a check of what came back from the Hub.

The way of a publication:

1. The folder is read and hashed. Unless `verification.json` says PASS for exactly these bytes, it is refused.
2. Features of a run that go with the model must be of exactly these bytes; so must those that the repo has already, or
   they are removed or replaced in the same commit.
3. The model card is made. A commit cannot contain its own sha, so the card pins a tag whose name is a hash of the
   published bytes, `verified-<12 digits>`, and of the features, `-<12 digits>`, which is set on the commit at the end.
   In a pull request, which a tag would not outlive, it pins the request's own ref, `refs/pr/N`; publishing the same
   folder again after the merge changes the card alone, and sets the tag.
4. A new process loads the folder and keeps its features: what cannot be loaded here is not published.
5. One commit holds weights, code, configurations, card and report, on top of the commit that was looked at. Weight
   files and code of an older model that transformers might take for ours are deleted in the same commit.
   The Hub's own listing of the commit, with its hashes, must be exactly what was sent and what was there before.
6. In a new process with an empty cache that commit is downloaded, hashed, loaded, and its features are compared.
7. Only then is the tag set.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from huggingface_hub import constants
from huggingface_hub.errors import RevisionNotFoundError

from conversion.common.model_folder import (
    CARD,
    CONFIG,
    LAYOUTS,
    ModelFile,
    ModelFolder,
    PublishError,
    PublishInputError,
    content_name,
    read_json,
    read_model_folder,
)
from conversion.publishing.card_features import CardRecord
from conversion.publishing.features import (
    FEATURE_FILES,
    FEATURES_FOLDER,
    METADATA_FILE,
    Features,
    check_metadata,
    features_name,
    not_of_model,
    read_features,
    tag_name,
)
from conversion.publishing.hub_client import HubClient, RepoState, differing
from conversion.publishing.load_back import check_published, folder_features
from conversion.publishing.model_card import known_card_data, render_card
from conversion.publishing.one_commit import (
    Target,
    check_arguments,
    check_listing,
    check_private,
    check_repo_id,
    commit_files,
    is_pull_request,
    nothing_to_propose,
    open_target,
    repo_state,
    require_token,
    stale_files,
)


# What an older publication may have left that transformers would load, or execute, in place of the new files.
REPLACED = ("*.safetensors", "*.safetensors.index.json", "*_llava_vit.py", "*_llava_vit_packing.py")
FEATURES_METADATA = f"{FEATURES_FOLDER}/{METADATA_FILE}"
# What is looked at in the repo before anything is sent.
READ = (CARD, CONFIG, FEATURES_METADATA)
REPLACEABLE_MODELS = (None, "onevision_encoder", *LAYOUTS)


@dataclass(frozen=True)
class PublishResult:
    """What was published, or with `dry_run` would be.

    Attributes:
        url: of the repo, the branch or the pull request.
        commit: its sha; None for a dry run.
        pin: the tag, or the pull request's ref, that the card names.
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

    @property
    def card(self) -> str:
        """The text of the model card."""
        return next(file.content.decode() for file in self.files if file.name == CARD)

    def describe(self) -> str:
        """The listing of a dry run: sizes in bytes, hashes, names."""
        lines = [f"{file.size:>13,}  {file.sha256}  {file.name}" for file in self.files]
        lines += [f"deleted from the repo: {name}" for name in self.deleted]
        lines += [f"left out: {name} ({reason})" for name, reason in self.left_out.items()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


@dataclass(frozen=True, kw_only=True)
class PublishRequest:
    """What to publish, and where.

    Attributes:
        folder: a model folder.
        repo_id: `user/name` of a model repo, made if it does not exist.
        private: make the repo private; an existing public one is an error.
        revision: branch to commit to, made from main if it does not exist, or `refs/pr/N`. None is main.
        create_pr: open a pull request (a draft) instead of committing to main.
        commit_message: None is "Publish the ... LLaVA-ViT model".
        base_model: repo id that the model derives from, for the card.
        sibling: repo of the other layout with the same weights, `user/name` or `user/name@revision`, for the card.
        project_url: of a clone of this project, for the card; None takes the variant's, if any.
        features: folder of a run, which goes into `verification/` and replaces what is there.
        with_inputs: the run's four images and videos, too.
        remove_features: what is in `verification/` of the repo goes.
        allow_unverified: publish without proof; the card then says so in its first line.

    Raises:
        PublishInputError: for what cannot be.
    """

    folder: Path
    repo_id: str
    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    commit_message: str | None = None
    base_model: str | None = None
    sibling: str | None = None
    project_url: str | None = None
    features: Path | None = None
    with_inputs: bool = False
    remove_features: bool = False
    allow_unverified: bool = False

    def __post_init__(self):
        check_arguments(self.repo_id, self.revision, self.create_pr)
        if self.sibling is not None:
            check_repo_id(self.sibling.partition("@")[0])
        if self.project_url is not None and not re.fullmatch(r"https?://[^\s<>()]+", self.project_url):
            raise PublishInputError(f"project_url must be a web address, found {self.project_url!r}.")
        if self.features is not None and self.remove_features:
            raise PublishInputError("features replaces what is in the repo, and remove_features removes it: give one.")
        if self.with_inputs and self.features is None:
            raise PublishInputError("with_inputs goes with features.")


@dataclass(frozen=True)
class _Publication:
    """A request with all that it needs from this machine: the model, and features to go with it."""

    request: PublishRequest
    model: ModelFolder
    features: Features | None

    @property
    def unchanging(self) -> list[ModelFile]:
        """Everything but the card: the same bytes wherever it is published."""
        features = self.features.in_repo if self.features else ()
        return [*self.model.files.values(), *self.model.reports.values(), *features]


def publish_folder(request: PublishRequest, say: Callable[[str], None] = lambda line: None) -> PublishResult:
    """Publishes a model folder as one commit and checks it from the Hub's side, with the login's token.

    Args:
        say: called with a line before each long step.

    Raises:
        PublishInputError: if the folder, or that of the features, cannot be.
        PublishError: if the gate or the Hub refuses, or what comes back differs; only then is the commit in.
        OSError: if a folder cannot be read.
    """
    with _read(request, say) as publication:
        return _publish(publication, say)


def plan_publication(request: PublishRequest, say: Callable[[str], None] = lambda line: None) -> PublishResult:
    """What `publish_folder` would do, by a look at the repo if it can be reached. Writes nothing; raises as it."""
    with _read(request, say) as publication:
        return _plan(publication)


def publish_folders(
    requests: Sequence[PublishRequest], say: Callable[[str], None] = lambda line: None, dry_run: bool = False
) -> Iterator[PublishResult]:
    """Publishes one model, or a dense and a packing model whose cards then name each other.

    All is looked at before anything is written.

    Args:
        dry_run: write nothing; say what would be published.

    Raises:
        PublishInputError, PublishError, OSError: as `publish_folder`, and for two models of one layout or one repo.
    """
    if len(requests) > 1:
        _check_pair(requests)
        requests = _as_siblings(requests, [plan_publication(request, say) for request in requests])
    carry_out = plan_publication if dry_run else publish_folder
    return (carry_out(request, say) for request in requests)


def _check_pair(requests: Sequence[PublishRequest]) -> None:
    layouts = [read_json(request.folder / CONFIG).get("model_type") for request in requests]
    if len(requests) != 2 or len(set(layouts)) != 2 or requests[0].repo_id == requests[1].repo_id:
        raise PublishInputError("Models are published together as a pair: a dense and a packing one, to two repos.")
    if any(request.sibling for request in requests):
        raise PublishInputError("sibling is for one model; two that are published together name each other.")


def _as_siblings(requests: Sequence[PublishRequest], plans: Sequence[PublishResult]) -> list[PublishRequest]:
    """Requests for a dense and a packing model with each other as sibling, pinned where the pin is known."""
    names = [
        request.repo_id if is_pull_request(plan.pin) else f"{request.repo_id}@{plan.pin}"
        for request, plan in zip(requests, plans, strict=True)
    ]
    return [replace(request, sibling=name) for request, name in zip(requests, reversed(names), strict=True)]


def card_of_folder(request: PublishRequest) -> str:
    """The card of a folder as for a new repo, without asking the Hub. Raises as `publish_folder`."""
    with _read(request, lambda line: None) as publication:
        files, *_ = _contents(publication, publication.request.revision, None)
        return files[-1].content.decode()


def _publish(publication: _Publication, say: Callable[[str], None]) -> PublishResult:
    request, model = publication.request, publication.model
    require_token()
    say("loading the folder in a new process")
    features = folder_features(model.path, {name: file.sha256 for name, file in model.files.items()})
    client = HubClient()
    state = _prepare_repo(client, publication)
    target = _open_target(client, publication, state)
    files, deleted, pin = _contents(publication, target.revision, state)
    say(f"committing {len(files)} files to {target.url}")
    resume = f"publish to the revision {target.revision}"
    commit = commit_files(client, request.repo_id, target, state, files, deleted, _message(publication), resume)
    _check_listing(client, request.repo_id, commit, state, files, deleted)
    say(f"loading {request.repo_id} back at {commit}")
    _load_back(request.repo_id, commit, state.head, files, features)
    if not is_pull_request(target.revision):
        client.tag(request.repo_id, pin, commit, publication.unchanging)
    notes = _notes(publication, state)
    return PublishResult(target.url, commit, pin, tuple(files), tuple(deleted), model.left_out, notes)


@contextmanager
def _read(request: PublishRequest, say: Callable[[str], None]) -> Iterator[_Publication]:
    """Reads and hashes the folders, if the report proves the model or need not, and the features are of it."""
    say(f"hashing {request.folder}")
    model = _read_through_gate(request.folder, request.allow_unverified)
    if request.features is None:
        yield _Publication(request, model, None)
        return
    with read_features(request.features, request.with_inputs) as features:
        differing = not_of_model(features.metadata, model)
        if differing:
            raise PublishError(
                f"{request.features} holds features of another model than {model.path}: {'; '.join(differing)}. "
                "Extract them again from this folder."
            )
        yield _Publication(request, model, features)


def _read_through_gate(folder: str | Path, allow_unverified: bool) -> ModelFolder:
    """The folder, if its report proves it or need not."""
    model = read_model_folder(folder)
    if model.unverified is not None and not allow_unverified:
        raise PublishError(
            f"{model.path} is not published: {model.unverified}. Verify the folder as it is "
            "(conversion/verify_model.py ... --write_report), or pass --allow_unverified; the card then says so."
        )
    return model


def _plan(publication: _Publication) -> PublishResult:
    """A dry run: looks at the repo if it can be reached, and writes nothing."""
    request, state, notes = publication.request, None, []
    try:
        state = HubClient(waits=()).state(request.repo_id, request.revision, READ)
        if state is None:
            notes.append(f"{request.repo_id} does not exist, or the token may not see it; it would be made")
    except RevisionNotFoundError:
        notes.append(f"{request.repo_id} has no branch {request.revision}; it would be made")
    except PublishError as error:
        notes.append(f"the repo was not looked at, so its README and old files are not known: {error}")
    if state is not None:
        _check_repo(publication, state)
    files, deleted, pin = _contents(publication, "refs/pr/N" if request.create_pr else request.revision, state)
    notes += _notes(publication, state)
    if request.create_pr:
        notes.append(f"the pull request's number goes into {CARD}, so its hash will be another")
    url = f"{constants.ENDPOINT}/{request.repo_id}"
    return PublishResult(url, None, pin, tuple(files), tuple(deleted), publication.model.left_out, tuple(notes))


def _prepare_repo(client: HubClient, publication: _Publication) -> RepoState:
    """The repo at the revision, made if need be."""
    request = publication.request
    repo_id, revision = request.repo_id, request.revision
    try:
        state = repo_state(client, repo_id, revision, request.private, READ)
    except RevisionNotFoundError as error:
        if is_pull_request(revision):
            raise PublishError(f"{repo_id} has no pull request {revision}.") from error
        client.call(f"Creating branch {revision}", client.api.create_branch, repo_id, branch=revision, exist_ok=True)
        state = repo_state(client, repo_id, revision, request.private, READ)
    _check_repo(publication, state)
    return state


def _check_repo(publication: _Publication, state: RepoState) -> None:
    request, config = publication.request, publication.model.config
    check_private(request.repo_id, state, request.private)
    replaceable = state.model_type in (None, config["model_type"]) or (
        state.model_type in REPLACEABLE_MODELS
        and publication.model.layout == "dense"
        and LAYOUTS.get(state.model_type) is None
    )
    if not replaceable and not request.create_pr:
        raise PublishError(
            f"{request.repo_id} holds a model of type {state.model_type!r}, this is {config['model_type']!r}. Choose "
            "another repo id, or propose the change with --create_pr."
        )
    _check_features(publication, state)


def _check_features(publication: _Publication, state: RepoState) -> None:
    """Refuses to leave features of other weights beside the model, where visitors would compare with them."""
    there, request = _features_there(state), publication.request
    if there is None or publication.features is not None or request.remove_features:
        return
    differing = not_of_model(there, publication.model)
    if differing:
        raise PublishError(
            f"{request.repo_id} holds features in {FEATURES_FOLDER}/ that are not of this model: "
            f"{'; '.join(differing)}. Whoever compares with them would be told FAIL. Replace them with --features "
            "DIR, the folder of a run with this model, or remove them with --remove_features."
        )


def _features_there(state: RepoState | None) -> dict | None:
    """The `metadata.json` of features in the repo, or None."""
    metadata = state and state.json(FEATURES_METADATA)
    if metadata is not None:
        check_metadata(metadata, f"{FEATURES_METADATA} of the repo")
    return metadata


def _open_target(client: HubClient, publication: _Publication, state: RepoState) -> Target:
    """The branch or pull request to commit to; a pull request is opened only if there is something to propose."""
    request = publication.request
    removes = request.remove_features and _features_there(state) is not None
    if request.create_pr and not removes and not differing(publication.unchanging, state.files):
        raise nothing_to_propose(request.repo_id)
    return open_target(client, request.repo_id, request.revision, request.create_pr, _message(publication))


def _message(publication: _Publication) -> str:
    return publication.request.commit_message or f"Publish the {publication.model.layout} LLaVA-ViT model"


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
    publication: _Publication, revision: str | None, state: RepoState | None
) -> tuple[list[ModelFile], list[str], str]:
    """The files of the commit, of which the card is the last, the paths that it deletes, and what the card pins."""
    request, model = publication.request, publication.model
    there = None if request.remove_features else _features_there(state)
    if publication.features is not None:
        features, name = publication.features.metadata, publication.features.name
    else:
        features, name = there, features_name(state.contents[FEATURES_METADATA]) if there else None
    # A tag would not outlive the pull request.
    content = content_name(model)
    pin = revision if is_pull_request(revision) else tag_name(content, name)
    project_url = request.project_url or known_card_data(model).get("project_url")
    record = CardRecord(request.repo_id, pin, content, request.sibling or _sibling_there(state, content), project_url)
    existing = model.readme if state is None or state.readme is None else state.readme
    card = render_card(model, record, features, existing=existing, base_model=request.base_model)
    files = [*publication.unchanging, ModelFile.from_bytes(CARD, card.encode())]
    replaced = REPLACED
    if publication.features is not None or request.remove_features:
        replaced += tuple(f"{FEATURES_FOLDER}/{pattern}" for pattern in FEATURE_FILES)
    return files, stale_files(state, files, replaced) if state is not None else [], pin


def _sibling_there(state: RepoState | None, content: str) -> str | None:
    """The sibling that the repo's card names for these very files: of other weights it would be none."""
    record = CardRecord.read(state.readme) if state is not None and state.readme else None
    return record.sibling if record is not None and record.model == content else None


def _notes(publication: _Publication, state: RepoState | None) -> tuple[str, ...]:
    notes, model = [], publication.model
    if model.unverified is not None:
        notes.append(f"not verified: {model.unverified}")
    if model.readme is not None and state is not None and state.readme is not None:
        notes.append(f"the README.md of {publication.request.repo_id} is kept; the folder's own is not used")
    return tuple(notes)
