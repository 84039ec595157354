# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What a clone of the project holds, as far as the documents' commands need it, and the commands themselves."""

import shlex
import shutil
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
PARTS = ("conversion", "examples", "hub_configs", "llava_vit_hf", "requirements.txt")
# A conversion verifies the biggest pack that fits its time budget.
HURRIED_PYTHON = """#!/bin/sh
case "$1" in conversion/convert_*|conversion/verify_model.py) set -- "$@" --time_budget 0.05 ;; esac
exec {python} "$@"
"""
MODULE = """#!/bin/sh
exec {python} -m {module} "$@"
"""
MODULES = {"accelerate": "accelerate.commands.accelerate_cli", "hf": "huggingface_hub.cli.hf"}


def copy_project(folder: Path) -> Path:
    """The tree of a fresh clone in `folder`, without tests."""
    folder.mkdir(exist_ok=True)
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def shrink_demo(folder: Path) -> None:
    """Makes the model of a clone's demo smaller, where its size is most of the time and no matter of the test."""
    script = folder / "conversion" / "make_demo_inputs.py"
    text = script.read_text(encoding="utf-8")
    for name, size, smaller in (
        ("hidden_size", 128, 64),
        ("num_hidden_layers", 4, 2),
        ("intermediate_size", 512, 128),
    ):
        assert text.count(f"{name}={size}") == 1
        text = text.replace(f"{name}={size}", f"{name}={smaller}")
    script.write_text(text, encoding="utf-8")


def commands_in(folder: Path, python: str = sys.executable) -> Path:
    """A folder for the front of PATH with `python`, hurried where that takes long, `accelerate` and `hf`."""
    folder.mkdir()
    programs = {"python": HURRIED_PYTHON} | {
        name: MODULE.replace("{module}", module) for name, module in MODULES.items()
    }
    for name, code in programs.items():
        (folder / name).write_text(code.format(python=shlex.quote(python)), encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder
