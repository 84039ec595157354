# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Draws the features of a run: PNG files, and one page, report.html, that opens anywhere.

    python examples/visualize_features.py --features_dir features
    python examples/visualize_features.py --features_dir features --reference user/model --revision COMMIT

Of each sample: the input as the model saw it, its features' first three principal components as colours (a video as a
strip of frames), and where they differ: the dense model's from the packing model's, or yours from the reference's.
"""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.common.arguments import ArgumentParser, from_options  # noqa: E402
from examples.extraction.drawing import DrawingRequest, draw_run  # noqa: E402
from examples.extraction.limits import FileLimits, SampleLimits  # noqa: E402
from examples.extraction.options import add_file_limits, add_sample_limits, attach_value  # noqa: E402


def build_parser() -> ArgumentParser:
    """The command line's arguments."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--features_dir", type=Path, required=True, help="folder that extract_features.py wrote")
    parser.add_argument("--output_dir", type=Path, help="of the pictures (default: pictures/ in the features' folder)")
    parser.add_argument("--reference", help="another run: its folder, or a repo id with features in verification/")
    parser.add_argument("--revision", help="commit of the reference, when it is a repo")
    parser.add_argument("--processor", help="model folder or repo whose processor reads the inputs (its code is run)")
    parser.add_argument("--processor_revision", help="commit of --processor, when it is a repo")
    parser.add_argument("--inputs_dir", type=Path, help="where the inputs are, if they were moved")
    parser.add_argument("--no_inputs", action="store_true", help="draw features only; needs neither inputs nor model")
    parser.add_argument("--layer", help="of a run over many inputs (default -2)")
    parser.add_argument("--ids", nargs="+", help="only these samples")
    parser.add_argument("--max_samples", type=int, help="draw so many (default 24)")
    add_sample_limits(parser, ("max_image_pixels", "max_frames"))
    add_file_limits(parser)
    return parser


def main(arguments: list[str] | None = None) -> int:
    arguments = attach_value(sys.argv[1:] if arguments is None else arguments, "--layer")
    options = build_parser().parse_args(arguments)
    try:
        limits = {
            "sample_limits": from_options(SampleLimits, options),
            "file_limits": from_options(FileLimits, options),
        }
        drawing = draw_run(from_options(DrawingRequest, options, **limits))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if drawing.note:
        print(drawing.note, file=sys.stderr)
    print(f"{drawing.page}: {drawing.shown} of {drawing.total} samples")
    return 0


if __name__ == "__main__":
    sys.exit(main())
