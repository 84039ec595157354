# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Publishes a converted and verified model folder on the Hub, and loads it back to check it.

    python conversion/push_to_hub.py dense user/large
    python conversion/push_to_hub.py dense user/large packing user/large-packing --features features

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
from conversion.publishing.options import (  # noqa: E402
    add_publish_arguments,
    publish_and_print,
    publish_request,
    write_card,
)


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(__doc__)
    add_publish_arguments(parser, standalone=True)
    parser.add_argument("--card_out", type=Path, metavar="FILE", help="write the card there, and publish nothing")
    parser.add_argument(
        "--repo_type", choices=("model", "dataset"), default="model", help="dataset: FOLDER is a conformance kit"
    )
    options = parser.parse_args(arguments)
    targets = options.targets
    if len(targets) not in (2, 4) or (options.card_out and len(targets) != 2):
        parser.error(f"expected FOLDER REPO_ID, or that twice for a dense and a packing model; found {len(targets)}")
    try:
        if options.repo_type == "dataset":
            push_kit_from_options(options)
            return 0
        requests = [
            publish_request(Path(folder), repo_id, options)
            for folder, repo_id in zip(targets[::2], targets[1::2], strict=True)
        ]
        if options.card_out:
            write_card(requests[0], options.card_out)
            print(options.card_out)
        else:
            publish_and_print(requests, options.dry_run)
    except (PublishError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        # What cannot be read, or is no folder or repo id, is a bad input; a refusal of the gate or the Hub is not.
        return 2 if isinstance(error, PublishInputError | OSError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
