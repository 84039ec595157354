# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Extraction over many inputs: right features, whatever shares a pack, on any number of processes, killed or not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor

from conversion.common.metrics import Bounds, compare
from examples.extraction import shards
from examples.extraction.encoding import check_layers
from examples.extraction.feature_sets import open_features
from examples.extraction.limits import FileLimits
from examples.extraction.options import parse_layers
from examples.extraction.sources import cut_into_shards
from tests import media
from tests.examples.commands import EXAMPLES, ROOT, contents, environment, extract, read_lines, run_well
from tests.warm_python import REAL


DATA = ("index.jsonl", "failures.jsonl", "metadata.json")
CLOSE = Bounds(min_cosine=0.99999, max_abs=1e-4)


def test_every_sample_is_that_of_the_model_alone(models, many_files, many_features):
    """Packed with others or alone, whatever the layer; and the index says which file and frames it was."""
    model = AutoModel.from_pretrained(models / "tiny_packing", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(models / "tiny_packing")
    features = open_features(many_features)
    records = read_lines(many_features / "index.jsonl")
    assert [record["id"] for record in records] == [f"{i:02d}.png" for i in range(60)] + [f"{i}.mp4" for i in range(6)]
    for record in [*records[:60:13], *records[60::2]]:
        folder = "videos" if record["kind"] == "video" else "images"
        inputs = processor(**{folder: [str(many_files / folder / record["id"])]})
        with torch.no_grad():
            output = model(**inputs, output_hidden_states=True)
        assert record["grid_thw"] == inputs["grid_thw"][0].tolist()
        for layer in (-2, -1):
            expected = output.hidden_states[layer].unflatten(0, record["grid_thw"])
            assert CLOSE.check(compare(features.load(f"{record['id']} {layer}"), expected)) == []
        assert CLOSE.check(compare(features.load(f"{record['id']} pooler"), output.pooler_output[0])) == []
        if record["kind"] == "video":
            assert len(record["frame_indices"]) == 8 and record["temporal_positions"][-1] == 63


@pytest.mark.long
def test_two_processes_give_the_same_as_one(many_arguments, many_features, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    arguments = [*many_arguments, "--output_dir", tmp_path, "--device", "cpu"]
    command = [*launch, str(EXAMPLES / "extract_features.py"), *map(str, arguments)]
    result = subprocess.run(
        command, env=environment(), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=280, check=False
    )
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path) == contents(many_features)


def complete_shards(folder: Path) -> list[Path]:
    """Without those that are being written, whose names start with a dot."""
    return list(folder.glob("shards/[!.]*.jsonl"))


def kill_after(shards: int, command: list[str], folder: Path) -> None:
    """Kills a run, with everything it started, once so many shards are complete."""
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while len(complete_shards(folder)) < shards:
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.005)
    process.kill()
    process.wait()


# Leaves what a kill leaves of a file that is being written.
KILLED_WRITE = """
import os, sys
from pathlib import Path
from conversion.common.files import write_atomically
write_atomically(Path(sys.argv[1]).with_name("00099.safetensors"), lambda stream: os._exit(0))
"""


@pytest.mark.long
@pytest.mark.once
def test_a_killed_run_continues_to_the_same_features(many_arguments, many_features, tmp_path, capsys):
    arguments = [*map(str, many_arguments), "--output_dir", str(tmp_path), "--device", "cpu"]
    command = [REAL, str(EXAMPLES / "extract_features.py"), *arguments]
    kill_after(1, command, tmp_path)
    first = {path.name: path.stat().st_mtime_ns for path in complete_shards(tmp_path)}
    kill_after(len(first) + 2, command, tmp_path)
    # What a crash of the machine may leave: a shard whose tensors are not whole.
    damaged = sorted(tmp_path.glob("shards/*.safetensors"))[-1]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    before = contents(tmp_path).keys()
    subprocess.run([sys.executable, "-c", KILLED_WRITE, damaged], cwd=ROOT, check=True)
    assert contents(tmp_path).keys() > before
    assert extract(*arguments) == 0
    output = capsys.readouterr().out
    assert "66 samples" in output and "0 failures" in output
    assert contents(tmp_path) == contents(many_features)
    kept = {path.name: path.stat().st_mtime_ns for path in complete_shards(tmp_path)}
    assert len(first) >= 1 and all(
        kept[name] == time for name, time in first.items() if name != damaged.stem + ".jsonl"
    )


