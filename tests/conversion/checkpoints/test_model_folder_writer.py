# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""A model folder is complete under its name or not there; what was in the way is named."""

import json
import multiprocessing
import os
import subprocess
import sys

import pytest
import torch

from conversion.checkpoints.checkpoint import CheckpointError, read_checkpoint
from conversion.checkpoints.model_folder_writer import ConversionRequest, convert_folder, staging_folder
from tests.conversion.scripts import ROOT
from tests.conversion.weights import peaked_state_dict, tiny_config


@pytest.fixture
def backbone(tmp_path):
    path = tmp_path / "backbone.pt"
    torch.save(peaked_state_dict(tiny_config()), path)
    return path


def request(backbone, output, **fields) -> ConversionRequest:
    fields = {"layout": "dense", "num_attention_heads": 2} | fields
    return ConversionRequest(str(backbone), output_dir=output, **fields)


@pytest.mark.parametrize("layout, native", [("dense", False), ("packing", True)])
def test_a_folder_is_complete(tmp_path, backbone, layout, native):
    output = tmp_path / "deep" / "out"
    summary = convert_folder(request(backbone, output, layout=layout))
    names = {path.name for path in output.iterdir()}
    stem = "modeling_llava_vit_packing.py" if layout == "packing" else "modeling_llava_vit.py"
    assert names >= {"config.json", "model.safetensors", "preprocessor_config.json", "processor_config.json", stem}
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    config = json.loads((output / "config.json").read_text())
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel"}
    assert (config["layer_norm_eps"], config["head_norm_eps"]) == (1e-5, 1.1920929e-07)
    processor = json.loads((output / "preprocessor_config.json").read_text())
    assert processor["packing"] == native and processor["patch_size"] == 4
    assert summary.num_tensors == len(read_checkpoint(output).specs)


def test_shards_and_dtype(tmp_path, backbone):
    output = tmp_path / "out"
    convert_folder(request(backbone, output, dtype="bfloat16", max_shard_size="50KB"))
    assert (output / "model.safetensors.index.json").is_file()
    assert read_checkpoint(output).dtypes == {torch.bfloat16}


def test_what_is_in_the_way_stays(tmp_path, backbone):
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine").write_text("mine")
    with pytest.raises(CheckpointError, match="exists.*--overwrite"):
        convert_folder(request(backbone, output))
    assert [path.name for path in output.iterdir()] == ["mine"]
    with pytest.raises(CheckpointError, match="is a file"):
        convert_folder(request(backbone, backbone, overwrite=True))
    convert_folder(request(backbone, output, overwrite=True))
    assert (output / "config.json").is_file() and not (output / "mine").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backbone.pt", "out"]


def test_a_failed_overwrite_leaves_the_old_folder(tmp_path, backbone):
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine").write_text("mine")

    def fail(folder, checkpoint):
        assert (folder / "config.json").is_file()
        raise ValueError("not verified")

    with pytest.raises(ValueError, match="not verified"):
        convert_folder(request(backbone, output, overwrite=True), complete=fail)
    assert [path.name for path in output.iterdir()] == ["mine"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backbone.pt", "out"]


def _hold(final, ready, done):
    with staging_folder(final):
        ready.set()
        done.wait(60)


def test_one_process_at_a_time(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "out", ready, done))
    process.start()
    try:
        assert ready.wait(60)
        with (
            pytest.raises(CheckpointError, match="being written by another process"),
            staging_folder(tmp_path / "out"),
        ):
            pass
    finally:
        done.set()
        process.join()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / ".out.partial-killed").mkdir()
    (tmp_path / ".out.partial-killed" / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".out.lock").touch()
    with staging_folder(tmp_path / "out") as folder:
        (folder / "config.json").write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_target_that_cannot_be_written_is_named(tmp_path, backbone):
    (tmp_path / "file").write_text("")
    # Also the superuser cannot make a folder below a file, or on the kernel's read-only file system.
    for output in (tmp_path / "file" / "out", "/proc/out"):
        with pytest.raises(OSError, match=str(output).rsplit("/", 1)[0]):
            convert_folder(request(backbone, output))


@pytest.mark.skipif(os.name != "posix", reason="file size limits are POSIX")
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, backbone):
    program = (
        "import resource, signal, sys; sys.path.insert(0, sys.argv.pop(1)); "
        "from conversion import convert_llava_vit_to_hf as script; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (90000, 90000)); "
        "sys.exit(script.main(sys.argv[1:]))"
    )
    arguments = ["auto", backbone, "--num_attention_heads", "2", "--output_dir", tmp_path / "out"]
    result = subprocess.run(
        [sys.executable, "-c", program, str(ROOT), *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 2
    assert "error: [Errno 27] File too large while writing" in result.stderr and "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["backbone.pt"]


@pytest.mark.parametrize(
    "fields",
    [
        {"size": 32, "crop_size": 32},
        {"size": {"height": 30, "width": 40}, "temporal_rule": "floor", "max_patches": 60},
    ],
)
def test_preprocessing_of_an_existing_folder_is_carried_over(tmp_path, backbone, fields):
    convert_folder(request(backbone, tmp_path / "first"))
    path = tmp_path / "first" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    convert_folder(request(tmp_path / "first", tmp_path / "second"))
    stored = json.loads((tmp_path / "second" / "preprocessor_config.json").read_text())
    size = fields["size"] if isinstance(fields["size"], dict) else {"shortest_edge": 32}
    assert stored["size"] == size
    assert (stored["temporal_rule"], stored.get("max_patches")) == (
        ("floor", 60) if "temporal_rule" in fields else ("round", None)
    )
    path.write_text("{")
    with pytest.raises(CheckpointError, match="preprocessor_config.json is not JSON"):
        convert_folder(request(tmp_path / "first", tmp_path / "third"))
