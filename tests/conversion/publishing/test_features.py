# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Features are published only whole, of exactly the model beside them, and without a path of this machine."""

import json

import pytest

from conversion.common.model_folder import PublishError, PublishInputError, read_model_folder
from conversion.publishing.card_features import CardRecord, with_features
from conversion.publishing.features import features_name, not_of_model, read_features
from conversion.publishing.model_card import BEGIN, END, render_card
from tests.conversion.publishing.publishable import features_folder, sha256_of, verified_folder


@pytest.fixture
def model(tmp_path):
    return verified_folder(tmp_path / "model")


@pytest.fixture
def run(tmp_path, model):
    return features_folder(tmp_path / "features", dense=model)


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def published(run, **options):
    with read_features(run, **options) as features:
        files = {name: file.content or file.path.read_bytes() for name, file in features.files.items()}
        return features.metadata, files, features.name


def test_metadata_lists_every_other_file_and_names_them_all(run):
    (run / "notes.txt").write_text("no part of a run")
    metadata, files, name = published(run)
    assert files.keys() == {"metadata.json", "features_hf.npz", "features_packing.npz", "report.json"}
    assert json.loads(files["metadata.json"]) == metadata
    assert metadata["files"] == {name: sha256_of(data) for name, data in files.items() if name != "metadata.json"}
    assert name == features_name(files["metadata.json"])
    (run / "features_hf.npz").write_bytes(b"other")
    assert published(run)[2] != name


def test_no_path_of_this_machine_is_published(run, tmp_path):
    _, files, _ = published(run)
    assert str(tmp_path) in (run / "metadata.json").read_text()
    assert not any(str(tmp_path).encode() in data for data in files.values())


def test_no_path_is_published_in_the_index_as_a_table(run, tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "a.jpg").touch()
    columns = {"id": ["a", "b"], "path": [str(tmp_path / "a.jpg"), "squad, row 3"], "row": [0, None]}
    parquet.write_table(pyarrow.table(columns), run / "index.parquet")
    _, files, _ = published(run)
    assert str(tmp_path).encode() in (run / "index.parquet").read_bytes()
    assert not any(str(tmp_path).encode() in data for data in files.values())
    table = parquet.read_table(pyarrow.BufferReader(files["index.parquet"]))
    assert table.to_pydict() == {**columns, "path": ["a.jpg", "squad, row 3"]}
    (run / "index.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(PublishInputError, match=r"index\.parquet is no readable table"):
        published(run)


def test_inputs_are_published_on_request_and_only_as_they_were(run, tmp_path):
    _, files, _ = published(run, with_inputs=True)
    assert files["inputs/video1.bin"] == b"video1" and len([name for name in files if name.startswith("inputs/")]) == 4
    (tmp_path / "image2.bin").write_bytes(b"another")
    with pytest.raises(PublishInputError, match="image2 was .*image2.bin, now no file or another one"):
        published(run, with_inputs=True)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("report.json", {"passed": False}, "do not agree"),
        ("report.json", {"passed": None}, "do not agree"),
        ("metadata.json", {"inputs": {"a": {}}}, "inputs.a has no field dense, packing"),
        ("metadata.json", {"models": {"dense": {}}}, "models.dense has no field weights_sha256"),
        ("metadata.json", {"layers": ["-2"], "counts": {"samples": 0}}, "holds a run without a sample"),
        ("metadata.json", {"layers": ["-2"]}, "has no field counts"),
    ],
)
def test_what_is_no_finished_run_that_passed_is_refused(run, file, values, message):
    change(run / file, **values)
    with pytest.raises(PublishError, match=message):
        published(run)


def test_a_run_without_its_comparison_is_refused(run, tmp_path):
    (run / "report.json").unlink()
    with pytest.raises(PublishInputError, match="report.json does not exist"):
        published(run)
    with pytest.raises(PublishInputError, match="nothing to publish"):
        published(tmp_path)


def test_features_are_told_from_those_of_another_model(run, model, tmp_path):
    metadata, *_ = published(run)
    folder = read_model_folder(model)
    assert not_of_model(metadata, folder) == []
    assert not_of_model(metadata, read_model_folder(verified_folder(tmp_path / "other", seed=1))) == [
        "model.safetensors is another"
    ]
    packing = read_model_folder(verified_folder(tmp_path / "packing", "packing"))
    assert not_of_model(metadata, packing) == ["they are of no packing model"]
    change(model / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])
    (model / "grid_llava_vit.py").write_text("# other code\n")
    assert not_of_model(metadata, read_model_folder(model)) == [
        "grid_llava_vit.py is another",
        "the processor has other settings",
    ]


