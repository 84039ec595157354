# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The verification: right models pass, wrong ones are caught, and what cannot be told is not called PASS."""

import json
import math
import subprocess
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

from conversion import convert_back, convert_llava_vit_to_hf, verify_model
from conversion.checkpoints import checkpoint, source_config
from conversion.checkpoints.model_folder_writer import ConversionRequest, convert_folder
from conversion.checkpoints.source_config import Source, infer_source_config, read_source
from conversion.command_line import check_verdict
from conversion.common.report_schema import FAIL, INCONCLUSIVE, PASS
from conversion.source.encoder import SourceEncoder
from conversion.verification.cases import build_cases, clip_preprocessing, multi_case, multi_tokens, unpack_patches
from conversion.verification.double_precision import in_double
from conversion.verification.faults import FAULTS
from conversion.verification.folder_checks import epsilon_reasons
from conversion.verification.judging import FLOAT64, Bounds, float32_bounds, judge, measure
from conversion.verification.verify import (
    VerificationError,
    VerificationRequest,
    run_worker,
    verdict_of,
    verify_folder,
)
from tests.conversion.weights import peaked_state_dict, random_pixels, tiny_config


CONFIG = tiny_config(patch_size=14)
HURRY = 0.05


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "backbone.pt"
    torch.save(peaked_state_dict(CONFIG), path)
    return path


def convert(weights: Path, folder: Path, layout: str = "dense", **fields) -> Path:
    convert_folder(ConversionRequest(str(weights), layout, folder, num_attention_heads=2, **fields))
    return folder


def verify(folder: Path, weights: Path) -> dict:
    return verify_folder(VerificationRequest(folder, opened(weights), time_budget=HURRY))


def opened(weights: Path) -> Source:
    return read_source(weights, num_attention_heads=2)


def cases(report: dict, result: str) -> set:
    return {case["name"] for case in report["cases"] if case["result"] == result}


@pytest.mark.long
def test_a_right_dense_model_passes_in_bfloat16_and_shards(tmp_path, weights):
    folder = convert(weights, tmp_path / "out", dtype="bfloat16", max_shard_size="100KB")
    report = verify(folder, weights)
    assert report["verdict"] == PASS and report["notes"] == []
    assert len(report["model"]["files"]) > 10 and "model.safetensors.index.json" in report["model"]["files"]
    assert {control["detected"] for control in report["controls"]} == {True}
    assert {control["name"] for control in report["controls"]} == {fault.name for fault in FAULTS}
    assert {control["weights"] for control in report["controls"]} == {"converted"}
    names = {"image_448", "video_224", "mixed", "native", "batch", "padded", "multi", "reload", "epsilons"}
    assert cases(report, PASS) == names | {"processor_image", "processor_clip"}
    (multi,) = (case for case in report["cases"] if case["name"] == "multi")
    assert "scaled" in multi["notes"][0]
    for case in report["cases"]:
        assert len(case["arrays"]["hidden_states"]) == (
            3 if case["dtype"] != "none" and "proc" not in case["name"] else 0
        )
    assert report["bounds"].keys() == {"float64", "float32", "bfloat16", "pixels"}
    assert all(margin["fault"] > 10 * margin["model"] for margin in report["margins"].values())


@pytest.mark.long
@pytest.mark.once
def test_flat_weights_are_decided_on_peaked_ones(tmp_path):
    generator = torch.Generator().manual_seed(0)
    flat = {
        name: torch.ones_like(tensor)
        if "ln_" in name and "weight" in name or name == "head.norm.weight"
        else (0.001 if "attn.in_proj" in name else 0.02) * torch.randn(tensor.shape, generator=generator)
        for name, tensor in peaked_state_dict(CONFIG).items()
    }
    torch.save(flat, tmp_path / "flat.pt")
    folder = convert(tmp_path / "flat.pt", tmp_path / "out", "packing")
    report = verify(folder, tmp_path / "flat.pt")
    assert report["verdict"] == PASS
    assert "attention is too flat" in report["notes"][0]
    assert {"peaked mixed", "peaked batch"} <= cases(report, PASS)
    assert {control["weights"] for control in report["controls"]} >= {"peaked"}
    assert all(control["detected"] for control in report["controls"])


