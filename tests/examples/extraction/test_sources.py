# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Files, a list that grows, datasets and WebDataset give the same features for the same content, byte for byte."""

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from examples.extraction.feature_sets import open_features
from tests import media
from tests.examples.commands import ROOT, contents, environment, extract, read_lines


BROKEN = 20


@pytest.fixture(scope="module")
def with_broken(many_files, once):
    """The many files in one folder, and 20 that are broken among them."""

    def write(folder: Path) -> None:
        for path in many_files.rglob("*.*"):
            shutil.copy(path, folder / path.name)
        for index in range(BROKEN):
            (folder / f"{index:02d}x{('.png', '.mp4')[index % 2]}").write_bytes(b"broken")

    return once("with_broken", write)


@pytest.fixture(scope="module")
def settings(models) -> list:
    return [
        "--packing_model_path",
        models / "tiny_packing",
        "--shard_size",
        8,
        "--pack_tokens",
        600,
        "--device",
        "cpu",
    ]


@pytest.fixture(scope="module")
def expected(with_broken, settings, once) -> Path:
    """The features of the files in the folder."""

    def write(folder: Path) -> None:
        assert extract(*settings, "--inputs", with_broken, "--layers", "-2,pooler", "--output_dir", folder) == 0

    return once("of_files", write)


def check_same(folder: Path, expected: Path) -> None:
    """Every id has the same features, bytes of pixels and of content; the broken ones are recorded."""
    found, wanted = open_features(folder), open_features(expected)
    assert sorted(found.labels) == sorted(wanted.labels) and len(wanted.labels) == 2 * 66
    for label in wanted.labels:
        assert found.load(label).tobytes() == wanted.load(label).tobytes(), label
    assert found.origins["inputs"] == wanted.origins["inputs"]
    assert found.origins["frames"] == wanted.origins["frames"]
    failed = [{record["id"] for record in read_lines(place / "failures.jsonl")} for place in (folder, expected)]
    assert failed[0] == failed[1] and len(failed[0]) == BROKEN
    counts = json.loads((folder / "metadata.json").read_text())["counts"]
    assert (counts["samples"], counts["failures"]) == (66, BROKEN)


def rows_of(folder: Path) -> list[dict]:
    """The files as datasets stores them, in the order of the folder."""
    rows = []
    for path in sorted(folder.iterdir()):
        stored = {"bytes": path.read_bytes(), "path": path.name}
        is_image = path.suffix == ".png"
        rows.append({"name": path.name, "image": stored if is_image else None, "video": None if is_image else stored})
    return rows


@pytest.fixture
def stored(with_broken, tmp_path, monkeypatch):
    """The files as a dataset of one Parquet file, in a folder."""
    datasets = pytest.importorskip("datasets", reason="needs datasets (pip install datasets)")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {"name": datasets.Value("string"), "image": datasets.Image(), "video": datasets.Video(decode=False)}
    )
    dataset = datasets.Dataset.from_list(rows_of(with_broken), features=features)
    (tmp_path / "dataset").mkdir()
    dataset.to_parquet(tmp_path / "dataset" / "train-00000-of-00001.parquet")
    return tmp_path / "dataset"


@pytest.mark.long
def test_a_dataset_is_streamed(stored, settings, expected, tmp_path, capsys):
    arguments = [*settings, "--dataset", stored, "--split", "train", "--id_column", "name", "--layers", "-2,pooler"]
    assert extract(*arguments, "--output_dir", tmp_path / "f") == 0
    check_same(tmp_path / "f", expected)
    record = read_lines(tmp_path / "f" / "index.jsonl")[1]
    assert record["path"].startswith(f"{stored}[") and record["path"].endswith("]")
    # A stopped run continues; what is complete is kept.
    before = contents(tmp_path / "f")
    (tmp_path / "f" / "shards" / "00003.jsonl").unlink()
    kept = (tmp_path / "f" / "shards" / "00002.jsonl").stat().st_mtime_ns
    assert extract(*arguments, "--output_dir", tmp_path / "f") == 0
    assert contents(tmp_path / "f") == before
    assert (tmp_path / "f" / "shards" / "00002.jsonl").stat().st_mtime_ns == kept
    assert extract(*arguments, "--output_dir", tmp_path / "f", "--image_column", "picture") == 2
    assert "--image_column picture: its columns are" in capsys.readouterr().err