OLD = CardRecord("user/model", "verified-aaa", "verified-aaa", "user/packing@verified-p", "https://example.org/x")
NEW = CardRecord("user/model", "verified-aaa-bbb", "verified-aaa", "user/packing@verified-p", "https://example.org/x")


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_a_published_card_gets_another_tag_and_features_and_all_else_stays(run, model, line_break):
    folder = read_model_folder(model)
    prose = f"# Mine{line_break}{line_break}verified-aaa is my favourite.{line_break}"
    card = render_card(folder, OLD, existing=prose)
    metadata, *_ = published(run)
    changed = with_features(card, OLD, NEW, metadata, "dense")
    assert changed == render_card(folder, NEW, metadata, existing=prose)
    assert CardRecord.read(changed) == NEW
    assert "verified-aaa is my favourite." in changed
    assert with_features(changed, NEW, OLD, metadata, "dense") == render_card(folder, OLD, metadata, existing=prose)


def test_a_card_whose_markers_were_edited_is_refused(run, model):
    card = render_card(read_model_folder(model), OLD)
    metadata, *_ = published(run)
    with pytest.raises(PublishError, match="lost its markers"):
        with_features(card.replace("<!-- llava_vit_hf: features -->", ""), OLD, NEW, metadata, "dense")
    with pytest.raises(PublishError, match="must be text, found 3"):
        CardRecord.read(card.replace('"pin": "verified-aaa"', '"pin": 3'))
    assert CardRecord.read("# A card of somebody else") is None


def test_the_card_says_how_to_compare_and_only_where_there_is_something(run, model):
    folder = read_model_folder(model)
    without = render_card(folder, OLD)
    assert "verification/" not in without.replace('--exclude "verification/*"', "")
    metadata, *_ = published(run)
    card = render_card(folder, OLD, metadata)
    assert "The files themselves are not published." in card and "--image1 image1.bin" in card
    assert "--hf_model_path user/model@verified-aaa \\\n" in card
    assert "--packing_model_path user/packing@verified-p \\\n" in card
    assert "--reference user/model@verified-aaa\n" in card
    metadata, *_ = published(run, with_inputs=True)
    card = render_card(folder, OLD, metadata)
    assert 'hf download user/model --revision verified-aaa --include "verification/inputs/*"' in card
    assert "--video2 published/verification/inputs/video2.bin" in card
    many = {**metadata, "files": {"index.jsonl": "0"}, "layers": ["-2", "pooler"], "counts": {"samples": 7}}
    card = render_card(folder, OLD, many)
    assert "7 samples, listed in `verification/index.jsonl`" in card and "--inputs FILES --layers=-2,pooler" in card


def test_the_card_knows_no_more_than_the_files_and_the_variant_s_data(model, monkeypatch):
    folder = read_model_folder(model)
    card = render_card(folder, CardRecord("user/model", "verified-aaa", "verified-aaa"))
    assert (
        ", pretrained" not in card and "take its **packing**\nsibling." in card and "a clone of llava_vit_hf" in card
    )
    monkeypatch.setattr("conversion.publishing.model_card.fitting_variant", lambda config: "named")
    data = {"pretraining": "by guessing", "tags": []}
    monkeypatch.setattr("conversion.publishing.model_card.read_card_data", lambda variant: data)
    card = render_card(folder, OLD)
    assert "time, height and width, pretrained by guessing.\n" in card
    assert "a clone of [llava_vit_hf](https://example.org/x)" in card
    assert "sibling, [user/packing](" in card


def test_the_verdict_and_the_first_snippet_come_first(model):
    card = render_card(read_model_folder(model), OLD)
    generated = card[card.index(BEGIN) : card.index(END)]
    first = generated.split("```")[0]
    assert "**Verified: PASS.**" in first and len(first.splitlines()) <= 12
    assert generated.index("<details>") > generated.index("## Verification") > generated.index("```python")
    (model / "verification.json").unlink()
    assert "Verified: PASS" not in render_card(read_model_folder(model), OLD)
