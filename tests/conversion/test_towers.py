# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Towers of VLMs: out of a checkpoint, verified, and back into it."""

import hashlib
import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor

from conversion import convert_back, convert_llava_vit_to_hf, convert_vlm_tower_to_hf, put_tower_into_vlm, verify_model
from conversion.checkpoints.checkpoint import read_checkpoint
from conversion.checkpoints.source_config import read_source
from conversion.common.report_schema import FAIL, PASS
from conversion.source.small_vlm import PREFIX, small_tower, vlm_config, write_vlm
from conversion.verification.faults import FAULTS, TOWER_FAULTS, faults_of
from conversion.verification.verify import VerificationRequest, verify_folder
from tests.conversion.scripts import ROOT
from tests.loopback_hub import LoopbackHub


CONFIG = small_tower()
HURRY = ("--time_budget", "0.05")


def call(script, *arguments) -> int:
    return script.main([str(argument) for argument in arguments])


def take_out(vlm, output, *arguments) -> int:
    return call(convert_vlm_tower_to_hf, vlm, "--output_dir", output, *arguments)


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return write_vlm(tmp_path_factory.mktemp("vlm") / "vlm", CONFIG)


@pytest.fixture(scope="module")
def tower(vlm):
    """Taken out with its merger, and not verified."""
    output = vlm.parent / "tower"
    assert take_out(vlm, output, "--with_merger", "--skip_verification") == 0
    return output


def hashes(folder) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def edit_json(path, **fields) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def report_of(folder, vlm, with_merger: bool = True) -> dict:
    source = read_source(vlm, prefix=PREFIX, with_merger=with_merger)
    return verify_folder(VerificationRequest(folder, source, time_budget=0.05))


@pytest.mark.long
@pytest.mark.parametrize("with_merger", [True, False])
def test_a_tower_is_taken_out_verified_and_put_back(vlm, tmp_path, capsys, with_merger):
    before = hashes(vlm)
    asked = ("--with_merger",) if with_merger else ()
    assert take_out(vlm, tmp_path / "tower", *asked, *HURRY) == 0
    told = capsys.readouterr().out
    assert "verification PASS" in told and "attention in windows of 3 frames, patches in blocks of 2 x 2" in told
    assert ("left out merger.mlp.2.weight: the merger is the VLM's" in told) != with_merger
    report = json.loads((tmp_path / "tower" / "verification.json").read_text())
    faults = {control["name"] for control in report["controls"] if control["detected"]}
    wanted = {fault.name for fault in FAULTS + TOWER_FAULTS}
    assert faults == (wanted if with_merger else wanted - {"merge_transposed"})
    assert list(report["source"]["sha256"]) == ["model.visual.*"]
    assert call(put_tower_into_vlm, tmp_path / "tower", vlm, "--output_dir", tmp_path / "again", *HURRY) == 0
    told = capsys.readouterr().out
    assert ("left as they are" in told) != with_merger
    assert hashes(tmp_path / "again") == before == hashes(vlm)


def test_only_the_shards_of_the_tower_are_opened(vlm, tmp_path):
    folder = shutil.copytree(vlm, tmp_path / "part")
    shards = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    others = set(shards.values()) - {file for name, file in shards.items() if name.startswith(PREFIX)}
    assert others
    for file in others:
        (folder / file).unlink()
    assert take_out(folder, tmp_path / "tower", "--skip_verification") == 0
    # Negative control: one of the tower's own.
    needed = next(file for name, file in shards.items() if name == f"{PREFIX}encoder.layers.1.mlp.fc2.weight")
    (folder / needed).unlink()
    assert take_out(folder, tmp_path / "other", "--skip_verification") == 2


def test_projections_of_their_own_become_one(tmp_path):
    folder = write_vlm(tmp_path / "vlm", CONFIG, separate=True)
    assert take_out(folder, tmp_path / "tower", "--with_merger", "--skip_verification") == 0
    assert report_of(tmp_path / "tower", folder)["verdict"] == PASS
    assert (
        call(put_tower_into_vlm, tmp_path / "tower", folder, "--output_dir", tmp_path / "again", "--skip_verification")
        == 0
    )
    assert hashes(tmp_path / "again") == hashes(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"attention_window": 4},
        {"attention_window": None},
        {"merge_size": 1, "merger_output_size": None},
        {"rope_theta": 1e6},
        {"layer_norm_eps": 1e-5},
    ],
)
def test_a_folder_that_says_something_else_fails(vlm, tower, tmp_path, change):
    folder = shutil.copytree(tower, tmp_path / "tower")
    edit_json(folder / "config.json", **change)
    assert report_of(folder, vlm)["verdict"] == FAIL


