# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Publishes a converted and verified model folder on the Hub, and loads it back to check it.

    python conversion/push_to_hub.py dense user/llava-vit-large

Refused unless the folder's verification.json says PASS for exactly its bytes. The folder's code is executed. Exit
code 0 only if what came back from the Hub is equal to the folder, file by file and bit for bit; 2 for a folder or
arguments that cannot be, 1 for every other refusal. With --repo_type dataset a conformance kit is published, the same
way but for what is executed: nothing is.
"""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.common.arguments import ArgumentParser  # noqa: E402
from conversion.common.model_folder import PublishError, PublishInputError  # noqa: E402
from conversion.publishing.kit_repo import push_kit_from_options  # noqa: E402
from conversion.publishing.options import add_publish_arguments, push_from_options  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="model folder, made by a conversion script")
    add_publish_arguments(parser, standalone=True)
    parser.add_argument(
        "--repo_type", choices=("model", "dataset"), default="model", help="dataset: FOLDER is a conformance kit"
    )
    options = parser.parse_args(arguments)
    try:
        push = push_kit_from_options if options.repo_type == "dataset" else push_from_options
        push(options.folder, options)
    except (PublishError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        # What cannot be read, or is no folder or repo id, is a bad input; a refusal of the gate or the Hub is not.
        return 2 if isinstance(error, PublishInputError | OSError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