def test_a_folder_with_another_run_is_refused(many_arguments, many_features, models, tmp_path, capsys):
    # By its old name; in a copy, as a run locks its folder.
    folder = shutil.copytree(many_features, tmp_path / "many")
    arguments = [*many_arguments, "--max_tokens", 500, "--output_dir", folder, "--device", "cpu"]
    assert extract(*arguments) == 2
    error = capsys.readouterr().err
    assert "differs in" in error and "max_tokens" in error and "versions" not in error
    media.image(20, 20).save(tmp_path / "a.png")
    arguments = ["--packing_model_path", models / "tiny_packing", "--inputs", tmp_path, "--output_dir", tmp_path / "f"]
    assert extract(*arguments) == 0
    assert extract(*arguments, "--layers", "-1", "--overwrite") == 0
    (record,) = read_lines(tmp_path / "f" / "index.jsonl")
    assert list(record["keys"]) == ["-1"]


def test_formats_and_dtypes(models, four_files, tmp_path, capsys):
    arguments = ["--packing_model_path", models / "tiny_packing", "--inputs", four_files / "*.jpg", "--device", "cpu"]
    half = ["--dtype", "bfloat16", "--save_dtype", "float16", "--format", "npz", "--output_dir", tmp_path / "npz"]
    assert extract(*arguments, *half) == 0
    features = open_features(tmp_path / "npz")
    assert features.labels == ["1.jpg -2", "2.jpg -2"] and features.load("1.jpg -2").dtype == np.float16
    assert extract(*arguments, "--dtype", "bfloat16", "--output_dir", tmp_path / "safetensors") == 0
    brain = open_features(tmp_path / "safetensors")
    assert Bounds(relative_error=1e-3).check(compare(features.load("1.jpg -2"), brain.load("1.jpg -2"))) == []
    assert extract(*arguments, "--dtype", "bfloat16", "--format", "npz") == 2
    assert "bfloat16" in capsys.readouterr().err


def test_parquet_manifest_and_index(models, four_files, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"id": "eins", "path": str(four_files / "1.jpg")}, {"id": "zwei", "path": str(four_files / "2.mp4")}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "list.parquet")
    arguments = ["--packing_model_path", models / "tiny_packing", "--inputs", tmp_path / "list.parquet"]
    assert extract(*arguments, "--index", "parquet", "--output_dir", tmp_path / "f") == 0
    table = parquet.read_table(tmp_path / "f" / "index.parquet").to_pylist()
    lines = read_lines(tmp_path / "f" / "index.jsonl")
    assert [row["id"] for row in table] == ["eins", "zwei"]
    assert [row["layer_-2_key"] for row in table] == [line["keys"]["-2"] for line in lines]
    assert table[1]["frame_indices"] == lines[1]["frame_indices"]


@pytest.fixture
def as_tables(many_arguments, tmp_path):
    """The features of the many files in Parquet, of several row groups a shard."""
    pytest.importorskip("pyarrow", reason="needs pyarrow (pip install pyarrow)")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shards, "ROW_GROUP_BYTES", 200_000)
        patched.setattr(shards.ShardWriter.__init__, "__defaults__", (lambda job: job(), 150_000))
        arguments = [*many_arguments, "--format", "parquet", "--index", "parquet", "--device", "cpu"]
        assert extract(*arguments, "--output_dir", tmp_path / "tables") == 0
    return tmp_path / "tables"


def test_tables_hold_the_features_of_tensors(as_tables, many_features):
    files = sorted(path.name for path in as_tables.glob("shards/*.parquet"))
    assert len(files) > 9 and "00000-1.parquet" in files, "no shard of more files than one was tried"
    found, expected = open_features(as_tables), open_features(many_features)
    assert found.labels == expected.labels
    for label in expected.labels:
        assert found.load(label).shape == expected.load(label).shape
        assert found.load(label).tobytes() == expected.load(label).tobytes()