@pytest.mark.parametrize("change", [{"merge_size": 1}, {"temporal_rule": "round"}])
def test_a_processor_that_does_something_else_fails(vlm, tower, tmp_path, change):
    folder = shutil.copytree(tower, tmp_path / "tower")
    edit_json(folder / "preprocessor_config.json", **change)
    try:
        report = report_of(folder, vlm)
    except RuntimeError as error:
        assert "merge_size" in str(error)
    else:
        assert report["verdict"] == FAIL


def test_exchanged_weights_fail(vlm, tower, tmp_path):
    folder = shutil.copytree(tower, tmp_path / "tower")
    weights = load_file(folder / "model.safetensors")
    name = "encoder.layers.1.self_attn.qkv.weight"
    q, k, v = weights[name].chunk(3)
    weights[name] = torch.cat([k, q, v])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert report_of(folder, vlm)["verdict"] == FAIL


def test_every_fault_of_towers_has_a_tower():
    assert faults_of(CONFIG) == FAULTS + TOWER_FAULTS
    plain = small_tower(attention_window=None, merge_size=1, merger_output_size=None, temporal_rule=None)
    assert [fault.name for fault in faults_of(plain)][len(FAULTS) :] == ["post_norm_added"]
    assert "leak" not in [fault.name for fault in faults_of(small_tower(attention_window=1))]


@pytest.mark.parametrize(
    "overrides",
    [{"merge_size": 3}, {"attention_window": 1}, {"attention_window": 11, "use_post_norm": True}, {"patch_size": 16}],
)
def test_other_towers(tmp_path, overrides):
    config = small_tower(**overrides)
    folder = write_vlm(tmp_path / "vlm", config)
    assert take_out(folder, tmp_path / "tower", "--with_merger", "--skip_verification") == 0
    report = report_of(tmp_path / "tower", folder)
    assert report["verdict"] == PASS, [case["reasons"] for case in report["cases"]]
    assert {control["name"] for control in report["controls"]} == {fault.name for fault in faults_of(config)}


def test_flat_weights_are_decided_on_peaked_ones(tmp_path):
    folder = write_vlm(tmp_path / "vlm", CONFIG, shards=1, dtype=torch.float32)
    (path,) = folder.glob("*.safetensors")
    weights = load_file(path)
    for name, tensor in weights.items():
        if ".qkv." in name:
            tensor *= 1e-3
    save_file(weights, path, metadata={"format": "pt"})
    assert take_out(folder, tmp_path / "tower", "--with_merger", "--skip_verification") == 0
    report = report_of(tmp_path / "tower", folder)
    assert report["verdict"] == PASS
    assert "peaked" in {control["weights"] for control in report["controls"]}


