# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The command line of publishing, shared by `push_to_hub.py` and the conversion scripts."""

import argparse
import sys
from pathlib import Path

from conversion.common.arguments import from_options
from conversion.common.files import write_atomically
from conversion.publishing.publish import PublishRequest, card_of_folder, publish_folders


def add_publish_arguments(parser: argparse.ArgumentParser, standalone: bool = False) -> None:
    """Adds the options of publishing.

    Args:
        standalone: of a script that only publishes: what and where is positional and the branch is `--revision`, which
            in the conversion scripts (`--push_to_hub`, `--push_revision`) is the revision of the weights to read.
    """
    group = parser.add_argument_group("publishing", "The token is that of HF_TOKEN or of the login.")
    if standalone:
        about = "a model folder and the user/name of its repo, which is made if it does not exist; or two of each"
        parser.add_argument("targets", nargs="+", metavar="FOLDER REPO_ID", help=about)
    else:
        about = "publish the folder: user/name of the model repo, made if it does not exist"
        group.add_argument("--push_to_hub", metavar="REPO_ID", help=about)
    group.add_argument("--private", action="store_true", help="make a new repo private")
    group.add_argument(
        "--revision" if standalone else "--push_revision",
        dest="push_revision",
        metavar="BRANCH",
        help="branch to commit to (default: main)",
    )
    group.add_argument("--create_pr", action="store_true", help="open a pull request instead of committing to main")
    group.add_argument("--commit_message", help="default: Publish the ... LLaVA-ViT model")
    group.add_argument("--base_model", metavar="REPO_ID", help="repo that the model derives from, for the card")
    group.add_argument("--sibling", metavar="REPO_ID", help="repo of the other layout, for the card")
    group.add_argument("--project_url", metavar="URL", help="of a clone of this project, for the card")
    if standalone:
        group.add_argument("--features", type=Path, metavar="DIR", help="publish a run's features with the model")
        group.add_argument("--with_inputs", action="store_true", help="and the run's four images and videos")
    group.add_argument("--remove_features", action="store_true", help="remove features of other weights from the repo")
    group.add_argument("--dry_run", action="store_true", help="show what would be published, and write nothing there")
    group.add_argument(
        "--allow_unverified", action="store_true", help="publish without a PASS; the card says so in its first line"
    )


def publish_request(folder: Path, repo_id: str, options: argparse.Namespace) -> PublishRequest:
    """What the options of `add_publish_arguments` ask for; a long conversion need not end with a mistyped repo id.

    Raises:
        PublishInputError: as `PublishRequest`.
    """
    return from_options(PublishRequest, options, folder=folder, repo_id=repo_id, revision=options.push_revision)


def publish_and_print(requests: list[PublishRequest], dry_run: bool) -> None:
    """Publishes, and prints the steps, the URL and the commit; of a dry run the listing and the card.

    Raises:
        PublishError, OSError: as `publish_folders`.
    """
    for result in publish_folders(requests, lambda line: print(line, file=sys.stderr), dry_run):
        print(result.describe())
        if dry_run:
            print(f"\n{result.card}\ndry run: nothing was sent to {result.url}")
        else:
            print(f"{result.url}\ncommit {result.commit}, loaded back and equal; snippets pin {result.pin}")


def write_card(request: PublishRequest, path: Path) -> None:
    """Writes the card that the folder would be published with, without asking the Hub.

    Raises:
        PublishError, OSError: as `card_of_folder`.
    """
    write_atomically(path, lambda stream: stream.write(card_of_folder(request).encode()))
