# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What the conversion scripts share: their arguments, and running a request from the command line."""

import argparse
import sys
from pathlib import Path

from conversion.checkpoints.checkpoint import CheckpointError
from conversion.checkpoints.hub_configs import variant_names
from conversion.checkpoints.model_folder_writer import ConversionRequest, convert_folder
from conversion.checkpoints.source_config import Source
from conversion.common.arguments import ArgumentParser
from conversion.common.model_folder import PublishError, PublishInputError
from conversion.common.report_schema import PASS
from conversion.publishing.options import add_publish_arguments, publish_and_print, publish_request
from conversion.verification.report import failures, summary_line, write_report
from conversion.verification.verify import (
    DEFAULT_TIME_BUDGET,
    VerificationError,
    VerificationRequest,
    verify_folder,
)


# Fields of an old config.json that every conversion writes anew; nothing is lost with them.
REWRITTEN_FIELDS = ("architectures", "auto_map", "dtype", "torch_dtype", "model_type", "transformers_version")
DTYPES = ("float32", "bfloat16", "float16")


def conversion_parser(description: str, named: bool) -> ArgumentParser:
    """Arguments of a conversion script.

    Args:
        named: whether it takes a variant's name before the weights.
    """
    parser = ArgumentParser(description)
    if named:
        parser.add_argument("model_name", metavar="MODEL_NAME", help=f"auto, or one of {', '.join(variant_names())}")
        parser.add_argument("weights", metavar="WEIGHT_PATH", help=".pt, .pth or .safetensors file, folder or repo id")
        parser.add_argument("--num_attention_heads", type=int, help="needed with auto for a file, which cannot tell")
        parser.add_argument(
            "--prefix", default="", help="of the encoder's names in a larger model, like visual.trunk."
        )
    else:
        parser.add_argument("weights", metavar="DENSE_FOLDER_OR_REPO", help="dense model folder or repo id")
    parser.add_argument("--output_dir", type=Path, required=True, help="model folder to make")
    add_output_arguments(parser)
    add_publish_arguments(parser)
    return parser


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments about what is written, common to all conversions."""
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the stored weights (default: as in the checkpoint)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output folder")
    parser.add_argument("--revision", help="branch, tag or commit, when the weights are a repo id")
    parser.add_argument("--skip_verification", action="store_true", help="write the folder without checking it")
    add_time_budget(parser)


def add_time_budget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--time_budget",
        type=float,
        default=DEFAULT_TIME_BUDGET,
        metavar="SECONDS",
        help=f"the verification's biggest pack shrinks to fit, nothing else (default {DEFAULT_TIME_BUDGET:g})",
    )


def check_verdict(report: dict, name: str) -> None:
    """Prints the summary of a verification.

    Raises:
        VerificationError: unless its verdict is PASS; the message says why not.
    """
    print(summary_line(report))
    if report["verdict"] != PASS:
        reasons = "\n".join(f"  {line}" for line in failures(report))
        raise VerificationError(f"verification of {name} is {report['verdict']}:\n{reasons}")
    print(report["taken_on_trust"])


def run_conversion(options: argparse.Namespace, layout: str, source_layout: str | None = None) -> int:
    """Converts, verifies, writes the report and publishes as the options say. Returns the exit code."""
    push = getattr(options, "push_to_hub", None)
    if push and options.skip_verification and not options.allow_unverified:
        print("error: --push_to_hub needs the verification, or --allow_unverified to go without.", file=sys.stderr)
        return 2
    try:
        if push:
            publication = publish_request(options.output_dir, options.push_to_hub, options)
    except PublishInputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    request = ConversionRequest(
        weights=options.weights,
        layout=layout,
        output_dir=options.output_dir,
        model_name=getattr(options, "model_name", "auto"),
        num_attention_heads=getattr(options, "num_attention_heads", None),
        dtype=options.dtype,
        overwrite=options.overwrite,
        revision=options.revision,
        source_layout=source_layout,
        prefix=getattr(options, "prefix", ""),
        with_merger=getattr(options, "with_merger", True),
    )

    def verify(folder: Path, source: Source) -> None:
        report = verify_folder(VerificationRequest(folder, source, time_budget=options.time_budget))
        check_verdict(report, request.weights)
        write_report(report, folder)

    try:
        summary = convert_folder(request, None if options.skip_verification else verify)
    except VerificationError as error:
        print(f"error: {error}\n{request.output_dir} was not made.", file=sys.stderr)
        return 1
    except (CheckpointError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, reason in summary.dropped.items():
        if name not in REWRITTEN_FIELDS:
            print(f"left out {name}: {reason}")
    megabytes = summary.total_bytes / 1e6
    print(f"{request.output_dir}: {layout} model, {summary.num_tensors} tensors, {megabytes:.1f} MB, {summary.dtype}")
    try:
        if push:
            publish_and_print([publication], options.dry_run)
    except (PublishError, OSError) as error:
        print(f"error: {error}\n{request.output_dir} is complete and can be published again.", file=sys.stderr)
        return 1
    return 0
