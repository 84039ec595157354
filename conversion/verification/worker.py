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
from dataclasses import dataclass, field, replace
from pathlib import Path


sys.modules["llava_vit_hf"] = None

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from conversion.checkpoints.checkpoint import read_checkpoint, stored_processor  # noqa: E402
from conversion.common.files import write_atomically  # noqa: E402
from conversion.common.json_files import read_json_object  # noqa: E402
from conversion.common.metrics import Bounds  # noqa: E402
from conversion.source.encoder import SourceConfig, SourceEncoder  # noqa: E402
from conversion.verification.backend_checks import BackendChecks, check_backends  # noqa: E402
from conversion.verification.backends import Backend, label_of  # noqa: E402
from conversion.verification.cases import (  # noqa: E402
    BATCH,
    IMAGE,
    MIXED,
    Case,
    as_in_towers,
    cases_of,
    is_tower,
    multi_case,
    multi_tokens,
)
from conversion.verification.clock import FLOAT64_FACTOR, Clock, seconds_per_multiplication, work  # noqa: E402
from conversion.verification.diagnosis import diagnose_model  # noqa: E402
from conversion.verification.double_precision import in_double  # noqa: E402
from conversion.verification.faults import DTYPE_OF_KIND, Fault, faults_of  # noqa: E402
from conversion.verification.findings import Finding, outcome_of, sound  # noqa: E402
from conversion.verification.folder_checks import (  # noqa: E402
    CLIP_INPUT,
    IMAGE_INPUT,
    clip_comparisons,
    epsilon_reasons,
    image_comparisons,
)
from conversion.verification.judging import (  # noqa: E402
    FLOAT64,
    PIXELS,
    REPORTED,
    Judgement,
    float32_bounds,
    judge_fault,
    judge_outputs,
    rounding_of,
    summary_of_bounds,
    uniform_bounds,
)
from conversion.verification.loaded_model import ModelUnderTest, SampleOutput, first_layers, oracle_outputs  # noqa: E402
from conversion.verification.oracle_weights import oracle_weights  # noqa: E402


SCALES = (1.0, 0.75, 0.5, 0.35, 0.25)
# What is long is compared in so many layers, as every layer runs the same code, and the shorter cases see all of them.
LONG_LAYERS = 4
# The sharpest comparison, and the planted faults: the smallest case with a clip, and the smallest with images alone.
SHARP = (MIXED, BATCH)
# The biggest pack may take this share of the time budget and of the free memory.
SHARE = 0.5
STOPPED = "The model failed, so planted faults, the biggest pack and bfloat16 were left out."


@dataclass(frozen=True)
class Job:
    """What there is to verify, opened: a folder, the oracle on its source's weights, the inputs, the faults.

    Attributes:
        source_processor: the source's own processor configuration; empty if it has none.
        whole: whether everything is checked, or no more than the given faults and what they are compared with.
        time_budget: seconds.
        parent: the process that asked for it.
    """

    folder: Path
    attn_implementation: str
    config: SourceConfig
    oracle: SourceEncoder
    source_processor: dict
    cases: dict[str, Case]
    faults: tuple[Fault, ...]
    whole: bool
    time_budget: float
    parent: int
    bar: tqdm
    clock: Clock = field(default_factory=Clock)

    def load(self, dtype: torch.dtype) -> ModelUnderTest:
        return ModelUnderTest(self.folder, dtype, self.attn_implementation)

    def expected(self, name: str) -> list[SampleOutput]:
        """What the oracle makes of a case."""
        with self.clock(f"oracle {_dtype_name(self.oracle.conv1.weight)}"):
            return list(oracle_outputs(self.oracle, self.cases[name], self.config.patch_size))

    def run(self, model: ModelUnderTest, case: Case, fault: Fault | None = None) -> list[SampleOutput]:
        """What a model makes of a case, with a fault planted or none."""
        dtype = _dtype_name(next(model.model.parameters()))
        if fault is None:
            with self.clock(f"model {dtype}"):
                return model.run(case)
        with self.clock(f"faults {dtype}"), fault.plant(model.model) if fault.plant else nullcontext():
            return model.run(case, edit_positions=fault.edit_positions, leak=fault.leak)


