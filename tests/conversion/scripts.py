# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Runs the conversion scripts as a user does, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]


def convert_script(layout: str) -> str:
    """The script that converts a checkpoint to a layout."""
    return {"dense": "convert_llava_vit_to_hf.py", "packing": "convert_llava_vit_packing_to_hf.py"}[layout]


def command(script: str, *arguments, root: Path = ROOT) -> list[str]:
    return [sys.executable, str(root / "conversion" / script), *map(str, arguments)]


def run_script(script: str, *arguments, root: Path = ROOT, timeout: float = 3000) -> subprocess.CompletedProcess:
    """Runs `conversion/<script>` of a project tree; nothing is read from this one but by that."""
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    return subprocess.run(
        command(script, *arguments, root=root), capture_output=True, text=True, timeout=timeout, env=variables
    )
