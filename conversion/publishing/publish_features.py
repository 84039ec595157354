# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Publishes features beside a model that is on the Hub already, as one commit; the card then names a new tag."""

from dataclasses import replace
from pathlib import Path

from conversion.common.model_folder import CARD, CONFIG, LAYOUTS, PROCESSOR_CONFIGS, ModelFile, PublishError
from conversion.publishing.card_features import CardRecord, with_features
from conversion.publishing.features import (
    FEATURE_FILES,
    FEATURES_FOLDER,
    Features,
    differing_origin,
    read_features,
    tag_name,
)
from conversion.publishing.hub_client import HubClient, RepoState, differing
from conversion.publishing.one_commit import (
    Target,
    check_arguments,
    check_listing,
    commit_files,
    is_pull_request,
    nothing_to_propose,
    open_target,
    require_token,
    stale_files,
)


MESSAGE = "Add features for verification"


def publish_features(folder: Path, repo_id: str, create_pr: bool = False, with_inputs: bool = False) -> str:
    """Commits a run's features to `verification/` of the model's repo.

    The commit replaces what an earlier run left there. Where the repo's card is ours, it gets the new tag and says how
    to compare; another card, and other files in the folder, stay as they are.

    Args:
        folder: of the run.
        create_pr: open a pull request (a draft) instead of committing to main.
        with_inputs: the run's four images and videos, too.

    Returns:
        What to pin, as `user/name@revision`, and the URL of the commit or pull request.

    Raises:
        PublishInputError: if `repo_id` is none, or the folder holds no finished run.
        PublishError: if the run is of another model than the repo holds, or the Hub refuses or lists something else
            afterwards; only then is the commit in.
        OSError: if a file cannot be read.
    """
    check_arguments(repo_id, None, create_pr)
    with read_features(folder, with_inputs) as features:
        require_token()
        client = HubClient()
        state = client.state(repo_id, None, (CARD, CONFIG, PROCESSOR_CONFIGS[0]))
        if state is None:
            raise PublishError(f"{repo_id} does not exist, or the token may not see it.")
        _check_model(client, repo_id, state, features)
        return _commit(client, repo_id, state, features, create_pr)


def _check_model(client: HubClient, repo_id: str, state: RepoState, features: Features) -> None:
    """Compares the repo's model with the one that the features were made with."""
    layout = LAYOUTS.get(state.model_type)
    if layout is None:
        raise PublishError(f"{repo_id} holds no model of this project. Publish one with conversion/push_to_hub.py.")
    hashes = {
        name: client.sha256(repo_id, state, name)
        for name in state.files
        if "/" not in name and name.endswith((".safetensors", ".py"))
    }
    processor = state.json(PROCESSOR_CONFIGS[0]) or {}
    wrong = differing_origin(features.metadata, layout, hashes, processor)
    if wrong:
        raise PublishError(
            f"the features are of another model than {repo_id} holds: {'; '.join(wrong)}. Extract them again with "
            "that model, or publish yours together with them (conversion/push_to_hub.py --features)."
        )


def _commit(client: HubClient, repo_id: str, state: RepoState, features: Features, create_pr: bool) -> str:
    files, record = features.in_repo, CardRecord.read(state.readme or "")
    deleted = stale_files(state, files, [f"{FEATURES_FOLDER}/{pattern}" for pattern in FEATURE_FILES])
    if create_pr and not deleted and not differing(files, state.files):
        raise nothing_to_propose(repo_id)
    target = open_target(client, repo_id, None, create_pr, MESSAGE)
    if record is not None:
        files = [*files, _card(state, record, features, target)]
    commit = commit_files(client, repo_id, target, state, files, deleted, MESSAGE, "close it and publish again")
    check_listing(client, repo_id, commit, state, files, deleted)
    if create_pr:
        return f"{repo_id}@{target.revision} {target.url}"
    pin = commit
    if record is not None:
        pin = tag_name(record.model, features.name)
        client.tag(repo_id, pin, commit, features.in_repo)
    return f"{repo_id}@{pin} {target.url}/commit/{commit}"


def _card(state: RepoState, record: CardRecord, features: Features, target: Target) -> ModelFile:
    pin = target.revision if is_pull_request(target.revision) else tag_name(record.model, features.name)
    layout = LAYOUTS[state.model_type]
    card = with_features(state.readme, record, replace(record, pin=pin), features.metadata, layout)
    return ModelFile.from_bytes(CARD, card.encode())