def open_job(request: dict) -> Job:
    """Opens what a request names.

    Args:
        request: `folder`, `weights`, `prefix`, `source_config`, `stored_dtype`, `attn_implementation`, `time_budget`,
            `parent`, and `only_controls`, names of the faults to try, or None for the whole verification. `main` reads
            `only_diagnosis`, `backends` and `oracle_device` beside them.
    """
    folder, only = Path(request["folder"]), request["only_controls"]
    config = SourceConfig(**request["source_config"])
    checkpoint = read_checkpoint(request["weights"], prefix=request["prefix"])
    weights = oracle_weights(checkpoint, getattr(torch, request["stored_dtype"]), config.has_merger)
    cases = {case.name: case for case in cases_of(config)}
    faults = tuple(fault for fault in faults_of(config) if only is None or fault.name in only)
    # Beside each case in float32: epsilons and two in float64; of the whole, the processor's two, the reload, the
    # biggest pack and bfloat16.
    total = len(request["backends"]) or len(faults) + (len(cases) + 8 if only is None else len(SHARP) + 3)
    name = folder.name.lstrip(".").split(".partial")[0]
    return Job(
        folder=folder,
        attn_implementation=request["attn_implementation"],
        config=config,
        oracle=SourceEncoder.from_state_dict(config, weights),
        source_processor=stored_processor(checkpoint) or {},
        cases=cases,
        faults=faults,
        whole=only is None,
        time_budget=request["time_budget"],
        parent=request["parent"],
        # The parent shows standard output as progress and keeps standard error for the case of a failure.
        bar=tqdm(total=total, desc=f"verify {name}", unit="check", file=sys.stdout),
    )


def run(job: Job) -> dict:
    """Makes all checks, the sharpest first; once a case failed, only those that help to locate why."""
    job.bar.write(f"{job.bar.desc.rstrip(': ')}: {estimate(job)} on this machine", file=sys.stdout)
    findings = [check_epsilons(job)]
    model = job.load(torch.float32)
    more, exact = run_float64(job, model, sound(findings))
    findings += more
    expected = {name: job.expected(name) for name in SHARP}
    bounds = float32_bounds(rounding_of(expected[MIXED], exact))
    del exact
    more, image_seconds, batch = run_float32(job, model, expected, bounds)
    findings += more
    findings += try_faults(job, model, "structural", expected, bounds) if sound(findings) else []
    judged_by = {"float64": FLOAT64.to_dict(), "float32": summary_of_bounds(bounds), "pixels": PIXELS.to_dict()}
    if job.whole:
        findings += check_processor(job, model)
        findings.append(check_reload(job, model, batch))
    if sound(findings) and job.whole:
        findings.append(run_multi(job, model, bounds, image_seconds))
        del model
        findings.append(run_bfloat16(job, expected[MIXED]))
        judged_by["bfloat16"] = REPORTED.to_dict()
    outcome = outcome_of(findings, job.config.patch_size, "converted" if job.whole else "peaked")
    outcome |= {"notes": [], "bounds": judged_by, "seconds_by_part": job.clock.rounded()}
    return outcome if sound(findings) else outcome | {"notes": [STOPPED], "diagnosis": diagnose(job)}


def estimate(job: Job) -> str:
    """How long all checks will take, in words."""
    tokens = {name: case.tokens(job.config.patch_size) for name, case in job.cases.items()}
    once = {name: work(job.config, lengths) for name, lengths in tokens.items()}
    multiplications = 2 * sum(once[name] for name in (job.cases if job.whole else SHARP))
    multiplications += FLOAT64_FACTOR * 2 * sum(once[name] for name in SHARP)
    multiplications += sum(
        once[fault.case] * (FLOAT64_FACTOR if fault.kind == "numeric" else 1) for fault in job.faults
    )
    pace = seconds_per_multiplication(job.oracle)
    if job.whole:
        layers = min(LONG_LAYERS, job.config.num_hidden_layers)
        scale = multi_scale(job, 2 * once[IMAGE] * pace)
        multiplications += 2 * work(job.config, multi_tokens(job.config.patch_size, scale), layers) + once[MIXED]
    return f"about {max(1, round(multiplications * pace))} s"


def run_on_backends(job: Job, backends: list[Backend], oracle_device: str) -> dict:
    """A row per backend; the device's name is found here, where the folder's code runs anyway."""

    def told(row: dict) -> None:
        job.bar.set_postfix_str(f"{label_of(row)} {row['result']}")
        job.bar.update()

    job.bar.set_postfix_str(f"oracle on {oracle_device}")
    checks = BackendChecks(job.folder, job.oracle.to(oracle_device), job.cases, faults_of(job.config))
    rows, notes = check_backends(checks, backends, "converted" if job.whole else "peaked", told)
    kinds = {torch.device(row["device"]) for row in rows if row["cases"]}
    names = {str(kind): torch.cuda.get_device_name(kind) for kind in kinds if kind.type == "cuda"}
    return {"backends": rows, "notes": notes, "device_names": names}


