# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Names the known mistake that a model which failed looks like: its outputs beside what the oracle makes with each.

On a small case of its own, and no further than where the model departs, since the oracle runs some fifty times. The
comparison is that of the conformance kit.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import cycle
from unittest.mock import patch

import numpy as np
import torch

from conversion.kit.check import Evidence, diagnose, relative_error
from conversion.source.encoder import SourceEncoder
from conversion.verification.cases import Case, clip_sample, image_sample
from conversion.verification.double_precision import in_double
from conversion.verification.judging import FLOAT64
from conversion.verification.loaded_model import ModelUnderTest, SampleOutput
from conversion.verification.oracle_faults import fault_combinations, run_oracle


# After so long no more faults are tried.
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
        outputs, expected = _joined(model.run(case)), run_oracle(oracle, case.samples)
        right = dict(_rows(expected))
        actual = {name: array for name, array in _rows(outputs) if name in right}
        if any(array.shape != right[name].shape or not np.isfinite(array).all() for name, array in actual.items()):
            return [WITHOUT_NUMBERS]
        wrong = [name for name in actual if relative_error(actual[name], right[name]) > FLOAT64.relative_error]
        if not wrong:
            return []
        near = _rows_near(wrong[0], list(actual))
        if not _of_layers(wrong[0]):
            # Where the states of the layers are right, tokens attend to the right ones.
            faults = {name: parts for name, parts in faults.items() if not any(part.runs for part in parts)}
        known: dict[str, dict[str, np.ndarray]] = {name: {} for name in near}
        tried = 0
        with _only_as_far_as(wrong[0], oracle, expected["hidden_states"], case):
            for fault, parts in faults.items():
                if time.monotonic() - started > longest:
                    break
                for name, array in _rows(run_oracle(oracle, case.samples, parts)):
                    if name in near and relative_error(array, right[name]) > FLOAT64.relative_error:
                        known[name][fault] = array
                tried += 1
    evidence = [Evidence(name, actual[name], right[name], known[name]) for name in near]
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


def _rows(arrays: dict[str, torch.Tensor]) -> Iterator[tuple[str, np.ndarray]]:
    """What is compared, by name, in order of computation."""
    for layer, states in enumerate(arrays["hidden_states"]):
        yield f"hidden_states[{layer}]", states.double().numpy()
    for name in ("last_hidden_state", "pooled"):
        if name in arrays:
            yield name, arrays[name].double().numpy()


def _of_layers(row: str) -> bool:
    return row.startswith("hidden_states[")


def _rows_near(first: str, names: list[str]) -> list[str]:
    """The first row that is wrong and the one before it; behind the layers, all rows from there on."""
    place = names.index(first)
    return names[max(0, place - 1) : place + 1] if _of_layers(first) else names[place:]


def _only_as_far_as(first: str, oracle: SourceEncoder, states: torch.Tensor, case: Case) -> AbstractContextManager:
    """Lets the oracle compute no more layers than it takes for the row `first`.

    Args:
        states: the right hidden states `(layers + 1, tokens, C)`, which are taken as they are where `first` comes
            after them.
    """
    if _of_layers(first):
        layer = int(first[len("hidden_states[") : -1])
        # One more, for a fault that puts out the states of the next layer.
        layers = oracle.transformer.layers[: layer + 1]
        return patch.dict(oracle.transformer._modules, {"layers": layers})
    lengths = [len(sample.positions(oracle.config.patch_size)) for sample in case.samples]
    of_samples = cycle(states.split(lengths, dim=1))

    def encode(x: torch.Tensor, positions: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        known = next(of_samples)
        return list(known), oracle.ln_post(known[-1])

    return patch.object(oracle, "encode", encode)
