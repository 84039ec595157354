# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What the loopback Hub stores: contents, commits, repos; and its check of model cards."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import yaml


GIT_ATTRIBUTES = "".join(
    f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in "safetensors bin pt pth h5 onnx npz zip".split()
)


def _is_identifiers(value: object) -> bool:
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(isinstance(item, str) and re.fullmatch(r"[\w.+/-]+", item) for item in values)


def _is_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


#: Card field -> (check, what it must be).
CARD_FIELDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "license": (lambda value: isinstance(value, str) and value == value.lower() and _is_identifiers(value), "an id"),
    "base_model": (_is_identifiers, "a repo id or a list of them"),
    "datasets": (_is_strings, "a list of strings"),
    "language": (_is_identifiers, "a code or a list of them"),
    "library_name": (lambda value: isinstance(value, str), "a string"),
    "pipeline_tag": (_is_identifiers, "an id"),
    "tags": (_is_strings, "a list of strings"),
}


def card_data(content: str) -> dict:
    """The YAML front matter of a model card. Raises ValueError when it is missing, no mapping or has a wrong field."""
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", content, re.DOTALL)
    if match is None:
        raise ValueError("empty or missing yaml metadata in repo card")
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise ValueError(f"invalid yaml: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"the yaml metadata must be a mapping, got {type(data).__name__}")
    wrong = [f'"{k}" must be {what}' for k, (check, what) in CARD_FIELDS.items() if k in data and not check(data[k])]
    if wrong:
        raise ValueError("; ".join(wrong))
    return data


class HubError(Exception):
    """Answered to the client with `status`, `X-Error-Code` and `X-Error-Message`."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict | None = None, **body):
        super().__init__(message)
        self.status, self.body = status, {"error": message, **body}
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}


class ConnectionCut(Exception):
    """Raised to close the connection without an answer."""


@dataclasses.dataclass(frozen=True)
class Account:
    name: str
    role: str
    organizations: tuple[str, ...] = ()

    def owns(self, repo_id: str) -> bool:
        return repo_id.split("/")[0] in (self.name, *self.organizations)


@dataclasses.dataclass(frozen=True)
class Blob:
    """One stored file. `oid` is git's sha1: of the content, or of the pointer for a large file."""

    file: Path
    size: int
    sha256: str
    oid: str
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    @property
    def pointer_size(self) -> int:
        return len(_pointer(self.sha256, self.size))

    def read(self) -> bytes:
        return self.file.read_bytes()


@dataclasses.dataclass(frozen=True)
class Commit:
    oid: str
    parent: Commit | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, Blob]

    def history(self) -> Iterator[Commit]:
        """This commit and its ancestors, newest first."""
        commit: Commit | None = self
        while commit is not None:
            yield commit
            commit = commit.parent


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


