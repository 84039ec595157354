# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What the checks of a verification find, and the part of the report that is made of it."""

from dataclasses import dataclass

from conversion.common.report_schema import FAIL, PASS, REPORTED
from conversion.verification.cases import Case
from conversion.verification.faults import Fault
from conversion.verification.judging import Judgement


@dataclass(frozen=True)
class Finding:
    """One check that was made: a case, judged, with the fault that was planted for it, if any."""

    case: Case
    dtype: str
    judgement: Judgement
    seconds: float
    fault: Fault | None = None
    reported: bool = False

    @property
    def result(self) -> str:
        return REPORTED if self.reported else PASS if self.judgement.passed else FAIL


def sound(findings: list[Finding]) -> bool:
    """Whether no case failed. A planted fault is there to fail, and says nothing of the model."""
    return all(finding.fault is not None or finding.result != FAIL for finding in findings)


def outcome_of(findings: list[Finding], patch_size: int, weights: str) -> dict:
    """Cases, controls and inputs, in the order in which they were checked, as JSON types.

    Args:
        weights: what the faults were planted in, `"converted"` or `"peaked"`.
    """
    inputs: dict[str, Case] = {}
    for finding in findings:
        if finding.case.samples:
            inputs.setdefault(finding.case.name, finding.case)
    return {
        "cases": [_case(finding) for finding in findings if finding.fault is None],
        "controls": [_control(finding, finding.fault, weights) for finding in findings if finding.fault is not None],
        "inputs": {
            name: {
                "description": case.description,
                "grids": [list(sample.grid(patch_size)) for sample in case.samples],
                "sha256": case.sha256(),
            }
            for name, case in inputs.items()
        },
    }


def _case(finding: Finding) -> dict:
    arrays: dict = {"hidden_states": []}
    for name, metrics in finding.judgement.metrics.items():
        if name.startswith("hidden_states["):
            arrays["hidden_states"].append(metrics)
        else:
            arrays[name] = metrics
    return {
        "name": finding.case.name,
        "description": finding.case.description,
        "dtype": finding.dtype,
        "result": finding.result,
        "arrays": arrays,
        "first_diverging": finding.judgement.first_diverging,
        "reasons": finding.judgement.reasons,
        "notes": list(finding.case.notes),
        "seconds": round(finding.seconds, 2),
    }


def _control(finding: Finding, fault: Fault, weights: str) -> dict:
    return {
        "name": fault.name,
        "description": fault.description,
        "case": finding.case.name,
        "kind": fault.kind,
        "detected": finding.judgement.tells_a_fault,
        "weights": weights,
        "array": fault.array,
        "metrics": finding.judgement.metrics[fault.array],
        "reasons": finding.judgement.reasons,
    }
