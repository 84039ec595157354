# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Repeats the verification of a converted model folder on this machine and compares it with the folder's report.

    python conversion/verify_model.py dense --source backbone.pt
    python conversion/verify_model.py dense --device cuda --dtype bfloat16 --attn_implementation sdpa
    python conversion/verify_model.py dense --backends all

Without --source the oracle takes the folder's own weights: that checks what the code computes here, not the
conversion. The first form is the whole verification, on the CPU. With --device, --dtype, --compiled or --backends the
model runs there, against the oracle in float32, and a table says how far it is from it and from the nearest planted
fault. Exit code 0 only if the verdict is PASS and the folder's report, or that of --compare_with, is confirmed. The
folder's code is executed.
"""

import argparse
import json
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.checkpoints.checkpoint import CheckpointError, read_checkpoint  # noqa: E402
from conversion.checkpoints.hub_configs import variant_names  # noqa: E402
from conversion.checkpoints.source_config import read_source  # noqa: E402
from conversion.command_line import add_time_budget  # noqa: E402
from conversion.common.arguments import ArgumentParser  # noqa: E402
from conversion.common.files import write_atomically  # noqa: E402
from conversion.common.report_schema import PASS, REPORT_FILE  # noqa: E402
from conversion.verification.backends import (  # noqa: E402
    ABSENT,
    DTYPES,
    Backend,
    all_backends,
    backends_table,
    failures_of_rows,
)
from conversion.verification.repeated_numbers import compare_numbers, numbers_lines, read_published  # noqa: E402
from conversion.verification.report import (  # noqa: E402
    compare_files,
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
    verify_backends,
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
    parser.add_argument(
        "--attn_implementation", default="sdpa", help="sdpa (default), eager, flash_attention_2 or flash_attention_3"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--dtype", help=f"{', '.join(DTYPES)}; default: float32")
    parser.add_argument("--compiled", action="store_true", help="run the model through torch.compile")
    parser.add_argument(
        "--backends", choices=["all"], help="every attention and dtype, also compiled, of --device or of this machine"
    )
    parser.add_argument("--oracle_device", default="cpu", help="where the oracle computes; default: cpu")
    parser.add_argument(
        "--compare_with",
        metavar="FOLDER_OR_REPO",
        help="say which numbers of its report, or of a file that --json wrote, are repeated here",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write what was found there, to be sent to others")
    add_time_budget(parser)
    parser.add_argument(
        "--diagnosis_only", action="store_true", help="run a small case alone, and name the mistake it looks like"
    )
    parser.add_argument("--markdown", action="store_true", help="print the whole report")
    parser.add_argument("--write_report", action="store_true", help="replace the folder's report by this one")
    return parser.parse_args(arguments)


def chosen_backends(options: argparse.Namespace) -> list[Backend]:
    """The backends that were asked for; none for the whole verification.

    Raises:
        ValueError: for one that there is not, or that this machine does not have.
    """
    if options.backends:
        for name in ("dtype", "compiled"):
            if getattr(options, name):
                raise ValueError(f"--backends all takes every --{name}: leave that out.")
        Backend(options.device or "cpu")
        return all_backends(options.device)
    if not (options.device or options.dtype or options.compiled):
        return []
    backend = Backend(
        options.device or "cpu", options.dtype or "float32", options.attn_implementation, options.compiled
    )
    if backend.obstacle is not None:
        raise ValueError(f"{backend.label}: {backend.obstacle}.")
    return [backend]


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        return _verify(options, chosen_backends(options))
    except (CheckpointError, VerificationError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _verify(options: argparse.Namespace, backends: list[Backend]) -> int:
    stored = read_report(options.folder) if (options.folder / REPORT_FILE).exists() else None
    published = read_published(options.compare_with) if options.compare_with else stored
    heads = options.num_attention_heads
    # Without --source the folder's own config.json tells.
    if stored is not None and heads is None and options.model_name == "auto" and options.source is not None:
        heads = stored["source"]["config"]["num_attention_heads"]
    weights, prefix = (options.source, options.prefix) if options.source else (options.folder, "")
    converted = read_checkpoint(options.folder) if options.source else None
    # Of a VLM's tower the folder may have the merger or not.
    with_merger = converted is None or (converted.config or {}).get("merger_output_size") is not None
    source = read_source(weights, options.revision, options.model_name, heads, prefix=prefix, with_merger=with_merger)
    request = VerificationRequest(
        folder=options.folder,
        source=source,
        converted=converted or source.checkpoint,
        attn_implementation=options.attn_implementation,
        time_budget=options.time_budget,
    )
    if options.diagnosis_only:
        lines = diagnose_folder(request)
        print("\n".join(lines) or f"{options.folder} is right on a small image and a small clip")
        return 1 if lines else 0
    if backends:
        report = verify_backends(request, backends, options.oracle_device)
        print(backends_table(report["backends"]))
        told = failures_of_rows(report["backends"]) + report["notes"]
        absent = sum(row["result"] == ABSENT for row in report["backends"])
        ran = len(backends) - absent
        summary = f"verification on {ran} backend{'s' * (ran != 1)}, {absent} absent: {report['verdict']}"
        compared = compare_files
    else:
        report = verify_folder(request)
        if options.write_report:
            write_report(report, options.folder)
        if options.markdown:
            print(markdown_report(report))
        told, summary = failures(report), summary_line(report)
        compared = compare_reports if published is None or "backends" not in published else compare_files
    for line in told:
        print(line)
    if options.json:
        write_atomically(options.json, lambda stream: stream.write((json.dumps(report, indent=1) + "\n").encode()))
    differences = compared(report, published) if published is not None else []
    whose = "that report" if options.compare_with else "the folder's report"
    for line in differences:
        print(f"differs from {whose}: {line}")
    if published is not None and not differences and compared is compare_reports:
        print(f"{whose} is confirmed")
    if options.compare_with:
        print("\n".join(numbers_lines(compare_numbers(report, published))))
    print(summary)
    return 0 if report["verdict"] == PASS and not differences else 1


if __name__ == "__main__":
    sys.exit(main())