class Storage:
    """Contents on disk, by sha256: a file is there complete or not at all."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, blocks: Iterator[bytes] | list[bytes], sha256: str | None = None, size: int | None = None) -> str:
        """Store `blocks` and return their sha256. Raises HubError 400 when they are not what was announced."""
        digest, total, partial = hashlib.sha256(), 0, self.folder / f"{uuid.uuid4().hex}.incomplete"
        try:
            with open(partial, "wb") as out:
                for block in blocks:
                    digest.update(block)
                    total += len(block)
                    out.write(block)
            if sha256 not in (None, digest.hexdigest()) or size not in (None, total):
                raise HubError(400, f"upload of {sha256} ({size} bytes) arrived as {digest.hexdigest()} ({total})")
            os.replace(partial, self.folder / digest.hexdigest())
        finally:
            partial.unlink(missing_ok=True)
        return digest.hexdigest()

    def has(self, sha256: str, size: int) -> bool:
        file = self.folder / sha256
        return bool(re.fullmatch(r"[0-9a-f]{64}", sha256)) and file.is_file() and file.stat().st_size == size

    def regular(self, data: bytes) -> Blob:
        sha256 = self.add([data])
        return Blob(self.folder / sha256, len(data), sha256, _git_oid(data), lfs=False)

    def large(self, sha256: str, size: int) -> Blob:
        if not self.has(sha256, size):
            raise HubError(400, f"large file {sha256} of {size} bytes was never uploaded")
        return Blob(self.folder / sha256, size, sha256, _git_oid(_pointer(sha256, size)), lfs=True)


class Repo:
    """A repo on the server. `refs` maps `refs/heads/…`, `refs/tags/…` and `refs/pr/N` to commits."""

    def __init__(self, storage: Storage, repo_id: str, kind: str, private: bool, author: str):
        self.storage, self.id, self.kind, self.private, self.author = storage, repo_id, kind, private, author
        self.lock = threading.RLock()
        self.commits: dict[str, Commit] = {}
        self.refs: dict[str, Commit | None] = {"refs/heads/main": None}
        self.discussions: list[dict] = []
        self.commit({".gitattributes": GIT_ATTRIBUTES.encode()}, "initial commit")

    @property
    def url_path(self) -> str:
        return self.id if self.kind == "models" else f"{self.kind}/{self.id}"

    def at(self, revision: str = "main") -> Commit:
        """The commit of a branch, tag, full commit sha or ref. Raises HubError 404."""
        for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            commit = self.refs.get(name) or self.commits.get(name)
            if commit is not None:
                return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def files(self, revision: str = "main") -> dict[str, Blob]:
        return self.at(revision).files

    def log(self, revision: str = "main") -> list[Commit]:
        """Commits of `revision`, newest first."""
        return list(self.at(revision).history())

    def commit(
        self,
        changes: dict[str, bytes | Blob | None],
        title: str = "commit",
        message: str = "",
        ref: str = "refs/heads/main",
        author: str | None = None,
        expected_parent: str | None = None,
        pull_request: bool = False,
    ) -> Commit:
        """Apply `changes` (None deletes; a path ending in `/` is a folder) to `ref`, or to a new pull request on it.

        Raises HubError 412 when `ref` is no longer at `expected_parent`, 404 for a missing ref or deleted file.
        """
        blobs = {k: self.storage.regular(v) if isinstance(v, bytes) else v for k, v in changes.items()}
        with self.lock:
            if ref not in self.refs:
                raise HubError(404, f"Invalid rev id: {ref}", "RevisionNotFound")
            parent = self.refs[ref]
            if expected_parent is not None and (parent is None or parent.oid != expected_parent):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(parent.files) if parent else {}
            for path, blob in blobs.items():
                if blob is not None:
                    files[path] = blob
                    continue
                gone = [name for name in files if name == path or (path.endswith("/") and name.startswith(path))]
                if not gone:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
                for name in gone:
                    del files[name]
            if pull_request:
                ref = f"refs/pr/{self.open_discussion(title, author or self.author, parent)['num']}"
            date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            oid = hashlib.sha1(uuid.uuid4().bytes).hexdigest()
            commit = Commit(oid, parent, title, message, author or self.author, date, files)
            self.commits[oid] = self.refs[ref] = commit
            return commit

    def open_discussion(self, title: str, author: str, base: Commit, is_pull_request: bool = True) -> dict:
        with self.lock:
            number = len(self.discussions) + 1
            if is_pull_request:
                self.refs[f"refs/pr/{number}"] = base
            self.discussions.append(
                {
                    "num": number,
                    "title": title,
                    "author": {"name": author},
                    "createdAt": base.date,
                    "status": "draft" if is_pull_request else "open",
                    "isPullRequest": is_pull_request,
                    "repo": {"name": self.id, "type": self.kind[:-1]},
                    "changes": {"base": "refs/heads/main"},
                    "filesWithConflicts": [],
                    "events": [],
                }
            )
            return self.discussions[-1]
