# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Extracts features of many files with the packing model, on a Ray cluster or on this machine's cores.

    python examples/extract_with_ray.py --packing_model_path PACKING --inputs media/ list.jsonl \\
        --output_dir features --min_actors 1 --max_actors 8 --num_gpus 1

The folder is that of extract_features.py: shards with an index, which continues when started again, by either script.
With --address auto the job runs on the cluster of this machine, else on a Ray of its own. The clone, the model, the
inputs and the output folder must be at the same paths on all machines.

The code of the model folder is executed (`trust_remote_code`): use folders you made, or repos you trust, at a pinned
revision.
"""

import argparse
import os
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from conversion.common.arguments import ArgumentParser, from_options  # noqa: E402
from examples.extract_features import print_counts  # noqa: E402
from examples.extraction.limits import FileLimits, SampleLimits  # noqa: E402
from examples.extraction.options import (  # noqa: E402
    BULK_FILE_LIMITS,
    add_bulk_options,
    add_extraction_options,
    add_file_limits,
    attach_value,
)
from examples.extraction.ray_extraction import Actors, extract_with_ray, import_ray  # noqa: E402
from examples.extraction.requests import BulkRequest  # noqa: E402


def build_parser() -> ArgumentParser:
    """The command line's arguments."""
    parser = ArgumentParser(__doc__)
    add_extraction_options(parser)
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda where an actor has one)")
    add_bulk_options(parser)
    parser.add_argument("--address", help="of a running cluster, such as auto (default: a Ray of its own)")
    parser.add_argument("--min_actors", type=int, help="processes that extract, at least (default 1)")
    parser.add_argument("--max_actors", type=int, help="processes that extract, at most (default 1)")
    parser.add_argument("--num_cpus", type=float, help="cores that Ray reserves for each (default 1)")
    parser.add_argument("--num_gpus", type=float, help="GPUs that Ray reserves for each (default 0)")
    add_file_limits(parser, BULK_FILE_LIMITS)
    return parser


def run(options: argparse.Namespace) -> int:
    """Extracts, and says what came of it. Returns the exit code."""
    limits = {"sample_limits": from_options(SampleLimits, options), "file_limits": from_options(FileLimits, options)}
    request, actors = from_options(BulkRequest, options, **limits), from_options(Actors, options)
    # Ray reports its use over the network where it is not told otherwise.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = import_ray()
    where = {} if options.address else {"include_dashboard": False}
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with ray.init(address=options.address, runtime_env={"env_vars": {"PYTHONPATH": paths}}, **where):
        counts = extract_with_ray(request, actors)
    print_counts(counts, request.output_dir)
    return 0 if counts["samples"] else 1


def main(arguments: list[str] | None = None) -> int:
    arguments = attach_value(sys.argv[1:] if arguments is None else arguments, "--layers")
    options = build_parser().parse_args(arguments)
    try:
        return run(options)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
