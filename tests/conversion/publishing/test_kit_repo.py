# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""A conformance kit as a dataset repo: whole and as it was made, in one commit, or not at all."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from conversion.common.model_folder import PublishError, PublishInputError
from conversion.publishing.kit_repo import read_kit
from tests.loopback_hub import LoopbackHub
from tests.warm_python import REAL


ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "conversion" / "push_to_hub.py"
TOKEN, REPO = "hf_writer_secret", "user/kit"

pytestmark = pytest.mark.long


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        hub.add_token(TOKEN, "user")
        yield hub


@pytest.fixture
def folder(tmp_path) -> Path:
    """Files as a kit has them, and a foreign one."""
    contents = {
        "README.md": b"---\nlicense: apache-2.0\n---\n\n# Kit\n",
        "check.py": b"print('PASS')\n",
        "layer_norm/expected.safetensors": b"\0" * 1000,
        "layer_norm/dense/config.json": b"{}",
    }
    kit = tmp_path / "kit"
    for name, content in contents.items():
        (kit / name).parent.mkdir(parents=True, exist_ok=True)
        (kit / name).write_bytes(content)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    (kit / "kit.json").write_text(json.dumps({"sha256": hashes}))
    (kit / "outputs.npz").write_bytes(b"mine")
    return kit


@pytest.fixture
def push(hub, folder):
    def push(*options, code=0) -> str:
        """What was written; the token must be in none of it."""
        command = [REAL, str(SCRIPT), str(folder), REPO, "--repo_type", "dataset", *options]
        environment = hub.client_environment(folder.parent / "cache", TOKEN)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
        assert TOKEN not in done.stdout + done.stderr
        return done.stdout + done.stderr

    return push


def test_a_kit_is_one_commit_of_a_dataset_repo(hub, push, folder):
    assert "dry run: nothing was sent" in push("--dry_run") and ("datasets", REPO) not in hub.repos
    said = push()
    repo = hub.repo(REPO, "dataset")
    assert repo.files().keys() - {".gitattributes"} == {file.name for file in read_kit(folder)[0]}
    assert "left out: outputs.npz (not part of the kit)" in said
    assert f"{hub.endpoint}/datasets/{REPO}\ncommit {repo.at().oid}, loaded back and equal" in said
    assert [commit.title for commit in repo.log()] == ["Publish the conformance kit", "initial commit"]
    assert ("models", REPO) not in hub.repos


def test_what_an_older_kit_left_is_replaced_and_all_else_stays(hub, push):
    repo = hub.create_repo(REPO, "dataset")
    repo.commit({"layer_norm/old.safetensors": b"old", "notes.md": b"mine", "mine/x": b"x"}, "earlier")
    assert "deleted from the repo: layer_norm/old.safetensors" in push()
    assert {"notes.md", "mine/x"} < repo.files().keys() and "layer_norm/old.safetensors" not in repo.files()
    said = push("--create_pr", code=1)
    assert "holds these very files already; there is nothing to propose" in said and repo.discussions == []


def test_a_pull_request(hub, push):
    repo = hub.create_repo(REPO, "dataset")
    said = push("--create_pr")
    assert "check.py" in repo.files("refs/pr/1") and "check.py" not in repo.files()
    assert f"/datasets/{REPO}/discussions/1" in said


def test_options_about_models_and_damaged_kits_are_refused(hub, push, folder):
    assert "--base_model is for model repos" in push("--base_model", "user/model", code=2)
    assert "--revision is for model repos" in push("--revision", "branch", code=2)
    (folder / "check.py").write_text("print('PASS', 'always')")
    assert "check.py is not as it was made" in push(code=1)
    assert ("datasets", REPO) not in hub.repos


def test_a_folder_that_is_no_kit(folder):
    (folder / "check.py").unlink()
    with pytest.raises(PublishError, match="check.py is no file of the folder, but kit.json names it"):
        read_kit(folder)
    (folder / "kit.json").write_text('{"sha256": {"../secret": "0"}}')
    (folder.parent / "secret").write_text("x")
    with pytest.raises(PublishError, match="secret is no file of the folder"):
        read_kit(folder)
    (folder / "kit.json").write_text('{"sha256": ["x"]}')
    with pytest.raises(PublishInputError, match="sha256"):
        read_kit(folder)
    (folder / "kit.json").unlink()
    with pytest.raises(PublishInputError, match="make_conformance_kit.py"):
        read_kit(folder)
