# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The loopback Hub behaves towards the installed `huggingface_hub` as the real one does.

The clients run in subprocesses, since they read the endpoint when they are imported.
"""

import contextlib
import hashlib
import http.client
import json
import socket
import subprocess
import time
from urllib.parse import urlsplit

import pytest

from tests.loopback_hub import LoopbackHub
from tests.warm_python import REAL


TOKEN = "hf_writer_secret"
CARD = "---\nlicense: apache-2.0\ntags:\n- custom_code\n---\n# A model\n"
CLIENT = """
import json
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import *
api = HfApi()
def attempt(function, *args, **kwargs):
    try:
        return ["ok", str(function(*args, **kwargs))]
    except Exception as error:
        response = getattr(error, "response", None)
        return [type(error).__name__, getattr(response, "status_code", None), str(error)]
"""


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        hub.add_token(TOKEN, "user")
        hub.add_token("hf_reader", "user", role="read")
        hub.add_token("hf_stranger", "stranger")
        yield hub


def run(environment, script):
    """What the script printed last, as JSON."""
    command = [REAL, "-c", CLIENT + script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def call(hub, method, path, body=None, headers=None):
    """A plain request, without the clients: (status, headers, body)."""
    with contextlib.closing(http.client.HTTPConnection(urlsplit(hub.endpoint).netloc, timeout=10)) as connection:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()


def test_listings_revisions_and_missing_things(hub, tmp_path):
    script = """
name = "user/model"
info = api.model_info(name, files_metadata=True)
weights = next(s for s in info.siblings if s.rfilename == "model.safetensors")
api.create_branch(name, branch="next/a")
api.create_tag(name, tag="v1", revision=info.sha)
api.upload_file(repo_id=name, path_or_fileobj=b"b", path_in_repo="b.txt", revision="next/a")
api.delete_file("sub/notes.txt", name, revision="next/a")
refs = api.list_repo_refs(name)
[paths] = api.get_paths_info(name, ["sub/notes.txt", "absent"])
print(json.dumps({
    "whoami": api.whoami()["name"],
    "card": [info.card_data.license, info.tags, info.private],
    "lfs": [weights.size, weights.lfs.sha256],
    "tree": [entry.path for entry in api.list_repo_tree(name)],
    "subtree": [entry.path for entry in api.list_repo_tree(name, "sub", recursive=True, expand=True)],
    "paths": paths.size,
    "commits": [commit.title for commit in api.list_repo_commits(name, revision="v1")],
    "refs": [[ref.name for ref in group] for group in (refs.branches, refs.tags)],
    "branch": api.list_repo_files(name, revision="next/a"),
    "dataset": api.create_repo(name, repo_type="dataset").url,
    "exists": [api.file_exists(name, "config.json"), api.file_exists(name, "absent")],
    "errors": [
        attempt(api.create_repo, name)[:2],
        attempt(api.create_branch, name, branch="next/a")[:2],
        attempt(api.model_info, "user/absent")[:2],
        attempt(api.model_info, name, revision="absent")[:2],
        attempt(hf_hub_download, name, "absent")[:2],
        attempt(api.upload_file, repo_id=name, path_or_fileobj=b"c", path_in_repo="c", revision="absent")[:2],
        attempt(api.upload_file, repo_id=name, path_or_fileobj=b"c", path_in_repo="c", parent_commit="0" * 40)[:2],
        attempt(api.upload_file, repo_id=name, path_or_fileobj=b"no card", path_in_repo="README.md")[:1],
    ],
}))
"""
    repo = hub.create_repo("user/model")
    weights = repo.storage.add([b"weights"])
    small = {"README.md": CARD.encode(), "config.json": b"{}", "sub/notes.txt": b"notes\n"}
    repo.commit({**small, "model.safetensors": repo.storage.large(weights, 7)}, "files")
    found = run(hub.client_environment(tmp_path / "cache", TOKEN), script)
    missing = found["errors"].pop(4)
    assert missing[0] in ("EntryNotFoundError", "RemoteEntryNotFoundError") and missing[1] == 404
    assert found == {
        "whoami": "user",
        "card": ["apache-2.0", ["custom_code"], False],
        "lfs": [7, weights],
        "tree": [".gitattributes", "README.md", "config.json", "model.safetensors", "sub"],
        "subtree": ["sub/notes.txt"],
        "paths": 6,
        "commits": ["files", "initial commit"],
        "refs": [["main", "next/a"], ["v1"]],
        "branch": [".gitattributes", "README.md", "b.txt", "config.json", "model.safetensors"],
        "dataset": f"{hub.endpoint}/datasets/user/model",
        "exists": [True, False],
        "errors": [
            ["HfHubHTTPError", 409],
            ["HfHubHTTPError", 409],
            ["RepositoryNotFoundError", 404],
            ["RevisionNotFoundError", 404],
            ["RevisionNotFoundError", 404],
            ["HfHubHTTPError", 412],
            ["ValueError"],
        ],
    }
    assert len(repo.log()) == 2 and set(hub.repo("user/model", "dataset").files()) == {".gitattributes"}


@pytest.mark.parametrize(
    ("token", "create", "commit", "read_private"),
    [
        (TOKEN, "ok", "ok", "ok"),
        ("hf_reader", 403, 403, "ok"),
        ("hf_stranger", 403, 403, 404),
        ("hf_unknown", 401, 401, 401),
        (None, 401, 401, 401),
    ],
)
def test_tokens_and_private_repos(hub, tmp_path, token, create, commit, read_private):
    script = """
