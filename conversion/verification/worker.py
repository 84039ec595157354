# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The part of the verification that runs in a process of its own: a saved folder against the oracle.

`llava_vit_hf` cannot be imported here, so that what runs is the code in the folder. Started by `verify.py` with
a job as JSON; writes the outcome as JSON.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path


sys.modules["llava_vit_hf"] = None

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from conversion.checkpoints.checkpoint import Checkpoint, read_checkpoint  # noqa: E402
from conversion.common.files import write_atomically  # noqa: E402
from conversion.common.metrics import Bounds, compare  # noqa: E402
from conversion.source.encoder import SourceConfig, SourceEncoder  # noqa: E402
from conversion.verification.cases import (  # noqa: E402
    IMAGE,
    MIXED,
    VIDEO,
    Case,
    build_cases,
    multi_case,
    multi_tokens,
)
from conversion.verification.double_precision import in_double  # noqa: E402
from conversion.verification.faults import FAULTS, LEAK_CASE, Fault  # noqa: E402
from conversion.verification.folder_checks import (  # noqa: E402
    DEFAULT_CLIP,
    DEFAULT_IMAGE,
    default_clip_comparisons,
    default_image_comparisons,
    epsilon_reasons,
    stored_processor,
)
from conversion.verification.judging import (  # noqa: E402
    FLOAT64,
    PIXELS,
    REPORTED,
    Judgement,
    float32_bounds,
    judge,
    measure,
    summary_of_bounds,
    uniform_bounds,
)
from conversion.verification.loaded_model import ModelUnderTest, SampleOutput, oracle_outputs  # noqa: E402
from conversion.verification.oracle_weights import oracle_weights  # noqa: E402


