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

from conversion.common.arguments import ArgumentParser  # noqa: E402
from examples.extraction import bulk_extraction, paired_extraction  # noqa: E402
from examples.extraction.bulk_extraction import parse_layers  # noqa: E402
from examples.extraction.comparisons import DEFAULT_THRESHOLD  # noqa: E402
from examples.extraction.feature_sets import DTYPES  # noqa: E402
from examples.extraction.limits import add_limit_arguments, limits_of  # noqa: E402
from examples.extraction.paired_extraction import INPUT_NAMES  # noqa: E402
from examples.extraction.provenance import check_model_path  # noqa: E402
from examples.extraction.publishing import publish  # noqa: E402
from examples.extraction.shards import FORMATS  # noqa: E402


PAIRED = ("hf_model_path", *INPUT_NAMES)


def build_parser() -> ArgumentParser:
    """The command line's arguments."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--packing_model_path", required=True, help="packing model folder or repo")
    parser.add_argument("--num_frames", type=int, default=8, help="frames sampled from each video (default 8)")
    parser.add_argument("--output_dir", type=Path, default=Path("features"))
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="that the models compute in")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cpu for four files, else Accelerate's)")
    parser.add_argument("--attn_implementation", default="sdpa", help="sdpa, eager or flash_attention_2")
    parser.add_argument("--revision", help="commit of the model repos, when they are on the Hub")
    parser.add_argument("--publish", metavar="REPO_ID", help="store the run in verification/ of this repo or folder")
    parser.add_argument("--create_pr", action="store_true", help="publish as a pull request")

    parser.add_argument(
        "--max_sample_tokens",
        type=int,
        help="refuse samples of more patches; the processor's max_tokens (default: as it has it, 65536)",
    )
    parser.add_argument(
        "--max_image_pixels", type=int, help="refuse larger images and frames (default: the processor's, 178956970)"
    )
    parser.add_argument(
        "--max_frames", type=int, help="refuse videos of more frames (default: the processor's, 1000000)"
    )

    paired = parser.add_argument_group("four files, both models")
    paired.add_argument("--hf_model_path", help="dense model folder or repo")
    for name in INPUT_NAMES:
        paired.add_argument(f"--{name}", type=Path)
    paired.add_argument("--threshold", type=float, default=DEFAULT_THRESHOLD, help="smallest token cosine that passes")

    bulk = parser.add_argument_group("any number of inputs, packing model")
    bulk.add_argument("--inputs", nargs="+", metavar="INPUT", help="files, folders, globs, .jsonl/.csv/.parquet lists")
    bulk.add_argument(
        "--pack_tokens",
        "--max_tokens",
        type=int,
        help="most tokens that share a forward pass (default 16384; 2048 on a CPU); --max_tokens is its old name",
    )
    bulk.add_argument("--layers", default="-2", help="hidden states and pooler, such as -2,-1,pooler (default -2)")
    bulk.add_argument("--save_dtype", choices=sorted(DTYPES), help="of the saved features (default: --dtype)")
    bulk.add_argument("--format", choices=FORMATS, default="safetensors", help="of the shards")
    bulk.add_argument("--shard_size", type=int, default=256, help="inputs of a shard (default 256)")
    bulk.add_argument("--index", choices=("jsonl", "parquet"), default="jsonl", help="parquet writes both")
    bulk.add_argument("--workers", type=int, default=2, help="processes that read files (default 2)")
    bulk.add_argument("--decode_timeout", type=float, default=60.0, help="seconds to read one file (default 60)")
    bulk.add_argument("--video_backend", help="decord, pyav, torchcodec or opencv (default: decord, then pyav)")
    bulk.add_argument("--strict", action="store_true", help="stop at the first file that cannot be read")
    bulk.add_argument("--overwrite", action="store_true", help="start again where another run is")
    add_limit_arguments(parser, ("max_manifest_bytes", "max_line_bytes"))
    return parser


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # argparse takes a value that starts with a minus sign for an option, unless it is attached.
    if "--layers" in arguments[:-1]:
        place = arguments.index("--layers")
        arguments[place : place + 2] = [f"--layers={arguments[place + 1]}"]
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.inputs is None:
        missing = [f"--{name}" for name in PAIRED if getattr(options, name) is None]
        if missing:
            parser.error(f"the following arguments are required: {', '.join(missing)} (or --inputs)")
    else:
        given = [f"--{name}" for name in PAIRED if getattr(options, name) is not None]
        if given:
            parser.error(f"--inputs goes with --packing_model_path alone, found also {', '.join(given)}")
    return options


def check_options(options: argparse.Namespace) -> None:
    """Completes the options.

    Raises:
        ValueError: for a value that cannot be.
    """
    limits_of(options)
    sizes = ("num_frames", "pack_tokens", "shard_size", "workers")
    for name in (*sizes, "max_sample_tokens", "max_image_pixels", "max_frames"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, found {value}.")
    if not options.decode_timeout > 0:
        raise ValueError(f"--decode_timeout must be positive, found {options.decode_timeout:g}.")
    for name in ("packing_model_path", "hf_model_path"):
        if getattr(options, name) is not None:
            check_model_path(name, getattr(options, name))
    options.layers = parse_layers(options.layers)
    options.save_dtype = options.save_dtype or options.dtype
    if options.inputs is not None and options.format == "npz" and options.save_dtype == "bfloat16":
        raise ValueError("--format npz cannot hold bfloat16: give --save_dtype float32 or float16, or safetensors.")


def run(options: argparse.Namespace) -> int:
    """Extracts and, if all went well, publishes. Returns the exit code."""
    check_options(options)
    bulk = options.inputs is not None
    code = bulk_extraction.run(options) if bulk else paired_extraction.run(options)
    if options.publish and code == 0 and (not bulk or bulk_extraction.is_main_process()):
        print(f"published: {publish(options.output_dir, options.publish, options.create_pr)}")
    elif options.publish and code != 0:
        print("not published, as the run did not pass", file=sys.stderr)
    return code


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        return run(options)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
