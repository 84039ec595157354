# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Of the converter, the examples use what all share and the publisher; nothing imports them but the tests."""

import ast
from pathlib import Path

import pytest

from tests.examples.commands import EXAMPLES, ROOT


SHARED = ("conversion.common", "conversion.publishing")
OTHERS = ("llava_vit_hf", "tests")


def imported(code: str) -> set[str]:
    """The modules that code imports, wherever in it; relative ones are not told apart from their package."""
    modules = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("file", files("examples"), ids=lambda file: str(file.relative_to(EXAMPLES)))
def test_examples_import_of_the_converter_only_what_is_shared(file):
    modules = imported(file.read_text(encoding="utf-8"))
    assert {name for name in modules if is_within(name, ("conversion",)) and not is_within(name, SHARED)} == set()
    # The models' code is what `trust_remote_code` loads, as it is for everyone else.
    assert {name for name in modules if is_within(name, OTHERS)} == set()


def test_what_the_examples_stand_on_does_not_import_them():
    for file in files("conversion") + files("llava_vit_hf"):
        modules = imported(file.read_text(encoding="utf-8"))
        assert not any(is_within(name, ("examples",)) for name in modules), file


def test_the_rule_sees_an_import():
    code = "def f():\n    from conversion import source\n    import conversion.checkpoints.convert"
    assert {"conversion.source", "conversion.checkpoints.convert"} == imported(code)
