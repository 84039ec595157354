# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Backends: what a model can run on and with. Which of them a machine has, and the table of what they compute.

Imports neither `llava_vit_hf` nor a model folder's code.
"""

import importlib.util
from dataclasses import asdict, dataclass, fields

import torch

from conversion.common.report_schema import FAIL, INCONCLUSIVE, PASS
from conversion.verification.report_tables import error_text, table


DTYPES = ("float32", "bfloat16", "float16")
# The package that an implementation of attention needs.
PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
IMPLEMENTATIONS = ("eager", "sdpa", *PACKAGES)
ABSENT = "ABSENT"


@dataclass(frozen=True)
class Backend:
    """A device, a dtype and an implementation of attention, compiled or not.

    Raises:
        ValueError: for a device, dtype or implementation that there is not.
    """

    device: str = "cpu"
    dtype: str = "float32"
    attn_implementation: str = "sdpa"
    compiled: bool = False

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"--dtype {self.dtype}: expected one of {', '.join(DTYPES)}.")
        if self.attn_implementation not in IMPLEMENTATIONS:
            raise ValueError(
                f"--attn_implementation {self.attn_implementation}: expected one of {', '.join(IMPLEMENTATIONS)}."
            )
        try:
            torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(f"--device {self.device}: {str(error).splitlines()[0]}") from error

    @property
    def label(self) -> str:
        return f"{self.device} {self.attn_implementation}{' compiled' * self.compiled} {self.dtype}"

    @property
    def obstacle(self) -> str | None:
        """Why this machine does not have it; `None` if it has."""
        kind = torch.device(self.device).type
        if kind == "cuda" and not torch.cuda.is_available():
            return "this machine has no CUDA device that PyTorch can use"
        if kind == "mps" and not torch.backends.mps.is_available():
            return "this machine has no MPS device that PyTorch can use"
        package = PACKAGES.get(self.attn_implementation)
        if package is not None:
            if importlib.util.find_spec(package) is None:
                return f"{package} is not installed"
            if kind != "cuda":
                return "it runs on CUDA only"
            if self.dtype == "float32":
                return "it has no float32"
        return None


def all_backends(device: str | None = None) -> list[Backend]:
    """Every backend of a device, those that this machine lacks too; without one of the CPU and of CUDA, if there."""
    devices = [device] if device else ["cpu", *["cuda"] * torch.cuda.is_available()]
    return [
        backend
        for name in devices
        for dtype in DTYPES
        for backend in (
            *(Backend(name, dtype, implementation) for implementation in IMPLEMENTATIONS),
            Backend(name, dtype, "sdpa", compiled=True),
        )
    ]


def absent_row(backend: Backend) -> dict:
    """The row of a backend that this machine does not have."""
    return {**asdict(backend), "result": ABSENT, "reasons": [backend.obstacle], "cases": [], "controls": []}


def result_of(row: dict) -> str:
    """PASS if every case keeps to its bounds and every fault was told apart; INCONCLUSIVE if a fault was not."""
    if row["reasons"] or not row["cases"] or any(case["result"] != PASS for case in row["cases"]):
        return FAIL
    told = [control["detected"] for control in row["controls"]]
    return PASS if told and all(told) else INCONCLUSIVE


def verdict_of_rows(rows: list[dict]) -> str:
    """The worst result of the backends that ran; FAIL if none did."""
    found = [row["result"] for row in rows if row["result"] != ABSENT]
    return next((worst for worst in (FAIL, INCONCLUSIVE) if worst in found), PASS) if found else FAIL


def peaked_rows(rows: list[dict], peaked: list[dict]) -> list[dict]:
    """Rows of which those that hide faults, as their attention is too flat, take them from those on peaked weights,
    where the model must keep to its bounds too."""
    by_backend = {label_of(row): row for row in peaked}
    found = []
    for row in rows:
        other = by_backend.get(label_of(row))
        if other is not None:
            row = {**row, **{name: other[name] for name in ("controls", "margin", "weights")}}
            row["result"] = FAIL if other["result"] == FAIL else result_of(row)
        found.append(row)
    return found


def label_of(row: dict) -> str:
    """The label of the backend of a row."""
    return Backend(**{field.name: row[field.name] for field in fields(Backend)}).label


def margin_of(row: dict) -> dict:
    """How far the model is from the nearest planted fault, by relative error of `last_hidden_state`.

    Returns:
        `model`, the worst of its cases; `nearest_fault`, `fault`, its error, and `times` as far as the model that is.
    """
    errors = [case["arrays"]["last_hidden_state"]["relative_error"] for case in row["cases"]]
    faults = {
        control["name"]: control["metrics"]["relative_error"]
        for control in row["controls"]
        if control["metrics"]["relative_error"] is not None
    }
    model = None if None in errors else max(errors, default=None)
    nearest = min(faults, key=faults.get, default=None)
    fault = faults.get(nearest)
    return {
        "model": model,
        "nearest_fault": nearest,
        "fault": fault,
        "times": fault / model if fault is not None and model else None,
    }


def backends_table(rows: list[dict]) -> str:
    """A row per backend: how far the model is from the oracle, and how much farther the nearest fault is."""
    heads = ("device", "attention", "dtype", "result", "model", "bound", "nearest fault", "fault", "times as far")
    lines = []
    for row in rows:
        attention = row["attn_implementation"] + ", compiled" * row["compiled"]
        line = (row["device"], attention, row["dtype"], row["result"])
        if not row["cases"]:
            lines.append((*line, "", "", "; ".join(row["reasons"]), "", "", ""))
            continue
        margin, last = row["margin"], row["cases"][0]["arrays"]["last_hidden_state"]
        told = sum(control["detected"] for control in row["controls"])
        weights = " on peaked weights" * (row["weights"] == "peaked")
        fault = f"{margin['nearest_fault']}{weights}, {told} of {len(row['controls'])} told apart"
        times = "n/a" if margin["times"] is None else f"{margin['times']:.3g}"
        numbers = (error_text(worst_error(row)), error_text(last["bounds"]["relative_error"]))
        lines.append((*line, *numbers, fault, error_text(margin["fault"]), times, row["seconds"]))
    return table((*heads, "seconds"), lines)


def worst_error(row: dict) -> float | None:
    """The worst relative error of `last_hidden_state` of a row's cases."""
    return margin_of({**row, "controls": []})["model"]


def failures_of_rows(rows: list[dict]) -> list[str]:
    """Why rows are not PASS, a line each."""
    lines = []
    for row in (row for row in rows if row["result"] not in (PASS, ABSENT)):
        name = label_of(row)
        lines += [f"{name}: {reason}" for reason in row["reasons"]]
        lines += [
            f"{name}, {case['name']}: {'; '.join(case['reasons'][:3])}" for case in row["cases"] if case["reasons"]
        ]
        lines += [f"{name}: fault {c['name']} was not told apart" for c in row["controls"] if not c["detected"]]
    return lines
