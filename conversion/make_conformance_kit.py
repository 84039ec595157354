# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Makes the conformance kit for those who implement the encoder anew: what goes in, what must come out, a check.

    python conversion/make_conformance_kit.py --output_dir kit
    python kit/check.py MY_OUTPUTS.npz

The kit has small checkpoints, inputs, right outputs and those of known faults; its README.md says how to use it. With
--compare another kit is compared with the new one, file by file and array by array; exit code 1 if they differ.
"""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.checkpoints.checkpoint import CheckpointError  # noqa: E402
from conversion.common.arguments import ArgumentParser  # noqa: E402
from conversion.kit.write_kit import differences, write_kit  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    parser.add_argument("--compare", type=Path, metavar="KIT", help="a kit from elsewhere, to compare with")
    options = parser.parse_args(arguments)
    try:
        if options.compare is not None and not options.compare.is_dir():
            raise ValueError(f"--compare {options.compare} is no folder.")
        write_kit(options.output_dir, options.overwrite)
        lines = differences(options.output_dir, options.compare) if options.compare is not None else []
    except (CheckpointError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = sum(path.stat().st_size for path in options.output_dir.rglob("*") if path.is_file())
    print(f"{options.output_dir}: {size / 1e6:.1f} MB; check with python {options.output_dir / 'check.py'}")
    for line in lines:
        print(f"differs from {options.compare}: {line}")
    if options.compare is not None and not lines:
        print(f"the same bytes as {options.compare}")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
