# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Mistyped options of every script are answered with the nearest option, and none can be abbreviated."""

import re

import pytest

from conversion.common.arguments import ArgumentParser
from tests.conversion.scripts import ROOT


SCRIPTS = sorted(
    path
    for room in ("conversion", "examples")
    for path in (ROOT / room).glob("*.py")
    if "__main__" in path.read_text()
)


def refusal(capsys, *arguments) -> str:
    parser = ArgumentParser("About.")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--revision")
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--output-dir", "--output_dir"),
        ("--output-dir=x", "--output_dir"),
        ("--outputdir", "--output_dir"),
        ("--revison", "--revision"),
    ],
)
def test_the_nearest_option_is_named(capsys, given, meant):
    error = refusal(capsys, given, "x")
    assert f"{given.split('=')[0]} is unknown; did you mean {meant}?" in error


def test_no_hint_for_what_is_nothing_like_an_option(capsys):
    assert "did you mean" not in refusal(capsys, "--output_dir", "x", "--frobnicate", "1")
    assert "did you mean" not in refusal(capsys, "--output_dir")


def test_options_are_not_abbreviated(capsys):
    assert "unrecognized arguments: --rev x" in refusal(capsys, "--output_dir", "x", "--rev", "x")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_script_uses_this_parser(path):
    source = path.read_text()
    assert "argparse.ArgumentParser(" not in source
    if "stdin" not in source and "argv[1" not in source:
        assert re.search(r"\bArgumentParser\(__doc__\)|conversion_parser\(|build_parser\(", source)
