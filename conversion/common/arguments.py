# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The argument parser of all scripts, here and in `examples/`: no abbreviations, and a hint for a mistyped option."""

import argparse
import difflib
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import NoReturn


class ArgumentParser(argparse.ArgumentParser):
    """Shows a module's docstring as it is, and answers an unknown option with the nearest known one.

    Options cannot be abbreviated: an abbreviation that works today may be ambiguous with the next option.
    """

    def __init__(self, description: str | None = None, **kwargs):
        # The parsers of subcommands get more, such as their name.
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **kwargs,
        )
        self._given: list[str] = []

    def parse_known_args(self, args: Sequence[str] | None = None, namespace=None):
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        # A required option that was mistyped is reported as missing, so the hints do not hang on the message. Without
        # the usage, which takes many times the room of what went wrong.
        lines = [f"{self.prog}: error: {message}", *self._hints(), f"All options: {self.prog} --help"]
        self.exit(2, "\n".join(lines) + "\n")

    def _hints(self) -> list[str]:
        known = [option for option in self._option_string_actions if option.startswith("--")]
        given = [entry.split("=")[0] for entry in self._given if entry.startswith("--") and entry != "--"]
        hints = []
        for option in dict.fromkeys(given):
            near = difflib.get_close_matches(option.replace("-", "_").replace("__", "--", 1), known, n=1, cutoff=0.7)
            if option not in known and near:
                hints.append(f"{option} is unknown; did you mean {near[0]}?")
        return hints


def from_options(kind: type, options: argparse.Namespace, **others):
    """A dataclass made of the options of its fields' names; what was not given has the dataclass's default.

    Raises:
        ValueError: as the dataclass does.
    """
    names = {field.name for field in fields(kind)} - others.keys()
    given = {name: value for name, value in vars(options).items() if name in names and value is not None}
    return kind(**given, **others)
