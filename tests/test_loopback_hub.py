# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The loopback Hub behaves towards the installed `huggingface_hub` and transformers as the real one does.

The clients run in subprocesses, since they read the endpoint when they are imported.
"""

import contextlib
import hashlib
import http.client
import json
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

import pytest

from tests.loopback_hub import LoopbackHub


TOKEN = "hf_writer_secret"
CARD = "---\nlicense: apache-2.0\ntags:\n- custom_code\n---\n# A model\n"
CLIENT = """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
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


@pytest.fixture
def folder(tmp_path):
    """A model folder: three megabytes for large file storage, small files, one of them in a sub-folder."""
    path = tmp_path / "model"
    (path / "sub").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(hashlib.shake_256(b"weights").digest(3 * 2**20))
    (path / "config.json").write_text('{"hidden_size": 32}')
    (path / "README.md").write_text(CARD)
    (path / "sub" / "notes.txt").write_text("notes\n")
    return path


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def start(environment, script, *arguments):
    command = [sys.executable, "-c", CLIENT + script, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(environment, script, *arguments):
    """What the script printed last, as JSON."""
    process = start(environment, script, *arguments)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out.strip().splitlines()[-1])


def call(hub, method, path, body=None, headers=None):
    """A plain request, without the clients: (status, headers, body)."""
    with contextlib.closing(http.client.HTTPConnection(urlsplit(hub.endpoint).netloc, timeout=10)) as connection:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()


UPLOAD = """
api.create_repo("user/model.v1", exist_ok=True)
info = api.upload_folder(repo_id="user/model.v1", folder_path=sys.argv[1], commit_message="publish")
print(json.dumps(info.oid))
"""


def test_upload_folder_is_one_commit_and_is_downloaded_unchanged(hub, folder, tmp_path):
    client = hub.client_environment(tmp_path / "cache", TOKEN)
    oid = run(client, UPLOAD, folder)
    repo = hub.repo("user/model.v1")
    assert [commit.title for commit in repo.log()] == ["publish", "initial commit"]
    assert repo.at("main").oid == oid
    published = {path: blob.read() for path, blob in repo.files(oid).items() if path != ".gitattributes"}
    assert published == contents(folder)
    assert [path for path, blob in repo.files().items() if blob.lfs] == ["model.safetensors"]
    (put,) = hub.matching("PUT", "/lfs-storage/")
    assert put.authorization is None and put.received == 3 * 2**20
    assert not any(TOKEN.encode() in request.body or TOKEN in request.path for request in hub.requests)

    assert run(client, UPLOAD, folder) == oid  # nothing changed, no commit
    (folder / "config.json").write_text("{}")
    run(client, UPLOAD, folder)
    assert len(repo.log()) == 3 and len(hub.matching("PUT", "")) == 1
    new, old = (commit.files for commit in repo.log()[:2])
    assert [path for path in new if new[path] != old[path]] == ["config.json"]

    download = 'print(json.dumps(snapshot_download("user/model.v1", revision=sys.argv[1])))'
    snapshot = run(hub.client_environment(tmp_path / "empty"), download, oid)
    hub.stop()
    assert run(hub.client_environment(tmp_path / "empty", offline=True), download, oid) == snapshot


@pytest.mark.parametrize("token", [TOKEN, "hf_stranger"])
def test_pull_request_leaves_main_alone_and_is_downloadable(hub, folder, tmp_path, token):
    script = """
info = api.upload_folder(repo_id="user/model", folder_path=sys.argv[1], create_pr=True, commit_message="proposal")
more = api.upload_file(repo_id="user/model", path_or_fileobj=b"x", path_in_repo="x.txt", revision=info.pr_revision)
refs = api.list_repo_refs("user/model", include_pull_requests=True)
details = api.get_discussion_details("user/model", info.pr_num)
path = hf_hub_download("user/model", "model.safetensors", revision=info.pr_revision)
print(json.dumps([info.pr_revision, details.title, more.oid, refs.pull_requests[0].target_commit, path]))
"""
    repo = hub.create_repo("user/model")
    before = repo.at()
    revision, title, *oids, path = run(hub.client_environment(tmp_path / "cache", token), script, folder)
    assert (revision, title) == ("refs/pr/1", "proposal")
    assert repo.at() is before and oids == [repo.at(revision).oid] * 2
    assert set(repo.files(revision)) == {*contents(folder), ".gitattributes", "x.txt"}
    assert open(path, "rb").read() == contents(folder)["model.safetensors"]


def test_xet_client_uploads_when_every_file_is_regular(hub, folder, tmp_path):
    hub.regular_only = True
    client = hub.client_environment(tmp_path / "cache", TOKEN)
    del client["HF_HUB_DISABLE_XET"]
    script = """
api.create_repo("user/model")
info = api.upload_folder(repo_id="user/model", folder_path=sys.argv[1], create_pr=True)
print(json.dumps(info.pr_url))
"""
    assert run(client, script, folder) == f"{hub.endpoint}/user/model/discussions/1"
    assert {blob.lfs for blob in hub.repo("user/model").files("refs/pr/1").values()} == {False}


