# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Verification: dense with packing, and a run with a published one, from a folder and from a Hub."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from examples import verify_features
from examples.extraction.files import write_json
from examples.extraction.publishing import publish
from tests.examples.commands import EXAMPLES, ROOT, contents, environment, extract, read_lines
from tests.loopback_hub import LoopbackHub


@pytest.fixture
def mine(four_features, tmp_path):
    """A copy of the four files' features, to be changed."""
    return shutil.copytree(four_features, tmp_path / "mine")


@pytest.fixture
def verify(capsys):
    """Runs the script in this process: its exit code and all it printed."""

    def call(*arguments) -> tuple[int, str]:
        code = verify_features.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


def change_arrays(folder, file: str, change) -> None:
    with np.load(folder / file) as archive:
        arrays = {name: archive[name] for name in archive.files}
    change(arrays)
    np.savez(folder / file, **arrays)


def change_metadata(folder, change) -> None:
    metadata = json.loads((folder / "metadata.json").read_text())
    change(metadata)
    write_json(folder / "metadata.json", metadata)


def test_four_files_pass_and_the_report_is_kept(four_features, verify):
    code, output = verify("--features_dir", four_features)
    assert code == 0 and output.count("PASS") == 5
    assert (four_features / "report.txt").read_text() == output
    report = json.loads((four_features / "report.json").read_text())
    assert report["passed"] and [row["name"] for row in report["inputs"]] == ["image1", "image2", "video1", "video2"]
    for name in ("image1", "video1"):
        with (
            np.load(four_features / "features_hf.npz") as dense,
            np.load(four_features / "features_packing.npz") as packing,
        ):
            assert dense[name].ndim == 3 and packing[name].ndim == 2 and dense[name].dtype == np.float32


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda arrays: arrays.update(image1=arrays["image1"][:-1]), "image1: shape"),
        (lambda arrays: arrays["video2"].__setitem__((0, 0), np.nan), "video2: a value is NaN"),
        (lambda arrays: arrays.pop("image2"), "image2: missing from the packing features"),
        (lambda arrays: arrays.update(video1=arrays["video1"] * 1.001), "video1: relative error"),
        (lambda arrays: arrays.update(video1=arrays["video1"][::-1].copy()), "video1: min cosine"),
    ],
)
def test_faults_fail(mine, verify, change, reason):
    change_arrays(mine, "features_packing.npz", change)
    code, output = verify("--features_dir", mine)
    assert code == 1 and reason in output and ": FAIL\n--diagnose runs the models" in output


@pytest.mark.long
@pytest.mark.once
def test_a_diagnosis_names_what_each_model_looks_like(mine, models, tmp_path, verify):
    """Of a right dense model, a packing model with a norm left out, and one that is not here."""
    broken = shutil.copytree(models / "tiny_packing", tmp_path / "broken")
    code = broken / "modeling_llava_vit.py"
    assert code.read_text().count("self.layernorm_post(hidden_states)") == 1
    code.write_text(code.read_text().replace("self.layernorm_post(hidden_states)", "hidden_states"))
    change_metadata(mine, lambda metadata: metadata["models"]["packing"].update(path=str(broken)))
    change_arrays(mine, "features_packing.npz", lambda arrays: arrays.update(video1=arrays["video1"] * 1.001))
    code, output = verify("--features_dir", mine, "--diagnose")
    assert code == 1 and f"dense model: {models / 'tiny_dense'} is right on a small image" in output
    assert "packing model: looks like the norm after the last layer left out: cosine 1.0000" in output
    change_metadata(mine, lambda metadata: metadata["models"].pop("dense"))
    change_metadata(mine, lambda metadata: metadata["models"]["packing"].update(path="packing"))
    code, output = verify("--features_dir", mine, "--diagnose")
    assert code == 1 and "packing model: packing is no model folder on this machine" in output


def test_nothing_is_diagnosed_that_passes(four_features, verify):
    assert "model:" not in verify("--features_dir", four_features, "--diagnose")[1]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("features_hf.npz", None, "features_hf.npz: no such file"),
        ("features_packing.npz", b"PK nonsense", "not a readable .npz"),
        ("metadata.json", b"{", "is not JSON"),
        ("metadata.json", b'{"dtype": "float8"}', "the field dtype"),
    ],
)
def test_damaged_folders_are_named(mine, verify, file, content, message):
    (mine / file).unlink()
    if content is not None:
        (mine / file).write_bytes(content)
    code, output = verify("--features_dir", mine)
    assert code == 2 and message in output


