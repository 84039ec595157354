# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What the command lines of the scripts share: options for limits, and from options to requests."""

import argparse
from collections.abc import Sequence
from dataclasses import fields

from examples.extraction.limits import FileLimits


SAMPLE_LIMITS = {
    "max_sample_tokens": "refuse samples of more patches; the processor's max_tokens (default: as it has it, 65536)",
    "max_image_pixels": "refuse larger images and frames (default: the processor's, 178956970)",
    "max_frames": "refuse videos of more frames (default: the processor's, 1000000)",
}


def add_sample_limits(parser: argparse.ArgumentParser, names: Sequence[str] = tuple(SAMPLE_LIMITS)) -> None:
    """Adds options for the processor's limits, or for some."""
    for name in names:
        parser.add_argument(f"--{name}", type=int, help=SAMPLE_LIMITS[name])


def add_file_limits(parser: argparse.ArgumentParser, names: Sequence[str] | None = None) -> None:
    """Adds options for the limits of files, or for some."""
    group = parser.add_argument_group("largest files that are read, in bytes")
    for field in fields(FileLimits):
        if names is None or field.name in names:
            group.add_argument(f"--{field.name}", type=int, metavar="BYTES", help=f"default {field.default}")


def attach_value(arguments: Sequence[str], option: str) -> list[str]:
    """Command-line arguments with a value that may start with a minus sign, which argparse takes for an option
    unless it is attached."""
    arguments = list(arguments)
    if option in arguments[:-1]:
        place = arguments.index(option)
        arguments[place : place + 2] = [f"{option}={arguments[place + 1]}"]
    return arguments
