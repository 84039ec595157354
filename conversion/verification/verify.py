# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Verifies a converted folder against the oracle on the source's weights, and decides.

The verdict is PASS only if every case keeps to its bounds and every planted fault was told apart; INCONCLUSIVE if the
model agrees but a fault stays hidden even on peaked weights of the same configuration; FAIL otherwise.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
import torch

from conversion.checkpoints.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from conversion.checkpoints.convert import resolve_dtype
from conversion.checkpoints.model_folder_writer import ConversionRequest, convert_folder
from conversion.checkpoints.source_config import Source
from conversion.common.files import sha256_of_file
from conversion.common.json_files import read_json_object
from conversion.common.model_folder import model_file_names
from conversion.common.report_schema import (
    CHECKS_VERSION,
    FAIL,
    INCONCLUSIVE,
    PASS,
    PEAKED,
    REPORTED,
    SCHEMA_VERSION,
)
from conversion.source.encoder import SourceConfig
from conversion.source.peaked_weights import peaked_state_dict
from conversion.verification.backends import Backend, peaked_rows, verdict_of_rows
from conversion.verification.cases import is_tower
from conversion.verification.faults import DTYPE_OF_KIND


DEFAULT_TIME_BUDGET = 1800.0
STANDARD_ERROR = 2
# Lines of a failed worker that are shown.
LAST_WORDS = 20


class VerificationError(RuntimeError):
    """The verification could not be carried out, or its verdict is not PASS."""


@dataclass(frozen=True)
class VerificationRequest:
    """What to verify.

    Attributes:
        folder: the model folder.
        source: what it was converted from; its own weights check what its code computes but not the conversion.
        converted: the folder's own weights, where they are open already.
        time_budget: seconds; the biggest pack shrinks to fit.
    """

    folder: Path
    source: Source
    converted: Checkpoint | None = None
    attn_implementation: str = "sdpa"
    time_budget: float = DEFAULT_TIME_BUDGET


def verify_folder(request: VerificationRequest) -> dict:
    """Verifies a folder and returns the report (see `conversion/README.md` for its schema).

    Raises:
        CheckpointError: if the folder's weights cannot be read.
        VerificationError: if the folder cannot be loaded and run.
    """
    started = datetime.now(UTC)
    converted = open_folder(request)
    stored_dtype = resolve_dtype(converted, None)
    outcome = run_worker(request, stored_dtype)
    hidden = [control["name"] for control in outcome["controls"] if not control["detected"]]
    if hidden:
        decide_on_peaked_weights(request, converted.layout, hidden, outcome)
    report = {
        "schema_version": SCHEMA_VERSION,
        "checks_version": CHECKS_VERSION,
        "verdict": verdict_of(outcome),
        "created": started.isoformat(timespec="seconds"),
        "model": {
            "layout": converted.layout,
            "config": converted.config,
            "files": folder_hashes(request.folder),
        },
        "source": describe_source(request.source),
        "taken_on_trust": taken_on_trust(request.source),
        "environment": environment() | {"device": "cpu", "attn_implementation": request.attn_implementation},
        "margins": margins(outcome),
        **outcome,
    }
    report["seconds"] = round((datetime.now(UTC) - started).total_seconds(), 1)
    return report


def verify_backends(request: VerificationRequest, backends: Sequence[Backend], oracle_device: str = "cpu") -> dict:
    """Verifies a folder on other devices, in other dtypes and with other implementations of attention.

    Args:
        request: of which `attn_implementation` and `time_budget` are not used.
        backends: at least one; those that this machine lacks get a row that says why.
        oracle_device: where the oracle computes, in float32 and, for the bounds, in the backends' dtypes.

    Returns:
        `verdict`, `backends` with a row each, `bounds`, `model`, `source`, `notes` and `environment`, as in a report.

    Raises:
        CheckpointError, VerificationError: as `verify_folder`.
    """
    started = datetime.now(UTC)
    converted = open_folder(request)
    outcome = run_worker(request, resolve_dtype(converted, None), backends=backends, oracle_device=oracle_device)
    rows = outcome["backends"]
    hiding = [backend for backend, row in zip(backends, rows, strict=True) if row["result"] == INCONCLUSIVE]
    if hiding:
        with peaked_folder(request, converted.layout) as peaked:
            on_peaked = run_worker(peaked, torch.float32, [], backends=hiding, oracle_device=oracle_device)
        outcome["backends"] = rows = peaked_rows(rows, on_peaked["backends"])
        outcome["notes"].append(
            "Where these weights hide faults (attention is too flat), the faults and the model's numbers beside them "
            "are those on random weights of the same configuration with peaked attention."
        )
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": verdict_of_rows(rows),
        "created": started.isoformat(timespec="seconds"),
        "model": {
            "layout": converted.layout,
            "config": converted.config,
            "files": folder_hashes(request.folder),
        },
        "source": describe_source(request.source),
        "environment": environment() | {"oracle_device": oracle_device, **outcome.pop("device_names")},
        **outcome,
    }


