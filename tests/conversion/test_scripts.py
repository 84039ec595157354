# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The scripts as a user meets them: all directions, all sources, and one clear error for every bad input."""

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from conversion import (
    convert_back,
    convert_llava_vit_packing_to_hf,
    convert_llava_vit_to_hf,
    convert_vit_preview_v0_hf_to_packing,
)
from conversion.checkpoints.checkpoint import read_checkpoint
from tests.conversion.scripts import run_script
from tests.conversion.weights import peaked_state_dict, tiny_config


pytestmark = pytest.mark.long


CONFIG = tiny_config(patch_size=14)
HURRY = ("--time_budget", "0.05")


@pytest.fixture
def backbone(tmp_path):
    path = tmp_path / "backbone.pt"
    torch.save(peaked_state_dict(CONFIG), path)
    return path


def call(script, *arguments) -> int:
    return script.main([str(argument) for argument in arguments])


def unverified(backbone, output, *arguments, script=convert_llava_vit_to_hf) -> int:
    heads = ("--num_attention_heads", 2)
    return call(script, "auto", backbone, *heads, "--output_dir", output, "--skip_verification", *arguments)


def test_source_to_dense_and_back_with_verification(tmp_path, backbone):
    result = run_script(
        "convert_llava_vit_to_hf.py",
        "auto",
        backbone,
        "--num_attention_heads",
        2,
        "--output_dir",
        tmp_path / "dense",
        *HURRY,
    )
    assert result.returncode == 0, result.stderr
    assert "verification PASS" in result.stdout and "nearest structural fault" in result.stdout
    assert "verify dense" in result.stderr
    report = json.loads((tmp_path / "dense" / "verification.json").read_text())
    assert report["verdict"] == "PASS" and report["source"]["sha256"].keys() == {"backbone.pt"}
    assert call(convert_back, tmp_path / "dense", "--to", "source", "--output", tmp_path / "back.pt", *HURRY) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.pt", "backbone.pt", "dense"]
    require_same_bytes(backbone, tmp_path / "back.pt")


