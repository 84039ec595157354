# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""One commit to a repo of the Hub, whatever its size, and the check of what the Hub lists then.

What models, the features beside them and conformance kits are published with: same retries, same messages, same check.
"""

import fnmatch
from collections.abc import Iterable
from typing import NamedTuple

from huggingface_hub import constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from conversion.common.model_folder import ModelFile, PublishError, PublishInputError
from conversion.publishing.hub_client import HubClient, RepoState, differing


MAIN = "main"
GIT_ATTRIBUTES = ".gitattributes"


class Target(NamedTuple):
    """Where a commit goes: branch or pull request ref, its page, and whether the request was opened for it."""

    revision: str
    url: str
    opened: bool = False


def check_arguments(repo_id: str, revision: str | None, create_pr: bool) -> None:
    """Checks what can be told without files or the Hub.

    Raises:
        PublishInputError: for what is no repo id, and for `create_pr` with a revision.
    """
    check_repo_id(repo_id)
    if create_pr and revision:
        raise PublishInputError("create_pr opens a pull request on main; drop the revision, or commit to the branch.")


def check_repo_id(repo_id: str) -> None:
    """Raises a PublishInputError for what is no `user/name`."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishInputError(f"{repo_id!r} is no repo id: {error}") from error
    if repo_id.count("/") != 1:
        raise PublishInputError(f"{repo_id!r} is no repo id, expected user/name.")


def repo_state(
    client: HubClient, repo_id: str, revision: str | None, private: bool, read: Iterable[str] = ()
) -> RepoState:
    """The repo at a revision as `HubClient.state`, made if it does not exist.

    Raises:
        RevisionNotFoundError: if the repo has no such revision.
        PublishError: if it cannot be made or seen.
    """
    state = client.state(repo_id, revision, read)
    if state is None:
        client.call(f"Creating {repo_id}", client.api.create_repo, repo_id, private=private or None, exist_ok=True)
        state = client.state(repo_id, revision, read)
    if state is None:
        raise PublishError(f"{repo_id} was created but is not to be seen. Check that the token may read it.")
    return state


def check_private(repo_id: str, state: RepoState, private: bool) -> None:
    """Raises a PublishError for a public repo that is to be private."""
    if private and not state.private:
        raise PublishError(f"{repo_id} exists and is public. Make it private in its settings, or drop --private.")


def require_token() -> None:
    """Raises a PublishError that says how to get a token where there is none."""
    if get_token() is None:
        raise PublishError("There is no token. Set HF_TOKEN to one with write access, or log in with `hf auth login`.")


def stale_files(before: RepoState, sent: Iterable[ModelFile], replaced: Iterable[str]) -> list[str]:
    """What an earlier publication left in a repo: files of these patterns that are not sent now.

    Args:
        replaced: patterns of paths, of which a `*` stays within a folder.
    """
    names, patterns = {file.name for file in sent}, list(replaced)
    return sorted(name for name in before.files if name not in names and any(_fits(name, each) for each in patterns))


def _fits(path: str, pattern: str) -> bool:
    return path.count("/") == pattern.count("/") and fnmatch.fnmatchcase(path, pattern)


def open_target(client: HubClient, repo_id: str, revision: str | None, create_pr: bool, title: str) -> Target:
    """The branch or pull request to commit to. With `create_pr` a new one is opened, so look for changes first."""
    if create_pr:
        request = client.open_pull_request(repo_id, title)
        return Target(request.git_reference, request.url, opened=True)
    url = f"{constants.ENDPOINT}/{repo_id}"
    if revision is None:
        return Target(MAIN, url)
    if is_pull_request(revision):
        return Target(revision, f"{url}/discussions/{revision.split('/')[-1]}")
    return Target(revision, f"{url}/tree/{revision}")


def commit_files(
    client: HubClient,
    repo_id: str,
    target: Target,
    before: RepoState,
    files: list[ModelFile],
    deleted: list[str],
    message: str,
    resume: str,
) -> str:
    """Makes the commit on top of the one that was looked at, as `HubClient.commit`. Returns its sha.

    Args:
        resume: what to do with a pull request that was opened for the commit and stays empty.

    Raises:
        PublishError: if it is not in.
    """
    try:
        return client.commit(repo_id, target.revision, before.head, files, deleted, message)
    except PublishError as error:
        if not target.opened:
            raise
        raise PublishError(f"{error} {target.url} is empty; {resume}.") from error


def check_listing(
    client: HubClient, repo_id: str, commit: str, before: RepoState, files: list[ModelFile], deleted: list[str]
) -> None:
    """Compares what the Hub says of the commit with what was sent: these files with these hashes, and nothing else.

    Raises:
        PublishError: if a file is missing, has another hash, or is there without having been sent or kept.
    """
    listed = client.files(repo_id, commit)
    kept = before.files.keys() - deleted - {file.name for file in files} - {GIT_ATTRIBUTES}
    wrong = {name: "is not as it was sent" for name in differing(files, listed)}
    wrong |= {name: "should be gone" for name in deleted if name in listed}
    wrong |= {name: "was not sent" for name in listed.keys() - before.files.keys() - {file.name for file in files}}
    wrong |= {
        name: "was not to change"
        for name in kept
        if name not in listed or listed[name].blob_id != before.files[name].blob_id
    }
    # The Hub writes it itself, to say which files are large.
    wrong.pop(GIT_ATTRIBUTES, None)
    if wrong:
        raise PublishError(
            f"{repo_id} is at commit {commit} (before: {before.head}), but by the Hub's listing "
            f"{'; '.join(f'{name} {what}' for name, what in sorted(wrong.items()))}."
        )


def nothing_to_propose(repo_id: str) -> PublishError:
    return PublishError(f"{repo_id} holds these very files already; there is nothing to propose.")


def is_pull_request(revision: str | None) -> bool:
    return revision is not None and revision.startswith("refs/pr/")