def diagnose_folder(request: VerificationRequest) -> list[str]:
    """Runs a small case alone: which known mistakes the folder's model looks like; empty if it is right there.

    Raises:
        CheckpointError, VerificationError: as `verify_folder`; the latter also for the tower of a VLM.
    """
    converted = open_folder(request)
    if is_tower(request.source.config):
        raise VerificationError(
            f"{request.folder} holds the tower of a VLM, whose known mistakes are not told by their looks. Leave "
            "--diagnosis_only out: they are planted in the verification, and told apart there."
        )
    return run_worker(request, resolve_dtype(converted, None), only_diagnosis=True)["diagnosis"]


def open_folder(request: VerificationRequest) -> Checkpoint:
    """The folder's own weights.

    Raises:
        CheckpointError: if they cannot be read, or are those of no model folder.
    """
    converted = request.converted or read_checkpoint(request.folder)
    if converted.layout == "source" or converted.config is None:
        raise CheckpointError(f"{request.folder} is no dense or packing model folder.")
    return converted


def run_worker(
    request: VerificationRequest,
    stored_dtype: torch.dtype,
    only_controls: list[str] | None = None,
    only_diagnosis: bool = False,
    backends: Sequence[Backend] = (),
    oracle_device: str = "cpu",
) -> dict:
    """Runs `worker.py` in a process of its own, which opens the source anew, and returns what it found.

    Raises:
        VerificationError: if it fails; its last words are in the message.
    """
    job = {
        "folder": str(Path(request.folder).resolve()),
        # Not resolved: a link to a file may have the suffix that tells its format, and the file none.
        "weights": str(request.source.checkpoint.path.absolute()),
        "prefix": request.source.checkpoint.prefix,
        "source_config": asdict(request.source.config),
        "stored_dtype": str(stored_dtype).removeprefix("torch."),
        "attn_implementation": request.attn_implementation,
        "time_budget": request.time_budget,
        "only_controls": only_controls,
        "only_diagnosis": only_diagnosis,
        "backends": [asdict(backend) for backend in backends],
        "oracle_device": oracle_device,
        "parent": os.getpid(),
    }
    root = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as scratch:
        job_file, outcome_file, words = (Path(scratch) / name for name in ("job.json", "outcome.json", "words"))
        job_file.write_text(json.dumps(job), encoding="utf-8")
        # A cache of its own: transformers 4.57 keeps the code of folders by their last name only.
        variables = {**os.environ, "HF_MODULES_CACHE": f"{scratch}/modules"}
        command = [sys.executable, "-m", "conversion.verification.worker", str(job_file), str(outcome_file)]
        with open(words, "wb") as stream:
            # Its standard output is the progress bar.
            process = subprocess.run(
                command, cwd=root, env=variables, stdin=subprocess.DEVNULL, stdout=STANDARD_ERROR, stderr=stream
            )
        if process.returncode != 0 or not outcome_file.is_file():
            tail = "\n".join(words.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_WORDS:])
            raise VerificationError(
                f"{request.folder} could not be loaded and run (exit code {process.returncode}):\n{tail}"
            )
        return read_json_object(outcome_file)