@pytest.mark.long
def test_datasets_reads_tables_and_index(as_tables, many_features, tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs datasets (pip install datasets)")
    options = {"split": "train", "cache_dir": str(tmp_path / "cache")}
    table = datasets.load_dataset("parquet", data_files=str(as_tables / "shards" / "*.parquet"), **options)
    expected, records = open_features(many_features), read_lines(many_features / "index.jsonl")
    assert table.column_names == ["id", "kind", "grid", "layer_-2", "layer_-1", "pooler"]
    assert (table.features["grid"].length, table.features["pooler"].length) == (3, 64)
    assert table.features["layer_-2"].feature.length == 64
    rows = {row["id"]: row for row in table.with_format("numpy")}
    assert sorted(rows) == sorted(record["id"] for record in records)
    for record in records:
        row = rows[record["id"]]
        assert (row["kind"], row["grid"].tolist()) == (record["kind"], record["grid_thw"])
        assert row["layer_-2"].tobytes() == expected.load(f"{record['id']} -2").tobytes()
        assert row["pooler"].tobytes() == expected.load(f"{record['id']} pooler").tobytes()
    index = datasets.load_dataset("parquet", data_files=str(as_tables / "index.parquet"), **options)
    assert index["id"][:] == [record["id"] for record in records]
    assert index[60]["grid_thw"] == records[60]["grid_thw"] and index[60]["shard"].endswith(".parquet")


def test_a_damaged_table_or_row_is_named(as_tables):
    records = read_lines(as_tables / "index.jsonl")
    with pytest.raises(ValueError, match=r"00000-?\d?\.parquet: .*\(row 999 is not in it"):
        shards.load_tensor(as_tables, {**records[0], "row": 999}, "-2")
    with pytest.raises(ValueError, match="row -1 is below 0"):
        shards.load_tensor(as_tables, {**records[0], "row": -1}, "-2")
    with pytest.raises(ValueError, match="max_archive_bytes=10"):
        shards.load_tensor(as_tables, records[0], "-2", FileLimits(max_archive_bytes=10))
    path = as_tables / records[0]["shard"]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"00000-?\d?\.parquet: .* cannot be read"):
        shards.load_tensor(as_tables, records[0], "-2")


