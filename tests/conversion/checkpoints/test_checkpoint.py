# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Reading checkpoints: every form they are found in, and every way they can be bad."""

import hashlib
import json
import os
import pickle
import zipfile
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from conversion.checkpoints import readers
from conversion.checkpoints.checkpoint import Checkpoint, CheckpointError, read_checkpoint, strip_prefixes
from tests.conversion.weights import peaked_state_dict, tiny_config


@pytest.fixture(scope="module")
def weights():
    return peaked_state_dict(tiny_config(num_hidden_layers=1))


def require_same(checkpoint: Checkpoint, weights: dict) -> None:
    assert checkpoint.layout == "source"
    assert checkpoint.specs.keys() == weights.keys()
    for name, tensor in checkpoint.items():
        assert torch.equal(tensor, weights[name]), name
        assert checkpoint.specs[name] == (tuple(tensor.shape), tensor.dtype)


def save_sharded(folder: Path, weights: dict) -> None:
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_pickle_files(tmp_path, weights, suffix):
    torch.save(weights, tmp_path / f"backbone{suffix}")
    require_same(read_checkpoint(tmp_path / f"backbone{suffix}"), weights)


def test_pickle_in_the_format_before_torch_1_6(tmp_path, weights):
    torch.save(weights, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    require_same(read_checkpoint(tmp_path / "old.pt"), weights)


def test_safetensors_file_with_its_hash_and_size(tmp_path, weights):
    path = tmp_path / "backbone.safetensors"
    save_file(weights, path)
    checkpoint = read_checkpoint(str(path))
    require_same(checkpoint, weights)
    assert checkpoint.sha256() == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in weights.values())
    assert checkpoint.dtypes == {torch.float32}


def test_folders(tmp_path, weights):
    for name in ("single", "sharded", "pickled"):
        (tmp_path / name).mkdir()
    save_file(weights, tmp_path / "single" / "model.safetensors")
    save_sharded(tmp_path / "sharded", weights)
    torch.save(weights, tmp_path / "pickled" / "pytorch_model.bin")
    for folder in tmp_path.iterdir():
        (folder / "config.json").write_text('{"hidden_size": 64}')
        checkpoint = read_checkpoint(folder)
        require_same(checkpoint, weights)
        assert checkpoint.config == {"hidden_size": 64}
    assert len(read_checkpoint(tmp_path / "sharded").sha256()) == 2


@pytest.mark.parametrize("wrap", [{"model"}, {"state_dict"}, {"model", "epoch"}])
def test_wrapped_state_dicts(tmp_path, weights, wrap):
    content = {key: 3 if key == "epoch" else weights for key in wrap}
    torch.save(content, tmp_path / "wrapped.pt")
    require_same(read_checkpoint(tmp_path / "wrapped.pt"), weights)
    torch.save({"state_dict": {"model": weights}}, tmp_path / "twice.pt")
    require_same(read_checkpoint(tmp_path / "twice.pt"), weights)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."])
def test_prefixes_of_all_names_are_stripped(tmp_path, weights, prefix):
    torch.save({"model": {prefix + name: tensor for name, tensor in weights.items()}}, tmp_path / "prefixed.pt")
    require_same(read_checkpoint(tmp_path / "prefixed.pt"), weights)


def test_a_prefix_of_some_names_stays():
    assert strip_prefixes(["module.a", "b"]) == {"module.a": "module.a", "b": "b"}
    assert strip_prefixes(["module.a", "module.module.b"]) == {"a": "module.a", "module.b": "module.module.b"}