def require_same_bytes(first, second):
    first, second = dict(read_checkpoint(first).items()), dict(read_checkpoint(second).items())
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert torch.equal(tensor.view(torch.uint8), second[name].view(torch.uint8)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_round_returns_the_same_bytes(tmp_path, dtype):
    torch.save(peaked_state_dict(CONFIG, dtype=dtype), tmp_path / "backbone.pt")
    skip = "--skip_verification"
    assert unverified(tmp_path / "backbone.pt", tmp_path / "dense") == 0
    to_packing = convert_vit_preview_v0_hf_to_packing
    assert call(to_packing, tmp_path / "dense", "--output_dir", tmp_path / "packing", skip) == 0
    assert call(convert_back, tmp_path / "packing", "--to", "dense", "--output", tmp_path / "dense2", skip) == 0
    for suffix in ("pt", "safetensors"):
        output = tmp_path / f"back.{suffix}"
        assert call(convert_back, tmp_path / "dense2", "--to", "source", "--output", output, skip) == 0
        require_same_bytes(tmp_path / "backbone.pt", output)
    require_same_bytes(tmp_path / "dense", tmp_path / "dense2")
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        assert (tmp_path / "dense" / name).read_bytes() == (tmp_path / "dense2" / name).read_bytes()


@pytest.mark.parametrize("script", [convert_llava_vit_to_hf, convert_llava_vit_packing_to_hf])
def test_the_public_layout_is_a_source(tmp_path, backbone, capsys, script):
    assert unverified(backbone, tmp_path / "ours") == 0
    public = tmp_path / "onevision"
    public.mkdir()
    shutil.copy(tmp_path / "ours" / "model.safetensors", public)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    config = {key: config[key] for key in config if key not in ("auto_map", "head_norm_eps", "architectures")}
    config |= {"model_type": "onevision_encoder", "layer_norm_eps": 1e-6, "rope_temporal_size": 64}
    (public / "config.json").write_text(json.dumps(config))
    assert call(script, "auto", public, "--output_dir", tmp_path / "out", *HURRY) == 0
    output = capsys.readouterr().out
    assert "rope_temporal_size" not in output
    made = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (made["layer_norm_eps"], made["head_norm_eps"], made["num_attention_heads"]) == (1e-6, 1e-6, 2)
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()
    assert json.loads((tmp_path / "out" / "verification.json").read_text())["verdict"] == "PASS"


@pytest.mark.parametrize("name", ["dense_hf", "packing_hf"])
def test_the_origins_folders_are_sources(tmp_path, conformance, name):
    folder = conformance / "golden" / name
    arguments = ("auto", folder, "--output_dir", tmp_path / "out", *HURRY)
    assert call(convert_llava_vit_packing_to_hf, *arguments) == 0
    made = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (made["layer_norm_eps"], made["head_norm_eps"]) == (1e-6, 1e-6)


def test_wrapped_and_prefixed_checkpoints(tmp_path, backbone):
    weights = {f"module._orig_mod.{name}": tensor for name, tensor in peaked_state_dict(CONFIG).items()}
    torch.save({"model": weights, "epoch": 3}, tmp_path / "wrapped.pt")
    assert unverified(backbone, tmp_path / "plain") == unverified(tmp_path / "wrapped.pt", tmp_path / "wrapped") == 0
    require_same_bytes(tmp_path / "plain", tmp_path / "wrapped")


class Malicious:
    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def _malicious(path):
    bad = Malicious()
    bad.target = path.with_name("executed")
    torch.save({**peaked_state_dict(CONFIG), "extra": bad}, path)


def _malicious_old_format(path):
    bad = Malicious()
    bad.target = path.with_name("executed")
    path.write_bytes(pickle.dumps(bad, protocol=2))


def _truncated(path):
    torch.save(peaked_state_dict(CONFIG), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _edited(change):
    def write(path):
        weights = peaked_state_dict(CONFIG)
        change(weights)
        torch.save(weights, path)

    return write


def _set(name, value):
    return _edited(lambda weights: weights[name].view(-1)[:1].fill_(value))


BAD = {
    "malicious": (_malicious, "system, which may execute code, so it was refused and nothing was run"),
    "malicious_old_format": (_malicious_old_format, "refused and nothing was run"),
    "truncated": (_truncated, "cannot be read as a PyTorch checkpoint"),
    "text": (lambda path: path.write_text("hello world"), "is not a PyTorch checkpoint: it starts with b'hell'"),
    "empty": (lambda path: path.write_bytes(b""), "is not a PyTorch checkpoint"),
    "list": (lambda path: torch.save([torch.zeros(2)], path), "holds no state dict but a list"),
    "other_architecture": (
        lambda path: torch.save({"blocks.0.attn.qkv.weight": torch.zeros(6, 2)}, path),
        "checkpoint of another architecture",
    ),
    "nan": (_set("ln_post.weight", torch.nan), "hold NaN or infinite values: layernorm_post.weight"),
    "infinite": (_set("conv1.weight", torch.inf), "hold NaN or infinite values: embeddings.patch_embedding.weight"),
    "mixed": (
        _edited(lambda weights: weights.update({"ln_post.bias": weights["ln_post.bias"].half()})),
        "mixes dtypes.*Choose one with dtype (--dtype)",
    ),
    "unused": (
        _edited(lambda weights: weights.update(gate=torch.zeros(1))),
        "no rule from source to dense uses: gate",
    ),
    "uncovered": (_edited(lambda weights: weights.pop("ln_post.bias")), "nothing fills layernorm_post.bias"),
    "integers": (
        _edited(lambda weights: weights.update({"ln_post.bias": weights["ln_post.bias"].int()})),
        "not of a floating dtype",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_weights_are_one_clear_error(tmp_path, capsys, name):
    write, message = BAD[name]
    path = tmp_path / "weights.pt"
    write(path)
    assert unverified(path, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert all(part in error for part in message.split(".*")), error
    assert error.startswith("error: ") and "Traceback" not in error and str(path) in error or "weights hold" in error
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.pt"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("auto", "nowhere.pt"), "nowhere.pt does not exist. Expected a .pt, .pth or .safetensors file"),
        (("auto", "{backbone}"), "number of attention heads cannot be told from weights. Pass num_attention_heads"),
        (("auto", "{backbone}", "--num_attention_heads", "3"), "num_attention_heads=3 does not divide hidden_size=64"),
        (("auto", "{backbone}", "--num_attention_heads", "4"), "= 16, but the 4:6:6 split"),
        (("auto", "{backbone}", "--num_attention_heads", "0"), "num_attention_heads=0 does not divide"),
        (("llava_vit_large_ln", "{backbone}"), "llava_vit_large_ln says hidden_size=1024"),
        (("llava_vit_tiny", "{backbone}"), "model_name 'llava_vit_tiny' is unknown. Expected one of"),
    ],
)
def test_bad_arguments_are_one_clear_error(tmp_path, backbone, capsys, arguments, message):
    arguments = [argument.format(backbone=backbone) for argument in arguments]
    assert call(convert_llava_vit_packing_to_hf, *arguments, "--output_dir", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert [entry.name for entry in tmp_path.iterdir()] == ["backbone.pt"]


def test_mixed_dtypes_with_a_choice(tmp_path):
    weights = peaked_state_dict(CONFIG)
    weights["ln_post.bias"] = weights["ln_post.bias"].half()
    torch.save(weights, tmp_path / "mixed.pt")
    assert unverified(tmp_path / "mixed.pt", tmp_path / "out", "--dtype", "float32") == 0
    assert read_checkpoint(tmp_path / "out").dtypes == {torch.float32}


def test_each_script_takes_its_own_layout(tmp_path, backbone, capsys):
    assert call(convert_vit_preview_v0_hf_to_packing, backbone, "--output_dir", tmp_path / "out") == 2
    assert "holds source weights, expected a dense model folder" in capsys.readouterr().err
    assert unverified(backbone, tmp_path / "dense") == 0
    capsys.readouterr()
    assert call(convert_back, tmp_path / "dense", "--to", "dense", "--output", tmp_path / "out") == 2
    assert "expected a packing model folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--to", "source", "--output", "{folder}/x.bin"), "expected a file that ends in .pt, .pth, .safetensors"),
        (("--to", "source", "--output", "{folder}/backbone.pt"), "exists. Choose another name"),
        (("--to", "source", "--output", "{folder}/x.pt", "--dtype", "float16"), "--dtype is for --to dense"),
    ],
)
def test_converting_back_refuses(tmp_path, backbone, capsys, arguments, message):
    assert unverified(backbone, tmp_path / "dense") == 0
    arguments = [argument.format(folder=tmp_path) for argument in arguments]
    assert call(convert_back, tmp_path / "dense", *arguments) == 2
    assert message in capsys.readouterr().err


def test_converting_back_lists_what_it_cannot_use(tmp_path, backbone, capsys):
    assert unverified(backbone, tmp_path / "dense") == 0
    stored = load_file(tmp_path / "dense" / "model.safetensors")
    save_file({**stored, "head.gate": torch.zeros(2)}, tmp_path / "dense" / "model.safetensors", {"format": "pt"})
    assert call(convert_back, tmp_path / "dense", "--to", "source", "--output", tmp_path / "x.pt") == 2
    assert "head.gate" in capsys.readouterr().err
    assert not (tmp_path / "x.pt").exists()
