# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Publishing is all or nothing: against the loopback Hub, with every fault, the repo is at its old commit or the new.

`push_to_hub.py` runs in a subprocess, as the clients read their endpoint when they are imported. Loading the model
back is left out here, and has its tests in `tests/test_hub_end_to_end.py`.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from conversion import convert_llava_vit_to_hf
from conversion.common.model_folder import ModelFile, PublishError, PublishInputError, read_model_folder
from conversion.publishing.card_features import CardRecord
from conversion.publishing.hub_client import UPLOAD_AGAIN, HubClient, RepoState, failure, wait_before_retry
from conversion.publishing.one_commit import check_listing
from conversion.publishing.options import add_publish_arguments
from conversion.publishing.publish import PublishRequest, PublishResult
from tests.conversion.publishing.publishable import (
    features_folder,
    push_features,
    report_of,
    sha256_of,
    verified_folder,
    write_report,
)
from tests.loopback_hub import LoopbackHub
from tests.warm_python import REAL


ROOT = Path(__file__).resolve().parents[3]
TOKEN, REPO = "hf_writer_secret", "user/llava.vit-1.5"
SECRET = "PASSWORD=hunter2"
PUSH = """
import sys
sys.path.insert(0, {root!r})
import conversion.publishing.publish
from conversion.push_to_hub import main
conversion.publishing.publish.folder_features = conversion.publishing.publish.check_published = lambda *arguments: None
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        hub.add_token(TOKEN, "user")
        yield hub


@pytest.fixture
def folder(tmp_path):
    return verified_folder(tmp_path / "model")


def start(hub, folder, *options, repo=REPO, token=TOKEN):
    command = [REAL, "-c", PUSH.format(root=str(ROOT)), str(folder), repo, *map(str, options)]
    environment = hub.client_environment(folder.parent / "cache", token)
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def push(hub, folder, *options, code=0, **kwargs):
    """What the script wrote; it must end with `code`, and must not have shown or sent the token."""
    out, err = (process := start(hub, folder, *options, **kwargs)).communicate(timeout=180)
    assert process.returncode == code, out + err
    assert TOKEN not in out + err and "Traceback" not in err
    assert not any(TOKEN.encode() in request.body or TOKEN in request.path for request in hub.requests)
    return out + err


def titles(hub, revision="main"):
    return [commit.title for commit in hub.repo(REPO).log(revision)]


def published(hub, revision="main"):
    return {name: sha256_of(blob.read()) for name, blob in hub.repo(REPO).files(revision).items()}


def assert_published(hub, folder, revision="main"):
    names = {path.name for path in folder.iterdir() if path.is_file()}
    expected = {name: sha256_of((folder / name).read_bytes()) for name in names}
    found = published(hub, revision)
    assert found.keys() == {*names, "README.md", ".gitattributes"}
    assert {name: found[name] for name in names} == expected


def test_one_commit_holds_everything_and_is_tagged(hub, folder):
    out = push(hub, folder, "--commit_message", "First release")
    assert titles(hub) == ["First release", "initial commit"]
    assert_published(hub, folder)
    head, tag = hub.repo(REPO).at(), hub.repo(REPO).refs
    (name,) = [ref.removeprefix("refs/tags/") for ref in tag if ref.startswith("refs/tags/")]
    assert name.startswith("verified-") and hub.repo(REPO).at(name) is head
    assert f"{hub.endpoint}/{REPO}\ncommit {head.oid}" in out
    assert f'"{name}"' in head.files["README.md"].read().decode()

    push(hub, folder)  # nothing to change
    assert hub.repo(REPO).at() is head and hub.repo(REPO).at(name) is head


def test_strangers_are_named_and_never_sent(hub, folder):
    for name in (".env", "optimizer.pt", "train.py", "old.safetensors"):
        (folder / name).write_text(SECRET)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_text(SECRET)
    for options in (("--dry_run",), ()):
        out = push(hub, folder, *options)
        for name in (".env", "optimizer.pt", "train.py", "old.safetensors", "__pycache__/"):
            assert f"left out: {name} (no part of the model)" in out
    assert not {".env", "optimizer.pt", "train.py", "old.safetensors", "__pycache__/x.pyc"} & published(hub).keys()
    assert not any(SECRET.encode() in request.body for request in hub.requests)
    assert not hub.storage.has(sha256_of(SECRET.encode()), len(SECRET))


def test_dry_run_lists_sizes_and_hashes_and_sends_nothing(hub, folder):
    out = push(hub, folder, "--dry_run", token=None)
    for path in folder.iterdir():
        assert f"{path.stat().st_size:,}  {sha256_of(path.read_bytes())}  {path.name}" in out
    assert "README.md" in out and "does not exist" in out and "nothing was sent" in out
    assert not hub.repos and {request.method for request in hub.requests} == {"GET"}
    hub.stop()
    assert "the repo was not looked at" in push(hub, folder, "--dry_run")


HEAVY = """
import sys
sys.path.insert(0, {root!r})
import conversion.push_to_hub, conversion.verification.report
loaded = [set(sys.modules)]
code = conversion.push_to_hub.main(sys.argv[1:])
loaded.append(set(sys.modules))
print(code, [sorted({{"torch", "transformers", "llava_vit_hf"}} & modules) for modules in loaded])
"""


def test_publishing_and_reports_start_without_torch(hub, folder):
    """Importing it takes seconds; only the process that loads a model back needs it."""
    environment = hub.client_environment(folder.parent / "cache", TOKEN)
    command = [REAL, "-c", HEAVY.format(root=str(ROOT)), str(folder), REPO, "--dry_run"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 [[], []]"


def test_gate_refuses_and_can_be_overridden(hub, folder):
    with open(folder / "config.json", "a") as file:
        file.write("\n")
    out = push(hub, folder, code=1)
    assert "not published: verification.json is about other files (changed: config.json)" in out
    assert not hub.requests
    out = push(hub, folder, "--allow_unverified")
    assert "left out: verification.json (not about these files)" in out
    card = hub.repo(REPO).files()["README.md"].read().decode()
    first = card.split("---\n", 2)[2].strip().splitlines()[0]
    assert first.startswith("> **Not verified by llava_vit_hf:** verification.json is about other files")
    assert not {"verification.json", "VERIFICATION.md"} & published(hub).keys()
    assert any(ref.startswith("refs/tags/unverified-") for ref in hub.repo(REPO).refs)


@pytest.mark.parametrize("verdict", ["FAIL", "INCONCLUSIVE"])
def test_gate_refuses_what_did_not_pass(hub, folder, verdict):
    write_report(folder, report_of(folder, verdict))
    assert f"says '{verdict}', expected 'PASS'" in push(hub, folder, code=1)
    push(hub, folder, "--allow_unverified")
    assert "verification.json" in published(hub)


def test_file_that_changes_while_being_published_is_refused(folder):
    weights = folder / "model.safetensors"
    file = ModelFile.read(weights)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(PublishError, match="model.safetensors changed while it was being published"):
        HubClient().commit(REPO, "main", "0" * 40, [file], [], "message")


@pytest.mark.long
@pytest.mark.parametrize(
    "fault",
    [
        {"method": "POST", "path": "/commit/", "times": 2, "status": 503},
        {"method": "POST", "path": "/commit/", "status": 429, "retry_after": 1},
        {"method": "POST", "path": "/commit/", "cut_after_bytes": 1000},
        {"method": "POST", "path": "/commit/", "lose_answer": True},
        {"method": "PUT", "path": "/lfs-storage/", "cut_after_bytes": 100_000},
        {"method": "GET", "path": f"/api/models/{REPO}", "times": 2, "status": 503},
        {"method": "POST", "path": "/tag/", "lose_answer": True},
    ],
    ids=["503 twice", "429", "cut commit", "lost answer", "cut upload", "503 look-up", "lost tag"],
)
def test_passing_faults_are_survived_with_one_commit(hub, folder, fault):
    hub.create_repo(REPO)
    planned = hub.faults.add(**fault)
    push(hub, folder)
    assert planned.times == 0
    assert len(titles(hub)) == 2
    assert_published(hub, folder)


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ({"status": 401, "message": "token expired"}, ("token expired", "Log in with `hf auth login`")),
        ({"status": 403, "message": "storage limit"}, ("storage limit", "The token may not write there")),
        ({"status": 404, "error_code": "RepoNotFound"}, ("404", "does not exist, or the token may not see it")),
        ({"status": 429, "retry_after": 4000, "message": "slow down"}, ("puts off for 4000 s", "slow down")),
        ({"status": 507, "message": "disk full"}, ("disk full", "no space left")),
        ({"status": 413, "message": "too large"}, ("too large", "smaller shards")),
    ],
    ids=["401", "403", "404", "429", "507", "413"],
)
def test_lasting_faults_leave_the_old_commit_and_name_the_cause(hub, folder, fault, cause):
    before = hub.create_repo(REPO).at()
    hub.faults.add("POST", "/commit/", **fault)
    out = push(hub, folder, code=1)
    assert all(part in out for part in (f"Committing to {REPO} at main", *cause)), out
    assert hub.repo(REPO).at() is before and len(hub.matching("POST", "/commit/")) == 1
    push(hub, folder)
    assert len(titles(hub)) == 2
    assert_published(hub, folder)


def test_full_disk_under_a_large_file_leaves_the_old_commit(hub, folder):
    before = hub.create_repo(REPO).at()
    fault = hub.faults.add("PUT", "/lfs-storage/", times=None, status=507, message="No space left on device")
    out = push(hub, folder, code=1)
    assert "507" in out and "The Hub has no space left" in out
    assert hub.repo(REPO).at() is before
    fault.times = 0
    push(hub, folder)
    assert_published(hub, folder)


@pytest.mark.parametrize("stage", [("PUT", "/lfs-storage/"), ("POST", "/commit/"), ("POST", "/tag/")])
def test_killed_process_leaves_the_old_commit_or_the_new(hub, folder, stage):
    before = hub.create_repo(REPO).at()
    held = hub.faults.hold(*stage)
    process = start(hub, folder)
    assert held.reached.wait(60)
    process.kill()
    process.communicate()
    held.released.set()
    if stage[1] == "/tag/":
        assert_published(hub, folder)
    else:
        assert hub.repo(REPO).at() is before
    push(hub, folder)
    assert len(titles(hub)) == 2 and any(ref.startswith("refs/tags/") for ref in hub.repo(REPO).refs)
    assert_published(hub, folder)


def test_commit_of_somebody_else_meanwhile_is_not_overwritten(hub, folder):
    repo = hub.create_repo(REPO)
    hub.faults.add("POST", "/commit/", callback=lambda _: repo.commit({"other.txt": b"theirs"}, "theirs"))
    out = push(hub, folder, code=1)
    assert "moved from" in out and "publish again" in out
    assert titles(hub) == ["theirs", "initial commit"]
    push(hub, folder)
    assert len(titles(hub)) == 3 and published(hub)["other.txt"] == sha256_of(b"theirs")


def test_old_weights_and_code_that_would_be_loaded_go_in_the_same_commit(hub, tmp_path):
    push(hub, verified_folder(tmp_path / "whole"))
    sharded = verified_folder(tmp_path / "sharded", max_shard_size="100KB")
    repo = hub.repo(REPO)
    repo.commit({"old_llava_vit.py": b"", "handler.py": b"", "data/x.safetensors": b"x", "notes.txt": b""}, "more")
    # transformers prefers model.safetensors to an index.
    for options in (("--dry_run",), ()):
        out = push(hub, sharded, *options)
        assert "deleted from the repo: model.safetensors\n" in out and "deleted from the repo: old_llava_vit.py" in out
    assert len(titles(hub)) == 4
    found = published(hub).keys()
    assert {"handler.py", "data/x.safetensors", "notes.txt", "model.safetensors.index.json"} <= found
    assert not {"model.safetensors", "old_llava_vit.py"} & found


def test_readme_of_the_repo_is_kept(hub, folder):
    hub.create_repo(REPO).commit({"README.md": b"---\nlicense: mit\n---\n# Ours\n\nOur words.\n"}, "readme")
    (folder / "README.md").write_text("# Of the folder\n")
    out = push(hub, folder)
    card = hub.repo(REPO).files()["README.md"].read().decode()
    assert "license: mit" in card and "Our words." in card and "Of the folder" not in card
    assert "## Verification" in card and "is kept; the folder's own is not used" in out
    push(hub, folder)
    assert len(titles(hub)) == 3


def test_readme_of_the_folder_is_used_for_a_repo_without_one(hub, folder):
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Of the folder\n")
    push(hub, folder)
    assert "# Of the folder" in hub.repo(REPO).files()["README.md"].read().decode()


def test_card_that_the_hub_refuses_stops_everything(hub, folder):
    before = hub.create_repo(REPO).at()
    (folder / "README.md").write_text("---\nlicense: Not An Id\n---\n# Of the folder\n")
    assert '"license" must be' in push(hub, folder, code=1)
    assert hub.repo(REPO).at() is before and not hub.matching("PUT", "")


def test_pull_request_is_one_commit_beside_main(hub, folder):
    before = hub.create_repo(REPO).at()
    assert "number goes into README.md, so its hash will be another" in push(hub, folder, "--create_pr", "--dry_run")
    out = push(hub, folder, "--create_pr", "--commit_message", "Proposal")
    assert hub.repo(REPO).at() is before
    assert_published(hub, folder, "refs/pr/1")
    assert len(titles(hub, "refs/pr/1")) == 2 and f"{hub.endpoint}/{REPO}/discussions/1" in out
    card = hub.repo(REPO).files("refs/pr/1")["README.md"].read().decode()
    assert f'repo_id, revision = "{REPO}", "refs/pr/1"' in card
    assert not any(ref.startswith("refs/tags/") for ref in hub.repo(REPO).refs)

    # As after a merge: publishing the folder again changes the card alone, and tags it.
    hub.repo(REPO).refs["refs/heads/main"] = merged = hub.repo(REPO).at("refs/pr/1")
    assert "nothing to propose" in push(hub, folder, "--create_pr", code=1)
    push(hub, folder)
    head = hub.repo(REPO).at()
    assert [name for name in head.files if head.files[name] != merged.files[name]] == ["README.md"]
    assert any(ref.startswith("refs/tags/verified-") for ref in hub.repo(REPO).refs)


def test_pull_request_to_a_stranger_s_repo_and_its_completion(hub, folder):
    hub.add_token("hf_contributor", "contributor")
    hub.create_repo(REPO)
    assert "403" in push(hub, folder, code=1, token="hf_contributor")
    hub.faults.add("POST", "/commit/", status=403, message="no")
    assert "is empty; publish to the revision refs/pr/1" in push(
        hub, folder, "--create_pr", code=1, token="hf_contributor"
    )
    assert len(titles(hub, "refs/pr/1")) == 1
    out = push(hub, folder, "--revision", "refs/pr/1", token="hf_contributor")
    assert f"{hub.endpoint}/{REPO}/discussions/1\ncommit {hub.repo(REPO).at('refs/pr/1').oid}" in out
    assert_published(hub, folder, "refs/pr/1")
    assert len(titles(hub)) == 1
    assert "has no pull request refs/pr/7" in push(hub, folder, "--revision", "refs/pr/7", code=1)


def test_branch_is_made_and_main_left_alone(hub, folder):
    before = hub.create_repo(REPO).at()
    out = push(hub, folder, "--revision", "candidate")
    assert hub.repo(REPO).at() is before and f"{hub.endpoint}/{REPO}/tree/candidate" in out
    assert_published(hub, folder, "candidate")


def test_private(hub, folder):
    push(hub, folder, "--private")
    assert hub.repo(REPO).private
    push(hub, folder, "--private")
    hub.repo(REPO).private = False
    assert "exists and is public" in push(hub, folder, "--private", code=1)


def test_repo_of_another_model_or_type(hub, folder, tmp_path):
    dataset = hub.create_repo(REPO, "dataset")
    before = dataset.at()
    push(hub, folder)
    assert dataset.at() is before and len(titles(hub)) == 2
    packing = verified_folder(tmp_path / "packing", "packing")
    refusal = f"{REPO} holds a model of type 'llava_vit', this is 'llava_vit_packing'"
    assert refusal in push(hub, packing, code=1) and refusal in push(hub, packing, "--dry_run", code=1)
    hub.repo(REPO).commit({"config.json": b'{"model_type": "bert"}'}, "another model")
    assert "'bert'" in push(hub, folder, code=1)
    assert len(titles(hub)) == 3
    push(hub, folder, "--create_pr")
    hub.repo(REPO).commit({"config.json": b'{"model_type": "onevision_encoder"}'}, "an older model")
    push(hub, folder)


def test_tag_of_other_contents_is_an_error(hub, folder):
    push(hub, folder)
    repo = hub.repo(REPO)
    (tag,) = [ref for ref in repo.refs if ref.startswith("refs/tags/")]
    repo.refs[tag] = repo.log()[-1]
    assert "with other contents" in push(hub, folder, code=1)


def test_token_is_needed_and_must_be_good(hub, folder):
    assert "There is no token. Set HF_TOKEN" in push(hub, folder, code=1, token=None)
    assert not hub.matching("POST", "")
    assert "Log in with `hf auth login`" in push(hub, folder, code=1, token="hf_unknown")
    hub.add_token("hf_reader", "user", role="read")
    assert "The token may not write there" in push(hub, folder, code=1, token="hf_reader")
    assert not hub.repos


def with_huge_shard(folder):
    """Makes the weights one sparse shard of more than 5 GiB, and returns it."""
    shard = folder / "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(shard)
    os.truncate(shard, 5 * 2**30 + 1)
    (folder / "model.safetensors.index.json").write_text(f'{{"weight_map": {{"a": "{shard.name}"}}}}')
    return shard


def test_file_over_five_gigabytes_is_planned_by_size_and_left_on_disk(folder, monkeypatch):
    shard = with_huge_shard(folder)
    monkeypatch.setattr("conversion.common.model_folder.sha256_of_file", lambda path: f"of {path.name}")
    file = read_model_folder(folder).files[shard.name]
    assert (file.size, file.content, file.path) == (5 * 2**30 + 1, None, shard)
    assert f"5,368,709,121  of {shard.name}  {shard.name}" in PublishResult("", None, "", (file,)).describe()


@pytest.mark.slow
def test_file_over_five_gigabytes_is_uploaded_in_blocks(hub, folder):
    shard = with_huge_shard(folder)
    script = PUSH.replace(
        "sys.exit(",
        "from conversion.publishing import model_facts\nimport resource\n"
        "model_facts.weight_facts = lambda folder: (1, ['F32'])\n"
        "print('code', ",
    )
    script += "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    command = [sys.executable, "-c", script.format(root=str(ROOT)), str(folder), REPO, "--allow_unverified"]
    environment = hub.client_environment(folder.parent / "cache", TOKEN)
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "code 0" in out
    blob = hub.repo(REPO).files()[shard.name]
    assert blob.lfs and blob.size == shard.stat().st_size and len(titles(hub)) == 2
    # In KiB; on macOS in bytes.
    assert int(out.rsplit("peak", 1)[1]) / (1 if sys.platform != "darwin" else 1024) < 2**20


@pytest.mark.parametrize("repo_id", ["name", "user/", "user/name/more", "user/na me", "user/name..x"])
def test_repo_id_is_checked_first(folder, repo_id):
    with pytest.raises(PublishInputError, match="no repo id"):
        PublishRequest(folder=folder, repo_id=repo_id)


def test_exit_code_is_2_for_what_cannot_be_published_at_all(hub, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "config.json does not exist" in push(hub, tmp_path / "empty", code=2)
    assert "is no folder" in push(hub, tmp_path / "nowhere", code=2)
    assert "is no repo id" in push(hub, folder, repo="name", code=2)
    assert "drop the revision" in push(hub, folder, "--create_pr", "--revision", "x", code=2)
    assert not hub.requests


def test_a_conversion_checks_the_repo_id_before_it_reads_weights(tmp_path, capsys):
    arguments = ["auto", "nowhere.pt", "--output_dir", str(tmp_path / "out"), "--push_to_hub", "name"]
    assert convert_llava_vit_to_hf.main(arguments) == 2
    error = capsys.readouterr().err
    assert "'name' is no repo id" in error and "nowhere.pt" not in error


@pytest.mark.parametrize("name", ["README.md", "model.safetensors", "VERIFICATION.md", "grid_llava_vit.py"])
def test_links_are_refused_and_what_they_lead_to_is_not_sent(hub, folder, tmp_path, name):
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    for options in (("--dry_run",), ("--allow_unverified",)):
        out = push(hub, folder, *options, code=2)
        assert f"{name} is a symbolic link to {secret}" in out and SECRET not in out
    assert not hub.requests


def test_links_of_strangers_are_left_out(hub, folder, tmp_path):
    (folder / "data").symlink_to(tmp_path)
    (folder / "passwd").symlink_to("/etc/passwd")
    out = push(hub, folder)
    assert "left out: data (no part of the model)" in out and "left out: passwd (no part of the model)" in out
    assert not {"data", "passwd"} & published(hub).keys()


class Listing:
    """A client that says of a commit what it is told to."""

    def __init__(self, files):
        self._files = files

    def files(self, repo_id, commit):
        return self._files


def listed(content: bytes) -> SimpleNamespace:
    file = ModelFile.from_bytes("", content)
    return SimpleNamespace(size=file.size, lfs=None, blob_id=file.git_oid())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({".gitattributes": b"*.safetensors"}, None),
        ({"a.py": b"other"}, "a.py is not as it was sent"),
        ({"a.py": None}, "a.py is not as it was sent"),
        ({"stray.py": b""}, "stray.py was not sent"),
        ({"old.py": b""}, "old.py should be gone"),
        ({"theirs.txt": b"changed"}, "theirs.txt was not to change"),
        ({"theirs.txt": None}, "theirs.txt was not to change"),
    ],
)
def test_the_hub_s_listing_must_be_exactly_what_was_sent(change, message):
    before = {"old.py": listed(b""), "theirs.txt": listed(b"theirs")}
    after = {"a.py": listed(b"new"), "theirs.txt": listed(b"theirs")}
    after |= {name: listed(content) for name, content in change.items() if content is not None}
    for name in (name for name, content in change.items() if content is None):
        del after[name]
    check = (Listing(after), REPO, "c" * 40, RepoState("p" * 40, False, before, {}))
    files = [ModelFile.from_bytes("a.py", b"new")]
    if message is None:
        check_listing(*check, files, ["old.py"])
    else:
        with pytest.raises(PublishError, match=message):
            check_listing(*check, files, ["old.py"])


def test_offline_says_how_to_leave_it_and_once(monkeypatch):
    error = OfflineModeIsEnabled("offline mode is enabled. To disable it, please unset `HF_HUB_OFFLINE`.")
    text = str(failure("Looking up it", error))
    assert text == f"Looking up it failed: {error}"
    refused = ConnectionError("[Errno 111] Connection refused")
    refused.__cause__ = OSError("[Errno 111] Connection refused")
    text = str(failure("Looking up it", refused))
    assert text.count("Connection refused") == 1 and text.endswith(". Try again when the Hub can be reached.")
    assert "what was uploaded is not sent again" in str(failure("Committing", refused, UPLOAD_AGAIN))


def test_pull_request_and_branch_exclude_each_other(folder):
    with pytest.raises(PublishError, match="drop the revision"):
        PublishRequest(folder=folder, repo_id=REPO, revision="candidate", create_pr=True)


def test_options_of_conversion_scripts_and_of_the_push_script():
    parser = argparse.ArgumentParser()
    parser.add_argument("--revision")
    add_publish_arguments(parser)
    options = parser.parse_args(["--push_to_hub", REPO, "--push_revision", "b", "--revision", "weights"])
    assert (options.push_to_hub, options.push_revision, options.revision) == (REPO, "b", "weights")
    assert parser.parse_args([]).push_to_hub is None
    alone = argparse.ArgumentParser()
    add_publish_arguments(alone, standalone=True)
    options = alone.parse_args(["folder", REPO, "--revision", "b"])
    assert (options.targets, options.push_revision) == (["folder", REPO], "b")
    assert not any("token" in option for option in alone._option_string_actions)


def test_messages_never_hold_the_token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    error = OSError(f"bad header Bearer {TOKEN}")
    assert TOKEN not in str(failure("Trying", error)) and "***" in str(failure("Trying", error))


def test_waits_are_those_asked_for_and_bounded():
    class Answer:
        status_code, headers = 429, {"Retry-After": "7"}

    error = OSError("slow down")
    assert wait_before_retry("Asking", error, 2.0) == 2.0
    error.response = Answer()
    assert wait_before_retry("Asking", error, 2.0) == 7.0
    Answer.headers = {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}
    assert wait_before_retry("Asking", error, 2.0) == 2.0


def test_calls_end_after_all_waits_and_lasting_errors_are_not_repeated():
    calls, waited = [], []
    client = HubClient(waits=(1.0, 2.0), sleep=waited.append)

    def fail(error):
        calls.append(1)
        raise error

    with pytest.raises(PublishError, match="Asking failed: down"):
        client.call("Asking", fail, ConnectionError("down"))
    assert len(calls) == 3 and waited == [1.0, 2.0]
    with pytest.raises(PublishError, match="Asking failed: no such file"):
        client.call("Asking", fail, FileNotFoundError("no such file"))
    assert len(calls) == 4


@pytest.fixture
def pair(tmp_path):
    """A dense and a packing folder, and features of both."""
    dense = verified_folder(tmp_path / "dense")
    packing = verified_folder(tmp_path / "packing", "packing")
    return dense, packing, features_folder(tmp_path / "features", dense=dense, packing=packing)


def card_and_pin(hub, repo_id=REPO, revision="main"):
    card = hub.repo(repo_id).files(revision)["README.md"].read().decode()
    return card, CardRecord.read(card).pin


@pytest.mark.long
def test_two_models_are_pushed_together_with_features_and_name_each_other(hub, pair):
    dense, packing, features = pair
    other = "user/packing"
    out = push(hub, dense, packing, other, "--features", features, "--dry_run")
    assert not hub.repos and out.count("dry run: nothing was sent") == 2 and out.count("# packing\n") == 1
    push(hub, dense, packing, other, "--features", features)
    pins = {repo_id: card_and_pin(hub, repo_id)[1] for repo_id in (REPO, other)}
    assert all(re.fullmatch(r"verified-\w{12}-\w{12}", pin) for pin in pins.values())
    for repo_id, sibling in ((REPO, other), (other, REPO)):
        card, pin = card_and_pin(hub, repo_id)
        assert CardRecord.read(card).sibling == f"{sibling}@{pins[sibling]}"
        assert hub.repo(repo_id).at(pin) is hub.repo(repo_id).at()
        assert "verification/features_hf.npz" in hub.repo(repo_id).files(pin)
    # The sibling that the card names stays named when nothing but the card's text changes.
    push(hub, dense, "--base_model", "user/base")
    assert CardRecord.read(card_and_pin(hub)[0]).sibling == f"{other}@{pins[other]}"
    assert "verification/features_hf.npz" in hub.repo(REPO).files() and card_and_pin(hub)[1] == pins[REPO]
    assert "a dense and a packing one, to two repos" in push(hub, dense, dense, other, code=2)
    assert "sibling is for one model" in push(hub, dense, packing, other, "--sibling", "user/x", code=2)
    assert "expected FOLDER REPO_ID" in push(hub, dense, packing, code=2)


@pytest.mark.long
def test_features_of_other_weights_are_refused_replaced_or_removed(hub, pair, tmp_path):
    dense, _, features = pair
    push(hub, dense, "--features", features)
    hub.repo(REPO).commit({"verification/notes.md": b"mine"}, "Notes")
    new = verified_folder(tmp_path / "new", seed=1)
    before = hub.repo(REPO).at()
    out = push(hub, new, code=1)
    assert "not of this model: model.safetensors is another" in out and "--remove_features" in out
    assert "features of another model than" in push(hub, new, "--features", features, code=1)
    assert "give one" in push(hub, new, "--features", features, "--remove_features", code=2)
    assert "with_inputs goes with features" in push(hub, new, "--with_inputs", code=2)
    assert hub.repo(REPO).at() is before

    again = features_folder(tmp_path / "again", dense=new)
    (again / "features_packing.npz").unlink()
    push(hub, new, "--features", again)
    below = {name for name in hub.repo(REPO).files() if name.startswith("verification/")}
    assert below == {
        f"verification/{name}" for name in ("metadata.json", "features_hf.npz", "report.json", "notes.md")
    }
    _, pin = card_and_pin(hub)
    assert hub.repo(REPO).at(pin) is hub.repo(REPO).at()

    out = push(hub, dense, "--remove_features")
    assert "deleted from the repo: verification/metadata.json" in out
    assert [name for name in hub.repo(REPO).files() if name.startswith("verification/")] == ["verification/notes.md"]
    card, pin = card_and_pin(hub)
    assert re.fullmatch(r"verified-\w{12}", pin) and "### Compare features" not in card


@pytest.mark.long
def test_later_features_move_the_card_to_a_new_tag_and_the_old_one_stays(hub, pair):
    dense, _, features = pair
    push(hub, dense)
    card, first = card_and_pin(hub)
    said = push_features(hub, features, REPO, token=TOKEN)
    changed, second = card_and_pin(hub)
    assert second.startswith(f"{first}-") and said.startswith(f"{REPO}@{second} {hub.endpoint}/{REPO}/commit/")
    assert titles(hub)[0] == "Add features for verification"
    assert hub.repo(REPO).at(second) is hub.repo(REPO).at()
    assert hub.repo(REPO).files(first)["README.md"].read().decode() == card
    assert "verification/metadata.json" not in hub.repo(REPO).files(first)
    assert f"--reference {REPO}@{second}" in changed and first not in changed.replace(second, "").replace(
        f'"model": "{first}"', ""
    )
    # As if both had been published together.
    push(hub, dense, "--features", features)
    assert hub.repo(REPO).at(second) is hub.repo(REPO).at() and card_and_pin(hub)[1] == second
    assert "nothing to propose" in push_features(hub, features, REPO, "pr", token=TOKEN, code=1)
    (features / "report.txt").write_text("other")
    assert push_features(hub, features, REPO, "pr", token=TOKEN).startswith(
        f"{REPO}@refs/pr/1 {hub.endpoint}/{REPO}/discussions/1"
    )
    assert card_and_pin(hub, revision="refs/pr/1")[1] == "refs/pr/1" and card_and_pin(hub)[1] == second


def test_the_card_can_be_written_without_the_hub(hub, folder, tmp_path):
    push(hub, folder, "--card_out", str(tmp_path / "card.md"), "--project_url", "https://example.org/x", token=None)
    assert not hub.requests
    card = (tmp_path / "card.md").read_text()
    assert "**Verified: PASS.**" in card and "[llava_vit_hf](https://example.org/x)" in card
    assert card in push(hub, folder, "--dry_run", "--project_url", "https://example.org/x")
    assert "must be a web address" in push(hub, folder, "--dry_run", "--project_url", "javascript:x", code=2)