def test_renewed_mappings_hand_out_the_same_values(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(readers, "_WINDOW_BYTES", 1000)
    torch.save(weights, tmp_path / "a.pt")
    save_file(weights, tmp_path / "a.safetensors")
    for suffix in (".pt", ".safetensors"):
        require_same(read_checkpoint(tmp_path / f"a{suffix}"), weights)


class Payload:
    """Unpickling this would make a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("as_zip", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, weights, as_zip):
    content = weights | {"payload": Payload(tmp_path / "ran")}
    torch.save(content, tmp_path / "evil.pt", _use_new_zipfile_serialization=as_zip)
    with pytest.raises(CheckpointError, match=r"evil\.pt.*mkdir.*refused"):
        read_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_arguments_of_training_beside_the_weights_are_skipped(tmp_path, weights):
    torch.save({"model": weights, "args": Namespace(lr=1, nested=Namespace(seed=2))}, tmp_path / "args.pt")
    require_same(read_checkpoint(tmp_path / "args.pt"), weights)
    # Only while the file is read.
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "args.pt", weights_only=True)


def test_objects_beside_the_weights_are_named_without_advising_to_trust_them(tmp_path, weights):
    torch.save({"model": weights, "args": Namespace(output=SimpleNamespace(lr=1))}, tmp_path / "args.pt")
    with pytest.raises(CheckpointError, match="types.SimpleNamespace") as caught:
        read_checkpoint(tmp_path / "args.pt")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("wrapped", ["", "module."])
def test_an_encoder_within_a_larger_model_is_taken_by_its_prefix(tmp_path, weights, wrapped):
    larger = {f"{wrapped}visual.trunk.{name}": tensor for name, tensor in weights.items()}
    larger |= {
        f"{wrapped}{name}": torch.ones(3) for name in ("visual.head.proj.weight", "text.embedding", "logit_scale")
    }
    save_file(larger, tmp_path / "clip.safetensors")
    require_same(read_checkpoint(tmp_path / "clip.safetensors", prefix="visual.trunk."), weights)
    with pytest.raises(
        CheckpointError, match=r"under the prefix 'visual\.trunk\.'\. Give it as --prefix visual\.trunk\."
    ):
        read_checkpoint(tmp_path / "clip.safetensors")
    with pytest.raises(
        CheckpointError, match=r"no name that starts with 'vision\.'; names start with logit_scale, text"
    ):
        read_checkpoint(tmp_path / "clip.safetensors", prefix="vision.")


@pytest.mark.parametrize("version", ["2.5.1", "2.9.1", "2.9.1+cu128"])
def test_torch_with_a_published_bypass_reads_safetensors_only(tmp_path, weights, monkeypatch, version):
    torch.save(weights, tmp_path / "a.pt")
    save_file(weights, tmp_path / "a.safetensors")
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(CheckpointError, match=r"torch>=2\.10"):
        read_checkpoint(tmp_path / "a.pt")
    require_same(read_checkpoint(tmp_path / "a.safetensors"), weights)
    monkeypatch.setattr(torch, "__version__", "2.10.0")
    require_same(read_checkpoint(tmp_path / "a.pt"), weights)


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".old.pt"])
def test_truncated_files(tmp_path, weights, suffix, fraction):
    path = tmp_path / f"cut{suffix}"
    if suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=suffix == ".pt")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(CheckpointError, match="cut"):
        read_checkpoint(path)


FOREIGN = [b"not a checkpoint", b"\x80\x02garbage", b"PK\x03\x04garbage", b"\x80\x02}q\x00."]


@pytest.mark.parametrize("content", FOREIGN)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_of_another_kind(tmp_path, suffix, content):
    (tmp_path / f"text{suffix}").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"text\{suffix}"):
        read_checkpoint(tmp_path / f"text{suffix}")


def test_a_zip_that_torch_did_not_write(tmp_path):
    with zipfile.ZipFile(tmp_path / "foreign.pt", "w") as archive:
        archive.writestr("data.pkl", b"hello")
    with pytest.raises(CheckpointError, match=r"foreign\.pt"):
        read_checkpoint(tmp_path / "foreign.pt")


@pytest.mark.parametrize("content", [[torch.zeros(1)], {}, {"epoch": 3}, {"model": {"a": 1}}, torch.zeros(2)])
def test_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_checkpoint(tmp_path / "other.pt")


def test_two_state_dicts_are_not_guessed_between(tmp_path, weights):
    torch.save({"model": weights, "state_dict": weights}, tmp_path / "two.pt")
    with pytest.raises(CheckpointError, match="'model' is a dict"):
        read_checkpoint(tmp_path / "two.pt")


def test_another_architecture_is_named_by_its_weights():
    with pytest.raises(CheckpointError, match="another architecture.*class_embedding"):
        Checkpoint.from_state_dict({"class_embedding": torch.zeros(3), "conv1.weight": torch.zeros(4, 3, 2, 2)})


def test_quantized_weights_are_refused(weights):
    with pytest.raises(CheckpointError, match=r"ln_pre.weight \(torch.int8\)"):
        Checkpoint.from_state_dict(weights | {"ln_pre.weight": weights["ln_pre.weight"].to(torch.int8)})


def test_missing_paths_and_unknown_suffixes(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "absent.pt")
    (tmp_path / "weights.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"'\.onnx'; expected"):
        read_checkpoint(tmp_path / "weights.onnx")
    with pytest.raises(CheckpointError, match="expected model.safetensors"):
        read_checkpoint(tmp_path)


def test_a_repository_that_cannot_be_reached(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="nobody/nothing is neither a file nor a folder"):
        read_checkpoint("nobody/nothing")


def test_a_repository_is_fetched_without_code_and_pickles(monkeypatch, tmp_path, weights):
    monkeypatch.chdir(tmp_path)
    save_file(weights, tmp_path / "model.safetensors")
    asked = {}

    def snapshot_download(repo_id, **arguments):
        asked.update(arguments, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr("conversion.checkpoints.checkpoint.snapshot_download", snapshot_download)
    checkpoint = read_checkpoint("user/name", revision="abc")
    require_same(checkpoint, weights)
    assert checkpoint.location == "user/name"
    assert (asked["repo_id"], asked["revision"]) == ("user/name", "abc")
    assert asked["allow_patterns"] == ["*.json", "*.safetensors", "*.txt"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda index: index.pop("weight_map"), "no weight_map"),
        (lambda index: index["weight_map"].update(spare="../model-00001-of-00002.safetensors"), "outside its folder"),
        (lambda index: index["weight_map"].update(spare="absent.safetensors"), "missing: absent"),
        (lambda index: index["weight_map"].update(spare="model-00001-of-00002.safetensors"), "lists spare"),
    ],
)
def test_bad_indices(tmp_path, weights, change, message):
    save_sharded(tmp_path, weights)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", '"a"', "[" * 100_000])
def test_bad_config(tmp_path, weights, text):
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_checkpoint(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path, weights):
    save_sharded(tmp_path, weights)
    save_file(weights, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="stored twice"):
        read_checkpoint(tmp_path)


def test_tensors_without_data_are_refused(weights):
    with pytest.raises(CheckpointError, match="no dense CPU tensor"):
        Checkpoint.from_state_dict(weights | {"ln_pre.weight": torch.zeros(64, device="meta")})