class TestErrors:
    @pytest.fixture
    def folder(self, vlm, tmp_path):
        return shutil.copytree(vlm, tmp_path / "broken")

    def refused(self, folder, tmp_path, capsys, *arguments) -> str:
        assert take_out(folder, tmp_path / "tower", *arguments) == 2
        assert not [path for path in tmp_path.iterdir() if "tower" in path.name and path.name != ".tower.lock"]
        return capsys.readouterr().err

    def reindexed(self, folder, change) -> None:
        """Changes the tensors of all shards, which become one."""
        weights = {}
        for path in folder.glob("*.safetensors"):
            weights |= load_file(path)
            path.unlink()
        (folder / "model.safetensors.index.json").unlink()
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    def test_half_a_tower(self, folder, tmp_path, capsys):
        self.reindexed(folder, lambda weights: weights.pop(f"{PREFIX}encoder.layers.1.self_attn.qkv.bias"))
        assert "nothing fills encoder.layers.1.self_attn.qkv.bias" in self.refused(folder, tmp_path, capsys)

    def test_q_without_k(self, tmp_path, capsys):
        folder = write_vlm(tmp_path / "broken", CONFIG, separate=True)
        self.reindexed(folder, lambda weights: weights.pop(f"{PREFIX}encoder.layers.1.self_attn.k_proj.weight"))
        assert "lacks encoder.layers.1.self_attn.k_proj.weight" in self.refused(folder, tmp_path, capsys)

    def test_another_family(self, folder, tmp_path, capsys):
        def renamed(weights):
            for name in [name for name in weights if name.startswith(PREFIX)]:
                weights[name.replace("encoder.layers", "blocks")] = weights.pop(name)

        self.reindexed(folder, renamed)
        assert "of another architecture" in self.refused(folder, tmp_path, capsys)

    def test_frames_in_pairs(self, folder, tmp_path, capsys):
        config = vlm_config(CONFIG, "qwen2_vl")
        config["vision_config"]["temporal_patch_size"] = 2
        (folder / "config.json").write_text(json.dumps(config))
        told = self.refused(folder, tmp_path, capsys)
        assert "temporal_patch_size=2" in told and "qwen2_vl" in told

    def test_no_tower(self, folder, tmp_path, capsys):
        told = self.refused(folder, tmp_path, capsys, "--prefix", "visual.")
        assert "no name that starts with 'visual.'" in told and "index.json" in told

    def test_another_width_of_the_merger(self, folder, tmp_path, capsys):
        config = vlm_config(CONFIG)
        config["vision_config"]["out_hidden_size"] = 64
        (folder / "config.json").write_text(json.dumps(config))
        assert "merger_output_size=64" in self.refused(folder, tmp_path, capsys, "--with_merger")
        assert take_out(folder, tmp_path / "without", "--skip_verification") == 0

    def test_no_merger_to_keep(self, folder, tmp_path, capsys):
        def without(weights):
            for name in [name for name in weights if "merger" in name]:
                del weights[name]

        self.reindexed(folder, without)
        assert "merger_output_size=None" in self.refused(folder, tmp_path, capsys, "--with_merger")

    def test_the_dense_model_refuses_windows(self, vlm, tower, tmp_path, capsys):
        output = ("--output_dir", tmp_path / "dense")
        assert call(convert_llava_vit_to_hf, "auto", vlm, "--prefix", PREFIX, *output) == 2
        assert "attention_window=3" in capsys.readouterr().err
        assert call(convert_back, tower, "--to", "dense", "--output", tmp_path / "dense") == 2
        assert "attention_window=3" in capsys.readouterr().err
        assert call(convert_back, tower, "--to", "source", "--output", tmp_path / "backbone.pt") == 2
        assert "put_tower_into_vlm.py" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []

    def test_diagnosis_is_not_for_towers(self, tower, capsys):
        assert call(verify_model, tower, "--diagnosis_only") == 2
        assert "tower of a VLM" in capsys.readouterr().err


