# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The loopback Hub's HTTP API as a table of routes; `loopback_hub.py` serves it."""

from __future__ import annotations

import base64
import dataclasses
import fnmatch
import hashlib
import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tests.loopback_store import Blob, Commit, HubError, Repo, card_data


if TYPE_CHECKING:
    from tests.loopback_hub import Handler


#: Files of at least this many bytes go to large file storage, as do the patterns below and binary content.
LFS_THRESHOLD = 10 * 2**20


@dataclasses.dataclass
class FileAnswer:
    blob: Blob
    commit: str


ROUTES: list[tuple[str, re.Pattern, Callable[[Handler], object]]] = []
API = r"/api/(?P<kind>models|datasets|spaces)/(?P<repo_id>[^/]+/[^/]+)"
PAGE = r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo_id>[^/]+/[^/]+)"


def route(methods: str, path: str):
    """Register a handler for `methods` (separated by spaces) and a regular expression of the quoted path.

    A handler returns what is sent as JSON, or a FileAnswer.
    """

    def register(function):
        ROUTES.extend((method, re.compile(path), function) for method in methods.split())
        return function

    return register


@route("GET", r"/api/whoami-v2")
def whoami(call: Handler):
    account = call.account(required=True)
    token = {"displayName": "test", "role": account.role}
    organizations = [{"type": "org", "name": name} for name in account.organizations]
    auth = {"type": "access_token", "accessToken": token}
    return {"type": "user", "id": account.name, "name": account.name, "orgs": organizations, "auth": auth}


@route("POST", r"/api/validate-yaml")
def validate_yaml(call: Handler):
    try:
        card_data(call.form()["content"])
    except ValueError as error:
        raise HubError(400, str(error), errors=[{"message": str(error)}], warnings=[]) from error
    return {"errors": [], "warnings": []}


@route("POST", r"/api/repos/create")
def create_repo(call: Handler):
    account, form = call.account(role="write"), call.form()
    repo_id, kind = f"{form.get('organization') or account.name}/{form['name']}", f"{form.get('type') or 'model'}s"
    if not re.fullmatch(r"[\w.-]+/[\w.-]{1,96}", repo_id):
        raise HubError(400, f"Invalid repo name: {repo_id}")
    if not account.owns(repo_id):
        raise HubError(403, f'You don\'t have the rights to create a {kind[:-1]} under the namespace of "{repo_id}"')
    private = form.get("private") is True or form.get("visibility") == "private"
    with call.hub.lock:
        existing = call.hub.repos.get((kind, repo_id))
        repo = existing or call.hub.create_repo(repo_id, form.get("type") or "model", private)
    url = f"{call.hub.endpoint}/{repo.url_path}"
    if existing:
        raise HubError(409, f"You already created this {kind[:-1]} repo: {repo_id}", url=url)
    return {"url": url, "name": repo_id, "id": repo_id}


@route("GET", API + r"(?:/revision/(?P<revision>[^/]+))?")
def repo_info(call: Handler):
    repo = call.repo()
    commit = repo.at(call.values["revision"] or "main")
    siblings = []
    for path, blob in sorted(commit.files.items()):
        siblings.append({"rfilename": path, "size": blob.size, "blobId": blob.oid})
        if blob.lfs:
            siblings[-1]["lfs"] = {"sha256": blob.sha256, "size": blob.size, "pointerSize": blob.pointer_size}
    try:
        card = card_data(commit.files["README.md"].read().decode()) if "README.md" in commit.files else {}
    except ValueError:
        card = {}
    fixed = {"gated": False, "disabled": False, "downloads": 0, "likes": 0, "createdAt": repo.log()[-1].date}
    known = {name: card[name] for name in ("library_name", "pipeline_tag") if name in card}
    found = {"id": repo.id, "modelId": repo.id, "author": repo.author, "sha": commit.oid, "private": repo.private}
    card_fields = {"cardData": card, "tags": card.get("tags", []), "lastModified": commit.date, **known}
    return {**fixed, **found, **card_fields, "siblings": siblings}


