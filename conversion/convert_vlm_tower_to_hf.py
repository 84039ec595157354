# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Takes the vision tower out of a VLM's checkpoint (LLaVA-OneVision-2, Mage-VL) as a packing model folder.

    python conversion/convert_vlm_tower_to_hf.py user/llava-onevision-2 --output_dir tower
    python conversion/convert_vlm_tower_to_hf.py vlm_folder --output_dir tower --with_merger

Only the shards that hold the tower are downloaded, and of them only its bytes are read. Its windows of frames, blocks
of patches and frame numbers are kept in the folder's config.json and processor. put_tower_into_vlm.py puts a tower
back, for instance after it was trained.
"""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.checkpoints.rename_tables import TOWER_PREFIX  # noqa: E402
from conversion.command_line import add_output_arguments, run_conversion  # noqa: E402
from conversion.common.arguments import ArgumentParser  # noqa: E402
from conversion.publishing.options import add_publish_arguments  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(__doc__)
    parser.add_argument("weights", metavar="VLM_FOLDER_OR_REPO", help="model folder or repo id of the VLM")
    parser.add_argument("--output_dir", type=Path, required=True, help="packing model folder to make")
    parser.add_argument(
        "--with_merger", action="store_true", help="keep the merger, too, whose output is merged_hidden_state"
    )
    parser.add_argument(
        "--prefix", default=TOWER_PREFIX, help=f"of the tower's names in the checkpoint (default {TOWER_PREFIX})"
    )
    add_output_arguments(parser)
    add_publish_arguments(parser)
    return run_conversion(parser.parse_args(arguments), layout="packing")


if __name__ == "__main__":
    sys.exit(main())
