# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What is depended on, what the shipped code does when it is imported, and that SECURITY.md names what exists."""

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
OPTIONAL = {"pyarrow"}
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}
# A major of these has broken this project, or its own remote code, before.
BOUNDED = {"transformers": "6", "huggingface-hub": "3"}
# First release without a published vulnerability in what is used here.
SOUND = {"pillow": "12.1.1", "filelock": "3.20.3", "tqdm": "4.66.3", "jinja2": "3.1.6", "pyyaml": "5.4"}
SHIPPED = sorted(path for path in (ROOT / "llava_vit_hf").glob("*.py") if path.name != "__init__.py")
SHIPPED_MAY_IMPORT = {
    *("torch", "numpy", "PIL", "transformers"),
    *("base64", "collections", "dataclasses", "functools", "importlib", "io", "itertools", "math", "numbers", "os"),
    *("pathlib", "re", "struct", "types", "typing", "urllib", "warnings", "contextlib"),
}
# Calls in the body of a shipped module: constants, a logger, and the registration of one operator with PyTorch.
CALLED_AT_IMPORT = {"SimpleNamespace", "logging.get_logger", "segment_attention_operator", "re.compile", "frozenset"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "open", "os.system", "os.popen", "torch.load"}


def requirements(name: str = "requirements.txt") -> list[Requirement]:
    return [Requirement(line) for line in (ROOT / name).read_text().splitlines() if line.strip()]


def bound(requirement: Requirement, *operators: str) -> Version | None:
    found = [Version(entry.version) for entry in requirement.specifier if entry.operator in operators]
    return found[0] if found else None


def top_level_imports(path: Path) -> set[str]:
    """First parts of the names that a file imports anywhere, without relative imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


def undeclared(paths, declared: set[str]) -> set[str]:
    """Distributions that files import and that nobody asked for."""
    own = {"llava_vit_hf", "conversion", "examples"}
    found = set().union(*map(top_level_imports, paths)) - set(sys.stdlib_module_names) - own
    return {DISTRIBUTIONS.get(name, name) for name in found} - declared - OPTIONAL


def offences(source: str) -> list[str]:
    """What a shipped module must not do: other statements than definitions and constants, other calls."""
    tree, found = ast.parse(source), []
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef | ast.FunctionDef):
            continue
        if not (
            isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign)
            or isinstance(getattr(node, "value", None), ast.Constant)
        ):
            found.append(ast.unparse(node))
        called = {ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
        found += sorted(called - CALLED_AT_IMPORT)
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return found + sorted(called & FORBIDDEN_CALLS)


def test_the_package_asks_for_what_requirements_say():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options"]["install_requires"] == "file: requirements.txt"
    assert setup["options.extras_require"]["dev"] == "file: requirements-dev.txt"
    # Nothing beside it could disagree.
    assert "dependencies" not in (ROOT / "pyproject.toml").read_text()
    included = (ROOT / "MANIFEST.in").read_text().split()
    for name in ("requirements.txt", "requirements-dev.txt", "SECURITY.md"):
        assert name in included and (ROOT / name).is_file()


def test_every_import_is_asked_for():
    declared = {requirement.name.replace("-", "_") for requirement in requirements()}
    paths = [path for room in ("llava_vit_hf", "conversion", "examples") for path in (ROOT / room).rglob("*.py")]
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


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_code_only_defines_things_when_imported(path):
    assert offences(path.read_text(encoding="utf-8")) == []
    assert top_level_imports(path) <= SHIPPED_MAY_IMPORT


@pytest.mark.parametrize(
    "source", ["print('hello')", "X = fetch()", "for i in range(3):\n    pass", "def f():\n    exec('x')"]
)
def test_code_that_does_more_would_be_seen(source):
    assert offences(source)


def test_security_md_names_tests_that_exist():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 8
    for file, test in named:
        assert (ROOT / file).is_file(), file
        assert not test or re.search(rf"^def {test}\(|^class {test}\b", (ROOT / file).read_text(), re.M), (file, test)
    assert "(SECURITY.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