@pytest.mark.long
def test_a_dataset_that_was_saved_to_disk(stored, settings, expected, tmp_path):
    import datasets

    dataset = datasets.load_dataset(str(stored), split="train", cache_dir=str(tmp_path / "cache"))
    datasets.DatasetDict({"test": dataset}).save_to_disk(str(tmp_path / "saved"))
    arguments = [*settings, "--dataset", tmp_path / "saved", "--split", "test", "--id_column", "name"]
    assert extract(*arguments, "--layers", "-2,pooler", "--output_dir", tmp_path / "f") == 0
    check_same(tmp_path / "f", expected)


@pytest.mark.long
def test_errors_of_datasets_name_the_option(stored, settings, tmp_path, capsys):
    for others, message in (
        (["--dataset", stored], "--dataset and --split go together"),
        (["--dataset", stored, "--split", "test"], f"--dataset {stored}: Bad split: test"),
        (["--dataset", stored, "--split", "train", "--image_column", "a", "--video_column", "b"], "expected a or b"),
        (["--dataset", stored, "--split", "train", "--id_column", "key"], "--id_column key: its columns are name"),
        (["--dataset", stored, "--split", "train", "--inputs", "."], "found --inputs and --dataset"),
        (["--dataset", stored, "--split", "train", "--resume"], "--resume adds files to a run"),
    ):
        assert extract(*settings, *others, "--output_dir", tmp_path / "f") == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "f").exists()
    (stored / "train-00000-of-00001.parquet").write_bytes(b"PAR1 and then nothing")
    assert extract(*settings, "--dataset", stored, "--split", "train", "--output_dir", tmp_path / "f") == 2
    assert f"--dataset {stored}:" in capsys.readouterr().err


@pytest.fixture
def tars(with_broken, tmp_path) -> str:
    """The files in three tars, with a text beside each."""
    pytest.importorskip("webdataset", reason="needs webdataset (pip install webdataset)")
    paths = sorted(with_broken.iterdir())
    for number in range(3):
        with tarfile.open(tmp_path / f"shard-{number:03d}.tar", "w") as tar:
            for path in paths[number * 30 : number * 30 + 30]:
                (tmp_path / "caption.txt").write_text(path.name)
                # WebDataset's key of a member ends at its first dot.
                key = path.name.replace(".", "_")
                tar.add(tmp_path / "caption.txt", f"{key}.txt")
                tar.add(path, f"{key}{path.suffix}")
    return str(tmp_path / "shard-{000..002}.tar")


@pytest.mark.long
def test_tars_are_streamed(tars, settings, expected, tmp_path, capsys):
    arguments = [*settings, "--webdataset", tars, "--layers", "-2,pooler", "--output_dir", tmp_path / "f"]
    assert extract(*arguments) == 0
    renamed = tmp_path / "renamed"
    shutil.copytree(tmp_path / "f", renamed)
    for name in ("index.jsonl", "failures.jsonl"):
        text = (renamed / name).read_text()
        (renamed / name).write_text(
            text.replace('_png", "path"', '.png", "path"').replace('_mp4", "path"', '.mp4", "path"')
        )
    check_same(renamed, expected)
    assert read_lines(tmp_path / "f" / "index.jsonl")[0]["path"].endswith("shard-000.tar:0_mp4")
    with tarfile.open(tmp_path / "shard-002.tar", "a") as tar:
        tar.add(tmp_path / "caption.txt", "00_png.txt")
    capsys.readouterr()
    assert extract(*arguments, "--overwrite") == 2
    assert "the id '00_png' comes twice" in capsys.readouterr().err


def test_errors_of_webdataset_name_the_option(settings, tmp_path, capsys):
    pytest.importorskip("webdataset", reason="needs webdataset (pip install webdataset)")
    for pattern in ("pipe:touch executed", str(tmp_path / "none-{0..1}.tar")):
        assert extract(*settings, "--webdataset", pattern, "--output_dir", tmp_path / "f") == 2
        assert f"--webdataset {pattern}: " in capsys.readouterr().err
    assert not (ROOT / "executed").exists() and not (tmp_path / "f").exists()
    (tmp_path / "bad.tar").write_bytes(b"x" * 2000)
    assert extract(*settings, "--webdataset", tmp_path / "bad.tar", "--output_dir", tmp_path / "f") == 2
    assert "bad.tar" in capsys.readouterr().err


