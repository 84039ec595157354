# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Features of the patches that a video's codec marks: four files, many files, and their pictures."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoProcessor

from examples import visualize_features
from examples.extraction.feature_pictures import DIMMED, dim_dropped, on_grid
from tests.examples.commands import extract, on_one_thread, read_lines


SELECTION = ("--scores", "codec", "--top_k", 150, "--num_frames", 4)


@pytest.fixture(scope="module")
def many(models, four_files, once):
    def write(folder) -> None:
        arguments = ("--packing_model_path", models / "tiny_packing", "--inputs", four_files, "--device", "cpu")
        assert extract(*arguments, *SELECTION, "--output_dir", folder) == 0

    return once("codec_features", write)


@pytest.mark.long
def test_many_files(many, models, four_files):
    records = {record["id"]: record for record in read_lines(many / "index.jsonl")}
    assert {name: record["tokens"] for name, record in records.items()}["1.mp4"] == 150
    assert "kept_patches" not in records["1.jpg"]
    record = records["1.mp4"]
    assert record["codec_way"] == "stream: h264" and record["codec_score"] == "motion+residual"
    assert len(record["kept_patches"]) == 150 and record["keep_first_frame"] is True and record["block"] == 1
    metadata = json.loads((many / "metadata.json").read_text())
    assert (metadata["scores"], metadata["top_k"]) == ("codec", 150)
    with safe_open(many / record["shard"], framework="pt") as shard:
        features = shard.get_tensor(record["keys"]["-2"])
        image = shard.get_tensor(records["1.jpg"]["keys"]["-2"])
    assert features.shape[0] == 150 and image.ndim == 4
    folder = models / "tiny_packing"
    with on_one_thread(), torch.inference_mode():
        processor, model = (
            kind.from_pretrained(folder, trust_remote_code=True) for kind in (AutoProcessor, AutoModel)
        )
        inputs = processor(videos=str(four_files / "1.mp4"), num_frames=4, scores="codec", top_k=150)
        expected = model.eval()(**inputs, vision_feature_layer=-2).hidden_states[0]
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)


@pytest.mark.long
def test_four_files_agree_and_are_drawn(four_arguments, tmp_path):
    assert extract(*four_arguments, *SELECTION, "--output_dir", tmp_path) == 0
    with np.load(tmp_path / "features_packing.npz") as features:
        assert len(features["video1"]) == 150 < len(features["image1"]) + 150
    assert visualize_features.main(["--features_dir", str(tmp_path)]) == 0
    page = (tmp_path / "pictures" / "report.html").read_text()
    assert "150 patches kept by motion+residual (stream: h264)" in page
    assert page.count("<figcaption>input, dropped patches dimmed") == 2
    names = [path.name for path in (tmp_path / "pictures").glob("*video1*")]
    assert sorted(name.split(".")[1] for name in names) == ["difference", "input", "principal_components"]
    with PIL.Image.open(tmp_path / "pictures" / "002_video1.input.png") as picture:
        strip = np.asarray(picture)[..., :3].astype(int)
    # The clip has a red corner: whole in the first frame, and grey wherever it was dropped.
    assert np.ptp(strip[:, :320], axis=-1).max() > 200


@pytest.mark.long
def test_bulk_runs_are_drawn_too(many, tmp_path):
    arguments = ["--features_dir", str(many), "--output_dir", str(tmp_path)]
    assert visualize_features.main(arguments) == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("150 patches kept by") == 2 and page.count("dropped patches dimmed</figcaption>") == 2


def test_dropped_patches_are_dimmed_and_black():
    frames = np.full((2, 4, 6, 3), (200, 100, 0), np.uint8)
    dimmed = dim_dropped(frames, [2, 2, 3], [0, 7])
    assert (dimmed[0, :2, :2] == (200, 100, 0)).all() and (dimmed[1, :2, 2:4] == (200, 100, 0)).all()
    assert (dimmed[0, 2:] == int(100 * DIMMED)).all() and (dimmed != frames).any(-1).sum() == 2 * 24 - 8
    assert dim_dropped(frames, [2, 2, 3], None) is frames
    colours = on_grid(np.full((2, 3), 9, np.uint8), [2, 2, 3], [0, 7])
    assert colours.sum() == 54 and (colours[1, 0, 1] == 9).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scores", "codec"), "--scores and --top_k go together"),
        (("--top_k", 9), "--scores and --top_k go together"),
        (("--scores", "codec", "--top_k", 0), "--top_k must be at least 1, found 0"),
    ],
)
def test_bad_options(models, four_files, tmp_path, capsys, options, message):
    arguments = ("--packing_model_path", models / "tiny_packing", "--inputs", four_files, "--output_dir", tmp_path)
    assert extract(*arguments, *options) == 2
    assert message in capsys.readouterr().err