def file_entry(path: str, blob: Blob) -> dict:
    entry = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path}
    if blob.lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": blob.pointer_size}
    return entry


def entries(commit: Commit) -> dict[str, dict]:
    """Every file and folder of a commit as the tree and paths-info answers show it."""
    found = {path: file_entry(path, blob) for path, blob in commit.files.items()}
    for path, blob in commit.files.items():
        for parent in list(Path(path).parents)[:-1]:
            below = found.setdefault(parent.as_posix(), {"type": "directory", "oid": "", "size": 0})
            oid = hashlib.sha1((below["oid"] + blob.oid).encode()).hexdigest()
            below |= {"path": parent.as_posix(), "oid": oid}
    return found


@route("GET", API + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
def tree(call: Handler):
    commit = call.repo().at(call.values["revision"])
    prefix = f"{call.values['path'].rstrip('/')}/" if call.values["path"] else ""
    listed = {path: entry for path, entry in sorted(entries(commit).items()) if path.startswith(prefix)}
    if prefix and not listed:
        raise HubError(404, f"{prefix} does not exist on {commit.oid}", "EntryNotFound")
    if not call.flag("recursive"):
        listed = {path: entry for path, entry in listed.items() if "/" not in path[len(prefix) :]}
    return list(listed.values())


@route("POST", API + r"/paths-info/(?P<revision>[^/]+)")
def paths_info(call: Handler):
    known = entries(call.repo().at(call.values["revision"]))
    return [known[path] for path in call.form()["paths"] if path in known]


@route("GET", API + r"/refs")
def refs(call: Handler):
    groups = {"branches": "refs/heads/", "tags": "refs/tags/", "pullRequests": "refs/pr/", "converts": "refs/convert/"}
    found = list(call.repo().refs.items())
    return {
        group: [
            {"name": ref if group == "pullRequests" else ref[len(prefix) :], "ref": ref, "targetCommit": commit.oid}
            for ref, commit in found
            if ref.startswith(prefix)
        ]
        for group, prefix in groups.items()
    }


@route("GET", API + r"/commits/(?P<revision>[^/]+)")
def commits(call: Handler):
    return [
        {"id": c.oid, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": c.author}]}
        for c in call.repo().log(call.values["revision"])
    ]


@route("POST DELETE", API + r"/(?P<what>branch|tag)/(?P<name>[^/]+)")
def branch_or_tag(call: Handler):
    repo, name, deleting = call.repo("write"), call.values["name"], call.command == "DELETE"
    form = {} if deleting else call.form()
    if call.values["what"] == "branch":
        ref, start = f"refs/heads/{name}", form.get("startingPoint") or "main"
    else:  # a tag is created at the revision of the path, but deleted by its name
        ref, start = f"refs/tags/{name if deleting else form['tag']}", name
    with repo.lock:
        if deleting:
            if repo.refs.pop(ref, None) is None:
                raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
        elif ref in repo.refs:
            raise HubError(409, f"Reference already exists: {ref}")
        else:
            repo.refs[ref] = repo.at(start)
    return {"ref": ref}


@route("POST", API + r"/preupload/(?P<revision>[^/]+)")
def preupload(call: Handler):
    repo, answers = call.repo("contribute"), []
    present = repo.files(call.values["revision"])
    attributes = present[".gitattributes"].read().decode() if ".gitattributes" in present else ""
    patterns = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line]
    for file in call.form()["files"]:
        path, size, sample = file["path"], file["size"], base64.b64decode(file["sample"])
        listed = any(fnmatch.fnmatch(name, pattern) for pattern in patterns for name in (path, Path(path).name))
        large = size and (listed or size >= LFS_THRESHOLD or b"\0" in sample)
        answer = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        answers.append(answer | ({"oid": present[path].etag} if path in present else {}))
    return {"files": answers}


@route("POST", PAGE + r"\.git/info/lfs/objects/batch")
def lfs_batch(call: Handler):
    repo, answers = call.repo("contribute"), []
    for item in call.form()["objects"]:
        answer = {"oid": item["oid"], "size": item["size"]}
        if not call.hub.storage.has(item["oid"], item["size"]):
            signature = uuid.uuid4().hex
            call.hub.uploads[signature] = (item["oid"], item["size"])
            base = f"{call.hub.endpoint}/{repo.url_path}.git/info/lfs/objects"
            upload = {"href": f"{call.hub.endpoint}/lfs-storage/{item['oid']}?signature={signature}"}
            answer["actions"] = {"upload": upload, "verify": {"href": f"{base}/verify"}}
        answers.append(answer)
    return {"transfer": "basic", "objects": answers}


@route("PUT", r"/lfs-storage/(?P<oid>[0-9a-f]{64})")
def lfs_put(call: Handler):
    oid, size = call.hub.uploads.get(call.query.get("signature", [""])[0], (None, None))
    if oid != call.values["oid"]:
        raise HubError(403, "SignatureDoesNotMatch")
    call.hub.storage.add(call.blocks, oid, size)
    return {}


@route("POST", PAGE + r"\.git/info/lfs/objects/verify")
def lfs_verify(call: Handler):
    call.repo("contribute")
    form = call.form()
    call.hub.storage.large(form["oid"], form["size"])
    return {}


def parse_commit(repo: Repo, lines: list[dict]) -> tuple[dict, dict[str, bytes | Blob | None]]:
    """The header and the changes of a commit's lines. Raises HubError 400 for a line that cannot be carried out."""
    header: dict = {}
    changes: dict[str, bytes | Blob | None] = {}
    for key, value in ((line["key"], line["value"]) for line in lines):
        if key == "header":
            header = value
        elif key == "file":
            changes[value["path"]] = base64.b64decode(value["content"], validate=True)
        elif key == "lfsFile":
            changes[value["path"]] = repo.storage.large(value["oid"], value["size"])
        elif key in ("deletedFile", "deletedFolder"):
            changes[value["path"].rstrip("/") + ("/" if key == "deletedFolder" else "")] = None
        else:
            raise HubError(400, f"unknown commit line {key!r}")
    if not header.get("summary"):
        raise HubError(400, "a commit needs a header with a summary")
    return header, changes


@route("POST", API + r"/commit/(?P<revision>[^/]+)")
def commit(call: Handler):
    repo, account, revision = call.repo("contribute"), call.account(role="write"), call.values["revision"]
    lines = [json.loads(line) for line in call.data().splitlines() if line.strip()]
    header, changes = parse_commit(repo, lines)
    ref = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
    opening, message, parent = call.flag("create_pr"), header.get("description", ""), header.get("parentCommit")
    made = repo.commit(changes, header["summary"], message, ref, account.name, parent, opening)
    url = f"{call.hub.endpoint}/{repo.url_path}"
    answer = {"success": True, "commitOid": made.oid, "commitUrl": f"{url}/commit/{made.oid}"}
    if opening:
        number = next(ref for ref, head in repo.refs.items() if head is made).removeprefix("refs/pr/")
        answer["pullRequestUrl"] = f"{url}/discussions/{number}"
    return answer


@route("POST", API + r"/discussions")
def open_discussion(call: Handler):
    repo, author, form = call.repo("contribute"), call.account(role="write").name, call.form()
    return repo.open_discussion(form["title"], author, repo.at(), bool(form.get("pullRequest")))


@route("GET", API + r"/discussions/(?P<number>[1-9]\d*)")
def discussion(call: Handler):
    found, number = call.repo().discussions, int(call.values["number"])
    if number > len(found):
        raise HubError(404, f"there is no discussion {number}")
    return found[number - 1]


@route("GET HEAD", PAGE + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(call: Handler):
    commit, path = call.repo().at(call.values["revision"]), call.values["path"]
    if path not in commit.files:
        raise HubError(404, f"{path} does not exist", "EntryNotFound", {"X-Repo-Commit": commit.oid})
    return FileAnswer(commit.files[path], commit.oid)
