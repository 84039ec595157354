# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""`hub_configs/` holds what its command writes, and a named conversion takes from it what weights cannot tell."""

import json
import shutil
import subprocess
from dataclasses import asdict

import pytest
import torch

from conversion.checkpoints import hub_configs
from conversion.checkpoints.checkpoint import Checkpoint
from conversion.checkpoints.convert import expected_shapes
from conversion.checkpoints.hub_configs import (
    FOLDER,
    WRITE_COMMAND,
    fitting_variant,
    fitting_variants,
    read_architecture,
    read_card_data,
    read_config,
    read_processor,
    variant_names,
)
from conversion.checkpoints.source_config import infer_source_config
from conversion.checkpoints.variant_writer import variant_files
from conversion.source.encoder import SourceConfig
from tests.conversion.scripts import ROOT
from tests.warm_python import REAL


# Heads as the pretraining code has them, apart from the files under test. Other variants may be added.
PRETRAINED_HEADS = {
    "llava_vit_small_ln": 6,
    "llava_vit_base_ln": 12,
    "llava_vit_base_rms": 12,
    "llava_vit_large_ln": 16,
    "llava_vit_huge_ln": 20,
    "llava_vit_giant_ln": 16,
}
TINY = {
    "hidden_size": 192,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 768,
    "patch_size": 16,
    "layer_norm_type": "rms_norm",
}
TINY_OPTIONS = tuple(str(part) for name, value in TINY.items() for part in (f"--{name}", value))


def differences(name: str) -> list[str]:
    """How the folder of a variant differs from what the command would write, and what to do about it."""
    try:
        files = variant_files(name)
    except ValueError as error:
        return [str(error)]
    folder = hub_configs.FOLDER / name
    there = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    advice = f"If dense/config.json is right, run: {WRITE_COMMAND} {name}"
    found = [f"{folder.name}/{path} is no file of a variant. Remove it." for path in sorted(there.keys() - files)]
    found += [f"{folder.name}/{path} is missing. {advice}" for path in sorted(files.keys() - there)]
    for path in sorted(files.keys() & there):
        if there[path] != files[path]:
            lies, written = json.loads(there[path]), json.loads(files[path])
            fields = [
                f"{key} {lies.get(key)} for {written.get(key)}"
                for key in sorted(lies.keys() | written.keys())
                if lies.get(key) != written.get(key)
            ]
            what = f"has {', '.join(fields)}, by dense/config.json" if fields else "is formatted otherwise"
            found.append(f"{folder.name}/{path} {what}. {advice}")
    return found


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.iterdir()))
def test_the_files_are_what_the_command_writes(name):
    found = differences(name)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("name", "heads"), PRETRAINED_HEADS.items())