outcomes = [
    attempt(api.create_repo, "user/new", private=True),
    attempt(api.upload_file, repo_id="user/public", path_or_fileobj=b"x", path_in_repo="x"),
    attempt(api.model_info, "user/private"),
]
print(json.dumps([outcome[0] if outcome[0] == "ok" else outcome[1] for outcome in outcomes]))
"""
    hub.create_repo("user/public")
    hub.create_repo("user/private", private=True)
    assert run(hub.client_environment(tmp_path, token), script) == [create, commit, read_private]
    assert ("x" in hub.repo("user/public").files()) == (commit == "ok")
    assert ("models", "user/new") in hub.repos if create == "ok" else ("models", "user/new") not in hub.repos
    assert create != "ok" or hub.repo("user/new").private


def test_commit_cut_in_its_body_is_not_carried_out(hub):
    repo = hub.create_repo("user/model")
    lines = b'{"key": "header", "value": {"summary": "s"}}\n{"key": "file", "value": {"path": "a", "content": ""}}\n'
    head = f"POST /api/models/user/model/commit/main HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n"
    with socket.create_connection(("127.0.0.1", urlsplit(hub.endpoint).port)) as client:
        client.sendall(f"{head}Content-Length: {len(lines) + 1}\r\n\r\n".encode() + lines)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b""
    assert len(repo.log()) == 1


def test_commit_that_refers_to_missing_content_is_refused(hub):
    repo = hub.create_repo("user/model")
    header = {"key": "header", "value": {"summary": "no content"}}
    good = {"key": "file", "value": {"path": "a", "content": "", "encoding": "base64"}}
    missing = {"key": "lfsFile", "value": {"path": "b", "oid": "0" * 64, "size": 1}}
    gone = {"key": "deletedFile", "value": {"path": "absent"}}
    for last, status in ((missing, 400), (gone, 404), ({"key": "unknown", "value": {}}, 400)):
        body = "\n".join(map(json.dumps, (header, good, last)))
        headers = {"Authorization": f"Bearer {TOKEN}"}
        for query in ("", "?create_pr=1"):
            assert call(hub, "POST", f"/api/models/user/model/commit/main{query}", body, headers)[0] == status
    assert len(repo.log()) == 1 and not repo.discussions and list(repo.refs) == ["refs/heads/main"]


def test_upload_must_be_announced_and_match_its_hash(hub):
    hub.create_repo("user/model")
    oid, headers = hashlib.sha256(b"abc").hexdigest(), {"Authorization": f"Bearer {TOKEN}"}
    body = json.dumps({"objects": [{"oid": oid, "size": 3}]})
    batch = "/user/model.git/info/lfs/objects/batch"
    answer = json.loads(call(hub, "POST", batch, body, {**headers, "Content-Type": "application/vnd.git-lfs+json"})[2])
    href = answer["objects"][0]["actions"]["upload"]["href"].removeprefix(hub.endpoint)
    assert call(hub, "PUT", href.split("?")[0], b"abc")[0] == 403
    assert call(hub, "PUT", href, b"abd")[0] == 400
    assert not hub.storage.has(oid, 3) and not list(hub.storage.folder.glob("*.incomplete"))
    assert call(hub, "PUT", href, b"abc")[0] == 200
    assert hub.storage.has(oid, 3)


def test_resolve_answers_heads_ranges_and_errors(hub):
    repo = hub.create_repo("user/model")
    large = repo.storage.large(repo.storage.add([b"0123456789"]), 10)
    commit = repo.commit({"w.bin": large, "t.txt": b"text"})
    path = "/user/model/resolve/main/"
    status, headers, body = call(hub, "HEAD", path + "w.bin")
    assert (status, body, headers["Content-Length"]) == (200, b"", "10")
    assert headers["ETag"] == headers["X-Linked-Etag"] == f'"{hashlib.sha256(b"0123456789").hexdigest()}"'
    assert (headers["X-Linked-Size"], headers["X-Repo-Commit"]) == ("10", commit.oid)
    headers = call(hub, "GET", path + "t.txt")[1]
    assert headers["ETag"] == '"f3a34851d44d6b97c90fbb99dd3d18c261b9a237"' and "X-Linked-Etag" not in headers
    for wanted, status, body in (("0-0", 206, b"0"), ("7-", 206, b"789"), ("8-99", 206, b"89"), ("10-", 416, b"")):
        answer = call(hub, "GET", path + "w.bin", headers={"Range": f"bytes={wanted}"})
        assert (answer[0], answer[2]) == (status, body)
    status, headers, _ = call(hub, "HEAD", path + "absent")
    assert (status, headers["X-Error-Code"], headers["X-Repo-Commit"]) == (404, "EntryNotFound", commit.oid)
    assert call(hub, "GET", "/user/model/resolve/absent/t.txt")[1]["X-Error-Code"] == "RevisionNotFound"


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (CARD, None),
        ("# no front matter\n", "missing yaml metadata"),
        ("---\nlicense: [unclosed\n---\n", "invalid yaml"),
        ("---\n- a\n- list\n---\n", "must be a mapping"),
        ("---\nlicense: Apache 2.0\n---\n", '"license" must be'),
        ("---\ntags: custom_code\n---\n", '"tags" must be'),
        ("---\nbase_model: {a: b}\n---\n", '"base_model" must be'),
    ],
)
def test_model_card_is_validated(hub, card, message):
    body = json.dumps({"content": card, "repoType": "model"})
    status, _, answer = call(hub, "POST", "/api/validate-yaml", body, {"Content-Type": "application/json"})
    found = "".join(error["message"] for error in json.loads(answer)["errors"])
    assert (status, found) == (200, "") if message is None else (status == 400 and message in found)


def test_fault_starts_after_good_requests_and_waits(hub):
    hub.create_repo("user/model")
    hub.faults.add("GET", "/api/models", after=1, times=2, status=503, retry_after=7)
    hub.faults.add("GET", "/slow", callback=lambda _: time.sleep(0.2))
    answers = [call(hub, "GET", "/api/models/user/model")[:2] for _ in range(4)]
    assert [status for status, _ in answers] == [200, 503, 503, 200] and answers[1][1]["Retry-After"] == "7"
    started = time.monotonic()
    assert call(hub, "GET", "/slow")[0] == 404 and time.monotonic() - started >= 0.2


def test_fault_of_the_fixture_itself_is_raised_at_the_end():
    with pytest.raises(ZeroDivisionError), LoopbackHub() as hub:
        hub.faults.add("GET", "/", callback=lambda _: 1 / 0)
        with pytest.raises(http.client.RemoteDisconnected):
            call(hub, "GET", "/")