SCALES = (1.0, 0.75, 0.5, 0.35, 0.25)
# The biggest pack may take this share of the time budget and of the free memory.
SHARE = 0.5


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
        self.checkpoint: Checkpoint = read_checkpoint(job["weights"], job["revision"])
        weights = oracle_weights(self.checkpoint, getattr(torch, job["stored_dtype"]))
        self.oracle = SourceEncoder.from_state_dict(self.config, weights)
        self.cases = {case.name: case for case in build_cases(self.config.patch_size)}
        self.found = {"cases": [], "controls": [], "inputs": {}, "notes": [], "bounds": {}}
        self.whole = job["only_controls"] is None
        self.faults = [fault for fault in FAULTS if self.whole or fault.name in job["only_controls"]]
        # The parent shows standard output as progress and keeps standard error for the case of a failure.
        total = len(self.faults) + (len(self.cases) + 9 if self.whole else 5)
        name = self.folder.name.lstrip(".").split(".partial")[0]
        self.bar = tqdm(total=total, desc=f"verify {name}", unit="check", file=sys.stdout)

    def run(self) -> dict:
        self.check_epsilons()
        model = self.load(torch.float32)
        self.run_float64(model)
        self.run_float32(model)
        if self.whole:
            self.check_processor(model)
            self.check_reload(model)
        if self.failed:
            self.found["notes"].append(
                "The model failed, so planted faults, the biggest pack and bfloat16 were left out."
            )
        elif self.whole:
            self.run_multi(model)
            del model
            self.run_bfloat16()
        self.bar.close()
        return self.found

    @property
    def failed(self) -> bool:
        return any(case["result"] == "FAIL" for case in self.found["cases"])

    def load(self, dtype: torch.dtype) -> ModelUnderTest:
        return ModelUnderTest(self.folder, dtype, self.job["attn_implementation"])

    def expected(self, name: str) -> list[SampleOutput]:
        return list(oracle_outputs(self.oracle, self.cases[name], self.config.patch_size))

    def check_epsilons(self) -> None:
        started = time.monotonic()
        reasons, notes = epsilon_reasons(self.folder, self.config)
        case = Case("epsilons", "epsilons of config.json are those of the source", (), tuple(notes))
        self.record(case, "none", Judgement({}, reasons, None), started)

    def run_float64(self, model: ModelUnderTest) -> None:
        """The sharpest comparison, the numeric controls, and how much the oracle itself rounds in float32."""
        expected = {}
        with in_double(self.oracle), in_double(model.model):
            for name in (IMAGE, VIDEO) if self.whole else (IMAGE,):
                started = time.monotonic()
                expected[name] = self.expected(name)
                bounds = uniform_bounds(expected[name][0].arrays(), FLOAT64)
                self.record(
                    self.cases[name],
                    "float64",
                    judge_case(model.run(self.cases[name]), expected[name], bounds),
                    started,
                )
            for fault in self.faults:
                if fault.kind == "numeric" and not self.failed:
                    self.try_fault(model, fault, self.cases[fault.case], expected[fault.case], bounds)
        self.found["bounds"]["float64"] = FLOAT64.to_dict()
        self.expected32 = {IMAGE: self.expected(IMAGE)}
        rounded, exact = self.expected32[IMAGE][0].arrays(), expected[IMAGE][0].arrays()
        self.bounds = float32_bounds({name: compare(rounded[name], exact[name]).relative_error for name in exact})
        self.found["bounds"]["float32"] = summary_of_bounds(self.bounds)
        self.found["bounds"]["pixels"] = PIXELS.to_dict()

    def run_float32(self, model: ModelUnderTest) -> None:
        """The verdict on all cases but the biggest, and the structural controls."""
        for name in self.cases if self.whole else (IMAGE, VIDEO, MIXED):
            started = time.monotonic()
            expected = self.expected32[IMAGE] if name == IMAGE else self.expected(name)
            actual = model.run(self.cases[name])
            self.record(self.cases[name], "float32", judge_case(actual, expected, self.bounds), started)
            if name == IMAGE:
                self.image_actual = actual
                self.image_seconds = 2 * (time.monotonic() - started)
            if name == VIDEO:
                self.expected32[VIDEO] = expected
        for fault in self.faults:
            if fault.kind == "structural" and not self.failed:
                case = LEAK_CASE if fault.leak else self.cases[fault.case]
                self.try_fault(model, fault, case, self.expected32[IMAGE if fault.leak else fault.case], self.bounds)

    def run_multi(self, model: ModelUnderTest) -> None:
        """The biggest pack; sample by sample on the oracle's side, whose outputs are not kept."""
        started = time.monotonic()
        case = multi_case(self.config.patch_size, self.multi_scale())
        expected = oracle_outputs(self.oracle, case, self.config.patch_size)
        self.record(case, "float32", judge_case(model.run(case), expected, self.bounds), started)

    def multi_scale(self) -> float:
        """1, or less where time budget or memory is short."""
        image_tokens = self.cases[IMAGE].tokens(self.config.patch_size)
        for scale in SCALES:
            tokens = multi_tokens(self.config.patch_size, scale)
            seconds = self.image_seconds * self.work(tokens) / self.work(image_tokens)
            values = (sum(tokens) + max(tokens)) * (self.config.num_hidden_layers + 2) * self.config.hidden_size
            if seconds <= SHARE * self.job["time_budget"] and 4 * values <= SHARE * free_memory():
                break
        return scale

    def work(self, tokens: list[int]) -> float:
        """Multiplications of one layer for samples of these lengths."""
        width, inner = self.config.hidden_size, self.config.intermediate_size
        return sum(length * (4 * width**2 + 2 * width * inner) + 2 * length**2 * width for length in tokens)

    def try_fault(self, model: ModelUnderTest, fault: Fault, case: Case, expected, bounds: dict[str, Bounds]) -> None:
        with fault.plant(model.model) if fault.plant else nullcontext():
            outputs = model.run(case, edit_positions=fault.edit_positions, leak=fault.leak)
        # Of a leak the first image is judged; the second is there to be leaked.
        judgement = judge_case(outputs[:1] if fault.leak else outputs, expected, bounds)
        self.describe(case)
        self.found["controls"].append(
            {
                "name": fault.name,
                "description": fault.description,
                "case": case.name,
                "kind": fault.kind,
                "detected": judgement.tells_a_fault,
                "weights": "converted" if self.whole else "peaked",
                "metrics": judgement.metrics["last_hidden_state"],
                "reasons": judgement.reasons,
            }
        )
        self.advance(f"fault {fault.name}")

    def check_processor(self, model: ModelUnderTest) -> None:
        """The processor as it is saved: resizing, cropping, and the sampling of frames."""
        stored = stored_processor(self.checkpoint.files) if self.checkpoint.config is not None else {}
        for case, compared in (
            (DEFAULT_IMAGE, lambda: default_image_comparisons(model, stored)),
            (DEFAULT_CLIP, lambda: default_clip_comparisons(model)),
        ):
            started = time.monotonic()
            metrics, reasons = {}, []
            for name, comparison, bounds in compared():
                metrics[name] = {**comparison.to_dict(), "bounds": bounds.to_dict()}
                reasons += [f"{name}: {reason}" for reason in bounds.check(comparison)]
            self.record(
                case, "float32", Judgement(metrics, reasons, reasons[0].split(":")[0] if reasons else None), started
            )

    def check_reload(self, first: ModelUnderTest) -> None:
        """Saved again by `save_pretrained` and loaded from there: the same bits."""
        started = time.monotonic()
        case = self.cases[IMAGE]
        notes = ()
        with tempfile.TemporaryDirectory() as scratch:
            needed = 1.1 * sum(parameter.nbytes for parameter in first.model.parameters())
            if shutil.disk_usage(scratch).free > needed:
                folder = Path(scratch)
                first.model.save_pretrained(folder)
                first.processor.save_pretrained(folder)
            else:
                folder, notes = self.folder, ("loaded twice, not saved again: temporary space is short",)
            second = ModelUnderTest(folder, torch.float32, self.job["attn_implementation"])
            bounds = dict.fromkeys(self.image_actual[0].arrays(), Bounds(max_abs=0.0))
            judgement = judge_case(second.run(case), self.image_actual, bounds)
            del second
        case = Case("reload", "saved again and loaded from there: the same bits", case.samples, notes)
        self.record(case, "float32", judgement, started)

    def run_bfloat16(self) -> None:
        """bfloat16 beside float32: reported, not judged."""
        model = self.load(torch.bfloat16)
        self.found["bounds"]["bfloat16"] = REPORTED.to_dict()
        for name, expected in self.expected32.items():
            started = time.monotonic()
            bounds = uniform_bounds(expected[0].arrays(), REPORTED)
            judgement = judge_case(model.run(self.cases[name]), expected, bounds)
            self.record(self.cases[name], "bfloat16", judgement, started, reported=True)

    def record(self, case: Case, dtype: str, judgement: Judgement, started: float, reported: bool = False) -> None:
        arrays: dict = {"hidden_states": []}
        for name, metrics in judgement.metrics.items():
            if name.startswith("hidden_states["):
                arrays["hidden_states"].append(metrics)
            else:
                arrays[name] = metrics
        result = "REPORTED" if reported else "PASS" if judgement.passed else "FAIL"
        self.describe(case)
        self.found["cases"].append(
            {
                "name": case.name,
                "description": case.description,
                "dtype": dtype,
                "result": result,
                "arrays": arrays,
                "first_diverging": judgement.first_diverging,
                "reasons": judgement.reasons,
                "notes": list(case.notes),
                "seconds": round(time.monotonic() - started, 2),
            }
        )
        self.advance(f"{case.name} {dtype} {result}")

    def describe(self, case: Case) -> None:
        if case.samples and case.name not in self.found["inputs"]:
            self.found["inputs"][case.name] = {
                "description": case.description,
                "grids": [list(sample.grid(self.config.patch_size)) for sample in case.samples],
                "sha256": case.sha256(),
            }

    def advance(self, done: str) -> None:
        self.bar.set_postfix_str(done, refresh=False)
        self.bar.update()
        if os.getppid() != self.job["parent"]:
            raise SystemExit("the process that asked for this verification is gone")


def judge_case(actual: list[SampleOutput], expected, bounds: dict[str, Bounds]) -> Judgement:
    samples = [measure(ours.arrays(), theirs.arrays()) for ours, theirs in zip(actual, expected, strict=True)]
    return judge(samples, bounds)


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
    write_atomically(Path(outcome_file), lambda stream: stream.write(json.dumps(outcome).encode()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