def diagnose(job: Job) -> list[str]:
    """As `diagnose_model`, which knows no towers."""
    if is_tower(job.config):
        return []
    job.bar.set_postfix_str("naming the fault")
    return diagnose_model(job.load(torch.float32), job.oracle)


def found(job: Job, started: float, case: Case, dtype: str, judgement: Judgement, **fields) -> Finding:
    """The finding of a check that ends now; moves the progress bar on, unless nobody waits for it any more."""
    finding = Finding(case, dtype, judgement, time.monotonic() - started, **fields)
    told = f"fault {finding.fault.name}" if finding.fault else f"{case.name} {dtype} {finding.result}"
    job.bar.set_postfix_str(told, refresh=False)
    job.bar.update()
    if os.getppid() != job.parent:
        raise SystemExit("the process that asked for this verification is gone")
    return finding


def check_epsilons(job: Job) -> Finding:
    started = time.monotonic()
    reasons, notes = epsilon_reasons(job.folder, job.config)
    case = Case("epsilons", "epsilons of config.json are those of the source", (), tuple(notes))
    return found(job, started, case, "none", Judgement({}, reasons, None))


def run_float64(job: Job, model: ModelUnderTest, passing: bool) -> tuple[list[Finding], list[SampleOutput]]:
    """The sharpest comparison, and the numeric faults.

    Args:
        passing: whether nothing failed before; a model that fails has no faults planted in it.

    Returns:
        What was found, and the oracle's exact outputs for the image and the clip.
    """
    findings, expected = [], {}
    with in_double(job.oracle), in_double(model.model):
        for name in SHARP:
            started = time.monotonic()
            expected[name] = job.expected(name)
            bounds = uniform_bounds(expected[name][0].arrays(), FLOAT64)
            judgement = judged(job, job.run(model, job.cases[name]), expected[name], bounds)
            findings.append(found(job, started, job.cases[name], "float64", judgement))
        if passing and sound(findings):
            findings += try_faults(job, model, "numeric", expected, bounds)
    return findings, expected[MIXED]


def run_float32(
    job: Job, model: ModelUnderTest, expected: dict[str, list[SampleOutput]], bounds: dict[str, Bounds]
) -> tuple[list[Finding], float, list[SampleOutput]]:
    """The verdict on all cases but the biggest, the sharpest first.

    Args:
        expected: what the oracle makes of those; of more it would fill memory.

    Returns:
        What was found, what the image took, and what the model makes of the batch.
    """
    findings, image_seconds, batch = [], 0.0, []
    for name in (*SHARP, *(name for name in job.cases if name not in SHARP)) if job.whole else SHARP:
        started = time.monotonic()
        outputs = expected[name] if name in expected else job.expected(name)
        actual = job.run(model, job.cases[name])
        judgement = judged(job, actual, outputs, bounds)
        findings.append(found(job, started, job.cases[name], "float32", judgement))
        if name == IMAGE:
            image_seconds = findings[-1].seconds
        if name == BATCH:
            batch = actual
    return findings, image_seconds, batch


def try_faults(
    job: Job, model: ModelUnderTest, kind: str, expected: dict[str, list[SampleOutput]], bounds: dict[str, Bounds]
) -> list[Finding]:
    """Plants the faults of a kind, one after another."""
    findings = []
    for fault in (fault for fault in job.faults if fault.kind == kind):
        started, case = time.monotonic(), job.cases[fault.case]
        outputs = job.run(model, case, fault)
        with job.clock("comparing"):
            judgement = judge_fault(fault, outputs, expected[fault.case], bounds)
        findings.append(found(job, started, case, DTYPE_OF_KIND[kind], judgement, fault=fault))
    return findings


def check_processor(job: Job, model: ModelUnderTest) -> list[Finding]:
    """The processor as it is saved: resizing, cropping, and the sampling of frames."""
    findings = []
    for case, compared in ((IMAGE_INPUT, image_comparisons), (CLIP_INPUT, clip_comparisons)):
        started = time.monotonic()
        metrics, reasons = {}, []
        for name, comparison, bounds in compared(model, job.source_processor, job.config):
            metrics[name] = {**comparison.to_dict(), "bounds": bounds.to_dict()}
            reasons += [f"{name}: {reason}" for reason in bounds.check(comparison)]
        judgement = Judgement(metrics, reasons, reasons[0].split(":")[0] if reasons else None)
        findings.append(found(job, started, case, "float32", judgement))
    return findings