@pytest.mark.long
def test_changed_weights_code_and_epsilon_fail_and_are_located(tmp_path, weights):
    folder = convert(weights, tmp_path / "out", "packing")
    stored = load_file(folder / "model.safetensors")
    stored["encoder.layers.1.mlp.fc2.bias"][3] += 1e-4
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"head_norm_eps": 1e-6}))
    report = verify(folder, weights)
    assert report["verdict"] == FAIL
    by_name = {(case["name"], case["dtype"]): case for case in report["cases"]}
    assert by_name["mixed", "float64"]["first_diverging"] == "hidden_states[2]"
    assert (
        "head_norm_eps is 1e-06 in config.json, the source has 1.1920929e-07"
        in by_name["epsilons", "none"]["reasons"][0]
    )
    with pytest.raises(VerificationError, match=r"is FAIL:\n  epsilons .*\n  mixed .float64.: hidden_states.2."):
        check_verdict(report, "x")


@pytest.mark.long
@pytest.mark.parametrize("layout, switch", [("packing", "native_resolution=False"), ("dense", "")])
def test_a_switch_of_the_processor_that_is_not_set_is_checked_too(tmp_path, weights, layout, switch):
    folder = convert(weights, tmp_path / "out", layout)
    path = folder / "preprocessor_config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(saved | {"resample": PIL.Image.Resampling.BILINEAR}))
    report = verify(folder, weights)
    assert report["verdict"] == FAIL and cases(report, FAIL) == {"processor_image", "processor_clip"}
    (image,) = (case for case in report["cases"] if case["name"] == "processor_image")
    assert image["first_diverging"] == "pixel_values" + f", {switch}" * bool(switch)
    wrong = {
        name for name, metrics in image["arrays"].items() if name != "hidden_states" and metrics["max_abs"] > 1e-6
    }
    assert wrong == {image["first_diverging"]}


@pytest.mark.long
def test_a_folder_that_cannot_run_is_an_error_with_its_last_words(tmp_path, weights):
    folder = convert(weights, tmp_path / "out")
    code = folder / "modeling_llava_vit.py"
    code.write_text(code.read_text() + "\nraise ImportError('planted')\n")
    with pytest.raises(VerificationError, match="could not be loaded and run .exit code 1.:\n(.|\n)*planted"):
        run_worker(VerificationRequest(folder, opened(weights)), torch.float32)


def test_the_folder_s_code_runs_and_not_the_package(tmp_path, weights):
    folder = convert(weights, tmp_path / "out")
    code = folder / "modeling_llava_vit.py"
    code.write_text(code.read_text() + "\nimport llava_vit_hf\n")
    with pytest.raises(VerificationError, match="llava_vit_hf"):
        run_worker(VerificationRequest(folder, opened(weights)), torch.float32)


COUNTING_WORKER = """
import runpy, sys
from conversion.checkpoints import checkpoint
log, original = sys.argv.pop(1), checkpoint.reader_of
def counted(path):
    print(path.name, file=open(log, "a"))
    return original(path)
checkpoint.reader_of = counted
runpy.run_module("conversion.verification.worker", run_name="__main__")
"""


