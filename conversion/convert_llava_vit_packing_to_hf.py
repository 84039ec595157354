# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Converts a LLaVA-ViT checkpoint into a packing model folder.

python conversion/convert_llava_vit_packing_to_hf.py llava_vit_large_ln backbone.pt --output_dir packing
"""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.command_line import conversion_parser, run_conversion  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    options = conversion_parser(__doc__, named=True).parse_args(arguments)
    return run_conversion(options, layout="packing")


if __name__ == "__main__":
    sys.exit(main())
