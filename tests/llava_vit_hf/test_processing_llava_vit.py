# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Processor: one call for images and videos, and folders that both transformers majors can load."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import pipeline

from llava_vit_hf import LlavaViTConfig, LlavaViTImageProcessor, LlavaViTModel, LlavaViTProcessor
from llava_vit_hf.grid_llava_vit import patchify
from tests import media


ROOT = Path(__file__).resolve().parents[2]

SAVE = """
import sys
sys.path.insert(0, sys.argv[1])
from llava_vit_hf import LlavaViTImageProcessor, LlavaViTProcessor
LlavaViTProcessor(LlavaViTImageProcessor(packing=True, num_frames=3, size=56)).save_pretrained(sys.argv[2])
"""

# Loads every folder twice by each Auto class, saves it again, and writes what the processor makes of fixed inputs.
LOAD = """
import importlib.util, sys
import numpy as np
from transformers import AutoProcessor
# Without torchvision 5.4 to 5.17 have but a placeholder of it at the top level.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
assert importlib.util.find_spec("llava_vit_hf") is None
image = (np.arange(30 * 45 * 3) * 7 % 251).reshape(30, 45, 3).astype(np.uint8)
clip = np.stack([image + index for index in range(5)])
for folder in sys.argv[1:]:
    for _ in range(2):
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        assert type(processor).__name__ == "LlavaViTProcessor", type(processor)
        alone = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
        assert type(alone).__name__ == "LlavaViTImageProcessor", type(alone)
    out = processor(images=image, videos=clip)
    assert (alone(image)["pixel_values"] == out["pixel_values"][:6]).all()
    np.savez(folder + "/out.npz", **out)
    processor.save_pretrained(folder + "/again")
    again = AutoProcessor.from_pretrained(folder + "/again", trust_remote_code=True)
    assert (again(images=image, videos=clip)["pixel_values"] == out["pixel_values"]).all()
"""


