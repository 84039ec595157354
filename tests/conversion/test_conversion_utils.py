# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The helpers that users of the original scripts import, with the signatures they call."""

import json
import math
import os
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image

from conversion import conversion_utils
from conversion.checkpoints.checkpoint import Checkpoint
from conversion.checkpoints.convert import converted_state_dict
from conversion.checkpoints.rename_tables import table_between
from conversion.checkpoints.source_config import model_config
from conversion.conversion_utils import (
    CLIP_MEAN,
    CLIP_STD,
    compute_cosine_similarity,
    compute_patch_positions_with_interpolated_temporal,
    get_real_coco_image,
    get_synthesized_video,
    interpolate_frame_indices,
    move_model_to_device,
    save_model_with_processor,
)
from llava_vit_hf import LlavaViTModel, LlavaViTPackingModel
from tests.conversion.weights import peaked_state_dict, random_pixels, tiny_config


def tiny_model(layout: str):
    config = tiny_config(patch_size=14)
    hf_config = model_config(config, layout)
    model = {"dense": LlavaViTModel, "packing": LlavaViTPackingModel}[layout](hf_config).eval()
    checkpoint = Checkpoint.from_state_dict(peaked_state_dict(config))
    model.load_state_dict(converted_state_dict(checkpoint, table_between("source", layout), hf_config))
    return model


def no_network(*arguments, **options):
    raise OSError("no route to host")


