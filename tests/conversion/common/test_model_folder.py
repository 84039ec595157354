# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What belongs to a model, and whether its report proves its bytes."""

import json

import pytest

from conversion.common.model_folder import ModelFile, PublishError, content_name, model_file_names, read_model_folder
from tests.conversion.publishing.publishable import (
    converted_folder,
    report_of,
    sha256_of,
    verified_folder,
    write_report,
)


STRANGERS = (".env", "notes.txt", "train.py", "optimizer.pt", "old.safetensors", "tokenizer.json")


def edit_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("layout", ["dense", "packing"])
@pytest.mark.parametrize("shard_size", ["5GB", "100KB"])
def test_everything_that_a_conversion_writes_is_the_model(tmp_path, layout, shard_size):
    folder = converted_folder(tmp_path / "model", layout, max_shard_size=shard_size)
    assert model_file_names(folder) == sorted(path.name for path in folder.iterdir())
    model = read_model_folder(write_report(folder))
    assert (model.layout, model.unverified, model.left_out) == (layout, None, {})
    assert {file.sha256 for file in model.files.values()} == set(model.report["model"]["files"].values())


def test_strangers_are_left_out_and_do_not_disturb_the_proof(tmp_path):
    folder = verified_folder(tmp_path / "model")
    for name in STRANGERS:
        (folder / name).write_text("secret")
    (folder / "__pycache__").mkdir()
    model = read_model_folder(folder)
    assert set(model.left_out) == {*STRANGERS, "__pycache__/"} and model.unverified is None
    assert not set(STRANGERS) & (model.files.keys() | model.reports)


@pytest.mark.parametrize(
    ("spoil", "reason", "kept"),
    [
        (lambda f: (f / "verification.json").unlink(), "there is no verification.json", False),
        (lambda f: write_report(f, report_of(f, "FAIL")), "says 'FAIL'", True),
        (lambda f: write_report(f, report_of(f, "INCONCLUSIVE")), "says 'INCONCLUSIVE'", True),
        (lambda f: write_report(f, report_of(f) | {"schema_version": 2}), "schema_version 2", False),
        (lambda f: write_report(f, report_of(f) | {"model": {}}), "lists no model.files", False),
        (lambda f: edit_json(f / "config.json", layer_norm_eps=1e-6), "changed: config.json", False),
        (lambda f: (f / "grid_llava_vit.py").write_text("# other code\n"), "changed: grid_llava_vit.py", False),
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-1] + b"\1"),
            "changed: model.safetensors",
            False,
        ),
        (lambda f: (f / "processor_config.json").unlink(), "only in the report: processor_config.json", False),
    ],
)
def test_a_report_proves_only_a_pass_of_these_very_bytes(tmp_path, spoil, reason, kept):
    folder = verified_folder(tmp_path / "model")
    verified = content_name(read_model_folder(folder))
    spoil(folder)
    model = read_model_folder(folder)
    assert reason in model.unverified
    assert bool(model.reports) == kept and (model.report is None) != kept
    assert verified.startswith("verified-") and content_name(model).startswith("unverified-")
    assert content_name(model)[-12:] != verified[-12:]


def test_code_that_the_report_does_not_know_is_found_through_imports(tmp_path):
    folder = verified_folder(tmp_path / "model")
    code = folder / "grid_llava_vit.py"
    code.write_text("from .extra import x\n" + code.read_text())
    (folder / "extra.py").write_text("x = 1\n")
    model = read_model_folder(folder)
    assert "extra.py" in model.files and "not in the report: extra.py" in model.unverified


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json does not exist"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "holds a list"),
        (lambda f: edit_json(f / "config.json", model_type="bert"), "model_type='bert', expected one of llava_vit"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "no preprocessor_config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "neither model.safetensors nor"),
        (lambda f: (f / "grid_llava_vit.py").unlink(), "lacks grid_llava_vit.py"),
        (
            lambda f: edit_json(f / "config.json", auto_map={"AutoModel": "other/repo--modeling.Model"}),
            "other/repo--modeling.Model",
        ),
        (
            lambda f: (
                (f / "model.safetensors").rename(f / "x.safetensors"),
                (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}'),
            ),
            "'../x.safetensors'",
        ),
    ],
)
def test_an_incomplete_folder_is_refused_by_name(tmp_path, spoil, message):
    folder = verified_folder(tmp_path / "model")
    spoil(folder)
    with pytest.raises(PublishError) as error:
        read_model_folder(folder)
    assert message in str(error.value)


def test_ids_of_git_are_those_of_git(tmp_path):
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"text")
    for file in (ModelFile.from_bytes("t.txt", b"text"), ModelFile.read(weights)):
        assert file.git_oid() == "f3a34851d44d6b97c90fbb99dd3d18c261b9a237"
        assert (file.size, file.sha256) == (4, sha256_of(b"text"))
