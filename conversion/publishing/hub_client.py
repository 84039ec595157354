# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Talks to the Hub so that a commit is in once or not at all: bounded retries, safe against a lost answer.

`upload_folder` is not one commit with every client (2.x splits large uploads), so only `create_commit` is used.
"""

import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from conversion.common.json_files import parse_json_object
from conversion.common.model_folder import CARD, CONFIG, ModelFile, PublishError


# The client's HTTP library changed twice (requests, httpx, httpx2); HfHubHTTPError derives from its base error.
NETWORK_ERRORS = (OSError, HfHubHTTPError.__bases__[0])
LASTING_ERRORS = (OfflineModeIsEnabled, LocalTokenNotFoundError, FileNotFoundError, PermissionError)
TRANSIENT_STATUS = (408, 429, 500, 502, 503, 504)
WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)
LONGEST_WAIT_SECONDS = 300.0

ADVICE = {
    401: "The token is not valid. Log in with `hf auth login`, or set HF_TOKEN.",
    403: "The token may not write there. Use one with write access to the namespace, or --create_pr.",
    404: "The repo or revision does not exist, or the token may not see it.",
    409: "It exists already.",
    412: "Somebody else committed meanwhile. Look at the repo, then publish again.",
    413: "The Hub does not take a file of that size. Convert again with smaller shards.",
    429: "The Hub asks to wait. Publish again later: what was uploaded is not sent again.",
    507: "The Hub has no space left for it. Free some, then publish again.",
}


UPLOAD_AGAIN = "Publish again: what was uploaded is not sent again."


class RepoState(NamedTuple):
    """A repo at one commit.

    Attributes:
        head: sha of the commit.
        files: what the Hub says of every file, by path.
        contents: of those that were asked for and are there, by path.
    """

    head: str
    private: bool
    files: dict[str, RepoFile]
    contents: dict[str, bytes]

    @property
    def readme(self) -> str | None:
        """The text of `README.md`, if it was read."""
        content = self.contents.get(CARD)
        return None if content is None else content.decode("utf-8", "replace")

    def json(self, name: str) -> dict | None:
        """A JSON object of the repo, or None if it was not read.

        Raises:
            PublishError: if it is none.
        """
        content = self.contents.get(name)
        return None if content is None else parse_json_object(content, f"{name} of the repo", PublishError)

    @property
    def model_type(self) -> str | None:
        """That of `config.json`, if it was read."""
        return (self.json(CONFIG) or {}).get("model_type")


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error of the client carries, if any."""
    return getattr(getattr(error, "response", None), "status_code", None)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may go well later: no answer at all, or one that says so."""
    status = status_of(error)
    if status is not None:
        return status in TRANSIENT_STATUS
    return isinstance(error, NETWORK_ERRORS) and not isinstance(error, LASTING_ERRORS)


def failure(action: str, error: BaseException, advice: str = "Try again when the Hub can be reached.") -> PublishError:
    """The error that a user sees: what was tried, the Hub's answer, its cause, and what to do. Without the token.

    Args:
        advice: what to do where the answer has no status that says it.
    """
    # urllib3, below the older client, wraps what happened in a message of its own.
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    status, parts = status_of(error), [str(reason or error).strip() or type(error).__name__]
    if status is None and error.__cause__ is not None:
        # The client wraps what happened to a large file.
        error = error.__cause__
        status = status_of(error)
        if str(error) not in parts[0]:
            parts.append(f"Cause: {error}")
    said = getattr(getattr(error, "response", None), "headers", {}).get("X-Error-Message")
    if said and said not in " ".join(parts):
        parts.append(said)
    # The client says itself how to leave its offline mode.
    if not isinstance(error, OfflineModeIsEnabled):
        parts[-1] += "" if parts[-1].endswith((".", "!", "?")) else "."
        parts.append(ADVICE.get(status, advice))
    text = " ".join(" ".join(parts).split())
    token = get_token()
    return PublishError(f"{action} failed: {text.replace(token, '***') if token else text}")


def wait_before_retry(action: str, error: BaseException, default: float) -> float:
    """Seconds to wait: the answer's Retry-After, else `default`.

    Raises:
        PublishError: if the Hub asks for more than five minutes.
    """
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        asked = float(headers.get("Retry-After", default))
    except ValueError:
        return default
    if asked > LONGEST_WAIT_SECONDS:
        raise failure(f"{action}, which the Hub puts off for {asked:.0f} s,", error) from error
    return max(asked, 0.0)


class HubClient:
    """The few calls that publishing needs, repeated while the fault is passing.

    Args:
        waits: seconds between attempts; empty for a single attempt.
        sleep: called with the seconds between attempts.
    """

    def __init__(self, waits: tuple[float, ...] = WAITS_SECONDS, sleep: Callable[[float], None] = time.sleep):
        self.api = HfApi()
        self.waits = waits
        self.sleep = sleep

    def call(self, action: str, function: Callable, *args, passing: tuple = (), **kwargs) -> Any:
        """Calls a function that may safely be repeated. Errors of the types in `passing` are raised as they are."""
        for wait in (*self.waits, None):
            try:
                return function(*args, **kwargs)
            except passing:
                raise
            except NETWORK_ERRORS as error:
                if wait is None or not is_transient(error):
                    raise failure(action, error) from error
                self.sleep(wait_before_retry(action, error, wait))

    def state(self, repo_id: str, revision: str | None, read: Iterable[str] = ()) -> RepoState | None:
        """The repo at `revision`, or None if it does not exist (or the token may not see it).

        Args:
            read: paths of small files that are downloaded for their contents, where they are there.

        Raises:
            RevisionNotFoundError: if the repo has no such revision.
            PublishError: if the Hub cannot be asked.
        """
        try:
            info = self.call(
                f"Looking up {repo_id}",
                self.api.model_info,
                repo_id,
                revision=revision,
                passing=(RepositoryNotFoundError, RevisionNotFoundError),
            )
        except RepositoryNotFoundError:
            return None
        files = self.files(repo_id, info.sha)
        contents = {name: self.content(repo_id, info.sha, name) for name in read if name in files}
        return RepoState(info.sha, bool(info.private), files, contents)

    def content(self, repo_id: str, revision: str, name: str) -> bytes:
        """Downloads one file."""
        with TemporaryDirectory() as folder:
            download = self.api.hf_hub_download
            self.call(f"Reading {name} of {repo_id}", download, repo_id, name, revision=revision, local_dir=folder)
            return Path(folder, name).read_bytes()

    def sha256(self, repo_id: str, state: RepoState, name: str) -> str:
        """SHA-256 of a file: of a large one as the Hub says, of a small one as it is downloaded."""
        large = state.files[name].lfs
        return large.sha256 if large is not None else sha256(self.content(repo_id, state.head, name)).hexdigest()

    def files(self, repo_id: str, revision: str) -> dict[str, RepoFile]:
        """What the Hub says of every file at a commit, by path."""

        def listing():
            entries = self.api.list_repo_tree(repo_id, recursive=True, revision=revision)
            return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

        return self.call(f"Listing {repo_id}", listing)

    def commit(
        self, repo_id: str, revision: str, parent: str, files: Iterable[ModelFile], deleted: list[str], message: str
    ) -> str:
        """Makes one commit on top of `parent` and returns its sha; `parent` itself if there is nothing to change.

        When an answer is lost the branch is looked at before anything is repeated, and a repetition names the same
        parent, so that the commit cannot be made twice.

        Raises:
            PublishError: if it is not in; the revision then is where it was, or where somebody else put it.
        """
        files = list(files)
        operations = [CommitOperationAdd(file.name, file.path or file.content) for file in files]
        for file, operation in zip(files, operations, strict=True):
            if operation.upload_info.sha256.hex() != file.sha256:
                raise PublishError(f"{file.path} changed while it was being published. Verify it again.")
        operations += [CommitOperationDelete(name, is_folder=False) for name in deleted]
        action = f"Committing to {repo_id} at {revision}"
        for wait in (*self.waits, None):
            try:
                made = self.api.create_commit(
                    repo_id, operations, commit_message=message, revision=revision, parent_commit=parent
                )
                return made.oid
            except (RuntimeError, ValueError, *NETWORK_ERRORS) as error:
                # RuntimeError: the client gave up on a large file. ValueError: the Hub refused the card, or its answer
                # to the commit was no JSON.
                if 400 <= (status_of(error) or 0) < 500 and not is_transient(error) and status_of(error) != 412:
                    raise failure(action, error, UPLOAD_AGAIN) from error
                landed = self._landed(repo_id, revision, parent, files, deleted)
                if landed:
                    return landed
                if wait is None or not is_transient(error):
                    raise failure(action, error, UPLOAD_AGAIN) from error
                self.sleep(wait_before_retry(action, error, wait))

    def _landed(
        self, repo_id: str, revision: str, parent: str, files: list[ModelFile], deleted: list[str]
    ) -> str | None:
        """The head of `revision` if it is a new commit with these very files."""
        head = self.call(f"Looking up {repo_id}", self.api.model_info, repo_id, revision=revision).sha
        if head == parent:
            return None
        present = self.files(repo_id, head)
        if not differing(files, present) and not set(deleted) & present.keys():
            return head
        raise PublishError(f"{repo_id} at {revision} moved from {parent} to {head} meanwhile. {ADVICE[412]}")

    def open_pull_request(self, repo_id: str, title: str):
        """Opens a draft pull request on main and returns the client's description of it. Never repeated: the Hub would
        open a second one.

        Raises:
            PublishError: if it cannot be opened.
        """
        try:
            return self.api.create_pull_request(repo_id, title=title)
        except NETWORK_ERRORS as error:
            raise failure(f"Opening a pull request on {repo_id}", error) from error

    def tag(self, repo_id: str, tag: str, commit: str, files: list[ModelFile]) -> None:
        """Tags a commit; a tag that is there already must hold these very files.

        Raises:
            PublishError: if it cannot be made, or the name is taken by other contents.
        """

        def create() -> None:
            try:
                self.api.create_tag(repo_id, tag=tag, revision=commit)
            except HfHubHTTPError as error:
                if status_of(error) != 409:
                    raise

        self.call(f"Tagging {repo_id} {tag}", create)
        wrong = differing(files, self.files(repo_id, tag))
        if wrong:
            raise PublishError(f"{repo_id} has a tag {tag} with other contents ({', '.join(wrong)}). Delete the tag.")


def differing(files: Iterable[ModelFile], present: dict[str, RepoFile]) -> list[str]:
    """The names of `files` that the Hub lacks or has with other contents, by its own hashes."""
    return [file.name for file in files if not _same(file, present.get(file.name))]


def _same(file: ModelFile, remote: RepoFile | None) -> bool:
    if remote is None or remote.size != file.size:
        return False
    if remote.lfs is not None:
        return remote.lfs.sha256 == file.sha256
    return remote.blob_id == file.git_oid()
