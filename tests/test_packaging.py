# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The package as `pip install .` makes it: it holds the shipped files and asks for what they import, no more."""

import ast
import configparser
import email
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.test_supply_chain import DISTRIBUTIONS, ROOT, requirements, top_level_imports


pytestmark = pytest.mark.once


PACKAGE = ROOT / "llava_vit_hf"
# What building reads; data files that are named in setup.cfg are found in the package.
BUILT_FROM = ("llava_vit_hf", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
BUILT_FROM += ("requirements.txt", "requirements-dev.txt", "constraints.txt", "SECURITY.md", "CHANGELOG.md")


def needed_imports(tree: ast.AST) -> set[str]:
    """First parts of the names that importing or calling a file needs."""
    return top_level_imports(tree, tried=False)


def canonical(lines) -> set[str]:
    """Requirements in one spelling."""
    return {str(Requirement(line)) for line in lines}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the tree without network: setuptools comes from this environment."""
    tree = tmp_path_factory.mktemp("tree")
    for name in BUILT_FROM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tree / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*command, "--wheel-dir", tree / "dist", tree], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = (tree / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_the_package_holds_the_shipped_files_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("/LICENSE")]
    shipped = {f"llava_vit_hf/{path.name}" for path in PACKAGE.iterdir() if path.suffix == ".py"}
    assert held == shipped | {"llava_vit_hf/py.typed"} and len(licences) == 1


def test_its_dependencies_are_what_its_files_import(metadata):
    asked = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    always = {entry.name.lower() for entry in asked if "extra" not in str(entry.marker)}
    imported = set().union(*(needed_imports(ast.parse(path.read_text("utf-8"))) for path in PACKAGE.glob("*.py")))
    imported -= set(sys.stdlib_module_names)
    assert always == {DISTRIBUTIONS.get(name, name) for name in imported}
    assert {"video", "conversion", "parquet", "datasets", "webdataset", "ray", "dev"} == set(
        metadata.get_all("Provides-Extra")
    )


def test_an_import_that_is_not_optional_would_be_seen():
    code = "import a\ntry:\n    import b\nexcept ImportError:\n    b = None\ndef f():\n    import c.d\n"
    assert needed_imports(ast.parse(code)) == {"a", "c"}


def test_the_extras_and_the_requirements_of_a_clone_agree():
    setup = configparser.ConfigParser(comment_prefixes=("#",))
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    lines = "\n".join((setup["options"]["install_requires"], extras["video"], extras["conversion"])).split("\n")
    assert canonical(filter(None, lines)) == {str(entry) for entry in requirements()}


def test_its_summary_speaks_of_the_package(metadata):
    summary = metadata["Summary"].lower()
    assert "models" in summary and "processor" in summary
    for room in ("conver", "verif", "publish", "extract"):
        assert room not in summary, f"the package has no {room}…"
