# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""`user/name@revision`, accepted wherever the id of a repo on the Hub is."""

from pathlib import Path


def split_revision(option: str, name: str, revision: str | None = None) -> tuple[str, str | None]:
    """A folder, file or repo id, and the branch, tag or commit that it is pinned to. What exists here is never split.

    Args:
        option: that `name` was given by, for the message.
        revision: one that was given apart.

    Raises:
        ValueError: for two revisions, or none after the `@`.
    """
    if Path(name).exists() or "@" not in name:
        return name, revision
    repo_id, _, pinned = name.partition("@")
    if not pinned:
        raise ValueError(
            f"{option} {name}: no revision after the @. Give a commit, tag or branch, or leave the @ out."
        )
    if revision is not None and revision != pinned:
        raise ValueError(
            f"{option} {name} is pinned to {pinned}, and a revision option says {revision}. Give one of the two."
        )
    return repo_id, pinned
