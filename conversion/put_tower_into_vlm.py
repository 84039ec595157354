# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Puts a packing model back into the VLM's checkpoint that its tower was taken from.

    python conversion/put_tower_into_vlm.py tower vlm_folder --output_dir vlm_with_tower

The tower's tensors are replaced, in the VLM's dtypes; every other tensor, the shards, their index, the config and all
other files are those of the VLM, byte for byte. Then the tower is taken out of what was written, verified, and
compared with the folder, bit for bit.
"""

import argparse
import sys
import tempfile
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.checkpoints.checkpoint import CheckpointError, read_checkpoint  # noqa: E402
from conversion.checkpoints.model_folder_writer import (  # noqa: E402
    ConversionRequest,
    convert_folder,
    staging_folder,
)
from conversion.checkpoints.rename_tables import TOWER_PREFIX  # noqa: E402
from conversion.checkpoints.source_config import Source, read_source  # noqa: E402
from conversion.checkpoints.vlm_writer import PutBack, differing_tensors, put_tower  # noqa: E402
from conversion.command_line import add_time_budget, check_verdict  # noqa: E402
from conversion.common.arguments import ArgumentParser  # noqa: E402
from conversion.verification.verify import VerificationError, VerificationRequest, verify_folder  # noqa: E402


def put_back(options: argparse.Namespace) -> PutBack:
    """Makes the folder that the options ask for.

    Raises:
        CheckpointError: if one of the folders cannot be used, or they do not fit together.
        VerificationError: if the tower of what was written is not that of the folder.
        OSError: if writing fails; nothing is left behind.
    """
    packing = read_source(options.packing, layout="packing")
    with_merger = packing.config.has_merger
    if not Path(options.vlm).is_dir():
        raise CheckpointError(f"{options.vlm} is no folder. Download the VLM as a whole first (hf download).")
    vlm = read_source(options.vlm, prefix=options.prefix, with_merger=with_merger)
    with staging_folder(options.output_dir, options.overwrite) as folder:
        done = put_tower(packing, vlm, folder)
        if changed := set(differing_tensors(vlm.checkpoint.path, folder, done.files)) - set(done.replaced):
            raise VerificationError(f"tensors beside the tower changed: {', '.join(sorted(changed)[:5])}.")
        if not options.skip_verification:
            verify_written(packing, folder, options)
    return done


def verify_written(packing: Source, folder: Path, options: argparse.Namespace) -> None:
    """Takes the tower out of a written VLM again, verifies it, and compares its weights with the packing folder's.

    Raises:
        VerificationError: if the verdict is not PASS, or weights differ by more than the cast to the VLM's dtype.
    """
    with_merger = packing.config.has_merger
    written = read_source(str(folder), prefix=options.prefix, with_merger=with_merger)
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch) / "tower"
        request = ConversionRequest(str(folder), "packing", again, with_merger=with_merger, prefix=options.prefix)
        convert_folder(request, source=written)
        found, expected = read_checkpoint(again), packing.checkpoint
        for name, tensor in found.items():
            given = expected.tensor(name)
            if not given.to(tensor.dtype).equal(tensor):
                raise VerificationError(f"{name} of the written VLM is not that of {options.packing}.")
        report = verify_folder(VerificationRequest(again, written, time_budget=options.time_budget))
        check_verdict(report, options.packing)


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "packing", metavar="PACKING_FOLDER", help="the tower, by convert_vlm_tower_to_hf.py, trained or not"
    )
    parser.add_argument("vlm", metavar="VLM_FOLDER", help="model folder of the VLM, which is not changed")
    parser.add_argument("--output_dir", type=Path, required=True, help="model folder to make")
    parser.add_argument(
        "--prefix", default=TOWER_PREFIX, help=f"of the tower's names in the VLM (default {TOWER_PREFIX})"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output folder")
    parser.add_argument("--skip_verification", action="store_true", help="write the folder without checking it")
    add_time_budget(parser)
    options = parser.parse_args(arguments)
    try:
        done = put_back(options)
    except VerificationError as error:
        print(f"error: {error}\n{options.output_dir} was not made.", file=sys.stderr)
        return 1
    except (CheckpointError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if done.cast:
        print(f"cast to the VLM's dtype, from {', '.join(done.cast)}")
    if done.kept:
        print(f"left as they are, since {options.packing} has no merger: {', '.join(done.kept)}")
    print(f"{options.output_dir}: {len(done.replaced)} tensors replaced, in {', '.join(done.files)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