@pytest.mark.long
@pytest.mark.once
def test_weights_are_opened_once_in_each_process(tmp_path, weights, monkeypatch):
    parent, worker, inferred = [], tmp_path / "log", []

    def counted(function, note):
        return lambda *arguments: note(arguments) or function(*arguments)

    def run_counting(command, **options):
        assert command[1:3] == ["-m", "conversion.verification.worker"]
        return run([command[0], "-c", COUNTING_WORKER, str(worker), *command[3:]], **options)

    def opened_by(script, *arguments):
        assert script.main([str(argument) for argument in (*arguments, "--time_budget", HURRY)]) == 0
        found = parent.copy(), worker.read_text().splitlines(), len(inferred)
        parent.clear(), worker.unlink(), inferred.clear()
        return found

    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", run_counting)
    monkeypatch.setattr(checkpoint, "reader_of", counted(checkpoint.reader_of, lambda a: parent.append(a[0].name)))
    monkeypatch.setattr(source_config, "infer_source_config", counted(infer_source_config, inferred.append))
    # A link, as a cache has them, whose target's name does not tell the format.
    (tmp_path / "blob").write_bytes(weights.read_bytes())
    (tmp_path / "linked.pt").symlink_to(tmp_path / "blob")
    heads, folder = ("--num_attention_heads", 2), tmp_path / "out"
    made = opened_by(convert_llava_vit_to_hf, "auto", tmp_path / "linked.pt", *heads, "--output_dir", folder)
    assert made == (["linked.pt", "model.safetensors"], ["linked.pt"], 1)
    assert opened_by(verify_model, folder) == (["model.safetensors"], ["model.safetensors"], 1)
    back = opened_by(convert_back, folder, "--to", "source", "--output", tmp_path / "back.pt")
    assert back == (["model.safetensors", ".partial-back.pt"], [".partial-back.pt"], 1)


@pytest.mark.parametrize("verdict", [FAIL, INCONCLUSIVE])
def test_anything_but_pass_leaves_no_folder(tmp_path, weights, monkeypatch, capsys, verdict):
    report = {"verdict": verdict, "cases": [], "controls": [], "margins": {}, "seconds": 0}
    monkeypatch.setattr("conversion.command_line.verify_folder", lambda request: report)
    arguments = ["auto", str(weights), "--num_attention_heads", "2", "--output_dir", str(tmp_path / "out")]
    assert convert_llava_vit_to_hf.main(arguments) == 1
    assert f"is {verdict}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_verdicts():
    passed, failed = {"result": "PASS"}, {"result": "FAIL"}
    told, hidden = {"detected": True}, {"detected": False}
    assert verdict_of({"cases": [passed], "controls": [told]}) == PASS
    assert verdict_of({"cases": [passed], "controls": [told, hidden]}) == INCONCLUSIVE
    assert verdict_of({"cases": [passed], "controls": []}) == INCONCLUSIVE
    assert verdict_of({"cases": [passed, failed], "controls": [told]}) == FAIL
    assert verdict_of({"cases": [{"result": "REPORTED"}], "controls": [told]}) == FAIL


def judged(actual: torch.Tensor, expected: torch.Tensor, bounds: Bounds):
    arrays = measure({"pixel_values": expected, "tokens": actual}, {"pixel_values": expected, "tokens": expected})
    return judge([arrays], {"pixel_values": bounds, "tokens": bounds})


def test_a_fault_is_told_by_the_encoder_s_finite_outputs_only():
    expected = random_pixels(5, 8)
    assert judged(expected + 1e-3, expected, FLOAT64).tells_a_fault
    assert not judged(expected, expected, FLOAT64).tells_a_fault
    assert not judged(expected * math.nan, expected, FLOAT64).tells_a_fault
    assert not judged(expected[:4], expected, FLOAT64).tells_a_fault
    assert all(not judged(actual, expected, FLOAT64).passed for actual in (expected * math.nan, expected[:4]))


def test_one_wrong_value_among_many_is_seen():
    expected = random_pixels(4000, 64)
    wrong = expected.clone()
    wrong[1234, 5] += 0.02
    bounds = float32_bounds({"tokens": 1e-6})["tokens"]
    assert bounds.relative_error == 2e-5
    assert not judged(wrong, expected, bounds).passed


def test_an_output_that_one_side_lacks_is_a_failure():
    tokens = {"last_hidden_state": random_pixels(3, 4)}
    more = tokens | {"pooler_output": random_pixels(4)}
    bounds = dict.fromkeys(more, FLOAT64)
    for actual, expected in ((tokens, more), (more, tokens)):
        assert judge([measure(actual, expected)], bounds).first_diverging == "pooler_output"


def test_bounds_follow_the_rounding_between_floor_and_ceiling():
    bounds = float32_bounds({"pixel_values": 0.0, "a": 1e-9, "b": 1e-5, "c": 1.0})
    assert [bounds[name].relative_error for name in "abc"] == [2e-5, 1e-4, 1e-2]
    assert bounds["pixel_values"].max_abs == 1e-6


