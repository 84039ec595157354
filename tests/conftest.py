# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Fixtures that every room of the tests shares."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest


# Code of model folders goes into a cache of this process alone: transformers 4.57 keeps it by the folder's last name
# only, so parallel tests, or what earlier runs left, would get in each other's way. transformers reads it at import.
_MODULES_CACHE = tempfile.TemporaryDirectory(prefix="llava_vit_modules_")
os.environ["HF_MODULES_CACHE"] = _MODULES_CACHE.name

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


from tests import warm_python  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    """Lets the processes that tests start be forked from one that has imported torch; see `tests/warm_python.py`."""
    first = not hasattr(config, "workerinput")
    if first and warm_python.available():
        os.environ["REAL_PYTHON"] = sys.executable
        config.warm_pythons = [_warm(sys.executable, "WARM_PYTHON")]
        if other := os.environ.get("LLAVA_VIT_OTHER_PYTHON"):
            config.warm_pythons.append(_warm(other, "WARM_OTHER_PYTHON"))
    # pytest-xdist starts its workers with the interpreter of the first process.
    if "WARM_PYTHON" in os.environ and not (first and config.getoption("numprocesses", None)):
        sys.executable = os.environ["WARM_PYTHON"]


def _warm(python: str, variable: str) -> tuple[subprocess.Popen, tempfile.TemporaryDirectory]:
    """A server for `python`, whose stand-in the environment variable names."""
    folder = tempfile.TemporaryDirectory(prefix="llava_vit_python_")
    os.environ[variable] = f"{folder.name}/python"
    return warm_python.start(Path(folder.name), python), folder


def pytest_unconfigure(config: pytest.Config) -> None:
    for server, folder in getattr(config, "warm_pythons", ()):
        server.stdin.close()
        server.wait()
        folder.cleanup()


@pytest.fixture(scope="session")
def conformance() -> Path:
    """The conformance folder (`golden/`, `media/`), which is not part of the project."""
    folder = os.environ.get("LLAVA_VIT_CONFORMANCE")
    if not folder:
        pytest.skip("LLAVA_VIT_CONFORMANCE does not name the conformance folder")
    folder = Path(folder)
    for name in ("golden/expected.npz", "media/1.mp4"):
        if not (folder / name).is_file():
            pytest.fail(f"LLAVA_VIT_CONFORMANCE={folder} has no {name}")
    return folder


@pytest.fixture(scope="session")
def other_python() -> str:
    """The interpreter of an environment with the other transformers major."""
    python = os.environ.get("LLAVA_VIT_OTHER_PYTHON")
    if not python:
        pytest.skip("LLAVA_VIT_OTHER_PYTHON does not name an environment with the other transformers major")
    return os.environ.get("WARM_OTHER_PYTHON", python)
