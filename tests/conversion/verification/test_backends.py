# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Verification on other backends: right models pass there, wrong ones fail, and published numbers are compared."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conversion import verify_model
from conversion.checkpoints.model_folder_writer import ConversionRequest, convert_folder
from conversion.checkpoints.source_config import read_source
from conversion.common.report_schema import FAIL, PASS
from conversion.verification import backends
from conversion.verification.backend_checks import exact_products
from conversion.verification.backends import ABSENT, Backend, all_backends, backends_table, failures_of_rows
from conversion.verification.repeated_numbers import compare_numbers, numbers_lines, read_published
from conversion.verification.verify import VerificationRequest, verify_backends, verify_folder
from tests.conversion.weights import peaked_state_dict, tiny_config


CONFIG = tiny_config(patch_size=14)
DTYPES = ("float32", "bfloat16", "float16")
ON_CPU = [Backend("cpu", dtype, implementation) for dtype in DTYPES for implementation in ("eager", "sdpa")]

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "backbone.pt"
    torch.save(peaked_state_dict(CONFIG), path)
    return path


def convert(weights: Path, folder: Path, layout: str = "packing") -> Path:
    convert_folder(ConversionRequest(str(weights), layout, folder, num_attention_heads=2))
    return folder


def request_for(folder: Path, weights: Path) -> VerificationRequest:
    return VerificationRequest(folder, read_source(weights, num_attention_heads=2), time_budget=0.05)


@pytest.mark.parametrize("layout", ["dense", "packing"])
def test_a_right_model_passes_on_every_backend_of_a_cpu(tmp_path, weights, layout):
    folder = convert(weights, tmp_path / "out", layout)
    report = verify_backends(request_for(folder, weights), [*ON_CPU, Backend(attn_implementation="flash_attention_2")])
    *rows, absent = report["backends"]
    assert report["verdict"] == PASS and [row["result"] for row in rows] == [PASS] * len(ON_CPU)
    assert absent["result"] == ABSENT and "flash_attn" in absent["reasons"][0]
    for row in rows:
        assert len(row["cases"]) == 4 and len(row["controls"]) == 6
        margin, last = row["margin"], row["cases"][0]["arrays"]["last_hidden_state"]
        assert margin["times"] > (100 if row["dtype"] == "float32" else 3)
        assert margin["model"] <= last["bounds"]["relative_error"] < margin["fault"]
    half, single = (next(row for row in rows if row["dtype"] == dtype) for dtype in ("bfloat16", "float32"))
    assert half["margin"]["model"] > 100 * single["margin"]["model"], "this did not run in its dtype"
    table = backends_table(report["backends"])
    assert "| cpu | sdpa | bfloat16 | PASS |" in table and "6 of 6 told apart" in table
    assert table.count("\n") == len(report["backends"]) + 1


def test_a_compiled_model_is_checked_with_the_faults_of_its_inputs(tmp_path, weights):
    folder = convert(weights, tmp_path / "out")
    (row,) = verify_backends(request_for(folder, weights), [Backend(compiled=True)])["backends"]
    assert row["result"] == PASS and row["compiled"]
    assert {control["name"] for control in row["controls"]} == {"height_width_swapped", "time_zeroed", "rows_shifted"}


@pytest.mark.parametrize(
    "dtype, old, new",
    [
        # A structural mistake shows in half precision, a numeric one in float32 alone.
        ("bfloat16", "rope_theta=10000.0", "rope_theta=3000.0"),
        ("float16", "rope_theta=10000.0", "rope_theta=3000.0"),
        ("float32", "layer_norm_eps=1e-05", "layer_norm_eps=1e-03"),
    ],
)
def test_a_wrong_model_fails(tmp_path, weights, capsys, dtype, old, new):
    folder = convert(weights, tmp_path / "out")
    (name, right), (_, wrong) = (text.split("=") for text in (old, new))
    config = json.loads((folder / "config.json").read_text())
    assert config[name] == float(right)
    (folder / "config.json").write_text(json.dumps(config | {name: float(wrong)}))
    options = ["--source", str(weights), "--num_attention_heads", "2", "--dtype", dtype]
    assert verify_model.main([str(folder), *options]) == 1
    printed = capsys.readouterr().out
    assert f"| cpu | sdpa | {dtype} | FAIL |" in printed
    assert f"cpu sdpa {dtype}, image_448: hidden_states[" in printed


def test_flat_weights_are_decided_on_peaked_ones(tmp_path):
    generator = torch.Generator().manual_seed(0)
    flat = {
        name: tensor
        if tensor.ndim == 1 and "norm" in name or "ln_" in name
        else 0.02 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in peaked_state_dict(CONFIG).items()
    }
    torch.save(flat, tmp_path / "flat.pt")
    folder = convert(tmp_path / "flat.pt", tmp_path / "out")
    report = verify_backends(request_for(folder, tmp_path / "flat.pt"), [Backend(dtype="bfloat16")])
    (row,) = report["backends"]
    assert row["weights"] == "peaked" and row["result"] == PASS and "too flat" in report["notes"][0]
    assert "on peaked weights, 6 of 6 told apart" in backends_table(report["backends"])


