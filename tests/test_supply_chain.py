# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What is depended on, and that SECURITY.md names what exists."""

import ast
import configparser
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from conversion.checkpoints.readers import LAST_UNSOUND_TORCH


ROOT = Path(__file__).resolve().parents[1]
# Without these everything but the option that names them works.
OPTIONAL = {"pyarrow", "datasets", "webdataset", "ray", "faiss"}
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}
# A major of these has broken this project, or its own remote code, before.
BOUNDED = {"transformers": "6", "huggingface-hub": "3"}
# First release without a published vulnerability in what is used here.
SOUND = {"pillow": "12.1.1", "filelock": "3.20.3", "tqdm": "4.66.3", "jinja2": "3.1.6", "pyyaml": "5.4"}


def requirements(name: str = "requirements.txt") -> list[Requirement]:
    return [Requirement(line) for line in (ROOT / name).read_text().splitlines() if line.strip()]


def bound(requirement: Requirement, *operators: str) -> Version | None:
    found = [Version(entry.version) for entry in requirement.specifier if entry.operator in operators]
    return found[0] if found else None


def top_level_imports(tree: ast.AST, tried: bool = True) -> set[str]:
    """First parts of the names that a file imports anywhere, without relative imports.

    Args:
        tried: also those inside `try:`, which the file can do without.
    """
    names = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
        if tried or not isinstance(node, ast.Try):
            names |= top_level_imports(node, tried)
    return names


def undeclared(paths, declared: set[str]) -> set[str]:
    """Distributions that files import and that nobody asked for."""
    own = {"llava_vit_hf", "conversion", "examples"}
    found = set().union(*(top_level_imports(ast.parse(path.read_text("utf-8"))) for path in paths))
    found -= set(sys.stdlib_module_names) | own
    return {DISTRIBUTIONS.get(name, name) for name in found} - declared - OPTIONAL


def test_dependencies_are_named_in_one_place():
    """What the package asks for is in setup.cfg; `tests/test_packaging.py` compares it with requirements.txt."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options.extras_require"]["dev"] == "file: requirements-dev.txt"
    assert "dependencies" not in (ROOT / "pyproject.toml").read_text()
    included = (ROOT / "MANIFEST.in").read_text().split()
    for name in ("requirements.txt", "requirements-dev.txt", "SECURITY.md"):
        assert name in included and (ROOT / name).is_file()


def test_every_import_is_asked_for():
    declared = {requirement.name.replace("-", "_") for requirement in requirements()}
    rooms = [path for room in ("llava_vit_hf", "conversion", "examples") for path in (ROOT / room).rglob("*.py")]
    # What a conformance kit's own page asks for.
    paths = [path for path in rooms if not path.is_relative_to(ROOT / "conversion" / "kit" / "clients")]
    assert len(paths) < len(rooms)
    assert not undeclared(paths, declared)
    assert undeclared(paths, declared - {"pyyaml", "safetensors"}) == {"pyyaml", "safetensors"}


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_bounds(requirement):
    name = requirement.name.replace("_", "-")
    lower, upper = bound(requirement, ">="), bound(requirement, "<")
    assert lower is not None, f"{name} has no lower bound"
    assert upper == (Version(BOUNDED[name]) if name in BOUNDED else None)
    if name in SOUND:
        assert lower >= Version(SOUND[name])


def test_the_pinned_torch_may_read_pickles():
    (torch,) = requirements("constraints.txt")
    assert torch.name == "torch" and bound(torch, "==") > Version(LAST_UNSOUND_TORCH)
    assert bound(torch, "==") in next(entry for entry in requirements() if entry.name == "torch").specifier


def test_security_md_names_tests_that_exist():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 8
    for file, test in named:
        assert (ROOT / file).is_file(), file
        assert not test or re.search(rf"^def {test}\(|^class {test}\b", (ROOT / file).read_text(), re.M), (file, test)
    assert "(SECURITY.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
