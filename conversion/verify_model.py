# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Repeats the verification of a converted model folder on this machine and compares it with the folder's report.

    python conversion/verify_model.py dense --source backbone.pt

Without --source the oracle takes the folder's own weights: that checks what the code computes here, not the
conversion. Exit code 0 only if the verdict is PASS and the folder's report, where there is one, is confirmed. The
folder's code is executed.
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.checkpoints.checkpoint import CheckpointError  # noqa: E402
from conversion.checkpoints.hub_configs import variant_names  # noqa: E402
from conversion.checkpoints.source_config import read_source  # noqa: E402
from conversion.command_line import add_time_budget  # noqa: E402
from conversion.common.arguments import ArgumentParser  # noqa: E402
from conversion.common.report_schema import PASS, REPORT_FILE  # noqa: E402
from conversion.verification.report import (  # noqa: E402
    compare_reports,
    failures,
    markdown_report,
    read_report,
    summary_line,
    write_report,
)
from conversion.verification.verify import (  # noqa: E402
    VerificationError,
    VerificationRequest,
    diagnose_folder,
    verify_folder,
)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="dense or packing model folder")
    parser.add_argument("--source", help="the checkpoint, folder or repo id that it was converted from")
    parser.add_argument("--model_name", default="auto", help=f"auto (default), or one of {', '.join(variant_names())}")
    parser.add_argument("--num_attention_heads", type=int, help="of the source; default: as the folder says")
    parser.add_argument("--revision", help="branch, tag or commit, when the source is a repo id")
    parser.add_argument("--prefix", default="", help="of the encoder's names in the source, like visual.trunk.")
    parser.add_argument("--attn_implementation", default="sdpa", help="sdpa (default) or eager")
    add_time_budget(parser)
    parser.add_argument(
        "--diagnosis_only", action="store_true", help="run a small case alone, and name the mistake it looks like"
    )
    parser.add_argument("--markdown", action="store_true", help="print the whole report")
    parser.add_argument("--write_report", action="store_true", help="replace the folder's report by this one")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        published = read_report(options.folder) if (options.folder / REPORT_FILE).exists() else None
        heads = options.num_attention_heads
        # Without --source the folder's own config.json tells.
        if published is not None and heads is None and options.model_name == "auto" and options.source is not None:
            heads = published["source"]["config"]["num_attention_heads"]
        weights, prefix = (options.source, options.prefix) if options.source else (options.folder, "")
        source = read_source(weights, options.revision, options.model_name, heads, prefix=prefix)
        request = VerificationRequest(
            folder=options.folder,
            source=source,
            converted=None if options.source else source.checkpoint,
            attn_implementation=options.attn_implementation,
            time_budget=options.time_budget,
        )
        if options.diagnosis_only:
            lines = diagnose_folder(request)
            print("\n".join(lines) or f"{options.folder} is right on a small image and a small clip")
            return 1 if lines else 0
        report = verify_folder(request)
        if options.write_report:
            write_report(report, options.folder)
    except (CheckpointError, VerificationError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.markdown:
        print(markdown_report(report))
    for line in failures(report):
        print(line)
    differences = compare_reports(report, published) if published is not None else []
    for line in differences:
        print(f"differs from the folder's report: {line}")
    if published is not None and not differences:
        print("the folder's report is confirmed")
    print(summary_line(report))
    return 0 if report["verdict"] == PASS and not differences else 1


if __name__ == "__main__":
    sys.exit(main())
