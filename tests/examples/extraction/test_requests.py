# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Extraction as a Python caller has it: the same files as by command, and errors that are raised."""

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from examples.extraction.bulk_extraction import extract_many
from examples.extraction.limits import FileLimits, SampleLimits
from examples.extraction.paired_extraction import extract_pair
from examples.extraction.requests import INPUT_NAMES, BulkRequest, PairedRequest
from tests.examples.commands import contents, on_one_thread


def paired(models, four_files, output_dir, **others) -> PairedRequest:
    files = dict(zip(INPUT_NAMES, (four_files / name for name in ("1.jpg", "2.jpg", "1.mp4", "2.mp4")), strict=True))
    folders = {"hf_model_path": str(models / "tiny_dense"), "packing_model_path": str(models / "tiny_packing")}
    return PairedRequest(**{**folders, **files, "output_dir": output_dir, **others})


def bulk(models, many_files, output_dir, **others) -> BulkRequest:
    inputs = [many_files / "images", many_files / "videos"]
    given = {"packing_model_path": str(models / "tiny_packing"), "inputs": inputs, "output_dir": output_dir}
    return BulkRequest(**given, shard_size=8, pack_tokens=600, layers=(-2, -1, "pooler"), device="cpu", **others)


def test_four_files(models, four_files, four_features, tmp_path, capsys):
    with on_one_thread():
        report = extract_pair(paired(models, four_files, tmp_path))
    assert report.passed and [verdict.name for verdict in report.verdicts] == list(INPUT_NAMES)
    assert contents(tmp_path) == contents(four_features)
    assert capsys.readouterr().out == ""


def test_many_files(models, many_files, many_features, tmp_path, capsys):
    request = bulk(models, many_files, tmp_path)
    with on_one_thread():
        counts = extract_many(request)
    assert (counts["samples"], counts["failures"], counts["shards"]) == (66, 0, 9)
    assert contents(tmp_path) == contents(many_features)
    assert extract_many(request) == counts
    assert capsys.readouterr().out == ""


def test_errors_are_raised_before_anything_is_written(models, four_files, many_files, tmp_path):
    output = tmp_path / "features"
    with pytest.raises(ValueError, match="--video2 nowhere: no such file"):
        extract_pair(paired(models, four_files, output, video2=Path("nowhere")))
    with pytest.raises(ValueError, match="--hf_model_path nowhere: no such folder"):
        extract_pair(paired(models, four_files, output, hf_model_path="nowhere"))
    with pytest.raises(ValueError, match="no such file or folder"):
        extract_many(
            BulkRequest(packing_model_path=str(models / "tiny_packing"), inputs=["nowhere"], output_dir=output)
        )
    assert not output.exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_frames": 0}, "--num_frames must be at least 1, found 0"),
        ({"dtype": "float8"}, "--dtype must be one of float32, bfloat16, float16, found 'float8'"),
        ({"save_dtype": "int8"}, "--save_dtype must be one of"),
        ({"pack_tokens": 0}, "--pack_tokens must be"),
        ({"workers": 0}, "--workers must be"),
        ({"shard_size": -1}, "--shard_size must be"),
        ({"decode_timeout": float("nan")}, "--decode_timeout must be positive"),
        ({"inputs": "media"}, "--inputs must be a list of entries, found 'media' alone"),
        ({"format": "pt"}, "--format must be one of safetensors, npz, parquet"),
        ({"index": "csv"}, "--index must be one of jsonl, parquet"),
        ({"format": "npz", "dtype": "bfloat16"}, "--save_dtype float32 or float16"),
        ({"layers": ()}, "--layers : expected integers and pooler"),
        ({"layers": (-2, "last")}, "--layers -2,last: expected"),
        ({"layers": ("pooler", "pooler")}, "named twice"),
    ],
)
def test_requests_that_cannot_be(fields, message, tmp_path):
    given = {"packing_model_path": "user/model", "inputs": ["media"], "output_dir": tmp_path, **fields}
    with pytest.raises(ValueError, match=message):
        BulkRequest(**given)


@pytest.mark.parametrize("kind", [SampleLimits, FileLimits])
def test_limits_below_one(kind):
    for name in vars(kind()):
        with pytest.raises(ValueError, match=f"--{name} must be at least 1, found 0"):
            kind(**{name: 0})


def test_a_request_does_not_change(tmp_path):
    request = BulkRequest(packing_model_path="user/model", inputs=["media"], output_dir=tmp_path, dtype="bfloat16")
    assert request.saved_dtype == "bfloat16" and request.save_dtype is None and request.layers == (-2,)
    with pytest.raises(FrozenInstanceError):
        request.num_frames = 3


def test_paths_as_text(tmp_path):
    files = {name: "a.jpg" for name in INPUT_NAMES}
    request = PairedRequest(hf_model_path="user/a", packing_model_path="user/b", output_dir=str(tmp_path), **files)
    assert request.output_dir == tmp_path and set(request.files.values()) == {Path("a.jpg")}
    assert request.packing_model_path == "user/b"