class TestPutBack:
    def put(self, tower, vlm, output, *arguments) -> int:
        return call(put_tower_into_vlm, tower, vlm, "--output_dir", output, *arguments)

    def test_trained_weights_replace_exactly_the_tower(self, vlm, tower, tmp_path, capsys):
        model = AutoModel.from_pretrained(tower, trust_remote_code=True, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01 * torch.randn_like(parameter)
        model.save_pretrained(tmp_path / "trained")
        AutoProcessor.from_pretrained(tower, trust_remote_code=True).save_pretrained(tmp_path / "trained")
        assert self.put(tmp_path / "trained", vlm, tmp_path / "again", *HURRY) == 0
        told = capsys.readouterr().out
        assert "cast to the VLM's dtype, from float32" in told and "verification PASS" in told
        trained = model.state_dict()
        for path in sorted(vlm.glob("*.safetensors")):
            with safe_open(path, "pt") as before, safe_open(tmp_path / "again" / path.name, "pt") as after:
                assert before.metadata() == after.metadata()
                for name in before.keys():
                    old, new = before.get_tensor(name), after.get_tensor(name)
                    assert new.dtype == old.dtype == torch.bfloat16
                    if name.startswith(PREFIX):
                        ours = name.removeprefix(PREFIX).replace("embeddings.patch_embedding", "patch_embed.proj")
                        assert torch.equal(new, trained[ours].bfloat16()) and not torch.equal(new, old)
                    else:
                        assert torch.equal(new, old)
        assert hashes(vlm)["config.json"] == hashes(tmp_path / "again")["config.json"]

    def test_of_another_vlm(self, tower, tmp_path, capsys):
        for change, told in (
            ({"attention_window": 5}, "attention_window=3"),
            ({"num_hidden_layers": 3}, "num_hidden_layers"),
        ):
            other = write_vlm(tmp_path / told, small_tower(**change))
            assert self.put(tower, other, tmp_path / "again") == 2
            assert told in capsys.readouterr().err and not (tmp_path / "again").exists()

    def test_values_that_do_not_fit(self, vlm, tower, tmp_path, capsys):
        folder = shutil.copytree(tower, tmp_path / "tower")
        weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
        weights["layernorm_pre.bias"][3] = float("nan")
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        assert self.put(folder, vlm, tmp_path / "again") == 2
        assert "layernorm_pre.bias has NaN" in capsys.readouterr().err
        assert not (tmp_path / "again").exists() and not list(tmp_path.glob(".again.partial-*"))

    def test_a_vlm_that_is_no_folder(self, tower, tmp_path, capsys):
        assert self.put(tower, "user/name", tmp_path / "again") == 2
        assert "is no folder" in capsys.readouterr().err

    def test_a_plain_packing_folder(self, vlm, tmp_path, capsys):
        assert self.put(vlm, vlm, tmp_path / "again") == 2
        assert "error:" in capsys.readouterr().err


def test_reading_without_the_prefix_says_it(vlm):
    with pytest.raises(ValueError, match="--prefix model.visual."):
        read_checkpoint(vlm)


FETCH = """
import sys
from conversion import convert_vlm_tower_to_hf
sys.exit(convert_vlm_tower_to_hf.main(sys.argv[1:]))
"""
UPLOAD = """
import sys
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("user/vlm")
api.upload_folder(folder_path=sys.argv[1], repo_id="user/vlm")
"""


@pytest.mark.long
def test_a_repo_is_fetched_no_further_than_its_tower(vlm, tmp_path):
    with LoopbackHub() as hub:
        hub.add_token("hf_writer", "user")

        def run(script, *arguments) -> str:
            done = subprocess.run(
                [sys.executable, "-c", script, *map(str, arguments)],
                cwd=ROOT,
                env=hub.client_environment(tmp_path, token="hf_writer"),
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        run(UPLOAD, vlm)
        hub.requests.clear()
        told = run(FETCH, "user/vlm", "--output_dir", tmp_path / "tower", "--with_merger", "--skip_verification")
        assert "33 tensors" in told
        shards = json.loads((vlm / "model.safetensors.index.json").read_text())["weight_map"]
        wanted = {file for name, file in shards.items() if name.startswith(PREFIX)}
        asked = " ".join(request.path for request in hub.requests)
        fetched = {file for file in set(shards.values()) if file in asked}
        assert fetched == wanted < set(shards.values())
        assert hub.repo("user/vlm").log()[0].oid in asked
    assert (
        load_file(tmp_path / "tower" / "model.safetensors").keys()
        == AutoModel.from_pretrained(tmp_path / "tower", trust_remote_code=True).state_dict().keys()
    )


@pytest.mark.long
def test_a_tower_is_published_with_a_card_that_says_what_it_is(vlm, tmp_path):
    assert take_out(vlm, tmp_path / "tower", "--with_merger", *HURRY) == 0
    with LoopbackHub() as hub:
        hub.add_token("hf_writer", "user")
        script = ROOT / "conversion" / "push_to_hub.py"
        done = subprocess.run(
            [sys.executable, script, tmp_path / "tower", "user/tower"],
            env=hub.client_environment(tmp_path, token="hf_writer"),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and "loaded back and equal" in done.stdout, done.stderr
        card = hub.repo("user/tower").files()["README.md"].read().decode()
    for said in (
        "the vision tower of a VLM",
        "in windows of 3 frames",
        "in blocks of 2 x 2",
        "(and `--prefix model.visual.`)",
        "| merged_hidden_state |",
    ):
        assert said in card, said
    assert "**dense** sibling" not in card
