# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The whole thread: convert, extract, publish both models with their features, and a stranger who has only the card.

What the stranger does is read from the card and not repeated here. Everything runs in processes of its own, the
stranger's with both clients, in a clone and with a cache of his own.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import media
from tests.clone import commands_in, copy_project, shrink_demo
from tests.loopback_hub import LoopbackHub
from tests.test_documents import code_blocks_of


pytestmark = [pytest.mark.long, pytest.mark.once]

TOKEN = "hf_writer"
DENSE, PACKING = "user/thread-dense", "user/thread-packing"
MAKE = """
python conversion/make_demo_inputs.py demo
for layout in "" _packing; do
    python conversion/convert_llava_vit${layout}_to_hf.py auto demo/backbone.pt --num_attention_heads 2 \
        --output_dir model$layout
done
"""
EXTRACT = """
python examples/extract_features.py --hf_model_path model --packing_model_path model_packing --image1 demo/1.jpg \
    --image2 demo/2.jpg --video1 demo/1.mp4 --video2 demo/2.mp4 --num_frames 4 --output_dir features
"""
PUSH = f"python conversion/push_to_hub.py model {DENSE} model_packing {PACKING}"


class Person:
    """Someone with a clone, a cache and maybe a token."""

    def __init__(self, folder: Path, hub: LoopbackHub, token: str | None = None, python: str = sys.executable):
        folder.mkdir()
        self.clone = copy_project(folder / "clone")
        path = f"{commands_in(folder / 'bin', python)}:/usr/bin:/bin"
        self.environment = hub.client_environment(folder / "home", token) | {"OMP_NUM_THREADS": "1", "PATH": path}

    def run(self, script: str, code: int = 0, program: tuple[str, ...] = ("bash", "-euo", "pipefail", "-c")) -> str:
        """All that a script prints in the clone; it must end with `code`."""
        done = subprocess.run(
            [*program, script], cwd=self.clone, env=self.environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == code, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as hub:
        hub.add_token(TOKEN, "user")
        yield hub


@pytest.fixture(scope="module")
def releaser(hub, tmp_path_factory):
    """Who made and published both models with their features and inputs, in one command."""
    releaser = Person(tmp_path_factory.mktemp("thread") / "releaser", hub, TOKEN)
    shrink_demo(releaser.clone)
    releaser.run(MAKE + EXTRACT)
    said = releaser.run(f"{PUSH} --features features --with_inputs")
    assert said.count("loaded back and equal") == 2
    return releaser


def card_of(hub, repo_id: str, revision: str = "main") -> str:
    return hub.repo(repo_id).files(revision)["README.md"].read().decode()


def pin_of(card: str) -> str:
    (pin,) = re.findall(r'^repo_id, revision = "[^"]+", "([^"]+)"$', card, re.MULTILINE)
    return pin


def follow(person: Person, card: str) -> None:
    """Does what a card says: every snippet in one process, every command in order."""
    media.image(60, 40).save(person.clone / "image.jpg")
    media.write_video(person.clone / "video.mp4", media.frames(10, 32, 48))
    snippets = "\n".join(block for language, block in code_blocks_of(card) if language == "python")
    person.run(f"import sys\nsys.modules['llava_vit_hf'] = None\n{snippets}", program=("python", "-c"))
    verification, comparison = (block for language, block in code_blocks_of(card) if language == "sh")
    assert "the folder's report is confirmed" in person.run(verification)
    shutil.rmtree(person.clone / "features", ignore_errors=True)
    assert "made from the same: PASS" in person.run(comparison)


def commits_of(person: Person, features: str = "features") -> dict[str, str]:
    """The commits that a run recorded, by layout."""
    models = json.loads((person.clone / features / "metadata.json").read_text())["models"]
    return {layout: model["commit"] for layout, model in models.items()}


@pytest.mark.parametrize("client", ["this", "other"])
def test_a_stranger_follows_the_cards(client, request, hub, releaser, tmp_path):
    python = sys.executable if client == "this" else request.getfixturevalue("other_python")
    stranger = Person(tmp_path / "stranger", hub, python=python)
    # Each card has the commands for both models.
    follow(stranger, card_of(hub, DENSE if client == "this" else PACKING))
    heads = {"dense": hub.repo(DENSE).at().oid, "packing": hub.repo(PACKING).at().oid}
    assert commits_of(stranger) == heads


def test_runs_record_what_a_branch_stood_for(hub, releaser):
    """transformers 5.24 no longer tells the commit: it has to be asked for before loading."""
    command = f"python examples/extract_features.py --inputs demo/1.jpg --device cpu --packing_model_path {PACKING}"
    head = hub.repo(PACKING).at().oid
    releaser.run(f"{command} --output_dir main")
    releaser.run(f"{command} --output_dir pinned --packing_revision {head}")
    assert commits_of(releaser, "main") == commits_of(releaser, "pinned") == {"packing": head}
    wrong = f"{command}@{head} --packing_revision main --output_dir never"
    assert (
        f"--packing_model_path {PACKING}@{head} is pinned to {head}, and a revision option says main"
        in releaser.run(wrong, code=2)
    )
    assert "at revision nowhere cannot be read" in releaser.run(f"{command}@nowhere --output_dir never", code=2)


def test_the_card_s_pin_holds_all_and_the_cards_name_each_other(hub, releaser):
    for repo_id, sibling in ((DENSE, PACKING), (PACKING, DENSE)):
        card = card_of(hub, repo_id)
        names = hub.repo(repo_id).files(pin_of(card))
        assert {"model.safetensors", "modeling_llava_vit.py", "README.md", "verification.json"} <= names.keys()
        assert {"verification/metadata.json", "verification/inputs/video1.mp4"} <= names.keys()
        assert hub.repo(repo_id).at(pin_of(card)) is hub.repo(repo_id).at()
        assert f"[{sibling}]({hub.endpoint}/{sibling})" in card
        assert f"{sibling}@{pin_of(card_of(hub, sibling))}" in card


def test_numbers_are_compared_with_a_repo_s(hub, releaser):
    pin = pin_of(card_of(hub, PACKING))
    command = f"python conversion/verify_model.py model_packing --compare_with {PACKING}"
    said = releaser.run(f"{command}@{pin} --source demo/backbone.pt")
    assert "that report is confirmed" in said and " published numbers are repeated here to 1%" in said
    said = releaser.run(f"{command} --dtype bfloat16")
    assert "| cpu | sdpa | bfloat16 | PASS |" in said and " published numbers are repeated here to 1%" in said
    other = releaser.run(f"python conversion/verify_model.py model --dtype float32 --compare_with {PACKING}", code=1)
    assert "differs from that report: model.safetensors: sha256 is" in other
    assert "neither a file or folder here nor a repo with a verification.json" in releaser.run(
        f"{command}-of-nobody --dtype float32", code=2
    )


def test_new_weights_are_refused_then_replaced_and_the_old_pin_still_passes(hub, releaser, tmp_path):
    old = {repo_id: card_of(hub, repo_id) for repo_id in (DENSE, PACKING)}
    heads = {repo_id: hub.repo(repo_id).at() for repo_id in old}
    script = releaser.clone / "conversion" / "make_demo_inputs.py"
    text = script.read_text()
    assert text.count("peaked_state_dict(CONFIG)") == 1
    script.write_text(text.replace("peaked_state_dict(CONFIG)", "peaked_state_dict(CONFIG, 77)"))
    releaser.run("rm -r model model_packing")
    releaser.run(MAKE)
    # The features on the Hub, and those in the folder, are of the old weights: nothing is written.
    assert "holds features in verification/ that are not of this model: model.safetensors is another" in releaser.run(
        PUSH, code=1
    )
    assert "features holds features of another model than model" in releaser.run(f"{PUSH} --features features", code=1)
    assert heads == {repo_id: hub.repo(repo_id).at() for repo_id in heads}

    releaser.run("rm -r features\n" + EXTRACT + f"{PUSH} --features features --with_inputs")
    new = {repo_id: card_of(hub, repo_id) for repo_id in old}
    for repo_id in old:
        assert pin_of(new[repo_id]) != pin_of(old[repo_id])
        assert len(hub.repo(repo_id).log()) == 3
    follow(Person(tmp_path / "new", hub), new[DENSE])
    follow(Person(tmp_path / "old", hub), old[DENSE])

    releaser.run(f"python conversion/push_to_hub.py model {DENSE} --remove_features")
    card = card_of(hub, DENSE)
    assert not any(name.startswith("verification/") for name in hub.repo(DENSE).files())
    assert "verification/" not in card.replace('--exclude "verification/*"', "")
