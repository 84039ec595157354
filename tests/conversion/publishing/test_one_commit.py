# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Files beside a model are published as the model is: one commit or none, with retries and a check of the listing."""

import subprocess
from pathlib import Path

import pytest

from conversion.common.model_folder import PublishInputError
from conversion.publishing.one_commit import publish_files
from tests.loopback_hub import LoopbackHub
from tests.warm_python import REAL


ROOT = Path(__file__).resolve().parents[3]
TOKEN, REPO = "hf_writer_secret", "user/model"
PUBLISH = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from conversion.common.model_folder import PublishError
from conversion.publishing.one_commit import publish_files
folder, repo_id, create_pr = sys.argv[1:]
files = {{path.relative_to(folder).as_posix(): path for path in Path(folder).rglob("*") if path.is_file()}}
try:
    print(publish_files(repo_id, "features", files, ("*.json", "shards/*.npz"), "Add features", create_pr == "pr"))
except PublishError as error:
    sys.exit(f"refused: {{error}}")
"""


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        hub.add_token(TOKEN, "user")
        yield hub


@pytest.fixture
def folder(tmp_path):
    """A small file, and one of large file storage below it."""
    path = tmp_path / "run"
    (path / "shards").mkdir(parents=True)
    (path / "metadata.json").write_text("{}")
    (path / "shards" / "1.npz").write_bytes(b"\0" * 1000)
    return path


def publish(hub, folder, repo=REPO, token=TOKEN, create_pr=False, code=0):
    """What was written; the token must be in none of it."""
    command = [REAL, "-c", PUBLISH.format(root=str(ROOT)), str(folder), repo, "pr" if create_pr else ""]
    environment = hub.client_environment(folder.parent / "cache", token)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return done.stdout + done.stderr


def titles(hub, revision="main"):
    return [commit.title for commit in hub.repo(REPO).log(revision)]


def below(hub, revision="main"):
    return {name for name in hub.repo(REPO).files(revision) if name.startswith("features/")}


def test_an_earlier_publication_is_replaced_in_one_commit_and_all_else_stays(hub, folder):
    repo = hub.create_repo(REPO)
    earlier = ("features/old.json", "features/shards/2.npz", "features/notes.md", "features.json", "README.md")
    repo.commit({name: b"---\nlicense: mit\n---\n" for name in earlier}, "earlier")
    out = publish(hub, folder)
    assert titles(hub) == ["Add features", "earlier", "initial commit"]
    assert below(hub) == {"features/metadata.json", "features/shards/1.npz", "features/notes.md"}
    assert {"features.json", "README.md"} <= repo.files().keys()
    assert repo.files()["features/shards/1.npz"].read() == b"\0" * 1000
    assert out.strip() == f"{hub.endpoint}/{REPO}/commit/{repo.at().oid}"
    # Nothing to change, which the client says too.
    assert publish(hub, folder).startswith(out) and len(titles(hub)) == 3


def test_a_pull_request_is_opened_only_for_a_change(hub, folder):
    before = hub.create_repo(REPO).at()
    assert publish(hub, folder, create_pr=True).strip() == f"{hub.endpoint}/{REPO}/discussions/1"
    assert hub.repo(REPO).at() is before and len(titles(hub, "refs/pr/1")) == 2
    assert below(hub, "refs/pr/1") == {"features/metadata.json", "features/shards/1.npz"}
    publish(hub, folder)
    assert "nothing to propose" in publish(hub, folder, create_pr=True, code=1)
    assert len(hub.repo(REPO).discussions) == 1


@pytest.mark.long
@pytest.mark.parametrize(
    "fault",
    [
        {"method": "POST", "path": "/commit/", "times": 2, "status": 503},
        {"method": "POST", "path": "/commit/", "lose_answer": True},
        {"method": "PUT", "path": "/lfs-storage/", "cut_after_bytes": 100},
    ],
    ids=["503 twice", "lost answer", "cut upload"],
)
def test_passing_faults_are_survived_with_one_commit(hub, folder, fault):
    hub.create_repo(REPO)
    planned = hub.faults.add(**fault)
    publish(hub, folder)
    assert planned.times == 0 and titles(hub) == ["Add features", "initial commit"]


def test_a_file_that_the_hub_stores_otherwise_is_named(hub, folder):
    repo = hub.create_repo(REPO)

    def tamper(request):
        if repo.at().title == "Add features":
            repo.at().files["features/metadata.json"] = repo.storage.regular(b"[]")

    hub.faults.add("GET", "/tree/", times=None, callback=tamper)
    out = publish(hub, folder, code=1)
    assert f"{REPO} is at commit {repo.at().oid}" in out and "features/metadata.json is not as it was sent" in out


def test_refusals_say_what_to_do_and_leave_the_repo(hub, folder):
    before = hub.create_repo(REPO).at()
    assert "user/none does not exist, or the token may not see it" in publish(hub, folder, "user/none", code=1)
    assert "There is no token. Set HF_TOKEN" in publish(hub, folder, token=None, code=1)
    hub.faults.add("POST", "/commit/", status=403, message=f"no write for {TOKEN}")
    out = publish(hub, folder, create_pr=True, code=1)
    assert "no write for ***" in out
    assert f"{hub.endpoint}/{REPO}/discussions/1 is empty; close it and publish again" in out
    assert hub.repo(REPO).at() is before
    with pytest.raises(PublishInputError, match="'name' is no repo id, expected user/name"):
        publish_files("name", "features", {}, (), "message")
