# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Names the known mistake that a model which failed looks like: its outputs beside what the oracle makes with each.

On a small case of its own, since the oracle runs some fifty times. The comparison is that of the conformance kit.
"""

import time
from collections.abc import Iterator

import numpy as np
import torch

from conversion.kit.check import Evidence, diagnose, relative_error
from conversion.source.encoder import SourceConfig, SourceEncoder
from conversion.verification.cases import Case, clip_sample, image_sample
from conversion.verification.double_precision import in_double
from conversion.verification.judging import FLOAT64
from conversion.verification.loaded_model import ModelUnderTest, SampleOutput
from conversion.verification.oracle_faults import fault_combinations, run_oracle


# After so long no more faults are tried. A model of 300 million parameters takes about LARGE_SECONDS on two cores.
LONGEST_SECONDS = 900.0
WITHOUT_NUMBERS = "outputs of other shapes, or that are not finite: what they look like cannot be told"


def diagnosis_case(patch_size: int) -> Case:
    """Ragged, with rows and columns of different numbers, and frames at times that need rounding: each fault shows."""
    image = image_sample(4 * patch_size, 5 * patch_size, 0.5)
    clip = clip_sample(2 * patch_size, 3 * patch_size, 1.5, frames=5)
    return Case("diagnosis", "a small image and a small clip", (image, clip))


def diagnose_model(model: ModelUnderTest, oracle: SourceEncoder, longest: float = LONGEST_SECONDS) -> list[str]:
    """What a model that failed looks like, a line each; empty if it agrees on the small case.

    Args:
        longest: seconds after which no more faults are tried; a line says so.
    """
    started = time.monotonic()
    case, faults = diagnosis_case(oracle.config.patch_size), fault_combinations()
    with in_double(oracle), in_double(model.model):
        actual = dict(_rows(_joined(model.run(case)), oracle.config))
        right = dict(_rows(run_oracle(oracle, case.samples), oracle.config))
        actual = {name: array for name, array in actual.items() if name in right}
        if any(array.shape != right[name].shape or not np.isfinite(array).all() for name, array in actual.items()):
            return [WITHOUT_NUMBERS]
        errors = {name: relative_error(array, right[name]) for name, array in actual.items()}
        wrong = [name for name, error in errors.items() if error > FLOAT64.relative_error]
        if not wrong:
            return []
        known: dict[str, dict[str, np.ndarray]] = {name: {} for name in actual}
        tried = 0
        for fault, parts in faults.items():
            if time.monotonic() - started > longest:
                break
            for name, array in _rows(run_oracle(oracle, case.samples, parts), oracle.config):
                if name in known and relative_error(array, right[name]) > FLOAT64.relative_error:
                    known[name][fault] = array
            tried += 1
    evidence = [Evidence(name, array, right[name], known[name]) for name, array in actual.items()]
    descriptions = {name: " and ".join(fault.description for fault in parts) for name, parts in faults.items()}
    lines = [diagnosis.text() for diagnosis in diagnose(evidence, wrong[:1], descriptions)]
    if tried < len(faults):
        lines.append(f"only {tried} of {len(faults)} known faults were tried for lack of time")
    return lines


def _joined(samples: list[SampleOutput]) -> dict[str, torch.Tensor]:
    """The outputs of a model in the form of `run_oracle`, but for the embeddings, which it does not put out."""
    layers = zip(*(sample.hidden_states for sample in samples), strict=True)
    arrays = {
        "hidden_states": torch.stack([torch.cat(layer) for layer in layers]),
        "last_hidden_state": torch.cat([sample.last_hidden_state for sample in samples]),
    }
    if samples[0].pooler_output is not None:
        arrays["pooled"] = torch.stack([sample.pooler_output for sample in samples])
    return arrays


def _rows(arrays: dict[str, torch.Tensor], config: SourceConfig) -> Iterator[tuple[str, np.ndarray]]:
    """What is compared, by name: of a deep model's hidden states a few, which are kept for every fault."""
    layers = config.num_hidden_layers
    for layer in sorted({0, 1, layers // 2, layers}):
        yield f"hidden_states[{layer}]", arrays["hidden_states"][layer].double().numpy()
    for name in ("last_hidden_state", "pooled"):
        if name in arrays:
            yield name, arrays[name].double().numpy()