def test_a_published_run_compares_as_the_same(four_features, mine, tmp_path, verify):
    place = publish(mine, str(tmp_path / "model"))
    assert place == str(tmp_path / "model" / "verification")
    code, output = verify("--features_dir", four_features, "--reference", tmp_path / "model")
    assert code == 0 and output.count("same (") == 4 and "8 of 8 comparisons pass" in output
    assert "made from the same: PASS" in output


def set_hash(metadata, *place):
    for name in place[:-1]:
        metadata = metadata[name]
    metadata[place[-1]] = {"model.safetensors": "0" * 64} if place[-1] == "weights_sha256" else "0" * 64


@pytest.mark.parametrize(
    ("place", "origin", "name"),
    [
        (("inputs", "image2", "dense", "sha256"), "inputs", "image2"),
        (("inputs", "video1", "packing", "pixels_sha256"), "frames", "video1 packing"),
        (("models", "dense", "processor_sha256"), "processor", "dense"),
        (("models", "packing", "weights_sha256"), "weights", "packing"),
    ],
)
def test_what_a_run_was_made_from_is_named_before_features(four_features, mine, verify, place, origin, name):
    change_metadata(mine, lambda metadata: set_hash(metadata, *place))
    code, output = verify("--features_dir", mine, "--reference", four_features)
    lines = output.splitlines()
    different = [index for index, line in enumerate(lines) if "DIFFERENT" in line]
    assert code == 1 and len(different) == 1
    assert lines[different[0]].startswith(f"{origin:<10} DIFFERENT: {name}:")
    assert different[0] < next(index for index, line in enumerate(lines) if "min cos" in line)
    assert "8 of 8 comparisons pass" in output and "not made from the same: FAIL\n" in output


def test_other_frames_are_told_by_their_numbers(four_features, mine, verify):
    def other_frames(metadata):
        metadata["inputs"]["video1"]["dense"]["frame_indices"] = [0, 1, 2, 3, 4, 5, 6, 7]

    change_metadata(mine, other_frames)
    code, output = verify("--features_dir", mine, "--reference", four_features)
    assert code == 1 and "video1 dense: frame_indices [0, 1, 2, 3, 4, 5, 6, 7]" in output


def test_other_features_of_the_same_origin_fail(four_features, mine, verify):
    change_arrays(mine, "features_hf.npz", lambda arrays: arrays["image1"].__imul__(1.01))
    code, output = verify("--features_dir", mine, "--reference", four_features)
    assert code == 1 and output.count("same (") == 4 and "image1 dense: relative error" in output


def test_hashes_that_were_not_recorded_are_not_the_same(four_features, mine, verify):
    change_metadata(mine, lambda metadata: [model.pop("weights_sha256") for model in metadata["models"].values()])
    code, output = verify("--features_dir", mine, "--reference", four_features)
    assert code == 1 and "weights    DIFFERENT: dense was recorded there only" in output


def test_many_inputs_compare_by_layer(many_features, tmp_path, verify):
    code, output = verify("--features_dir", many_features)
    assert code == 2 and "pass --reference" in output
    other = shutil.copytree(many_features, tmp_path / "other")
    code, output = verify("--features_dir", many_features, "--reference", other)
    assert code == 0 and "198 of 198 comparisons pass" in output
    lines = (other / "index.jsonl").read_text().splitlines(keepends=True)
    (other / "index.jsonl").write_text("".join(lines[1:]))
    code, output = verify("--features_dir", many_features, "--reference", other)
    assert code == 1 and "00.png pooler: missing from the reference" in output


def test_publishing_replaces_a_run_and_hides_paths(many_features, mine, four_files, tmp_path):
    target = tmp_path / "model" / "verification"
    partial = many_features / "shards" / ".partial-00000.safetensors"
    partial.write_bytes(b"of a killed run")
    publish(many_features, str(tmp_path / "model"))
    partial.unlink()
    assert not list((tmp_path / "model").rglob(".*"))
    # What a run needs to be continued stays.
    assert contents(target).keys() == contents(many_features).keys() - {"inputs.jsonl"}
    (target / "notes.md").write_text("kept")
    publish(mine, str(tmp_path / "model"))
    assert contents(target).keys() == contents(mine).keys() | {"notes.md"}
    assert str(four_files) in (mine / "metadata.json").read_text()
    assert not any(str(four_files).encode() in content for content in contents(target).values())
    with pytest.raises(ValueError, match="nothing to publish"):
        publish(tmp_path, str(tmp_path / "model"))