def check_reload(job: Job, first: ModelUnderTest, batch: list[SampleOutput]) -> Finding:
    """Saved again by `save_pretrained` and loaded from there: the same bits.

    Args:
        batch: the outputs of `first` on the batch.
    """
    started = time.monotonic()
    case, notes = job.cases[BATCH], ()
    with tempfile.TemporaryDirectory() as scratch:
        needed = 1.1 * sum(parameter.nbytes for parameter in first.model.parameters())
        if shutil.disk_usage(scratch).free > needed:
            folder = Path(scratch)
            first.model.save_pretrained(folder)
            first.processor.save_pretrained(folder)
        else:
            folder, notes = job.folder, ("loaded twice, not saved again: temporary space is short",)
        second = ModelUnderTest(folder, torch.float32, job.attn_implementation)
        bounds = dict.fromkeys(batch[0].arrays(), Bounds(max_abs=0.0))
        judgement = judged(job, job.run(second, case), batch, bounds)
        # A mapped file in a folder that is about to go.
        del second
    case = Case("reload", "saved again and loaded from there: the same bits", case.samples, notes)
    return found(job, started, case, "float32", judgement)


def run_multi(job: Job, model: ModelUnderTest, bounds: dict[str, Bounds], image_seconds: float) -> Finding:
    """The biggest pack in the first layers; sample by sample on the oracle's side, whose outputs are not kept."""
    started = time.monotonic()
    case = multi_case(job.config.patch_size, multi_scale(job, image_seconds))
    if is_tower(job.config):
        case = as_in_towers(case, job.config)
    layers, depth = min(LONG_LAYERS, job.config.num_hidden_layers), job.config.num_hidden_layers
    if layers < depth:
        note = f"the first {layers} of {depth} layers, which run the same code, then the norm and the head"
        case = replace(case, notes=(*case.notes, note))
    with first_layers(model, job.oracle, layers):
        with job.clock("biggest pack, model"):
            actual = model.run(case)
        # The oracle computes while its outputs are compared.
        with job.clock("biggest pack, oracle and comparing"):
            expected = oracle_outputs(job.oracle, case, job.config.patch_size)
            judgement = judge_outputs(actual, expected, bounds)
    return found(job, started, case, "float32", judgement)


def run_bfloat16(job: Job, expected: list[SampleOutput]) -> Finding:
    """bfloat16 beside float32: reported, not judged."""
    model, started = job.load(torch.bfloat16), time.monotonic()
    bounds = uniform_bounds(expected[0].arrays(), REPORTED)
    judgement = judged(job, job.run(model, job.cases[MIXED]), expected, bounds)
    return found(job, started, job.cases[MIXED], "bfloat16", judgement, reported=True)


def judged(job: Job, actual: list[SampleOutput], expected: list[SampleOutput], bounds: dict[str, Bounds]) -> Judgement:
    with job.clock("comparing"):
        return judge_outputs(actual, expected, bounds)


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def multi_scale(job: Job, image_seconds: float) -> float:
    """Of the biggest pack: 1, or less where time budget or memory is short.

    Args:
        image_seconds: what model and oracle take for the image.
    """
    config = job.config
    layers = min(LONG_LAYERS, config.num_hidden_layers)
    image = work(config, job.cases[IMAGE].tokens(config.patch_size))
    for scale in SCALES:
        tokens = multi_tokens(config.patch_size, scale)
        seconds = image_seconds * work(config, tokens, layers) / image
        values = (sum(tokens) + max(tokens)) * (layers + 2) * config.hidden_size
        if seconds <= SHARE * job.time_budget and 4 * values <= SHARE * free_memory():
            break
    return scale


def free_memory() -> int:
    """Bytes of memory that are free, or a cautious guess where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            return next(int(line.split()[1]) * 1024 for line in stream if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 8 * 2**30


def main() -> int:
    job_file, outcome_file = map(Path, sys.argv[1:])
    torch.manual_seed(0)
    request = read_json_object(job_file)
    job = open_job(request)
    if request["backends"]:
        outcome = run_on_backends(job, [Backend(**one) for one in request["backends"]], request["oracle_device"])
    else:
        outcome = {"diagnosis": diagnose(job)} if request["only_diagnosis"] else run(job)
    job.bar.close()
    write_atomically(outcome_file, lambda stream: stream.write(json.dumps(outcome).encode()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