def test_strict_stops_at_the_first_bad_file(models, four_files, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_bytes(b"")
    arguments = ["--packing_model_path", models / "tiny_packing", "--inputs", four_files, tmp_path / "bad.jpg"]
    assert extract(*arguments, "--strict", "--output_dir", tmp_path / "f") == 2
    assert "bad.jpg" in capsys.readouterr().err
    assert extract(*arguments, "--output_dir", tmp_path / "g") == 0
    assert "1 failure\n" in capsys.readouterr().out


def test_no_sample_at_all_is_a_failed_run(models, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"")
    arguments = ["--packing_model_path", models / "tiny_packing", "--inputs", tmp_path, "--output_dir", tmp_path / "f"]
    assert extract(*arguments) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--inputs", "nowhere"], "nowhere: no such file or folder"),
        (["--inputs", "."], "no images or videos"),
        (["--inputs", ".", "--layers", "-2,last"], "--layers -2,last"),
        (["--inputs", ".", "--layers", "-2,-2"], "named twice"),
        (["--inputs", ".", "--layer", "-2"], "--layer is unknown; did you mean --layers?"),
        (["--inputs", ".", "--pack_tokens", "0"], "--pack_tokens must be at least 1"),
        (["--inputs", ".", "--max_tokens", "0"], "--pack_tokens must be at least 1"),
        (["--inputs", ".", "--max_sample_tokens", "0"], "--max_sample_tokens must be at least 1"),
        (["--inputs", ".", "--format", "npz", "--dtype", "bfloat16"], "--format npz cannot hold bfloat16"),
        (["--inputs", ".", "--format", "parquet", "--dtype", "bfloat16"], "--format parquet cannot hold bfloat16"),
        (["--inputs", ".", "--decode_timeout", "0"], "--decode_timeout must be positive"),
        (["--inputs", ".", "--image1", "1.jpg"], "found also --image1"),
        ([], "--hf_model_path, --image1"),
        (["--inputs", ".", "--packing_model_path", "nowhere"], "--packing_model_path nowhere: no such folder"),
    ],
)
def test_wrong_options_are_refused_by_name(arguments, message, models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = extract("--packing_model_path", models / "tiny_packing", *arguments)
    except SystemExit as ended:
        code = ended.code
    assert code == 2 and message in capsys.readouterr().err


def test_a_dense_model_is_refused_with_a_way_out(models, four_files, tmp_path, capsys):
    arguments = ["--packing_model_path", models / "tiny_dense", "--inputs", four_files, "--output_dir", tmp_path]
    assert extract(*arguments) == 2
    assert "convert_vit_preview_v0_hf_to_packing.py" in capsys.readouterr().err


def test_exchanged_model_folders_are_refused_before_anything_runs(models, four_files, tmp_path, capsys):
    arguments = ["--hf_model_path", models / "tiny_packing", "--packing_model_path", models / "tiny_dense"]
    for name in ("image1", "image2", "video1", "video2"):
        arguments += [f"--{name}", four_files]
    assert extract(*arguments, "--output_dir", tmp_path / "features") == 2
    assert "this is a packing model, expected the dense one" in capsys.readouterr().err
    assert not (tmp_path / "features").exists()


def test_a_layer_that_the_model_has_not_is_refused_before_anything_is_loaded(
    models, four_files, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(
        "examples.extraction.encoding.AutoModel.from_pretrained",
        lambda *_, **__: pytest.fail("the model was loaded"),
    )
    folder, inputs = tmp_path / "features", four_files / "1.jpg"
    arguments = ["--packing_model_path", models / "tiny_packing", "--inputs", inputs, "--output_dir", folder]
    for layers in ("9", "-2,-9"):
        assert extract(*arguments, "--layers", layers) == 2
        assert "9: the model has" in capsys.readouterr().err and not folder.exists()
    headless = SimpleNamespace(num_hidden_layers=2, use_head=False)
    check_layers([-3, 2], headless)
    with pytest.raises(ValueError, match="no pooling head"):
        check_layers(["pooler"], headless)


def test_layers_and_shards():
    assert parse_layers("-2, -1,pooler") == (-2, -1, "pooler")
    assert cut_into_shards(list(range(5)), 2) == [[0, 1], [2, 3], [4]]


@pytest.mark.long
@pytest.mark.once
def test_a_decoder_that_hangs_or_crashes_costs_one_video(models, hanging_videos, tmp_path):
    videos, variables = hanging_videos
    arguments = ["--packing_model_path", models / "tiny_packing", "--inputs", videos, "--workers", 1]
    arguments += ["--decode_timeout", 2, "--output_dir", tmp_path / "f"]
    start = time.monotonic()
    run_well("extract_features.py", *arguments, env=variables, timeout=120)
    assert time.monotonic() - start < 90
    assert [record["id"] for record in read_lines(tmp_path / "f" / "index.jsonl")] == ["a.mp4", "z.mp4"]
    crash, hang = read_lines(tmp_path / "f" / "failures.jsonl")
    assert crash["id"] == "crash.mp4" and f"exit code {-signal.SIGSEGV}" in crash["error"]
    assert hang["id"] == "hang.mp4" and "longer than 2 seconds" in hang["error"]


@pytest.mark.long
@pytest.mark.once
def test_no_process_outlives_a_killed_run(models, four_files, tmp_path):
    psutil = pytest.importorskip("psutil")
    for index in range(300):
        os.link(four_files / "1.mp4", tmp_path / f"{index}.mp4")
    arguments = ["--packing_model_path", models / "tiny_packing", "--inputs", tmp_path, "--shard_size", 4]
    arguments += ["--output_dir", tmp_path / "f"]
    process = subprocess.Popen(
        [REAL, str(EXAMPLES / "extract_features.py"), *map(str, arguments)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not complete_shards(tmp_path / "f"):
        assert process.poll() is None
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    # Where nobody waits for orphans, as in some containers, an ended process stays as a zombie.
    assert [child for child in alive if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []


def test_metadata_names_everything_that_features_depend_on(many_features):
    metadata = json.loads((many_features / "metadata.json").read_text())
    assert metadata["counts"]["samples"] == 66 and metadata["counts"]["failures"] == 0
    assert metadata["layers"] == ["-2", "-1", "pooler"] and metadata["dtype"] == "float32"
    packing = metadata["models"]["packing"]
    assert len(packing["weights_sha256"]["model.safetensors"]) == 64 and len(packing["processor_sha256"]) == 64
    assert {"torch", "transformers"} <= metadata["versions"].keys()
    assert set(contents(many_features)) >= set(DATA)