def test_in_double_computes_in_float64_and_restores_every_tensor():
    encoder = SourceEncoder.from_state_dict(CONFIG, peaked_state_dict(CONFIG))
    tensors = {name: tensor.data_ptr() for name, tensor in encoder.state_dict().items()}
    pixels = random_pixels(3, 56, 42).double()
    exact = SourceEncoder.from_state_dict(CONFIG, peaked_state_dict(CONFIG), torch.float64)(pixels)
    with in_double(encoder):
        output = encoder(pixels)
    assert torch.equal(output["last_hidden_state"], exact["last_hidden_state"])
    assert torch.equal(output["pooled"], exact["pooled"])
    assert {name: tensor.data_ptr() for name, tensor in encoder.state_dict().items()} == tensors
    assert {tensor.dtype for tensor in encoder.state_dict().values()} == {torch.float32}
    with pytest.raises(ValueError), in_double(encoder):
        encoder(torch.zeros(3, 3, 14, 14))
    assert {tensor.dtype for tensor in encoder.state_dict().values()} == {torch.float32}


def test_inputs_are_as_documented():
    cases = {case.name: case for case in build_cases(14)}
    assert cases["video_224"].samples[0].times.tolist() == [0, 9, 18, 27, 36, 45, 54, 63]
    positions = cases["mixed"].samples[1].positions(14)
    assert positions[[0, 1, 12, 96, -1]].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [9, 0, 0], [63, 7, 11]]
    native = [np.prod(sample.grid(14)) for sample in cases["native"].samples]
    assert native[0] == native[2] != native[1]
    assert multi_tokens(14, 1.0) == multi_case(14).tokens(14) == [256, 576, 5184, 5832, 10952]
    small = multi_case(14, 0.25)
    assert small.notes and [sample.frames.shape[1] for sample in small.samples] == [56, 84, 252, 94, 130]
    assert cases["mixed"].sha256() != cases["native"].sha256() == build_cases(14)[3].sha256()


def test_patches_are_put_back_in_their_places():
    pixels = random_pixels(3, 2, 6, 8)
    patches = [
        pixels[:, t, h : h + 2, w : w + 2].flatten() for t in range(2) for h in range(0, 6, 2) for w in range(0, 8, 2)
    ]
    assert torch.equal(unpack_patches(torch.stack(patches), (2, 3, 4), 2), pixels)


@pytest.mark.parametrize(
    "resize, crop, shape", [(28, (28, 28), (28, 28)), ((20, 30), None, (20, 30)), (None, (7, 9), (7, 9))]
)
def test_clip_preprocessing_sizes(resize, crop, shape):
    image = build_cases(14)[0].samples[0].frames[0][:50, :70]
    assert clip_preprocessing(image, resize, crop).shape == (3, *shape)


def test_epsilons_are_compared_by_value(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"layer_norm_eps": 1e-5}))
    reasons, notes = epsilon_reasons(tmp_path, CONFIG)
    assert len(reasons) == 1 and reasons[0].startswith("head_norm_eps is 1e-05")
    assert len(notes) == 2


@pytest.mark.long
@pytest.mark.once
def test_verify_model_repeats_confirms_and_denies(tmp_path, weights, capsys):
    folder = convert(weights, tmp_path / "out")
    arguments = [str(folder), "--time_budget", str(HURRY)]
    by_source = [*arguments, "--source", str(weights), "--num_attention_heads", "2"]
    assert verify_model.main([*by_source, "--write_report"]) == 0
    assert (folder / "VERIFICATION.md").is_file()
    assert verify_model.main(arguments) == 0
    assert "the folder's report is confirmed" in capsys.readouterr().out
    processor = folder / "preprocessor_config.json"
    processor.write_text(processor.read_text() + "\n")
    assert verify_model.main([*arguments, "--markdown"]) == 1
    output = capsys.readouterr().out
    assert "differs from the folder's report: preprocessor_config.json: sha256" in output and "| native |" in output
    (folder / "verification.json").write_text("{}")
    assert verify_model.main(arguments) == 2
    assert "expected schema_version 1, found None" in capsys.readouterr().err
