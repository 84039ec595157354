# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""A program in two processes that find each other, as `torchrun` starts them."""

import os
import socket
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]


def run_in_two(program: str, *arguments: str | Path) -> None:
    """Runs Python `program` as ranks 0 and 1 with these arguments, on one thread each, from the project's folder.

    Raises:
        AssertionError: if one does not exit with 0; the message is the end of its stderr.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    parts = [
        subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        for part in parts:
            _, errors = part.communicate(timeout=300)
            assert part.returncode == 0, errors[-3000:]
    finally:
        for part in parts:
            part.kill()
