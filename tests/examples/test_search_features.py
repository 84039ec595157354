# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Search over a run: the nearest by cosine, whatever the format and the engine, as a table and a page."""

import re
import shutil

import numpy as np
import pytest

from examples import search_features
from examples.extraction.feature_sets import open_features
from examples.extraction.search import load_vectors
from tests.examples.commands import extract, on_one_thread, read_lines


def search(models, folder, query, *others) -> int:
    with on_one_thread():
        return search_features.main(
            [
                str(part)
                for part in (folder, "--query", query, "--packing_model_path", models / "tiny_packing", *others)
            ]
        )


def found(text: str) -> list[tuple[int, float, str]]:
    return [
        (int(rank), float(cosine), name) for rank, cosine, name in re.findall(r"^ +(\d+)  (\S+)  (\S+)", text, re.M)
    ]


@pytest.mark.parametrize("engine", ["numpy", "faiss"])
def test_the_nearest_are_found(models, many_files, many_features, tmp_path, capsys, engine):
    if engine == "faiss":
        pytest.importorskip("faiss", reason="needs FAISS (pip install faiss-cpu)")
    page = tmp_path / "page.html"
    for query in (many_files / "images" / "17.png", many_files / "videos" / "3.mp4"):
        assert search(models, many_features, query, "--output", page, "--engine", engine, "--top", 7) == 0
        table = found(capsys.readouterr().out)
        features, records = open_features(many_features), read_lines(many_features / "index.jsonl")
        vectors = {record["id"]: features.load(f"{record['id']} pooler").astype(np.float64) for record in records}
        asked = vectors[query.name]
        cosines = {
            name: asked @ vector / np.linalg.norm(asked) / np.linalg.norm(vector) for name, vector in vectors.items()
        }
        best = sorted(cosines, key=lambda name: -cosines[name])[:7]
        assert [name for _, _, name in table] == best and [rank for rank, _, _ in table] == list(range(1, 8))
        assert best[0] == query.name and table[0][1] == 1
        np.testing.assert_allclose([cosine for _, cosine, _ in table], [cosines[name] for name in best], atol=1e-4)
        text = page.read_text()
        assert text.count("data:image/png;base64,") == 8 and "No picture" not in text
        assert re.findall(r"(?:src|href)=\"(?!data:)", text) == [] and "<script" not in text


@pytest.mark.parametrize("file_format", ["npz", "parquet"])
def test_vectors_are_those_of_every_format(many_arguments, many_features, tmp_path, file_format):
    if file_format == "parquet":
        pytest.importorskip("pyarrow", reason="needs pyarrow (pip install pyarrow)")
    arguments = [*many_arguments, "--device", "cpu", "--format", file_format, "--output_dir", tmp_path / "f"]
    assert extract(*arguments) == 0
    for layer in ("pooler", "-2"):
        records, vectors = load_vectors(tmp_path / "f", layer)
        others, expected = load_vectors(many_features, layer)
        assert [record["id"] for record in records] == [record["id"] for record in others]
        assert vectors.tobytes() == expected.tobytes()
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    features = open_features(many_features)
    mean = features.load("05.png -2").reshape(-1, 64).mean(0, dtype=np.float64)
    np.testing.assert_allclose(expected[5], mean / np.linalg.norm(mean), atol=1e-6)


def test_a_run_without_the_pooler_is_searched_by_means(models, many_files, tmp_path, capsys):
    folder = tmp_path / "f"
    arguments = ["--packing_model_path", models / "tiny_packing", "--inputs", many_files / "images", "--device", "cpu"]
    assert extract(*arguments, "--layers", "-1", "--output_dir", folder) == 0
    capsys.readouterr()
    assert search(models, folder, many_files / "images" / "30.png", "--output", tmp_path / "page.html") == 0
    table = found(capsys.readouterr().out)
    assert len(table) == 10 and table[0][1:] == (1, "30.png")


def test_inputs_that_are_gone_or_changed_have_no_picture(models, many_files, tmp_path, capsys):
    inputs = shutil.copytree(many_files / "images", tmp_path / "images")
    arguments = ["--packing_model_path", models / "tiny_packing", "--inputs", inputs, "--layers", "pooler"]
    assert extract(*arguments, "--device", "cpu", "--output_dir", tmp_path / "f") == 0
    (inputs / "31.png").unlink()
    shutil.copy(inputs / "01.png", inputs / "30.png")
    query, page = many_files / "images" / "30.png", tmp_path / "page.html"
    assert search(models, tmp_path / "f", query, "--output", page, "--top", 60) == 0
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 59
    assert "31.png is not a file of this machine" in text and "is not the file that the features came from" in text


def test_errors_name_the_option(models, many_files, many_features, four_features, tmp_path, capsys):
    query = many_files / "images" / "00.png"
    (tmp_path / "bad.png").write_bytes(b"no image")
    other = shutil.copytree(models / "tiny_packing", tmp_path / "other_weights")
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    for folder, asked, others, message in (
        (many_features, tmp_path / "none.png", [], "none.png: no such file"),
        (many_features, tmp_path / "bad.png", [], "bad.png: ValueError"),
        (many_features, query, ["--layer", "-3"], "--layer must be one of -2, -1, pooler, found '-3'"),
        (many_features, query, ["--top", 0], "--top must be at least 1"),
        (many_features, query, ["--packing_model_path", other], "other weights than those that the features"),
        (four_features, query, [], "holds features of four files"),
        (tmp_path, query, [], "metadata.json does not exist"),
    ):
        assert search(models, folder, asked, *others, "--output", tmp_path / "page.html") == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
