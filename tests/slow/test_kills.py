# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Killed at any moment, a conversion leaves no folder under the final name, or a complete and verified one."""

import json
import os
import random
import shutil
import signal
import subprocess
import time

import pytest
import torch

from conversion.common.model_folder import read_model_folder
from conversion.source.peaked_weights import peaked_state_dict
from tests.conversion.scripts import command, convert_script, run_script
from tests.conversion.weights import tiny_config
from tests.warm_python import REAL


pytestmark = pytest.mark.slow
KILLS = 10


def test_killed_at_random_moments(tmp_path, capsys):
    weights, output = tmp_path / "backbone.pt", tmp_path / "out"
    torch.save(peaked_state_dict(tiny_config(patch_size=14)), weights)
    arguments = ("auto", weights, "--num_attention_heads", 2, "--output_dir", output, "--time_budget", 0.05)
    started = time.monotonic()
    assert run_script(convert_script("dense"), *arguments).returncode == 0
    duration = time.monotonic() - started
    generator = random.Random(0)
    moments = []
    while sum("killed" in line for line in moments) < KILLS:
        overwrite = generator.random() < 0.5
        if not overwrite:
            shutil.rmtree(output, ignore_errors=True)
        moment = generator.uniform(0, duration)
        started = time.monotonic()
        process = subprocess.Popen(
            # The interpreter itself: what is killed is gone at once, and its workers can be told by their names.
            [REAL, *command(convert_script("dense"), *arguments, *(["--overwrite"] if overwrite else []))[1:]],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(moment)
            fate, duration = "finished", min(duration, time.monotonic() - started)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            fate = "killed"
        state = "absent"
        if output.exists():
            assert json.loads((output / "verification.json").read_text())["verdict"] == "PASS"
            assert read_model_folder(output).unverified is None
            state = "complete"
        moments.append(f"{fate} after {moment:.1f} s of {duration:.1f}{' (overwriting)' * overwrite}: {state}")
    # What the killed ones left is gone after the next conversion, and so are their workers.
    assert run_script(convert_script("dense"), *arguments, "--overwrite").returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backbone.pt", "out"]
    deadline = time.monotonic() + 120
    while workers_below(tmp_path) and time.monotonic() < deadline:
        time.sleep(1)
    assert workers_below(tmp_path) == []
    with capsys.disabled():
        print("\n" + "\n".join(moments))


def workers_below(folder) -> list[str]:
    """Command lines of verification workers that still have a file below `folder` open or mapped."""
    found = []
    for process in os.scandir("/proc") if os.path.isdir("/proc/self") else ():
        if process.name.isdigit():
            try:
                with open(f"{process.path}/maps") as maps, open(f"{process.path}/cmdline") as line:
                    if str(folder) in maps.read():
                        found.append(line.read().replace("\0", " "))
            except OSError:
                continue
    return [line for line in found if "verification.worker" in line]