def test_listings_revisions_and_missing_things(hub, folder, tmp_path):
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
    weights = repo.storage.add([contents(folder).pop("model.safetensors")])
    repo.commit({**contents(folder), "model.safetensors": repo.storage.large(weights, 3 * 2**20)}, "files")
    found = run(hub.client_environment(tmp_path / "cache", TOKEN), script)
    missing = found["errors"].pop(4)
    assert missing[0] in ("EntryNotFoundError", "RemoteEntryNotFoundError") and missing[1] == 404
    assert found == {
        "whoami": "user",
        "card": ["apache-2.0", ["custom_code"], False],
        "lfs": [3 * 2**20, weights],
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


@pytest.mark.parametrize(
    ("fault", "outcomes", "cause"),
    [
        ({"times": 2, "status": 503, "message": "overloaded"}, [503, 503, "ok"], "overloaded"),
        ({"status": 401, "message": "expired"}, [401, "ok"], "expired"),
        ({"status": 403, "message": "storage limit"}, [403, "ok"], "storage limit"),
        ({"status": 404, "error_code": "RepoNotFound"}, [404, "ok"], "Repository Not Found"),
        ({"status": 429, "retry_after": 1, "message": "slow down"}, [429, "ok"], "slow down"),
        ({"status": 507, "message": "disk full"}, [507, "ok"], "disk full"),
        ({"cut_after_bytes": 100}, [None, "ok"], ""),
    ],
    ids=["503 twice", "401", "403", "404", "429", "507", "cut"],
)
def test_failed_commit_changes_nothing_and_can_be_repeated(hub, folder, tmp_path, fault, outcomes, cause):
    script = """
outcomes = [attempt(api.upload_folder, repo_id="user/model", folder_path=sys.argv[1]) for _ in range(int(sys.argv[2]))]
print(json.dumps(outcomes))
"""
    repo = hub.create_repo("user/model")
    states = []
    hub.faults.add("POST", "/commit/", callback=lambda _: states.append(len(repo.log())), **fault)
    found = run(hub.client_environment(tmp_path / "cache", TOKEN), script, folder, len(outcomes))
    assert [outcome[0] if outcome[0] == "ok" else outcome[1] for outcome in found] == outcomes
    assert all(cause in outcome[2] for outcome in found[:-1])
    assert set(states) <= {1} and len(repo.log()) == 2
    assert set(repo.files()) == {*contents(folder), ".gitattributes"}


def test_cut_transfers_of_a_large_file_are_repeated(hub, folder, tmp_path):
    repo = hub.create_repo("user/model")
    put_cut = hub.faults.add("PUT", "/lfs-storage/", cut_after_bytes=2**20)
    get_cut = hub.faults.add("GET", "/resolve/.*/model.safetensors", cut_after_bytes=2**20)
    script = """
api.upload_folder(repo_id="user/model", folder_path=sys.argv[1])
attempt(hf_hub_download, "user/model", "model.safetensors")
print(json.dumps(hf_hub_download("user/model", "model.safetensors")))
"""
    path = run(hub.client_environment(tmp_path / "cache", TOKEN), script, folder)
    assert put_cut.times == get_cut.times == 0
    assert open(path, "rb").read() == repo.files()["model.safetensors"].read() == contents(folder)["model.safetensors"]
    first, second = hub.matching("PUT", "/lfs-storage/")
    assert (first.status, second.status) == (0, 200) and 2**20 <= first.received < 2 * 2**20
    assert len(hub.matching("GET", "/resolve/.*/model.safetensors")) == 2
    assert len(repo.log()) == 2 and not list(repo.storage.folder.glob("*.incomplete"))


def test_lost_answer_means_the_commit_is_in(hub, tmp_path):
    repo = hub.create_repo("user/model")
    hub.faults.add("POST", "/commit/", lose_answer=True)
    script = """
upload = lambda: api.upload_file(repo_id="user/model", path_or_fileobj=b"x", path_in_repo="x")
print(json.dumps([attempt(upload)[0], attempt(upload)[0]]))
"""
    first, second = run(hub.client_environment(tmp_path, TOKEN), script)
    assert first != "ok" and second == "ok" and len(repo.log()) == 2


@pytest.mark.parametrize("stage", [("PUT", "/lfs-storage/"), ("POST", "/commit/")])
def test_client_killed_before_the_commit_leaves_the_old_state(hub, folder, tmp_path, stage):
    client = hub.client_environment(tmp_path / "cache", TOKEN)
    held = hub.faults.hold(*stage)
    process = start(client, UPLOAD, folder)
    assert held.reached.wait(60)
    process.kill()
    process.communicate()
    held.released.set()
    assert len(hub.repo("user/model.v1").log()) == 1
    run(client, UPLOAD, folder)
    assert len(hub.repo("user/model.v1").log()) == 2
    assert [request.status for request in hub.matching(*stage)] == [0, 200]


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
    assert not hub.storage.has(oid, 3)
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


def test_transformers_loads_and_publishes(hub, tmp_path):
    config = '{"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, '
    config += '"intermediate_size": 16, "vocab_size": 32}'
    source = hub.create_repo("user/tiny").commit({"config.json": config.encode()})
    script = """
import torch
from transformers import AutoConfig, AutoModel
config = AutoConfig.from_pretrained("user/tiny", revision=sys.argv[1])
model = AutoModel.from_config(config).eval()
model.push_to_hub("user/published", private=True)
loaded = AutoModel.from_pretrained("user/published").eval()
tokens = torch.arange(8)[None]
same = torch.equal(model(tokens).last_hidden_state, loaded(tokens).last_hidden_state)
print(json.dumps([config.hidden_size, same]))
"""
    assert run(hub.client_environment(tmp_path / "cache", TOKEN), script, source.oid) == [16, True]
    repo = hub.repo("user/published")
    assert repo.private and repo.files()["model.safetensors"].lfs
