# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The benchmarks run and count right. Nothing here looks at how long anything takes."""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llava_vit_hf import LlavaViTPackingConfig, LlavaViTPackingModel
from tests.benchmarks import codec, cost_growth, cuda_speed, forward_speed, speed


TINY = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 128}
GRIDS = [(1, 4, 6), (2, 4, 4), (1, 2, 2)]


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(forward_speed, "SIZES", TINY)
    monkeypatch.setattr(forward_speed, "WORKLOADS", {"pack": [(1, 4, 6), (1, 4, 4)]})


@pytest.mark.parametrize("contender", [name for name in forward_speed.CONTENDERS if "compiled" not in name])
def test_contenders_run_in_turns_with_the_floor(tiny, contender):
    rounds = forward_speed.pair("pack", "float32", contender, 0.0)
    assert len(rounds) == 3 and all(len(pair) == 2 and min(pair) > 0 for pair in rounds)


def counted(run) -> int:
    # The counter does not know the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


def test_operations_are_those_that_the_model_does():
    """All but the head's work on one vector a sample, which is not counted."""
    model = LlavaViTPackingModel(LlavaViTPackingConfig(**TINY)).eval()
    inputs = forward_speed.bookkept(GRIDS, torch.float32)
    head = counted(lambda: model.head.mlp(torch.zeros(3, 64))) + 2 * 64 * 64 * (1 + 3)  # probe, out_proj
    head += 2 * 2 * 64 * sum(forward_speed.lengths_of(GRIDS))  # scores and values of the probe
    assert cuda_speed.operations(GRIDS, TINY) == counted(lambda: model(**inputs)) - head


def test_floor_does_the_models_products():
    assert counted(forward_speed.floor(GRIDS, torch.float32, TINY)) == cuda_speed.operations(GRIDS, TINY)


def test_exponents():
    points = [{"tokens": count, "seconds": 3.0 * count**2, "peak_mib": 0.1 * count} for count in (1, 2, 4, 8, 16)]
    assert (
        math.isclose(cost_growth.exponent(points, "seconds"), 2) and len(cost_growth.growth_table({"a": points})) == 2
    )
    assert math.isclose(cost_growth.exponent(points, "peak_mib"), 1)


def test_cuda_part_runs_on_any_device(monkeypatch):
    monkeypatch.setattr(cuda_speed, "ROUNDS", 1)
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    results = cuda_speed.cuda_ratios("cpu", [4096], TINY, torch.float32)
    header, *rows = cuda_speed.cuda_table(results)
    assert [row[:2] for row in rows] == [["mixed", "4,096"], ["448 x 448", "4,096"]]
    assert {len(row) for row in rows} == {len(header)} and all(result["failed"] == {} for result in results)
    assert speed.markdown([header, *rows]).count("\n") == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_part_says_why_it_is_left_out(capsys):
    assert cuda_speed.cuda_ratios() == []
    assert "there is no CUDA device" in capsys.readouterr().out


def test_codec_part_scores_every_clip(tmp_path, capsys):
    clip = codec.write_clip(tmp_path / "clip.mp4", 160, 128, 1)
    long = codec.repeated(tmp_path / "long.mp4", clip, 3)
    assert [codec.decoded(path) for path in (clip, long)] == [codec.RATE, 3 * codec.RATE]
    assert codec.main([str(long), "--rounds", "1", "--scores", "motion,bits"]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| long |") and row.count("|") == 5