def run(python: str, code: str, *arguments: Path, folder: Path) -> None:
    """Runs code in an interpreter that cannot import this package, with no network and nobody to answer a prompt."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, "-c", code, *map(str, arguments)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture
def dense() -> LlavaViTProcessor:
    return LlavaViTProcessor(LlavaViTImageProcessor(size=56, crop_size=56))


@pytest.fixture
def packing() -> LlavaViTProcessor:
    return LlavaViTProcessor(LlavaViTImageProcessor(packing=True))


def test_pack_holds_images_first_then_videos(packing):
    images, clip = [media.image(30, 45), media.image(14, 14)], media.frames(20, 28, 43)
    out = packing(videos=clip, images=images, num_frames=3)
    assert list(out) == packing.model_input_names
    assert out["grid_thw"].tolist() == [[1, 3, 2], [1, 1, 1], [3, 2, 3]]
    assert out["cu_seqlens"].tolist() == [0, 6, 7, 25] and out["max_seqlen"] == 18
    assert out["patch_positions"][7::6].tolist() == [[0, 0, 0], [32, 0, 0], [63, 0, 0]]
    parts = [packing(images=images[0]), packing(images=images[1]), packing(videos=clip, num_frames=3)]
    for key in ("pixel_values", "patch_positions", "grid_thw"):
        assert torch.equal(out[key], torch.cat([part[key] for part in parts]))


def test_dense_images_and_clips(dense):
    assert list(dense(images=[media.image(60, 80), media.image(80, 60)])) == ["pixel_values"]
    clips = [media.frames(9, 60, 80), media.frames(5, 80, 60)]
    out = dense(videos=clips, num_frames=3)
    assert list(out) == dense.model_input_names == ["pixel_values", "patch_positions"]
    assert out["pixel_values"].shape == (2, 3, 3, 56, 56)
    assert out["patch_positions"].shape == (2, 48, 3)
    assert out["patch_positions"][1, ::16, 0].tolist() == [0, 32, 63]
    frame = dense(images=clips[0][4])["pixel_values"]
    assert torch.equal(out["pixel_values"][0, :, 1], frame[0])


def test_dense_and_packing_hold_the_same_patches(dense, packing):
    clip = media.frames(9, 30, 43)
    block = dense(videos=clip, native_resolution=True, num_frames=4)
    pack = packing(videos=clip, num_frames=4)
    assert torch.equal(patchify(block["pixel_values"][0].transpose(0, 1), 14).flatten(0, 1), pack["pixel_values"])
    assert torch.equal(block["patch_positions"][0], pack["patch_positions"])


def test_dense_refuses_mixtures(dense):
    with pytest.raises(ValueError, match="images and videos cannot share one dense batch.*packing"):
        dense(images=media.image(60, 60), videos=media.frames(3))
    # Nor do clips of unequal length or size stack.
    with pytest.raises(ValueError, match=r"\(2 frames\).*\(3 frames\)"):
        dense(videos=[media.frames(2), media.frames(3)], num_frames="all")
    with pytest.raises(ValueError, match="28x56.*56x28"):
        dense(videos=[media.frames(2, 56, 28), media.frames(2, 28, 56)], native_resolution=True)


def test_outputs_go_into_the_models_as_they_are(dense, packing):
    from tests.models import TINY, as_packing, dense_model

    model = dense_model(**{**TINY, "patch_size": 14})
    clip = media.frames(6, 30, 43)
    with torch.no_grad():
        packed = as_packing(model)(**packing(images=media.image(30, 30), videos=clip, num_frames=3))
        first = model(**dense(images=media.image(30, 30), native_resolution=True))
        second = model(**dense(videos=clip, num_frames=3, native_resolution=True))
    expected = torch.cat([first.last_hidden_state[0], second.last_hidden_state[0]])
    torch.testing.assert_close(packed.last_hidden_state, expected, atol=1e-4, rtol=1e-4)


def test_metadata_only_when_asked(packing, tmp_path):
    path = media.write_video(tmp_path / "a.mp4", media.frames(20, 64, 80))
    assert "metadata" not in packing(videos=path)
    out = packing(images=media.image(45, 30), videos=path, return_metadata=True)
    image, video = out["metadata"]
    assert image["kind"] == "image" and (image["height"], image["width"]) == (30, 45)
    assert image["grid_thw"] == [1, 2, 3] and image["temporal_positions"] == [0]
    assert video["kind"] == "video" and video["source"] == str(path) and video["grid_thw"] == [8, 4, 5]
    assert video["frame_indices"] == [0, 2, 5, 8, 10, 13, 16, 19]
    assert video["timestamps"] == [0.0, 0.2, 0.5, 0.8, 1.0, 1.3, 1.6, 1.9]
    assert video["temporal_positions"] == [0, 9, 18, 27, 36, 45, 54, 63]
    assert video["decoder"] in ("decord", "pyav") and video["total_frames"] == 20
    json.dumps(out["metadata"])


def test_split_features_is_the_inverse_of_packing(packing):
    out = packing(images=[media.image(30, 45), media.image(28, 28)], videos=media.frames(3, 28, 28), num_frames=2)
    samples = packing.split_features(out["pixel_values"], out["grid_thw"])
    assert [tuple(sample.shape) for sample in samples] == [(1, 3, 2, 588), (1, 2, 2, 588), (2, 2, 2, 588)]
    assert torch.equal(torch.cat([sample.flatten(0, 2) for sample in samples]), out["pixel_values"])
    with pytest.raises(ValueError, match="18 tokens.*17 rows"):
        packing.split_features(out["pixel_values"][1:], out["grid_thw"])


def test_bad_calls(packing):
    with pytest.raises(ValueError, match="found neither"):
        packing()
    with pytest.raises(ValueError, match="tokenizer"):
        packing(images=media.image(28, 28), text="a cat")
    assert packing(images=media.image(28, 28), text="")
    with pytest.raises(TypeError, match="num_frame"):
        packing(images=media.image(28, 28), num_frame=3)
    with pytest.raises(ValueError, match="num_frames"):
        packing(videos=media.frames(3), num_frames=0)


def test_numpy_output(packing):
    out = packing(videos=media.frames(3), return_tensors="np")
    assert isinstance(out["pixel_values"], np.ndarray) and isinstance(out["max_seqlen"], int)


def test_saved_files_are_flat_and_hold_each_setting_once(packing, tmp_path):
    # A nested copy, as transformers 5 writes it, would win over preprocessor_config.json and go stale.
    (tmp_path / "processor_config.json").write_text('{"image_processor": {"patch_size": 99}}')
    files = packing.save_pretrained(tmp_path)
    assert sorted(Path(file).name for file in files) == ["preprocessor_config.json", "processor_config.json"]
    saved = {name: json.loads((tmp_path / name).read_text()) for name in map(lambda file: Path(file).name, files)}
    assert set(saved["processor_config.json"]) == {"auto_map", "processor_class"}
    for config in saved.values():
        assert config["auto_map"]["AutoProcessor"] == "processing_llava_vit.LlavaViTProcessor"
    auto_map = saved["preprocessor_config.json"]["auto_map"]
    assert auto_map["AutoImageProcessor"] == "image_processing_llava_vit.LlavaViTImageProcessor"
    code = {"processing", "image_processing", "video_processing", "decoding", "pixels", "grid"}
    assert {f"{name}_llava_vit.py" for name in code} <= {path.name for path in tmp_path.iterdir()}
    again = LlavaViTProcessor.from_pretrained(tmp_path)
    assert again.image_processor.settings() == packing.image_processor.settings()


def test_an_older_nested_config_does_not_survive_without_remote_code(packing, tmp_path, monkeypatch):
    for registered in (LlavaViTProcessor, LlavaViTImageProcessor):
        monkeypatch.setattr(registered, "_auto_class", None)
    (tmp_path / "processor_config.json").write_text('{"image_processor": {"patch_size": 99}}')
    packing.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "processor_config.json").read_text()) == {"processor_class": "LlavaViTProcessor"}
    assert LlavaViTProcessor.from_pretrained(tmp_path).image_processor.patch_size == 14


def test_folder_loads_by_remote_code(tmp_path):
    run(sys.executable, SAVE, ROOT, tmp_path / "here", folder=tmp_path)
    run(sys.executable, LOAD, tmp_path / "here", folder=tmp_path)


@pytest.mark.long
@pytest.mark.once
def test_folders_load_across_majors_with_equal_outputs(other_python, tmp_path):
    outputs = {}
    for loader_name, loader in (("this", sys.executable), ("other", other_python)):
        for saver_name, saver in (("this", sys.executable), ("other", other_python)):
            folder = tmp_path / f"{loader_name}_loads_{saver_name}"
            run(saver, SAVE, ROOT, folder, folder=tmp_path)
        folders = [tmp_path / f"{loader_name}_loads_{saver}" for saver in ("this", "other")]
        run(loader, LOAD, *folders, folder=tmp_path)
        outputs |= {folder.name: np.load(folder / "out.npz") for folder in folders}
    first, *others = outputs.values()
    assert first["pixel_values"].shape == (24, 588)
    for other in others:
        assert set(other) == set(first)
        for key in first:
            assert np.array_equal(other[key], first[key]), key


def test_image_feature_extraction_pipeline(dense, tmp_path):
    from tests.models import TINY

    model = LlavaViTModel(LlavaViTConfig(**{**TINY, "patch_size": 14})).eval()
    media.image(60, 80).save(tmp_path / "a.png")
    extract = pipeline("image-feature-extraction", model=model, image_processor=dense.image_processor)
    features = extract(str(tmp_path / "a.png"), return_tensors=True)
    assert features.shape == (1, 16, TINY["hidden_size"])
    with torch.no_grad():
        expected = model(**dense(images=tmp_path / "a.png"))
    torch.testing.assert_close(features, expected.last_hidden_state)
    pooled = extract(str(tmp_path / "a.png"), pool=True, return_tensors=True)
    torch.testing.assert_close(pooled, expected.pooler_output)
