# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What the models of a run whose features differ look like, by the converter's diagnosis."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


VERIFY_MODEL = Path(__file__).resolve().parents[2] / "conversion" / "verify_model.py"


def diagnose_run(metadata: dict) -> Iterator[str]:
    """Runs each model of a run on a small case beside an independent encoder: a line about each.

    The code in their folders is executed. The packing model is compared on the dense one's weights, so that a
    conversion that lost something shows as well.

    Args:
        metadata: of the run; the models are those in the folders that it names.
    """
    folders = {name: Path(facts.get("path", "")) for name, facts in metadata.get("models", {}).items()}
    source = folders.get("dense")
    for name, folder in folders.items():
        if not (folder / "config.json").is_file():
            yield f"{name} model: {folder} is no model folder on this machine, so it was not run"
            continue
        command = [sys.executable, str(VERIFY_MODEL), str(folder), "--diagnosis_only"]
        if name == "packing" and source is not None and (source / "config.json").is_file():
            command += ["--source", str(source)]
        # Progress and errors go where this process's go.
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL, check=False)
        yield f"{name} model: {'; '.join(done.stdout.splitlines()) or 'could not be run'}"