def test_what_a_machine_lacks_is_said(tmp_path, weights, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    folder = convert(weights, tmp_path / "out")
    for arguments, reason in (
        (["--device", "cuda"], "cuda sdpa float32: this machine has no CUDA device"),
        (["--dtype", "float32", "--attn_implementation", "flash_attention_2"], "flash_attn is not installed"),
        (["--dtype", "int8"], "--dtype int8: expected one of float32, bfloat16, float16"),
        (["--device", "gpu"], "--device gpu: "),
        (
            ["--dtype", "float32", "--attn_implementation", "flash"],
            "--attn_implementation flash: expected one of eager",
        ),
        (["--backends", "all", "--dtype", "float32"], "--backends all takes every --dtype"),
        (["--dtype", "float32", "--compare_with", str(tmp_path / "no")], "neither a file or folder here nor a repo"),
        (["--dtype", "float32", "--compare_with", str(tmp_path)], "there is no verification.json"),
    ):
        assert verify_model.main([str(folder), *arguments]) == 2
        assert reason in capsys.readouterr().err
    monkeypatch.setattr(backends, "PACKAGES", {"flash_attention_2": "json"})
    assert Backend(dtype="bfloat16", attn_implementation="flash_attention_2").obstacle == "it runs on CUDA only"
    assert [backend.label for backend in all_backends("cpu")].count("cpu sdpa compiled float16") == 1


def test_failing_to_run_is_a_failure(tmp_path, weights):
    folder = convert(weights, tmp_path / "out")
    code = folder / "modeling_llava_vit_packing.py"
    text = code.read_text()
    start = text.index("    def forward(")
    body = text.index('"""', text.index('"""', start) + 3) + 3
    code.write_text(text[:body] + "\n        raise RuntimeError('planted')" + text[body:])
    report = verify_backends(request_for(folder, weights), [Backend()])
    assert report["verdict"] == FAIL
    assert failures_of_rows(report["backends"]) == ["cpu sdpa float32: RuntimeError: planted"]


def test_products_are_exact_meanwhile_and_settings_come_back():
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    try:
        with exact_products() as switched:
            assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
            assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
        assert switched[0] == "float32_matmul_precision='medium'"
        assert torch.get_float32_matmul_precision() == "medium" and torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    finally:
        torch.set_float32_matmul_precision("highest")


def test_published_numbers_are_compared(tmp_path, weights, capsys):
    folder = convert(weights, tmp_path / "out")
    request = request_for(folder, weights)
    report = verify_folder(request)
    (folder / "verification.json").write_text(json.dumps(report))
    numbers = compare_numbers(report, read_published(str(folder)))
    assert len(numbers) > 30 and all(number.repeated for number in numbers)
    assert numbers_lines(numbers) == [f"{len(numbers)} of {len(numbers)} published numbers are repeated here to 1%"]

    # Backends are compared with the report's cases in their dtype, and with each other.
    arguments = [str(folder), "--source", str(weights), "--dtype", "bfloat16", "--compare_with", str(folder)]
    assert verify_model.main([*arguments, "--json", str(tmp_path / "mine.json")]) == 0
    assert "published numbers are repeated here to 1%" in capsys.readouterr().out
    assert verify_model.main([*arguments[:-1], str(tmp_path / "mine.json")]) == 0
    printed = capsys.readouterr().out
    assert "published numbers are repeated here to 1%\n" in printed and "differ" not in printed

    changed = json.loads((tmp_path / "mine.json").read_text())
    changed["backends"][0]["cases"][0]["arrays"]["last_hidden_state"]["relative_error"] *= 2
    changed["backends"][0]["controls"][0]["metrics"]["relative_error"] = None
    (tmp_path / "mine.json").write_text(json.dumps(changed))
    assert verify_model.main([*arguments[:-1], str(tmp_path / "mine.json")]) == 0
    printed = capsys.readouterr().out
    assert "to 1%, and differ:\n  cpu sdpa bfloat16 image_448 bfloat16 last_hidden_state: " in printed
    assert "fault height_width_swapped" in printed and "n/a published" in printed

    # Another model's report is no confirmation.
    changed["model"]["files"]["model.safetensors"] = 64 * "0"
    (tmp_path / "mine.json").write_text(json.dumps(changed))
    assert verify_model.main([*arguments[:-1], str(tmp_path / "mine.json")]) == 1
    assert "differs from that report: model.safetensors: sha256 is" in capsys.readouterr().out


def test_a_pack_of_another_size_is_not_compared():
    case = {"name": "multi", "dtype": "float32", "arrays": {"last_hidden_state": {"relative_error": 1e-6}}}
    report = {"cases": [case], "controls": [], "inputs": {"multi": {"grids": [[1, 2, 2]]}}}
    other = {**report, "inputs": {"multi": {"grids": [[1, 4, 4]]}}}
    assert len(compare_numbers(report, report)) == 1 and compare_numbers(report, other) == []
    assert numbers_lines([]) == ["no number of the published verification was made here"]


def test_backends_are_what_they_say():
    assert replace(Backend(), compiled=True).label == "cpu sdpa compiled float32"