def test_a_name_supplies_heads_and_epsilons(name, heads):
    config = SourceConfig(**read_architecture(name))
    assert config.num_attention_heads == heads
    assert config.norm_eps == (1.1920929e-07 if name.endswith("rms") else 1e-5)
    assert config.head_norm_eps == 1.1920929e-07
    assert fitting_variant(read_config(name, "packing")) == name


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A `hub_configs/` of its own, with one variant in it."""
    shutil.copytree(FOLDER / "llava_vit_small_ln", tmp_path / "llava_vit_small_ln")
    monkeypatch.setattr(hub_configs, "FOLDER", tmp_path)
    return tmp_path


def test_adding_a_variant_takes_the_command_alone(folder, capsys):
    assert hub_configs.main(["--write", "llava_vit_tiny_rms", *TINY_OPTIONS]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert differences("llava_vit_tiny_rms") == []
    assert variant_names() == ("llava_vit_tiny_rms", "llava_vit_small_ln")
    assert fitting_variants(TINY) == ["llava_vit_tiny_rms"]
    assert SourceConfig(**read_architecture("llava_vit_tiny_rms")) == SourceConfig(**TINY)
    assert read_card_data("llava_vit_tiny_rms") == {
        "license": "apache-2.0",
        "base_model": None,
        "tags": ["llava-vit", "tiny", "rms-norm"],
    }
    assert read_processor("llava_vit_tiny_rms", "packing")["packing"] is True


def test_a_variant_is_written_again_from_its_edited_dense_config(folder):
    small = folder / "llava_vit_small_ln"
    before = {path: path.read_text() for path in small.rglob("*.json")}
    assert hub_configs.main(["--write", small.name]) == 0
    assert {path: path.read_text() for path in small.rglob("*.json")} == before
    config = read_config(small.name, "dense")
    (small / "dense" / "config.json").write_text(json.dumps(config | {"patch_size": 8, "layer_norm_eps": 1e-6}))
    (small / "card.json").write_text('{\n  "license": "mit",\n  "base_model": "a/b",\n  "tags": []\n}\n')
    says = "packing/preprocessor_config.json has patch_size 16 for 8, by dense/config.json. If "
    assert says in "\n".join(differences(small.name))
    assert hub_configs.main(["--write", small.name]) == 0
    assert differences(small.name) == []
    assert read_config(small.name, "packing")["layer_norm_eps"] == 1e-6
    assert read_processor(small.name, "packing")["patch_size"] == 8
    assert read_card_data(small.name) == {"license": "mit", "base_model": "a/b", "tags": []}


def test_what_differs_is_named_with_the_command(folder):
    small = folder / "llava_vit_small_ln"
    (small / "packing" / "config.json").unlink()
    (small / "notes.txt").touch()
    (small / "card.json").write_text(json.dumps(read_card_data(small.name)))
    advice = f"If dense/config.json is right, run: {WRITE_COMMAND} llava_vit_small_ln"
    assert differences(small.name) == [
        "llava_vit_small_ln/notes.txt is no file of a variant. Remove it.",
        f"llava_vit_small_ln/packing/config.json is missing. {advice}",
        f"llava_vit_small_ln/card.json is formatted otherwise. {advice}",
    ]
    shutil.copytree(FOLDER / "llava_vit_small_ln", folder / "llava_vit_copy")
    assert "llava_vit_copy has the sizes and norm of llava_vit_small_ln" in differences("llava_vit_copy")[0]
    (folder / "llava_vit_copy" / "dense" / "config.json").unlink()
    (folder / "llava_vit_copy" / "card.json").unlink()
    assert f"does not exist. {WRITE_COMMAND} llava_vit_copy, with" in differences("llava_vit_copy")[0]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["llava_vit_new"], "dense/config.json does not exist"),
        (["llava_vit_new", *TINY_OPTIONS[:4]], "--num_hidden_layers, --intermediate_size, --patch_size, --layer_norm"),
        (["a", "b", *TINY_OPTIONS], "--hidden_size is for one variant, found 2 names"),
        (["../elsewhere", *TINY_OPTIONS], "--write ../elsewhere: expected a name such as"),
        (["auto", *TINY_OPTIONS], "--write auto: expected a name such as"),
        (["llava_vit_new", *TINY_OPTIONS, "--num_attention_heads", "5"], "num_attention_heads=5 does not divide"),
    ],
)
def test_what_cannot_be_written_is_one_clear_error(folder, capsys, arguments, message):
    assert hub_configs.main(["--write", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert [path.name for path in folder.iterdir()] == ["llava_vit_small_ln"]


def test_reading_needs_neither_torch_nor_transformers():
    program = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None; "
        "from conversion.checkpoints.hub_configs import *; "
        "print(fitting_variant(read_config('llava_vit_base_rms', 'packing')), *read_card_data('llava_vit_base_rms'))"
    )
    result = subprocess.run([REAL, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.stdout.split() == ["llava_vit_base_rms", "license", "base_model", "tags"], result.stderr


def test_epsilons_of_a_named_checkpoint_are_read_from_the_files(folder):
    small = SourceConfig(**read_architecture("llava_vit_small_ln"))
    weights = {name: torch.empty(1).expand(shape) for name, shape in expected_shapes("source", small).items()}
    checkpoint = Checkpoint.from_state_dict(weights)
    path = folder / "llava_vit_small_ln" / "dense" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layer_norm_eps": 0.5}))
    assert infer_source_config(checkpoint, "llava_vit_small_ln").norm_eps == 0.5
    assert infer_source_config(checkpoint, "auto", num_attention_heads=6).norm_eps == 1e-5
    stored = asdict(small) | {"layer_norm_eps": 1e-6}
    with_config = Checkpoint.from_state_dict(weights, {k: v for k, v in stored.items() if k != "norm_eps"})
    assert infer_source_config(with_config, "llava_vit_small_ln").norm_eps == 1e-6


def test_other_sizes_fit_no_variant():
    config = read_config("llava_vit_base_ln", "dense")
    assert fitting_variant(config) == "llava_vit_base_ln"
    assert fitting_variant(config | {"num_attention_heads": 6}) is None
    assert fitting_variant({}) is None
