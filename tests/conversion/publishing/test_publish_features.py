# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Features go beside a published model as the model itself does: one commit or none, with retries and a check."""

import pytest

from conversion.common.model_folder import PublishInputError, read_model_folder
from conversion.publishing.card_features import CardRecord
from conversion.publishing.model_card import render_card
from conversion.publishing.publish_features import MESSAGE, publish_features
from tests.conversion.publishing.publishable import features_folder, push_features, verified_folder
from tests.loopback_hub import LoopbackHub


TOKEN, REPO = "hf_writer_secret", "user/model"
SENT = {"metadata.json", "report.json", "features_hf.npz", "features_packing.npz"}


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        hub.add_token(TOKEN, "user")
        yield hub


@pytest.fixture
def model(tmp_path):
    return verified_folder(tmp_path / "model")


@pytest.fixture
def repo(hub, model):
    """A repo with the model, its card, and what an earlier run and somebody else left beside it."""
    repo = hub.create_repo(REPO)
    card = render_card(read_model_folder(model), CardRecord(REPO, "verified-a", "verified-a")).encode()
    files = {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
    earlier = ("verification/features_hf.npz", "verification/shards/2.npz", "verification/notes.md", "features.json")
    repo.commit({**files, "README.md": card, **dict.fromkeys(earlier, b"earlier")}, "A model")
    return repo


@pytest.fixture
def run(tmp_path, model):
    return features_folder(tmp_path / "run", dense=model)


def publish(hub, run, *options, repo=REPO, token=TOKEN, code=0):
    out = push_features(hub, run, repo, *options, token=token, code=code)
    assert TOKEN not in out
    return out


def titles(hub, revision="main"):
    return [commit.title for commit in hub.repo(REPO).log(revision)]


def below(hub, revision="main"):
    names = (name for name in hub.repo(REPO).files(revision) if name.startswith("verification/"))
    return {name.removeprefix("verification/") for name in names}


def pin_of(hub, revision="main"):
    return CardRecord.read(hub.repo(REPO).files(revision)["README.md"].read().decode()).pin


def test_an_earlier_run_is_replaced_in_one_commit_and_all_else_stays(hub, repo, run):
    out = publish(hub, run)
    assert titles(hub) == [MESSAGE, "A model", "initial commit"]
    assert below(hub) == {*SENT, "notes.md"} and "features.json" in repo.files()
    assert repo.files()["verification/features_hf.npz"].read() == b"features_hf.npz"
    # The card names a new tag, which holds it all.
    pin = pin_of(hub)
    assert pin.startswith("verified-a-") and repo.at(pin) is repo.at()
    assert out.strip() == f"{REPO}@{pin} {hub.endpoint}/{REPO}/commit/{repo.at().oid}"
    # Nothing to change, which the client says too.
    assert publish(hub, run).startswith(out) and len(titles(hub)) == 3


def test_a_pull_request_is_opened_only_for_a_change_and_pins_itself(hub, repo, run):
    before = repo.at()
    assert publish(hub, run, "pr").strip() == f"{REPO}@refs/pr/1 {hub.endpoint}/{REPO}/discussions/1"
    assert repo.at() is before and len(titles(hub, "refs/pr/1")) == 3
    assert below(hub, "refs/pr/1") == {*SENT, "notes.md"} and pin_of(hub, "refs/pr/1") == "refs/pr/1"
    publish(hub, run)
    assert "nothing to propose" in publish(hub, run, "pr", code=1)
    assert len(repo.discussions) == 1


@pytest.mark.long
@pytest.mark.parametrize(
    "fault",
    [
        {"method": "POST", "path": "/commit/", "times": 2, "status": 503},
        {"method": "POST", "path": "/commit/", "lose_answer": True},
        {"method": "PUT", "path": "/lfs-storage/", "cut_after_bytes": 5},
    ],
    ids=["503 twice", "lost answer", "cut upload"],
)
def test_passing_faults_are_survived_with_one_commit(hub, repo, run, fault):
    planned = hub.faults.add(**fault)
    publish(hub, run)
    assert planned.times == 0 and titles(hub) == [MESSAGE, "A model", "initial commit"]


def test_a_file_that_the_hub_stores_otherwise_is_named_and_no_tag_is_set(hub, repo, run):
    def tamper(request):
        if repo.at().title == MESSAGE:
            repo.at().files["verification/metadata.json"] = repo.storage.regular(b"[]")

    hub.faults.add("GET", "/tree/", times=None, callback=tamper)
    out = publish(hub, run, code=1)
    assert f"{REPO} is at commit {repo.at().oid}" in out and "verification/metadata.json is not as it was sent" in out
    assert not any(ref.startswith("refs/tags/") for ref in repo.refs)


def test_refusals_say_what_to_do_and_leave_the_repo(hub, repo, run, tmp_path):
    before = repo.at()
    assert "user/none does not exist, or the token may not see it" in publish(hub, run, repo="user/none", code=1)
    assert "There is no token. Set HF_TOKEN" in publish(hub, run, token=None, code=1)
    other = features_folder(tmp_path / "other", dense=verified_folder(tmp_path / "other_model", seed=1))
    assert "of another model than user/model holds: model.safetensors is another" in publish(hub, other, code=1)
    hub.create_repo("user/empty")
    assert "user/empty holds no model of this project" in publish(hub, run, repo="user/empty", code=1)
    hub.faults.add("POST", "/commit/", status=403, message=f"no write for {TOKEN}")
    out = publish(hub, run, "pr", code=1)
    assert "no write for ***" in out
    assert f"{hub.endpoint}/{REPO}/discussions/1 is empty; close it and publish again" in out
    assert repo.at() is before
    with pytest.raises(PublishInputError, match="'name' is no repo id, expected user/name"):
        publish_features(run, "name")
