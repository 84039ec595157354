# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The command for a GPU, with a CPU and stand-ins in its place. Nothing here looks at how long anything takes."""

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from conversion.common.report_schema import FAIL, PASS
from tests.benchmarks import cuda_speed, forward_speed, gpu
from tests.benchmarks.cuda_graphs import BucketGraph
from tests.models import TINY, as_packing, dense_model, random_pixels, relative_error


PACKS = [[(1, 4, 6), (2, 3, 4)], [(1, 2, 3)], [(1, 5, 5), (1, 1, 1), (3, 2, 4)]]


@pytest.mark.long
@pytest.mark.once
def test_all_of_it_runs_on_a_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cuda_speed, "ROUNDS", 1)
    # Compilers have tests of their own.
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    assert gpu.main(["--device", "cpu", "--small", "--output_dir", str(tmp_path)]) == 0, capsys.readouterr().out
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["problems"] == [] and set(report["verification"]) == {"demo_dense", "demo_packing", "large_packing"}
    for name, found in report["verification"].items():
        results = [row["result"] for row in found["backends"]]
        assert found["verdict"] == PASS and results.count(PASS) == 9 and len(results) == 15, name
    assert report["tests"]["tests"] > 10 and report["tests"]["failures"] == report["tests"]["errors"] == 0
    if not torch.cuda.is_available():
        assert report["tests"]["reasons"] == ["needs a CUDA device"]
    mixed, images = report["speed"]
    assert {"packing", "packing compiled", "packing, CUDA graph"} < set(mixed["patches_per_second"])
    assert "dense" in images["seconds"] and "dense" not in mixed["seconds"] and not images["failed"]
    assert min(images["utilisation"].values()) > 0
    printed = capsys.readouterr().out
    assert "| 448 x 448 | 4,096 |" in printed and "aimed at: 55 %" in printed
    pytest.importorskip("matplotlib")
    assert (tmp_path / "gpu.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_what_runs(tmp_path, capsys):
    assert gpu.main(["--output_dir", str(tmp_path)]) == 2
    assert "no CUDA device here. --device cpu --small" in capsys.readouterr().err


def test_what_takes_too_long_is_stopped(tmp_path, capsys):
    checks = [
        gpu.Check("quick", ["-c", "print('said')"], tmp_path / "none"),
        gpu.Check("wrong", ["-c", "raise SystemExit(3)"], tmp_path / "none"),
        gpu.Check("slow", ["-c", "import time; time.sleep(600)"], tmp_path / "none"),
    ]
    outcome = gpu.run_side_by_side(checks, tmp_path, time.monotonic() + 5)
    assert {name: one["rc"] for name, one in outcome.items()} == {"quick": 0, "wrong": 3, "slow": None}
    assert (tmp_path / "gpu_quick.log").read_text() == "said\n"
    assert "slow           stopped, as time was over after" in capsys.readouterr().out


def test_problems_are_named():
    speed = {"workload": "mixed", "tokens": 4096, "failed": {}, "waits": {}}
    right = {"checks": {"tests": {"rc": 0, "seconds": 1}}, "verification": {"a": {"verdict": PASS}}}
    assert gpu.problems_of({**right, "speed": [speed], "settings": 1}) == []
    wrong = {
        "checks": {"tests": {"rc": 1, "seconds": 2}, "a": {"rc": None, "seconds": 3}},
        "verification": {"a": {"verdict": FAIL}},
        "speed": [{**speed, "failed": {"dense": "no memory"}, "waits": {"packing": "waits", "Qwen3-VL": "may"}}],
        "settings": 3,
    }
    assert gpu.problems_of(wrong) == [
        "tests: ended with 1 after 2 s",
        "a: stopped, as time was over after 3 s",
        "a: FAIL",
        "mixed, 4,096 tokens, dense: no memory",
        "mixed, 4,096 tokens, packing: waits",
        "speed: 2 of 3 settings left out, as time was over",
    ]


def test_the_tests_of_a_device_are_found(tmp_path):
    check = gpu.tests_check(tmp_path)
    files = [argument for argument in check.arguments if argument.endswith(".py")]
    assert "tests/llava_vit_hf/test_cuda.py" in files and len(files) < 5


class StandIn:
    """In the place of a CUDA graph: what was captured runs again, into the same memory."""

    def __init__(self):
        self.captured = None

    def replay(self) -> None:
        bucket = self.captured
        for name, states in bucket._forward().items():
            bucket.output[name].copy_(states)


@pytest.fixture(params=["plain", "graph"])
def bucket(request, monkeypatch) -> BucketGraph:
    model = as_packing(dense_model())
    found = BucketGraph(model, tokens=80, samples=6, longest=40)
    if request.param == "graph":

        @contextmanager
        def capture(graph):
            graph.captured = found
            yield

        stream = SimpleNamespace(wait_stream=lambda other: None)
        monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextmanager(lambda: iter([None]))())
        monkeypatch.setattr(torch.cuda, "CUDAGraph", StandIn)
        monkeypatch.setattr(torch.cuda, "graph", capture)
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        found._capture()
    return found