def test_a_failed_run_is_not_published(four_arguments, tmp_path, capsys):
    arguments = [*four_arguments, "--output_dir", tmp_path / "f", "--publish", tmp_path / "model", "--threshold", 2]
    assert extract(*arguments) == 1
    assert "not published" in capsys.readouterr().err and not (tmp_path / "model").exists()


# Where a Hub is, huggingface_hub reads when it is imported: so in processes of their own.
PUBLISH = """
import sys
from pathlib import Path
from examples.extraction.publishing import publish
for folder, repo_id in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        print(publish(Path(folder), repo_id))
    except ValueError as error:
        print(f"refused: {error}")
"""
VERIFY = """
import sys
from examples import verify_features
for reference in sys.argv[2:]:
    code = verify_features.main(["--features_dir", sys.argv[1], "--reference", reference])
    print(f"exit code {code}", flush=True)
"""


def run_program(program: str, *arguments, env: dict[str, str]) -> str:
    """All that a Python program prints; it must exit with 0."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    result = subprocess.run(
        command, env={**env, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_through_the_hub(models, four_features, mine, tmp_path):
    """Publishing is one commit, which a verifier can pin; later commits do not matter then."""
    change_arrays(mine, "features_hf.npz", lambda arrays: arrays.pop("image1"))
    with LoopbackHub() as hub:
        hub.add_token("hf_writer", "user")
        repo = hub.create_repo("user/model")
        repo.commit({path.name: path.read_bytes() for path in (models / "tiny_dense").iterdir()}, "A model")
        writer = environment(**hub.client_environment(tmp_path / "writer", token="hf_writer"))
        urls = run_program(PUBLISH, four_features, "user/model", mine, "user/model", env=writer).splitlines()
        assert len(urls) == len(hub.matching("POST", "/commit/")) == 2
        names = {name for name in repo.files() if name.startswith("verification/")}
        assert names == {f"verification/{name}" for name in contents(four_features)}
        # The model has no card of ours that could name a tag, so what to pin is the commit.
        pinned = urls[0].split()[0]
        assert pinned == f"user/model@{urls[0].split('/commit/')[1]}"

        reader = environment(**hub.client_environment(tmp_path / "reader"))
        output = run_program(VERIFY, four_features, pinned, "user/model", "user/none", env=reader)
        same, changed, missing, _ = re.split(r"(?<=exit code \d)\n", output)
        assert "made from the same: PASS" in same and same.endswith("exit code 0")
        assert "image1 dense: missing from the reference" in changed and changed.endswith("exit code 1")
        assert "--reference user/none" in missing and missing.endswith("exit code 2")
        repo.commit({"modeling_llava_vit.py": b"# another\n"}, "Other code")
        hub.create_repo("user/bert").commit({"config.json": b'{"model_type": "bert"}'}, "Another model")
        arguments = [
            part for repo_id in ("user/none", "not a repo id", "user/model", "user/bert") for part in (mine, repo_id)
        ]
        none, no_id, other, bert = run_program(PUBLISH, *arguments, env=writer).splitlines()
        assert none.startswith("refused: --publish user/none") and "not a repo id" in no_id
        assert "user/bert holds no model of this project" in bert
        assert "of another model than user/model holds: modeling_llava_vit.py is another" in other
        assert len(hub.matching("POST", "/commit/")) == 2


@pytest.mark.long
@pytest.mark.once
def test_the_other_transformers_version_gives_the_same(four_arguments, four_features, other_python, tmp_path, verify):
    command = [other_python, EXAMPLES / "extract_features.py", *four_arguments, "--output_dir", tmp_path]
    result = subprocess.run(
        [str(part) for part in command],
        env=environment(HF_MODULES_CACHE=str(tmp_path / "modules"), PYTHONPATH=""),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    code, output = verify("--features_dir", tmp_path, "--reference", four_features)
    versions = [json.loads((folder / "metadata.json").read_text())["versions"] for folder in (tmp_path, four_features)]
    assert versions[0]["transformers"] != versions[1]["transformers"]
    assert code == 0 and output.count("same (") == 4, output


def test_index_lines_hold_what_a_verifier_needs(many_features):
    for record in read_lines(many_features / "index.jsonl"):
        assert {"id", "shard", "keys", "grid_thw", "tokens", "sha256", "pixels_sha256"} <= record.keys()
        assert (many_features / record["shard"]).is_file()
