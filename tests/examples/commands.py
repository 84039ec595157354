# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Running the example scripts as users do, and what the tests of them share."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from examples import extract_features


ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def environment(**extra: str) -> dict[str, str]:
    """One thread per process, as the machine's cores are shared."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **extra}


def run(script: str, *arguments, env: dict[str, str] | None = None, timeout: float = 240):
    """Runs an example script to its end."""
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    return subprocess.run(
        command,
        env=env or environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=timeout,
        check=False,
    )


@contextmanager
def on_one_thread() -> Iterator[None]:
    """As `environment` has it, and the other runs that this one's bits are compared with."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def extract(*arguments) -> int:
    """The extraction script in this process, which spares its start. Its exit code."""
    with on_one_thread():
        return extract_features.main([str(argument) for argument in arguments])


def run_well(script: str, *arguments, **options) -> str:
    """What a script printed; it must have exited with 0."""
    result = run(script, *arguments, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; the metadata of a run over many inputs without its times, which no two runs share."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if "index.jsonl" in found:
        metadata = json.loads(found["metadata.json"])
        assert metadata.pop("times")["seconds"]["model"] > 0
        found["metadata.json"] = json.dumps(metadata).encode()
    return found