@torch.inference_mode()
def test_a_pack_in_a_bucket_has_its_own_outputs(bucket):
    for seed, grids in enumerate(PACKS):
        lengths = forward_speed.lengths_of(grids)
        inputs = forward_speed.bookkept(grids, torch.float32)
        inputs["pixel_values"] = random_pixels(sum(lengths), 3 * TINY["patch_size"] ** 2, seed=seed)
        expected = bucket.model(**inputs)
        states, pooled = bucket(inputs["pixel_values"], inputs["patch_positions"], lengths)
        assert torch.equal(states, expected.last_hidden_state)
        # The head's products have as many rows as samples, and round by their number.
        assert relative_error(pooled, expected.pooler_output) < 1e-6


@pytest.mark.parametrize("lengths", [[81], [41], [1] * 7, [40, 39], [1]], ids=str)
def test_what_does_not_fit_a_bucket_is_refused(lengths):
    bucket = BucketGraph(as_packing(dense_model()), tokens=80, samples=6 if len(lengths) > 1 else 2, longest=40)
    pixels, positions = torch.zeros(sum(lengths), 48), torch.zeros(sum(lengths), 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"a pack of {len(lengths)} samples.* does not fit a bucket of"):
        bucket(pixels, positions, lengths)


def test_waiting_for_the_device_is_told(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def fail(message):
        raise RuntimeError(message)

    assert cuda_speed.waits(lambda: None, "cuda") is None
    assert cuda_speed.waits(lambda: fail("called a synchronizing CUDA operation\nmore"), "cuda").startswith("called")
    with pytest.raises(RuntimeError, match="out of memory"):
        cuda_speed.waits(lambda: fail("out of memory"), "cuda")
    assert modes == ["error", "default"] * 3
    assert cuda_speed.waits(lambda: fail("not run"), "cpu") is None


def test_a_contender_that_fails_is_named_and_left_out(capsys):
    runs, failed = cuda_speed.prepared(
        {"a": lambda: list, "b": lambda: torch.zeros(2) @ torch.zeros(3), "c": lambda: None}
    )
    assert list(runs) == ["a"] and list(failed) == ["b"] and failed["b"].startswith("RuntimeError: ")
    assert "b: RuntimeError" in capsys.readouterr().err


def test_nothing_is_measured_once_time_is_over(capsys):
    results = cuda_speed.cuda_ratios("cpu", [4096], gpu.SMALL, torch.float32, ends=time.monotonic() - 1)
    assert results == [] and "time is over: mixed, 4,096 tokens" in capsys.readouterr().err


def test_it_needs_nothing_that_a_bare_machine_lacks():
    """What reads videos, and what the rest of the suite compares with."""
    missing = ("av", "decord", "datasets", "bitsandbytes", "peft", "onnxruntime")
    program = f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"
    program += "import tests.benchmarks.gpu, tests.llava_vit_hf.test_cuda"
    subprocess.run([sys.executable, "-c", program], cwd=gpu.ROOT, check=True)
