# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What engines and language models call: token counts without pixels, and features per sample."""

import math

import pytest
import torch

from llava_vit_hf import LlavaViTImageProcessor, LlavaViTProcessor
from tests import media
from tests.models import TINY, as_packing, check_same_but_for_rounding, dense_model


@pytest.fixture(scope="module")
def models():
    dense = dense_model(**{**TINY, "patch_size": 14})
    return {"dense": dense, "packing": as_packing(dense)}


@pytest.fixture
def processors():
    return {
        "dense": LlavaViTProcessor(LlavaViTImageProcessor(size=56, crop_size=56)),
        "packing": LlavaViTProcessor(LlavaViTImageProcessor(packing=True)),
    }


class Engine:
    """Imitates vLLM's transformers backend: what it reserves before pixels, how it reads what the model returns."""

    def __init__(self, processor, model, **mm_processor_kwargs):
        self.processor, self.model, self.kwargs = processor, model, mm_processor_kwargs

    def max_image_tokens(self) -> int:
        tokens = self.processor._get_num_multimodal_tokens(image_sizes=([10_000, 10_000],), **self.kwargs)
        return tokens["num_image_tokens"][0]

    def embed(self, images) -> list[torch.Tensor]:
        inputs = self.processor(images=images, **self.kwargs)
        sizes = [(image.height, image.width) for image in images]
        tokens = self.processor._get_num_multimodal_tokens(image_sizes=sizes, **self.kwargs)
        assert "num_image_tokens" in tokens and "num_image_patches" in tokens and "num_audio_tokens" not in tokens
        pixels, grid = inputs.pop("pixel_values"), inputs.pop("grid_thw", None)
        with torch.no_grad():
            found = self.model.get_image_features(
                pixels, **inputs, **({} if grid is None else {"image_grid_thw": grid})
            )
        features = found.pooler_output if hasattr(found, "pooler_output") else found[0]
        assert [len(feature) for feature in features] == tokens["num_image_tokens"]
        return list(features)


def test_an_engine_reserves_what_images_take(processors, models):
    images = [media.image(500, 333), media.image(61, 42), media.image(300, 500)]
    engine = Engine(processors["packing"], models["packing"], max_patches=40)
    assert engine.max_image_tokens() == 36  # 6 x 6 of at most 40
    features = engine.embed(images)
    for image, feature in zip(images, features, strict=True):
        alone = processors["packing"](images=image, max_patches=40)
        with torch.no_grad():
            check_same_but_for_rounding(feature, models["packing"](**alone).last_hidden_state)
    dense = Engine(processors["dense"], models["dense"])
    assert dense.max_image_tokens() == 16
    assert [feature.shape for feature in dense.embed(images)] == [(16, 64)] * 3


def test_without_a_budget_the_largest_picture_is_refused_as_in_a_call(processors, models):
    with pytest.raises(ValueError, match="max_tokens=65536.*max_patches"):
        Engine(processors["packing"], models["packing"]).max_image_tokens()


def test_counts_are_those_of_calls(processors):
    packing = processors["packing"]
    video, image = media.frames(5, 60, 90), media.image(90, 60)
    for arguments in ({}, {"max_patches": 8}, {"native_resolution": False, "size": 28, "crop_size": 28}):
        out = packing(images=image, videos=video, num_frames=3, **arguments)
        found = packing._get_num_multimodal_tokens(image_sizes=[(60, 90)], video_sizes=[(3, 60, 90)], **arguments)
        grids = out["grid_thw"].tolist()
        assert found["num_image_tokens"] == found["num_image_patches"] == [math.prod(grids[0])]
        assert found["num_video_tokens"] == [math.prod(grids[1])]
        assert packing.image_processor.get_number_of_image_patches(60, 90, arguments) == math.prod(grids[0])
        assert packing.video_processor.get_num_of_video_patches(3, 60, 90, arguments) == math.prod(grids[1])
    found = packing._get_num_multimodal_tokens(
        image_sizes=[(60, 90)], video_sizes=[(3, 60, 90)], images_kwargs={"max_patches": 1}, videos_kwargs={}
    )
    assert found["num_image_tokens"] == [1] and found["num_video_tokens"] == [3 * 24]
    with pytest.raises(TypeError, match="spatial_merge_size"):
        packing._get_num_multimodal_tokens(image_sizes=[(60, 90)], spatial_merge_size=2)


@pytest.mark.parametrize("layer", [None, -2, [0, -1]], ids=str)
def test_features_per_sample(processors, models, layer):
    images, clip = [media.image(61, 42), media.image(30, 60)], media.frames(4, 30, 60)
    packing, asked = models["packing"], {} if layer is None else {"vision_feature_layer": layer}
    inputs = processors["packing"](images=images, videos=clip, num_frames=2)
    with torch.no_grad():
        whole = packing(**inputs, **asked)
        found = packing.get_image_features(**inputs, **asked)
        videos = packing.get_video_features(**inputs, **asked)
    expected = whole.last_hidden_state if layer is None else torch.cat(whole.hidden_states, -1)
    assert [len(sample) for sample in found.pooler_output] == [12, 8, 16]
    assert torch.equal(torch.cat(found.pooler_output), expected)
    assert all(torch.equal(a, b) for a, b in zip(found.pooler_output, videos.pooler_output, strict=True))
    # Under transformers' names, and one modality alone.
    video = processors["packing"](videos=clip, num_frames=2)
    pixels, grid = video.pop("pixel_values"), video.pop("grid_thw")
    with torch.no_grad():
        alone = packing.get_video_features(pixel_values_videos=pixels, video_grid_thw=grid, **video, **asked)
        rows = models["dense"].get_video_features(
            **processors["dense"](videos=clip, num_frames=2, native_resolution=True), **asked
        )
    assert torch.equal(alone.pooler_output[0], found.pooler_output[2])
    assert torch.equal(rows.pooler_output[0], alone.pooler_output[0])


def test_features_of_a_dense_batch_and_as_a_tuple(processors, models):
    inputs = processors["dense"](images=[media.image(61, 42)] * 2)
    with torch.no_grad():
        expected = models["dense"](**inputs)
        found = models["dense"].get_image_features(**inputs)
        plain = models["dense"].get_image_features(**inputs, return_dict=False)
    assert torch.equal(torch.stack(found.pooler_output), expected.last_hidden_state)
    assert isinstance(plain, tuple) and torch.equal(plain[0], expected.last_hidden_state)
    assert torch.equal(plain[1][1], expected.last_hidden_state[1])
    with pytest.raises(TypeError, match="image_grid_thw.*packing"):
        models["dense"].get_image_features(**inputs, image_grid_thw=torch.ones(1, 3).long())


def test_samples_that_keep_some_patches(processors, models):
    keep = [torch.arange(12) < 5]
    inputs = processors["packing"](images=media.image(61, 42), keep=keep)
    with torch.no_grad():
        assert [len(sample) for sample in models["packing"].get_image_features(**inputs).pooler_output] == [5]


def test_the_grid_under_the_name_of_vlms(processors, models):
    inputs = processors["packing"](images=[media.image(61, 42), media.image(30, 60)])
    with torch.no_grad():
        expected = models["packing"](**inputs)
        grid = inputs.pop("grid_thw")
        found = models["packing"](inputs["pixel_values"], image_grid_thw=grid)
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    with pytest.raises(ValueError, match="grid_thw and image_grid_thw are two names"):
        models["packing"](**inputs, grid_thw=grid, image_grid_thw=grid)