def test_a_row_with_two_samples_is_a_failure(settings, four_files, tmp_path):
    pytest.importorskip("webdataset", reason="needs webdataset (pip install webdataset)")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, member in (("1.jpg", "both.jpg"), ("1.mp4", "both.mp4"), ("2.jpg", "one.JPG"), ("1.jpg", "one.txt")):
            tar.add(four_files / name, member)
        tar.add(four_files / "1.jpg", "none.txt")
    assert extract(*settings, "--webdataset", tmp_path / "a.tar", "--output_dir", tmp_path / "f") == 0
    assert [record["id"] for record in read_lines(tmp_path / "f" / "index.jsonl")] == ["one"]
    both, none = read_lines(tmp_path / "f" / "failures.jsonl")
    assert "jpg and mp4: found 2 values" in both["error"] and "image or video: found 0 values" in none["error"]


@pytest.mark.parametrize("module", ["datasets", "webdataset"])
def test_what_is_not_installed_is_named(module, settings, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    given = {"datasets": ["--dataset", "user/name", "--split", "train"], "webdataset": ["--webdataset", "a.tar"]}[
        module
    ]
    assert extract(*settings, *given, "--output_dir", tmp_path / "f") == 2
    assert f"needs {module} (pip install {module})" in capsys.readouterr().err


def test_nothing_of_them_is_imported_for_files():
    code = "import sys, examples.extract_features; print(sorted({'datasets', 'ray', 'webdataset'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def image_folder(folder: Path, names: range) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        media.image(30 + name, 42).save(folder / f"{name:02d}.png")
    return folder


def test_a_folder_that_grew_is_resumed(settings, tmp_path, capsys):
    """New files before and between the old ones; then once more."""
    folder = image_folder(tmp_path / "images", range(1, 21, 2))
    arguments = [*settings, "--inputs", folder, "--output_dir", tmp_path / "f"]
    assert extract(*arguments) == 0
    first = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "f" / "shards").iterdir()}
    assert sorted(first) == ["00000.jsonl", "00000.safetensors", "00001.jsonl", "00001.safetensors"]
    image_folder(folder, range(0, 20, 2))
    assert extract(*arguments) == 2
    assert "holds a run of 10 of these 20 inputs. Give --resume to add" in capsys.readouterr().err
    assert extract(*arguments, "--resume", "--layers", "-1") == 2
    assert "differs in" in capsys.readouterr().err
    assert extract(*arguments, "--resume") == 0
    assert {
        path.name: path.stat().st_mtime_ns for path in (tmp_path / "f" / "shards").iterdir()
    }.items() > first.items()
    # Without the option again, as the run is now about all of them; and a second time with it.
    whole = contents(tmp_path / "f")
    assert extract(*arguments) == 0 and extract(*arguments, "--resume") == 0
    assert contents(tmp_path / "f") == whole
    image_folder(folder, range(20, 22))
    assert extract(*arguments, "--resume") == 0
    metadata = json.loads((tmp_path / "f" / "metadata.json").read_text())
    assert metadata["inputs"]["parts"] == [10, 10, 2] and metadata["counts"]["samples"] == 22
    ids = [record["id"] for record in read_lines(tmp_path / "f" / "index.jsonl")]
    assert ids == [f"{name:02d}.png" for name in (*range(1, 21, 2), *range(0, 20, 2), 20, 21)]
    capsys.readouterr()
    assert extract(*arguments, "--resume", "--num_frames", "4") == 2
    assert "01.png has num_frames=8 there and 4 here." in capsys.readouterr().err
    (folder / "05.png").unlink()
    assert extract(*arguments, "--resume") == 2
    assert "differs in inputs: 05.png is not among these" in capsys.readouterr().err


def test_a_run_that_was_killed_while_it_grew_is_resumed(settings, tmp_path):
    folder = image_folder(tmp_path / "images", range(1, 10))
    arguments = [*settings, "--inputs", folder, "--output_dir", tmp_path / "f"]
    assert extract(*arguments) == 0
    metadata = (tmp_path / "f" / "metadata.json").read_bytes()
    image_folder(folder, range(10, 12))
    assert extract(*arguments, "--resume") == 0
    whole = contents(tmp_path / "f")
    # The list is written before the metadata.
    (tmp_path / "f" / "metadata.json").write_bytes(metadata)
    (tmp_path / "f" / "shards" / "00002.jsonl").unlink()
    assert extract(*arguments, "--resume") == 0
    assert contents(tmp_path / "f") == whole
