# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The command line of publishing, shared by `push_to_hub.py` and the conversion scripts."""

import argparse
import sys
from pathlib import Path

from conversion.publishing.one_commit import check_arguments
from conversion.publishing.publish import PublishResult, publish_folder


def add_publish_arguments(parser: argparse.ArgumentParser, standalone: bool = False) -> None:
    """Adds the options of publishing.

    Args:
        standalone: of a script that only publishes: the repo id is positional and the branch is `--revision`, which in
            the conversion scripts (`--push_to_hub`, `--push_revision`) is the revision of the weights to read.
    """
    group = parser.add_argument_group("publishing", "The token is that of HF_TOKEN or of the login.")
    about_repo = "user/name of the model repo, made if it does not exist"
    if standalone:
        parser.add_argument("push_to_hub", metavar="REPO_ID", help=about_repo)
    else:
        group.add_argument("--push_to_hub", metavar="REPO_ID", help=f"publish the folder: {about_repo}")
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
    group.add_argument("--dry_run", action="store_true", help="list what would be published, and write nothing there")
    group.add_argument(
        "--allow_unverified", action="store_true", help="publish without a PASS; the card says so in its first line"
    )


def check_publish_options(options: argparse.Namespace) -> None:
    """Checks the options of `add_publish_arguments`, so that a long conversion need not end with a mistyped repo id.

    Raises:
        PublishInputError: as `check_arguments`.
    """
    check_arguments(options.push_to_hub, options.push_revision, options.create_pr)


def push_from_options(folder: Path, options: argparse.Namespace) -> PublishResult:
    """Publishes as the options of `add_publish_arguments` say, and prints the steps, the URL and the commit.

    Raises:
        PublishError, OSError: as `publish_folder`.
    """
    result = publish_folder(
        folder,
        options.push_to_hub,
        private=options.private,
        revision=options.push_revision,
        create_pr=options.create_pr,
        commit_message=options.commit_message,
        base_model=options.base_model,
        dry_run=options.dry_run,
        allow_unverified=options.allow_unverified,
        say=lambda line: print(line, file=sys.stderr),
    )
    print(result.describe())
    if result.commit is None:
        print(f"dry run: nothing was sent to {result.url}")
    else:
        print(f"{result.url}\ncommit {result.commit}, loaded back and equal; snippets pin {result.pin}")
    return result
