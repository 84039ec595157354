# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The part of the verification that runs in a process of its own: a saved folder against the oracle.

`llava_vit_hf` is never imported here, so that what runs is the code in the folder. Started by `verification.py` with a
job as JSON; writes the outcome as JSON.
"""

import gc
import json
import os
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from tqdm import tqdm

from conversion.checkpoint import Checkpoint, read_checkpoint
from conversion.faults import FAULTS, LEAK_CASE, Fault
from conversion.judging import FLOAT64, PIXELS, REPORTED, Judgement, float32_bounds, judge, measure, uniform_bounds
from conversion.metrics import Bounds, compare
from conversion.model_under_test import ModelUnderTest, SampleOutput, oracle_outputs
from conversion.oracle_weights import oracle_weights
from conversion.source_encoder import SourceConfig, SourceEncoder
from conversion.verification_inputs import (
    IMAGE,
    MULTI,
    VIDEO,
    Case,
    build_cases,
    clip_preprocessing,
    normalize,
    rings,
)


SCALES = (1.0, 0.75, 0.5, 0.35, 0.25)
# The biggest pack may take this share of the time budget and of the free memory.
SHARE = 0.5
DEFAULT_IMAGE_SIZE = (500, 640)


class Worker:
    """Runs a job and keeps what it found.

    Args:
        job: `folder`, `weights`, `revision`, `source_config`, `stored_dtype`, `attn_implementation`, `time_budget`
            (seconds), and `only_controls`, names of the faults to try, or None for the whole verification.
    """

    def __init__(self, job: dict):
        self.job = job
        self.folder = Path(job["folder"])
        self.config = SourceConfig(**job["source_config"])
        self.checkpoint: Checkpoint = read_checkpoint(job["weights"], job.get("revision"))
        self.stored_dtype = getattr(torch, job["stored_dtype"])
        self.cases = {case.name: case for case in build_cases(self.config.patch_size)}
        self.found = {"cases": [], "controls": [], "inputs": {}, "notes": [], "bounds": {}}
        only = job["only_controls"]
        self.faults = [fault for fault in FAULTS if only is None or fault.name in only]
        self.bar = tqdm(total=0, desc=f"verify {self.folder.name.lstrip('.').split('.partial')[0]}", unit="step")

    def run(self) -> dict:
        steps = [self.check_epsilons, self.run_float64, self.run_float32]
        if self.job["only_controls"] is None:
            steps += [self.run_half, self.check_reload]
        self.bar.total = len(steps)
        for step in steps:
            step()
            gc.collect()
            self.bar.update()
        self.bar.close()
        return self.found

    def oracle(self, dtype: torch.dtype) -> SourceEncoder:
        return SourceEncoder.from_state_dict(self.config, oracle_weights(self.checkpoint, self.stored_dtype), dtype)

    def model(self, dtype: torch.dtype) -> ModelUnderTest:
        return ModelUnderTest(self.folder, dtype, self.job["attn_implementation"])

    def expected(self, oracle: SourceEncoder, case: Case) -> list[SampleOutput]:
        return list(oracle_outputs(oracle, case, self.config.patch_size))

    def judge_case(self, actual: list[SampleOutput], expected, bounds: dict[str, Bounds]) -> Judgement:
        samples = [measure(ours.arrays(), theirs.arrays()) for ours, theirs in zip(actual, expected, strict=True)]
        return judge(samples, bounds)

    def record(self, case: Case, dtype: str, judgement: Judgement, started: float, reported: bool = False) -> None:
        layers = [metrics for name, metrics in judgement.metrics.items() if name.startswith("hidden_states[")]
        arrays = {
            name: metrics for name, metrics in judgement.metrics.items() if not name.startswith("hidden_states[")
        }
        result = "REPORTED" if reported else "PASS" if judgement.passed else "FAIL"
        self.found["inputs"][case.name] = {
            "description": case.description,
            "grids": [list(sample.grid(self.config.patch_size)) for sample in case.samples],
            "sha256": case.sha256(),
        }
        self.found["cases"].append(
            {
                "name": case.name,
                "description": case.description,
                "dtype": dtype,
                "result": result,
                "arrays": {**arrays, "hidden_states": layers},
                "first_diverging": judgement.first_diverging,
                "reasons": judgement.reasons,
                "notes": list(case.notes),
                "seconds": round(time.monotonic() - started, 2),
            }
        )
        self.bar.set_postfix_str(f"{case.name} {dtype} {result}")

    def check_epsilons(self) -> None:
        """Epsilons by value, which outputs only show where variances are small."""
        started = time.monotonic()
        stored = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        head = stored.get("head_norm_eps")
        found = {
            "layer_norm_eps": stored.get("layer_norm_eps"),
            "head_norm_eps": stored.get("layer_norm_eps") if head is None else head,
        }
        wanted = {"layer_norm_eps": self.config.norm_eps, "head_norm_eps": self.config.head_norm_eps}
        reasons = [
            f"{name} is {found[name]!r} in config.json, the source has {wanted[name]!r}"
            for name in wanted
            if found[name] != wanted[name]
        ]
        self.found["cases"].append(
            {
                "name": "epsilons",
                "description": "epsilons of config.json are those of the source",
                "dtype": "none",
                "result": "FAIL" if reasons else "PASS",
                "arrays": {"hidden_states": []},
                "first_diverging": None,
                "reasons": reasons,
                "notes": [f"{name} {value!r}" for name, value in found.items()],
                "seconds": round(time.monotonic() - started, 2),
            }
        )

    def run_float64(self) -> None:
        """The sharpest comparison, the numeric controls, and how much the oracle itself rounds in float32."""
        cases = [self.cases[IMAGE], self.cases[VIDEO]] if self.job["only_controls"] is None else [self.cases[IMAGE]]
        oracle = self.oracle(torch.float64)
        expected = {case.name: self.expected(oracle, case) for case in cases}
        del oracle
        model = self.model(torch.float64)
        for case in cases:
            started = time.monotonic()
            bounds = uniform_bounds(expected[case.name][0].arrays(), FLOAT64)
            self.record(case, "float64", self.judge_case(model.run(case), expected[case.name], bounds), started)
        self.found["bounds"]["float64"] = FLOAT64.to_dict()
        bounds = uniform_bounds(expected[IMAGE][0].arrays(), FLOAT64)
        for fault in self.faults:
            if fault.kind == "numeric":
                self.try_fault(model, fault, self.cases[fault.case], expected[fault.case], bounds)
        del model
        rounded = self.expected(self.oracle(torch.float32), self.cases[IMAGE])[0].arrays()
        exact = expected[IMAGE][0].arrays()
        rounding = {name: compare(rounded[name], exact[name]).relative_error for name in exact}
        self.bounds = float32_bounds({name: error for name, error in rounding.items() if name != "pixel_values"})
        self.found["bounds"]["float32"] = {
            "min_cosine": min(limit.min_cosine for limit in self.bounds.values() if limit.min_cosine is not None),
            "relative_error": max(limit.relative_error or 0.0 for limit in self.bounds.values()),
            "max_abs": None,
        }
        self.found["bounds"]["pixels"] = PIXELS.to_dict()

    def run_float32(self) -> None:
        """The verdict: every case, and the structural controls."""
        oracle, model = self.oracle(torch.float32), self.model(torch.float32)
        names = list(self.cases) if self.job["only_controls"] is None else [IMAGE, VIDEO]
        expected = {}
        for name in names:
            started = time.monotonic()
            case = self.sized(self.cases[name]) if name == MULTI else self.cases[name]
            theirs = oracle_outputs(oracle, case, self.config.patch_size)
            if name in (IMAGE, VIDEO):
                theirs = expected[name] = list(theirs)
            self.record(case, "float32", self.judge_case(model.run(case), theirs, self.bounds), started)
            if name == IMAGE:
                self.image_seconds = time.monotonic() - started
        for fault in self.faults:
            if fault.kind == "structural":
                case = LEAK_CASE if fault.leak else self.cases[fault.case]
                theirs = expected[IMAGE] if fault.leak else expected[fault.case]
                self.try_fault(model, fault, case, theirs, self.bounds)
        if self.job["only_controls"] is None:
            self.check_default_pixels(model)
        self.expected_half = expected

    def try_fault(self, model: ModelUnderTest, fault: Fault, case: Case, expected, bounds: dict[str, Bounds]) -> None:
        with fault.plant(model.model) if fault.plant else nullcontext():
            outputs = model.run(case, edit_positions=fault.edit_positions, leak=fault.leak)
        # Of a leak the first image is judged; the second is there to be leaked.
        judgement = self.judge_case(outputs[:1] if fault.leak else outputs, expected, bounds)
        self.found["controls"].append(
            {
                "name": fault.name,
                "description": fault.description,
                "case": case.name,
                "kind": fault.kind,
                "detected": not judgement.passed,
                "weights": "peaked" if self.job["only_controls"] is not None else "converted",
                "metrics": judgement.metrics["last_hidden_state"],
                "reasons": judgement.reasons,
            }
        )
        self.bar.set_postfix_str(f"control {fault.name}")

    def run_half(self) -> None:
        """bfloat16 beside float32: reported, not judged."""
        model = self.model(torch.bfloat16)
        self.found["bounds"]["bfloat16"] = REPORTED.to_dict()
        for name, expected in self.expected_half.items():
            started = time.monotonic()
            bounds = uniform_bounds(expected[0].arrays(), REPORTED)
            judgement = self.judge_case(model.run(self.cases[name]), expected, bounds)
            self.record(self.cases[name], "bfloat16", judgement, started, reported=True)

    def check_default_pixels(self, model: ModelUnderTest) -> None:
        """The processor as it is saved: pixels of one image through its default preprocessing."""
        started = time.monotonic()
        image = rings(*DEFAULT_IMAGE_SIZE, phase=8.0)
        actual = model.default_pixels(image)
        if model.is_packing:
            expected = normalize(image).permute(2, 0, 1)[:, : actual.shape[1], : actual.shape[2]]
        else:
            expected = clip_preprocessing(image, model.model.config.image_size)
        comparison = compare(actual, expected)
        reasons = PIXELS.check(comparison)
        self.found["cases"].append(
            {
                "name": "processor_default",
                "description": f"pixels of an image of {image.shape[1]}x{image.shape[0]} as the processor is saved",
                "dtype": "float32",
                "result": "FAIL" if reasons else "PASS",
                "arrays": {"pixel_values": comparison.to_dict(), "hidden_states": []},
                "first_diverging": "pixel_values" if reasons else None,
                "reasons": [f"pixel_values: {reason}" for reason in reasons],
                "notes": [],
                "seconds": round(time.monotonic() - started, 2),
            }
        )

    def check_reload(self) -> None:
        """Saved again by `save_pretrained` and loaded from there: the same bits."""
        started = time.monotonic()
        case, first = self.cases[IMAGE], self.model(torch.float32)
        expected = first.run(case)
        with tempfile.TemporaryDirectory() as folder:
            first.model.save_pretrained(folder)
            first.processor.save_pretrained(folder)
            del first
            second = ModelUnderTest(Path(folder), torch.float32, self.job["attn_implementation"])
            same = Bounds(max_abs=0.0)
            judgement = self.judge_case(second.run(case), expected, dict.fromkeys(expected[0].arrays(), same))
        case = Case("reload", "saved again and loaded from there: the same bits", case.samples)
        self.record(case, "float32", judgement, started)

    def sized(self, case: Case) -> Case:
        """The biggest pack, smaller where time budget or memory is short."""
        image_tokens = self.cases[IMAGE].tokens(self.config.patch_size)
        for scale in SCALES:
            (case,) = (c for c in build_cases(self.config.patch_size, scale) if c.name == MULTI)
            tokens = case.tokens(self.config.patch_size)
            seconds = self.image_seconds * self.work(tokens) / self.work(image_tokens)
            values = (sum(tokens) + max(tokens)) * (self.config.num_hidden_layers + 2) * self.config.hidden_size
            if seconds <= SHARE * self.job["time_budget"] and 4 * values <= SHARE * free_memory():
                break
        return case

    def work(self, tokens: list[int]) -> float:
        """Multiplications of one layer for samples of these lengths."""
        width, inner = self.config.hidden_size, self.config.intermediate_size
        return sum(length * (4 * width**2 + 2 * width * inner) + 2 * length**2 * width for length in tokens)


def free_memory() -> int:
    """Bytes of memory that are free, or a cautious guess where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            return next(int(line.split()[1]) * 1024 for line in stream if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 8 * 2**30


def main() -> int:
    job_file, outcome_file = sys.argv[1:]
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    torch.manual_seed(0)
    outcome = Worker(job).run()
    if "llava_vit_hf" in sys.modules:
        raise RuntimeError("llava_vit_hf was imported, so the code in the folder may not be what was verified.")
    temporary = Path(f"{outcome_file}.partial")
    temporary.write_text(json.dumps(outcome), encoding="utf-8")
    os.replace(temporary, outcome_file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
