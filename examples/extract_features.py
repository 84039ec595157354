# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Extracts features, of four files with both models or of any number with the packing model.

Two images and two videos through the dense and the packing model, compared:

    python examples/extract_features.py --hf_model_path DENSE --packing_model_path PACKING \\
        --image1 1.jpg --image2 2.jpg --video1 1.mp4 --video2 2.mp4 --num_frames 8 --output_dir features

writes features_hf.npz (dense, `(1, N, C)`), features_packing.npz (packing, `(N, C)`), both float32, metadata.json and
the report. Exit code 0 only if dense and packing agree on every input.

Files, folders, globs and manifests through the packing model, on one process or with `accelerate launch` on several:

    python examples/extract_features.py --packing_model_path PACKING --inputs media/ list.jsonl --output_dir features

writes shards with an index, continues when started again, and records files it cannot read in failures.jsonl. Exit
code 0 if there is at least one sample.

Inputs stay at their native resolution. The code of the model folders is executed (`trust_remote_code`): use folders
you made, or repos you trust, at a pinned --revision.
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.common.arguments import ArgumentParser, from_options  # noqa: E402
from examples.extraction.bulk_extraction import extract_many  # noqa: E402
from examples.extraction.comparisons import DEFAULT_THRESHOLD  # noqa: E402
from examples.extraction.limits import FileLimits, SampleLimits  # noqa: E402
from examples.extraction.options import (  # noqa: E402
    BULK_FILE_LIMITS,
    add_bulk_options,
    add_extraction_options,
    add_file_limits,
    attach_value,
)
from examples.extraction.paired_extraction import extract_pair  # noqa: E402
from examples.extraction.publishing import publish  # noqa: E402
from examples.extraction.requests import INPUT_NAMES, SOURCES, BulkRequest, PairedRequest  # noqa: E402
from examples.extraction.shards import FAILURES_FILE  # noqa: E402


PAIRED = ("hf_model_path", *INPUT_NAMES)
ONLY_PAIRED = (*PAIRED, "hf_revision")


def build_parser() -> ArgumentParser:
    """The command line's arguments."""
    parser = ArgumentParser(__doc__)
    add_extraction_options(parser)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cpu for four files, else Accelerate's)")
    parser.add_argument(
        "--publish", nargs="+", metavar="REPO_ID", help="store the run in verification/ of these repos or folders"
    )
    parser.add_argument("--with_inputs", action="store_true", help="publish the four images and videos, too")
    parser.add_argument("--create_pr", action="store_true", help="publish as a pull request")

    paired = parser.add_argument_group("four files, both models")
    paired.add_argument("--hf_model_path", help="dense model folder, or repo (user/name@revision)")
    paired.add_argument("--hf_revision", help="commit or tag of --hf_model_path, when it is a repo")
    for name in INPUT_NAMES:
        paired.add_argument(f"--{name}", type=Path)
    paired.add_argument(
        "--threshold", type=float, help=f"smallest token cosine that passes (default {DEFAULT_THRESHOLD:g})"
    )

    bulk = parser.add_argument_group("any number of inputs, packing model")
    add_bulk_options(bulk)
    bulk.add_argument("--dataset", help="instead: name (user/name@revision) or path of a dataset, which is streamed")
    bulk.add_argument("--split", help="with --dataset, such as train")
    bulk.add_argument("--dataset_config", help="with --dataset, the name of one of its configurations")
    bulk.add_argument("--image_column", help="of --dataset (default image)")
    bulk.add_argument("--video_column", help="of --dataset (default video)")
    bulk.add_argument("--id_column", help="of --dataset (default: the number of the row)")
    bulk.add_argument("--webdataset", metavar="TARS", help="instead: tar files, as 'shard-{000..099}.tar'")
    add_file_limits(parser, BULK_FILE_LIMITS)
    return parser


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = build_parser()
    options = parser.parse_args(attach_value(sys.argv[1:] if arguments is None else arguments, "--layers"))
    is_bulk = any(getattr(options, name) is not None for name in SOURCES)
    if not is_bulk:
        missing = [f"--{name}" for name in PAIRED if getattr(options, name) is None]
        if missing:
            parser.error(f"the following arguments are required: {', '.join(missing)} (or --inputs)")
    else:
        given = [f"--{name}" for name in ONLY_PAIRED if getattr(options, name) is not None]
        if given:
            parser.error(f"many inputs go with --packing_model_path alone, found also {', '.join(given)}")
    return options


def request_of(options: argparse.Namespace) -> PairedRequest | BulkRequest:
    """What a command line asks for.

    Raises:
        ValueError: for a value that cannot be.
    """
    sample_limits, file_limits = from_options(SampleLimits, options), from_options(FileLimits, options)
    if all(getattr(options, name) is None for name in SOURCES):
        return from_options(PairedRequest, options, sample_limits=sample_limits)
    return from_options(BulkRequest, options, sample_limits=sample_limits, file_limits=file_limits)


def print_counts(counts: dict[str, int], folder: Path) -> None:
    """Says what came of a run over many inputs."""
    samples, shards, failures = (
        f"{counts[name]} {name.removesuffix('s') if counts[name] == 1 else name}"
        for name in ("samples", "shards", "failures")
    )
    print(f"{folder}: features of {samples}, {counts['tokens']} tokens, in {shards}; {failures}")
    if counts["failures"]:
        print(f"see {folder / FAILURES_FILE}", file=sys.stderr)


def run(options: argparse.Namespace) -> int:
    """Extracts, says what came of it and, if all went well, publishes. Returns the exit code."""
    request = request_of(options)
    if isinstance(request, PairedRequest):
        report = extract_pair(request)
        print(report.text())
        passed = report.passed
    else:
        counts = extract_many(request)
        if counts is None:  # The main process says it.
            return 0
        print_counts(counts, request.output_dir)
        passed = counts["samples"] > 0
    if options.publish and passed:
        for destination in options.publish:
            where = publish(request.output_dir, destination, options.create_pr, options.with_inputs)
            print(f"published: {where}")
    elif options.publish:
        print("not published, as the run did not pass", file=sys.stderr)
    return 0 if passed else 1


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        return run(options)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
