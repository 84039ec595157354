# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What the command lines of the scripts share: options for limits, and from options to requests."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from examples.extraction.feature_sets import DTYPES
from examples.extraction.limits import FileLimits
from examples.extraction.requests import INDEXES, SCORES
from examples.extraction.shards import FORMATS


SAMPLE_LIMITS = {
    "max_sample_tokens": "refuse samples of more patches; the processor's max_tokens (default: as it has it, 65536)",
    "max_image_pixels": "refuse larger images and frames (default: the processor's, 178956970)",
    "max_frames": "refuse videos of more frames (default: the processor's, 1000000)",
}


# Of the files that a run over many inputs reads.
BULK_FILE_LIMITS = ("max_manifest_bytes", "max_line_bytes")


def add_extraction_options(parser: argparse.ArgumentParser) -> None:
    """Adds what every extraction is told, but for the device."""
    parser.add_argument(
        "--packing_model_path", required=True, help="packing model folder, or repo (user/name@revision)"
    )
    parser.add_argument("--num_frames", type=int, help="frames sampled from each video (default 8)")
    parser.add_argument("--output_dir", type=Path, default=Path("features"))
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="that the models compute in (default float32)")
    parser.add_argument("--attn_implementation", help="sdpa, eager or flash_attention_2 (default sdpa)")
    parser.add_argument("--packing_revision", help="commit or tag of --packing_model_path, when it is a repo")
    parser.add_argument("--revision", help="of repos that are not pinned by user/name@revision or apart")
    parser.add_argument("--scores", choices=SCORES, help="of videos keep the patches that their codec marks")
    parser.add_argument("--top_k", type=int, help="with --scores, how many patches of each video")
    add_sample_limits(parser)


def add_bulk_options(group) -> None:
    """Adds what an extraction of any number of files is told, to a parser or a group of it."""
    group.add_argument(
        "--inputs", nargs="+", metavar="INPUT", help="files, folders, globs, .jsonl/.csv/.parquet lists"
    )
    group.add_argument(
        "--pack_tokens",
        "--max_tokens",
        type=int,
        help="most tokens that share a forward pass (default 16384; 2048 on a CPU); --max_tokens is its old name",
    )
    group.add_argument(
        "--layers", type=parse_layers, help="hidden states and pooler, such as -2,-1,pooler (default -2)"
    )
    group.add_argument("--save_dtype", choices=sorted(DTYPES), help="of the saved features (default: --dtype)")
    group.add_argument("--format", choices=FORMATS, help="of the shards (default safetensors)")
    group.add_argument("--shard_size", type=int, help="inputs of a shard (default 256)")
    group.add_argument("--index", choices=INDEXES, help="parquet writes both (default jsonl)")
    group.add_argument("--workers", type=int, help="processes that read files (default 2)")
    group.add_argument("--decode_timeout", type=float, help="seconds to read one file (default 60)")
    group.add_argument("--video_backend", help="decord, pyav, torchcodec or opencv (default: decord, then pyav)")
    group.add_argument("--strict", action="store_true", help="stop at the first file that cannot be read")
    group.add_argument("--overwrite", action="store_true", help="start again where another run is")
    group.add_argument("--resume", action="store_true", help="add inputs that are new to the run in --output_dir")


def parse_layers(text: str) -> tuple[int | str, ...]:
    """`-2,-1,pooler` to `(-2, -1, "pooler")`; what is no number stays text."""
    names = [name.strip() for name in text.split(",")]
    return tuple(int(name) if name.lstrip("+-").isdecimal() else name for name in names)


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
