# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Writes and reads folders of codec-selected patches, in the formats of the released pipelines.

    python examples/codec_assets.py write 1.mp4 --output_dir assets --layout square576

samples 64 frames, chooses as many patches as 8 frames have, and writes visidx_thw.npy, positions_thw.npy,
frame_ids.npy, meta.json and the patches as canvases.

    python examples/codec_assets.py read assets --model packing --output inputs.npz

makes the inputs of the dense or packing model of such a folder, also of the later layout with src_patch_position.npy.
With --processor TOWER, the folder or repo of a VLM's tower, each canvas is a sample of its own, in the tower's blocks;
its code is executed (trust_remote_code).
"""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.common.arguments import ArgumentParser, from_options  # noqa: E402
from examples.extraction.codec_assets import (  # noqa: E402
    CANVAS_SUFFIXES,
    LAYOUTS,
    ORDERS,
    WriteRequest,
    model_inputs,
    read_assets,
    save_inputs,
    write_assets,
)


SCORES = ("motion+residual", "motion", "residual", "bits")


def build_parser() -> ArgumentParser:
    """The command line's arguments."""
    parser = ArgumentParser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=type(parser))
    write = commands.add_parser("write")
    write.add_argument("video", type=Path, help="file, or folder of frames")
    write.add_argument("--output_dir", type=Path, required=True)
    write.add_argument("--layout", choices=LAYOUTS, help="how frames fill a square (default square576)")
    write.add_argument("--num_frames", type=int, help="sampled evenly (default 64)")
    write.add_argument("--patch_size", type=int, help="in pixels (default 16)")
    write.add_argument("--keep_frames", type=int, help="keep as many patches as so many frames have (default 8)")
    write.add_argument("--codec_score", choices=SCORES, help="what patches are chosen by (default motion+residual)")
    write.add_argument("--canvas_format", choices=CANVAS_SUFFIXES, help="of the pictures (default png)")
    write.add_argument("--overwrite", action="store_true", help="replace the folder")
    read = commands.add_parser("read")
    read.add_argument("folder", type=Path)
    read.add_argument("--model", choices=("dense", "packing"), default="packing", help="default packing")
    read.add_argument("--order", choices=ORDERS, default="raster", help="of the patches (default raster)")
    read.add_argument("--processor", metavar="TOWER", help="folder or repo whose normalization and blocks count")
    read.add_argument("--output", type=Path, help="write the inputs to this .npz file")
    return parser


def run(options) -> None:
    if options.command == "write":
        print(f"written: {write_assets(from_options(WriteRequest, options))}")
        return
    processor = None
    if options.processor:
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(options.processor, trust_remote_code=True)
    inputs = model_inputs(read_assets(options.folder), options.model == "packing", options.order, processor)
    for name, value in inputs.items():
        print(f"{name}: {tuple(value.shape) if hasattr(value, 'shape') else value}")
    if options.output is not None:
        save_inputs(inputs, options.output)


def main(arguments: list[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    try:
        run(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
