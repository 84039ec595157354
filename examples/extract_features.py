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
from examples.extraction.feature_sets import DTYPES  # noqa: E402
from examples.extraction.limits import FileLimits, SampleLimits  # noqa: E402
from examples.extraction.options import add_file_limits, add_sample_limits, attach_value  # noqa: E402
from examples.extraction.paired_extraction import extract_pair  # noqa: E402
from examples.extraction.publishing import publish  # noqa: E402
from examples.extraction.requests import INDEXES, INPUT_NAMES, SCORES, SOURCES, BulkRequest, PairedRequest  # noqa: E402
from examples.extraction.shards import FAILURES_FILE, FORMATS  # noqa: E402


PAIRED = ("hf_model_path", *INPUT_NAMES)
ONLY_PAIRED = (*PAIRED, "hf_revision")


def build_parser() -> ArgumentParser:
    """The command line's arguments."""
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--packing_model_path", required=True, help="packing model folder, or repo (user/name@revision)"
    )
    parser.add_argument("--num_frames", type=int, help="frames sampled from each video (default 8)")
    parser.add_argument("--output_dir", type=Path, default=Path("features"))
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="that the models compute in (default float32)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cpu for four files, else Accelerate's)")
    parser.add_argument("--attn_implementation", help="sdpa, eager or flash_attention_2 (default sdpa)")
    parser.add_argument("--packing_revision", help="commit or tag of --packing_model_path, when it is a repo")
    parser.add_argument("--revision", help="of both repos, where they are not pinned by user/name@revision or apart")
    parser.add_argument(
        "--publish", nargs="+", metavar="REPO_ID", help="store the run in verification/ of these repos or folders"
    )
    parser.add_argument("--with_inputs", action="store_true", help="publish the four images and videos, too")
    parser.add_argument("--create_pr", action="store_true", help="publish as a pull request")
    parser.add_argument("--scores", choices=SCORES, help="of videos keep the patches that their codec marks")
    parser.add_argument("--top_k", type=int, help="with --scores, how many patches of each video")
    add_sample_limits(parser)

    paired = parser.add_argument_group("four files, both models")
    paired.add_argument("--hf_model_path", help="dense model folder, or repo (user/name@revision)")
    paired.add_argument("--hf_revision", help="commit or tag of --hf_model_path, when it is a repo")
    for name in INPUT_NAMES:
        paired.add_argument(f"--{name}", type=Path)
    paired.add_argument(
        "--threshold", type=float, help=f"smallest token cosine that passes (default {DEFAULT_THRESHOLD:g})"
    )

    bulk = parser.add_argument_group("any number of inputs, packing model")
    bulk.add_argument("--inputs", nargs="+", metavar="INPUT", help="files, folders, globs, .jsonl/.csv/.parquet lists")
    bulk.add_argument("--dataset", help="instead: name (user/name@revision) or path of a dataset, which is streamed")
    bulk.add_argument("--split", help="with --dataset, such as train")
    bulk.add_argument("--dataset_config", help="with --dataset, the name of one of its configurations")
    bulk.add_argument("--image_column", help="of --dataset (default image)")
    bulk.add_argument("--video_column", help="of --dataset (default video)")
    bulk.add_argument("--id_column", help="of --dataset (default: the number of the row)")
    bulk.add_argument("--webdataset", metavar="TARS", help="instead: tar files, as 'shard-{000..099}.tar'")
    bulk.add_argument(
        "--pack_tokens",
        "--max_tokens",
        type=int,
        help="most tokens that share a forward pass (default 16384; 2048 on a CPU); --max_tokens is its old name",
    )
    bulk.add_argument(
        "--layers", type=parse_layers, help="hidden states and pooler, such as -2,-1,pooler (default -2)"
    )
    bulk.add_argument("--save_dtype", choices=sorted(DTYPES), help="of the saved features (default: --dtype)")
    bulk.add_argument("--format", choices=FORMATS, help="of the shards (default safetensors)")
    bulk.add_argument("--shard_size", type=int, help="inputs of a shard (default 256)")
    bulk.add_argument("--index", choices=INDEXES, help="parquet writes both (default jsonl)")
    bulk.add_argument("--workers", type=int, help="processes that read files (default 2)")
    bulk.add_argument("--decode_timeout", type=float, help="seconds to read one file (default 60)")
    bulk.add_argument("--video_backend", help="decord, pyav, torchcodec or opencv (default: decord, then pyav)")
    bulk.add_argument("--strict", action="store_true", help="stop at the first file that cannot be read")
    bulk.add_argument("--overwrite", action="store_true", help="start again where another run is")
    bulk.add_argument("--resume", action="store_true", help="add inputs that are new to the run in --output_dir")
    add_file_limits(parser, ("max_manifest_bytes", "max_line_bytes"))
    return parser


def parse_layers(text: str) -> tuple[int | str, ...]:
    """`-2,-1,pooler` to `(-2, -1, "pooler")`; what is no number stays text."""
    names = [name.strip() for name in text.split(",")]
    return tuple(int(name) if name.lstrip("+-").isdecimal() else name for name in names)


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
        print(
            f"{request.output_dir}: features of {counts['samples']} samples, {counts['tokens']} tokens, in "
            f"{counts['shards']} shards; {counts['failures']} failures"
        )
        if counts["failures"]:
            print(f"see {request.output_dir / FAILURES_FILE}", file=sys.stderr)
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
