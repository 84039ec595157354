# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Every parser on mutants of valid files: right, or one of our errors. And that the fuzzer can find something."""

import json
import os
import random
import struct
import subprocess
import warnings

import pytest

from tests.fuzz import mutators
from tests.fuzz.fuzz_parsers import ROOT, SCRIPT, guided
from tests.fuzz.outcomes import Tally
from tests.fuzz.parsers import TARGETS
from tests.warm_python import REAL


MUTANTS = 120
# The largest, with a container of its own; the others are guided by hand, see report.py.
GUIDED = ("checkpoint_pickle", "verification_report", "features_index")


@pytest.mark.parametrize("name", TARGETS)
def test_mutants(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    target, tally, rng = TARGETS[name], Tally(name), random.Random(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seeds, parse = target.make(folder)
        for data in seeds:
            assert tally.watch(lambda data=data: parse(data)) is None and not tally.refused, "a valid file is refused"
        for _ in range(MUTANTS):
            data = mutators.mutate(rng.choice(seeds), rng, target.mutate)
            tally.watch(lambda data=data: parse(data), names=target.names)
    print(f"{name}: {tally.tried} tried, {tally.right} right, {tally.refused} refused")
    assert not tally.findings, "\n".join(tally.findings.values())


@pytest.mark.long
@pytest.mark.once
@pytest.mark.skipif(not guided(), reason="atheris is not installed")
@pytest.mark.parametrize("name", GUIDED)
def test_guided_by_coverage(name):
    tally = _run(name, "--seconds", "2")
    assert tally["engine"] == "guided" and tally["tried"] > 20
    assert not tally["findings"], tally["findings"]


@pytest.mark.long
@pytest.mark.once
@pytest.mark.parametrize("engine", ["blind", "guided"])
def test_a_planted_defect_is_found(engine):
    """A toy parser that fails only on three nested conditions; blind mutants fail on its first."""
    if engine == "guided" and not guided():
        pytest.skip("atheris is not installed")
    tally = _run("planted_defect", "--seconds", "20", "--first", *(["--blind"] if engine == "blind" else []))
    assert tally["engine"] == engine
    assert any("ZeroDivisionError" in finding for finding in tally["findings"]), tally


def _run(*arguments: str) -> dict:
    process = subprocess.run(
        [REAL, str(SCRIPT), *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    lines = process.stdout.strip().splitlines()
    assert lines, process.stderr[-2000:]
    return json.loads(lines[-1])


def test_mutators_keep_the_outside_valid():
    """Half of the mutants and more are still JSON, archives, or headers of the right length."""
    rng = random.Random(3)
    valid = b'{"a": [1, {"b": "c"}], "d": null}'
    mutants = [mutators.json_value(valid, rng) for _ in range(200)]
    assert sum(_is_json(mutant) for mutant in mutants) > 190 and len(set(mutants)) > 60
    header = struct.pack("<Q", len(valid)) + valid
    for _ in range(50):
        mutant = mutators.safetensors_header(header, rng)
        assert struct.unpack("<Q", mutant[:8])[0] == len(mutant) - 8


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True