def test_a_failed_download_is_an_error(monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    with pytest.raises(ConnectionError, match="no route to host.*image_path"):
        get_real_coco_image(size=32)


def test_a_local_image_needs_no_download(monkeypatch, tmp_path):
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    pixels = np.full((20, 30, 3), (255, 0, 51), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "flat.png")
    image = get_real_coco_image(16, tmp_path / "flat.png")
    assert image.shape == (1, 3, 16, 16) and image.dtype == torch.float32
    expected = (torch.tensor([1.0, 0.0, 0.2]) - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    assert torch.allclose(image[0, :, 3, 5], expected, atol=1e-6)


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.jpg cannot be read as an image"):
        get_real_coco_image(image_path=tmp_path / "text.jpg")
    with pytest.raises(FileNotFoundError):
        get_real_coco_image(image_path=tmp_path / "absent.jpg")


def test_frames_are_placed_half_to_even():
    def place(frames, total, **options):
        return interpolate_frame_indices(torch.tensor([frames]), torch.tensor([total]), **options)[0].tolist()

    assert place(range(8), 8) == [0, 9, 18, 27, 36, 45, 54, 63]
    assert place([0, 1, 2], 3) == [0, 32, 63]  # 31.5 goes up to the even 32
    assert place([1], 3, target_frames=10) == [4]  # 4.5 goes down to the even 4
    assert place([0], 1) == [0]
    assert place([5, -1], 3) == [63, 0]
    batch = interpolate_frame_indices(torch.tensor([[0, 3], [0, 3]]), torch.tensor([4, 64]))
    assert batch.tolist() == [[0, 63], [0, 3]] and batch.dtype == torch.int64


@pytest.mark.parametrize(
    "frames, total",
    [([0, 1], [2]), ([[0, 1]], [[2]]), ([[0, 1]], [2, 2]), ([[0.0, 1.0]], [2]), ([[0, 1]], [0])],
)
def test_frames_that_cannot_be_placed(frames, total):
    with pytest.raises(ValueError, match="frame"):
        interpolate_frame_indices(torch.tensor(frames), torch.tensor(total))


def test_positions_are_row_major_clip_after_clip():
    indices = torch.tensor([[0, 9], [3, 63]])
    positions = compute_patch_positions_with_interpolated_temporal(indices, 2, 3, "cpu")
    expected = [[t, h, w] for t in (0, 9, 3, 63) for h in range(2) for w in range(3)]
    assert positions.tolist() == expected and positions.dtype == torch.int64
    with pytest.raises(ValueError, match="interpolated_indices"):
        compute_patch_positions_with_interpolated_temporal(indices[0], 2, 3, "cpu")


def test_synthesized_video_moves_the_image():
    video = get_synthesized_video(random_pixels(1, 3, 40, 30), num_frames=4, size=24)
    assert video.shape == (1, 3, 4, 24, 24) and video.is_contiguous()
    for index in range(4):
        assert torch.equal(video[:, :, index], video[:, :, 0].roll(-3 * index, dims=-1))
    assert not torch.equal(video[:, :, 1], video[:, :, 0])
    for image, options in ((random_pixels(3, 8, 8), {}), (random_pixels(1, 3, 8, 8), {"num_frames": 0})):
        with pytest.raises(ValueError):
            get_synthesized_video(image, **options)


def test_similarity_passes_on_equal_features_only():
    feature = random_pixels(1, 5, 8)
    same = compute_cosine_similarity(feature, feature.clone(), "same")
    assert same["pass"] is True and same["name"] == "same" and same["max_diff"] == 0.0
    assert same["min_cos"] == same["mean_cos"] == pytest.approx(1.0)
    scaled = compute_cosine_similarity(feature * 1.01, feature)
    assert scaled["pass"] is False and scaled["min_cos"] == pytest.approx(1.0)
    assert compute_cosine_similarity((feature * 1.01).bfloat16(), feature)["pass"] is True
    assert compute_cosine_similarity(feature.flip(1), feature)["pass"] is False


@pytest.mark.parametrize("shape", [(5, 8), (1, 4, 8), (1, 6, 8), (2, 5, 8)])
def test_similarity_of_another_shape_fails(shape):
    result = compute_cosine_similarity(torch.ones(shape), torch.ones(1, 5, 8))
    assert result["pass"] is False and "shape" in result["reasons"][0]
    assert all(math.isnan(result[key]) for key in ("min_cos", "mean_cos", "max_diff"))


def test_move_model_to_device():
    model = torch.nn.Linear(2, 2)
    device = move_model_to_device(model, torch.bfloat16)
    assert isinstance(device, torch.device)
    assert model.weight.device.type == device.type and model.weight.dtype == torch.bfloat16


LOAD_ELSEWHERE = """
import importlib.util, json, sys
import torch
from transformers import AutoModel, AutoProcessor
assert importlib.util.find_spec("llava_vit_hf") is None
results = {}
for layout in ("dense", "packing"):
    model = AutoModel.from_pretrained(layout, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(layout, trust_remote_code=True)
    image = torch.arange(50 * 64 * 3).reshape(50, 64, 3).remainder(251).to(torch.uint8).numpy()
    inputs = processor(images=image)
    with torch.no_grad():
        tokens = model(**inputs).last_hidden_state
    results[layout] = [list(tokens.shape), tokens.double().abs().sum().item()]
print(json.dumps(results))
"""


def test_saved_folders_load_where_the_package_is_absent(tmp_path):
    for layout in ("dense", "packing"):
        save_model_with_processor(tiny_model(layout), tmp_path / layout, image_size=56)
        assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= set(os.listdir(tmp_path / layout))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["dense", "packing"]
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", LOAD_ELSEWHERE]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["dense"][0] == [1, 16, 64]
    assert results["packing"][0] == [3 * 4, 64]


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
    model = tiny_model("dense")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="full exists"):
        save_model_with_processor(model, tmp_path / "full")
    monkeypatch.setattr(conversion_utils, "build_processor", lambda *a, **k: Unsavable())
    with pytest.raises(OSError, match="disk"):
        save_model_with_processor(model, tmp_path / "new")
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name != "full"]


class Unsavable:
    def save_pretrained(self, folder):
        raise OSError("disk")


def test_another_model_is_refused(tmp_path):
    model = tiny_model("dense")
    model.config.model_type = "bert"
    with pytest.raises(ValueError, match="found 'bert'"):
        save_model_with_processor(model, tmp_path / "out")