def decide_on_peaked_weights(request: VerificationRequest, layout: str, hidden: list[str], outcome: dict) -> None:
    """Tries the faults that these weights hide on peaked random weights of the same configuration.

    The peaked model is converted like the real one and must itself agree with the oracle, case by case.
    """
    with peaked_folder(request, layout) as on_peaked:
        peaked = run_worker(on_peaked, torch.float32, only_controls=hidden)
    found = {control["name"]: control for control in peaked["controls"]}
    outcome["controls"] = [found.get(control["name"], control) for control in outcome["controls"]]
    outcome["cases"] += [{**case, "name": f"{PEAKED}{case['name']}"} for case in peaked["cases"]]
    outcome["notes"].append(
        f"The weights hide {', '.join(hidden)} (attention is too flat), so random weights of the same configuration "
        "with peaked attention were converted and checked for them."
    )


@contextmanager
def peaked_folder(request: VerificationRequest, layout: str) -> Iterator[VerificationRequest]:
    """The same request for a model of peaked random weights of the same configuration, converted like the real one."""
    with tempfile.TemporaryDirectory() as scratch:
        weights, folder = Path(scratch) / "peaked.safetensors", Path(scratch) / "peaked_model"
        safetensors.torch.save_file(peaked_state_dict(request.source.config), weights)
        source = Source(read_checkpoint(weights), request.source.config)
        convert_folder(ConversionRequest(str(weights), layout, folder), source=source)
        yield replace(request, folder=folder, source=source)


def verdict_of(outcome: dict) -> str:
    """PASS, FAIL or INCONCLUSIVE for what the worker found."""
    judged = [case for case in outcome["cases"] if case["result"] != REPORTED]
    if not judged or any(case["result"] != PASS for case in judged):
        return FAIL
    hidden = [control for control in outcome["controls"] if not control["detected"]]
    return INCONCLUSIVE if hidden or not outcome["controls"] else PASS


def margins(outcome: dict) -> dict:
    """How far the real model is from the nearest fault of each kind, by relative error of `last_hidden_state`.

    Returns:
        By kind: the nearest fault's name and relative error, and the worst of the model's on the same weights.
    """
    margins = {}
    for kind, dtype in DTYPE_OF_KIND.items():
        controls = [
            control
            for control in outcome["controls"]
            if control["kind"] == kind
            and control["array"] == "last_hidden_state"
            and control["metrics"]["relative_error"] is not None
        ]
        if not controls:
            continue
        nearest = min(controls, key=lambda control: control["metrics"]["relative_error"])
        errors = [
            case["arrays"]["last_hidden_state"]["relative_error"]
            for case in outcome["cases"]
            if case["dtype"] == dtype
            and case["name"].startswith(PEAKED) == (nearest["weights"] == "peaked")
            and "last_hidden_state" in case["arrays"]
        ]
        margins[kind] = {
            "nearest_fault": nearest["name"],
            "fault": nearest["metrics"]["relative_error"],
            "model": None if None in errors else max(errors, default=None),
            "weights": nearest["weights"],
        }
    return margins


def taken_on_trust(source: Source) -> str:
    """What no comparison can prove, since both sides were told it."""
    config = source.config
    told = "its config.json" if source.checkpoint.config is not None else "the model name or the arguments"
    return (
        f"Taken on trust, because weights cannot tell it: {config.num_attention_heads} attention heads (head dim "
        f"{config.head_dim}), epsilons {config.norm_eps:g} and {config.head_norm_eps:g} (head), rope theta "
        f"{config.rope_theta:g}{_of_a_tower(config)}. They come from {told} and the pretraining code's defaults; with "
        "others the verification would pass just as well."
    )


def _of_a_tower(config: SourceConfig) -> str:
    if not is_tower(config):
        return ""
    size, window = config.merge_size, config.attention_window
    attention = "attention over whole clips" if window is None else f"attention in windows of {window} frames"
    times = "times that are frame numbers" if config.temporal_rule == "index" else "times in the 64-frame context"
    return f", {attention}, patches in blocks of {size} x {size}, {times}"


def describe_source(source: Source) -> dict:
    return {
        "location": Path(source.checkpoint.location).name,
        "layout": source.checkpoint.layout,
        "sha256": source.checkpoint.sha256(),
        "config": asdict(source.config),
    }


def folder_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that makes up the model in a folder, by name; others that lie there are left out."""
    return {name: sha256_of_file(Path(folder) / name) for name in model_file_names(Path(folder))}


def environment() -> dict:
    packages = ("torch", "transformers", "huggingface_hub", "safetensors", "numpy")
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
    }
