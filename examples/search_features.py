# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Finds the images and videos of a run that are most like one image or video, by the cosine of their features.

    python examples/search_features.py features --query image.jpg --packing_model_path PACKING

prints the ten nearest and writes them with pictures to search.html, a page for any browser that needs no other file.
The run is one of extract_features.py over many inputs, in any format. By the pooled vectors, where the run has them;
else by the mean of a layer's tokens. FAISS is used where it is installed; every sample is compared either way.

The code of the model folder is executed (`trust_remote_code`): use folders you made, or repos you trust, at a pinned
revision.
"""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.common.arguments import ArgumentParser, from_options  # noqa: E402
from conversion.common.files import write_atomically  # noqa: E402
from examples.extraction.limits import FileLimits, SampleLimits  # noqa: E402
from examples.extraction.options import add_file_limits, add_sample_limits, attach_value  # noqa: E402
from examples.extraction.search import ENGINES, SearchRequest, render_matches, search, table_text  # noqa: E402


def build_parser() -> ArgumentParser:
    """The command line's arguments."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("features_dir", type=Path, metavar="INDEX", help="folder that extract_features.py wrote")
    parser.add_argument("--query", type=Path, required=True, help="an image or video")
    parser.add_argument("--packing_model_path", required=True, help="the run's model: a folder, or user/name@revision")
    parser.add_argument("--layer", help="of the run (default: pooler, or the first where it has none)")
    parser.add_argument("--top", type=int, help="how many are found (default 10)")
    parser.add_argument("--num_frames", type=int, help="sampled from a video, as in the run (default 8)")
    parser.add_argument("--engine", choices=ENGINES, help="default: faiss where it is installed, else numpy")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    parser.add_argument("--output", type=Path, default=Path("search.html"), help="the page (default search.html)")
    add_sample_limits(parser)
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
        request = from_options(SearchRequest, options, **limits)
        matches = search(request)
        page = render_matches(request, matches)
        write_atomically(options.output, lambda stream: stream.write(page.encode()))
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table_text(matches))
    print(f"{options.output}: the same with pictures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
