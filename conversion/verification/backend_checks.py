# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The verification on other backends: the model there, against the oracle in float32.

What a backend may differ by follows from how the oracle itself rounds in the backend's dtype, and a fault must be
farther away than that. Products of float32 are kept from being rounded to TF32, and sums of half-precision products
from being rounded on the way, since both are choices of speed and not of the model.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict

import torch

from conversion.common.metrics import Bounds
from conversion.source.encoder import SourceEncoder
from conversion.verification.backends import Backend, absent_row, margin_of, result_of
from conversion.verification.cases import BATCH, IMAGE, MIXED, VIDEO, Case
from conversion.verification.double_precision import in_double
from conversion.verification.faults import Fault
from conversion.verification.findings import Finding, outcome_of
from conversion.verification.judging import float32_bounds, half_bounds, judge_fault, judge_outputs, rounding_of
from conversion.verification.loaded_model import ModelUnderTest, SampleOutput, oracle_outputs


CASES = (IMAGE, VIDEO, MIXED, BATCH)


@contextmanager
def exact_products() -> Iterator[list[str]]:
    """Switches off what rounds products and sums more than their dtype does; yields what was on."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    names = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    precision, convolutions = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    reductions = {name: getattr(matmul, name) for name in names}
    switched = [f"float32_matmul_precision={precision!r}"] * (precision != "highest")
    if torch.cuda.is_available():
        switched += ["cudnn.allow_tf32"] * convolutions + [name for name, on in reductions.items() if on]
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = False
    for name in names:
        setattr(matmul, name, False)
    try:
        yield switched
    finally:
        torch.set_float32_matmul_precision(precision)
        cudnn.allow_tf32 = convolutions
        for name, on in reductions.items():
            setattr(matmul, name, on)


class BackendChecks:
    """Checks of one folder on many backends. What the oracle makes of the cases is worked out once.

    Args:
        folder: the model folder; its code is executed.
        oracle: in float32, on its device.
        cases: by name.
        faults: that can be planted.
    """

    def __init__(self, folder, oracle: SourceEncoder, cases: dict[str, Case], faults: tuple[Fault, ...]):
        self.folder, self.oracle, self.cases, self.faults = folder, oracle, cases, faults
        self.expected = {name: self._oracle_on(oracle, name) for name in CASES}
        with in_double(oracle):
            exact = self._oracle_on(oracle, MIXED)
        self.bounds = {"float32": float32_bounds(rounding_of(self.expected[MIXED], exact))}

    def _oracle_on(self, oracle: SourceEncoder, name: str) -> list[SampleOutput]:
        return list(oracle_outputs(oracle, self.cases[name], self.oracle.config.patch_size))

    def bounds_in(self, dtype: str) -> dict[str, Bounds]:
        """The bounds of each array in a dtype, from the oracle's own rounding in it."""
        if dtype not in self.bounds:
            kind = getattr(torch, dtype)
            rounded = SourceEncoder.from_state_dict(self.oracle.config, self.oracle.state_dict(), kind)
            rounding = rounding_of(self._oracle_on(rounded, MIXED), self.expected[MIXED])
            self.bounds[dtype] = half_bounds(rounding, kind)
        return self.bounds[dtype]

    def row(self, backend: Backend, weights: str) -> dict:
        """One row: cases, planted faults and the result, as JSON types.

        Args:
            weights: what the faults are planted in, `"converted"` or `"peaked"`.
        """
        if backend.obstacle is not None:
            return absent_row(backend)
        started, findings, reasons = time.monotonic(), [], []
        try:
            for finding in self._findings(backend):
                findings.append(finding)
        except (RuntimeError, ValueError, TypeError, ImportError) as error:
            reasons.append(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        outcome = outcome_of(findings, self.oracle.config.patch_size, weights)
        row = {**asdict(backend), "weights": weights, "reasons": reasons}
        row |= {name: outcome[name] for name in ("cases", "controls")}
        row |= {"margin": margin_of(row), "result": result_of(row)}
        return {**row, "seconds": round(time.monotonic() - started, 1)}

    def _findings(self, backend: Backend) -> Iterator[Finding]:
        model = ModelUnderTest(self.folder, getattr(torch, backend.dtype), backend.attn_implementation, backend.device)
        if backend.compiled:
            torch.compiler.reset()
            model.compile()
        bounds = self.bounds_in(backend.dtype)
        for name in CASES:
            started = time.monotonic()
            judgement = judge_outputs(model.run(self.cases[name]), self.expected[name], bounds)
            yield Finding(self.cases[name], backend.dtype, judgement, time.monotonic() - started)
        for fault in faults_on(backend, self.faults):
            started = time.monotonic()
            case = self.cases[fault.case]
            with fault.plant(model.model) if fault.plant else nullcontext():
                outputs = model.run(case, edit_positions=fault.edit_positions, leak=fault.leak)
            judgement = judge_fault(fault, outputs, self.expected[fault.case], bounds)
            yield Finding(case, backend.dtype, judgement, time.monotonic() - started, fault=fault)


def faults_on(backend: Backend, faults: tuple[Fault, ...]) -> tuple[Fault, ...]:
    """The structural ones; of a compiled model those in its inputs, as others would be compiled anew each."""
    structural = tuple(fault for fault in faults if fault.kind == "structural")
    return tuple(fault for fault in structural if fault.edit_positions) if backend.compiled else structural


def check_backends(
    checks: BackendChecks, backends: Iterable[Backend], weights: str, told=lambda row: None
) -> tuple[list[dict], list[str]]:
    """A row per backend, and notes on what was switched off for them.

    Args:
        weights: as for `BackendChecks.row`.
        told: is called with every row.
    """
    rows = []
    with exact_products() as switched:
        for backend in backends:
            rows.append(checks.row(backend, weights))
            told(rows[-1])
    notes = [f"Switched off meanwhile, as it rounds more than the dtype does: {', '.join(switched)}."] * bool(switched)
    return rows, notes
