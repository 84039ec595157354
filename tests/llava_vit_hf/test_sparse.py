# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Samples that keep some of their patches: from the processor's mask or scores to equal features in both models."""

import json

import numpy as np
import pytest
import torch

from llava_vit_hf import LlavaViTImageProcessor, LlavaViTProcessor
from llava_vit_hf.collation_llava_vit import kept_patches
from llava_vit_hf.grid_llava_vit import frame_positions
from tests import media
from tests.models import as_packing, dense_model, min_cosine


PATCH = 4
# An image of (1, 5, 6) patches and a clip of (3, 4, 5), with edges that fill no patch.
IMAGE = media.image(26, 21)
CLIP = media.frames(3, 17, 22) + media.pattern(17, 22)
IMAGE_GRID, CLIP_GRID = (1, 5, 6), (3, 4, 5)


def processor(packing: bool) -> LlavaViTProcessor:
    return LlavaViTProcessor(LlavaViTImageProcessor(patch_size=PATCH, packing=packing, native_resolution=True))


def random_mask(grid, seed: int) -> torch.Tensor:
    mask = torch.rand(grid, generator=torch.Generator().manual_seed(seed)) < 0.4
    assert 1 < mask.sum() < mask.numel()
    return mask


@pytest.fixture(scope="module")
def masks():
    return [random_mask(IMAGE_GRID, 0), random_mask(CLIP_GRID, 1)]


@pytest.fixture(scope="module")
def models():
    dense = dense_model(patch_size=PATCH)
    return dense, as_packing(dense)


@torch.no_grad()
def test_packed_subset_equals_dense_visible_indices(models, masks):
    dense, packing = models
    inputs = processor(True)(images=IMAGE, videos=CLIP, num_frames=3, keep=masks)
    output = packing(**inputs, output_hidden_states=True)
    boundaries = inputs["cu_seqlens"].tolist()
    assert boundaries == [0, int(masks[0].sum()), int(masks[0].sum() + masks[1].sum())]
    calls = [
        processor(False)(images=IMAGE, keep=masks[:1]),
        processor(False)(videos=CLIP, num_frames=3, keep=masks[1:]),
    ]
    times = [torch.zeros(1), torch.tensor([0, 32, 63])]
    for index, (call, (_, rows, columns)) in enumerate(zip(calls, (IMAGE_GRID, CLIP_GRID), strict=True)):
        visible = masks[index].flatten().nonzero()[:, 0]
        assert torch.equal(call["visible_indices"], visible[None])
        # The whole grid's positions, made apart from the processor.
        call["patch_positions"] = frame_positions(times[index], rows, columns)[visible][None]
        alone = dense(**call, output_hidden_states=True)
        own = slice(boundaries[index], boundaries[index + 1])
        for packed, expected in zip(output.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(packed[own], expected[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(output.pooler_output[index], alone.pooler_output[0], rtol=0, atol=1e-4)
    # The subset is another input than the whole: its features differ from those of the same patches in full view.
    whole = packing(**processor(True)(images=IMAGE, videos=CLIP, num_frames=3)).last_hidden_state
    kept = torch.cat([mask.flatten() for mask in masks]).nonzero()[:, 0]
    assert min_cosine(output.last_hidden_state, whole[kept]) < 0.9


@torch.no_grad()
def test_wrong_positions_would_be_seen(models, masks):
    _, packing = models
    inputs = processor(True)(images=IMAGE, videos=CLIP, num_frames=3, keep=masks)
    right = packing(**inputs).last_hidden_state
    # What a pack would say that forgot which patches were kept and numbered the rows from the corner.
    full = processor(True)(images=IMAGE, videos=CLIP, num_frames=3)["patch_positions"]
    first, second = inputs["cu_seqlens"].diff().tolist()
    naive = torch.cat([full[:first], full[30 : 30 + second]])
    assert min_cosine(packing(**{**inputs, "patch_positions": naive}).last_hidden_state, right) < 0.9


@torch.no_grad()
def test_order_of_the_kept_rows_does_not_matter(models, masks):
    _, packing = models
    inputs = processor(True)(videos=CLIP, num_frames=3, keep=masks[1])
    order = torch.randperm(len(inputs["pixel_values"]), generator=torch.Generator().manual_seed(0))
    shuffled = {name: inputs[name][order] for name in ("pixel_values", "patch_positions")}
    expected = packing(**inputs).last_hidden_state[order]
    torch.testing.assert_close(packing(**{**inputs, **shuffled}).last_hidden_state, expected, rtol=0, atol=1e-4)


def test_rows_and_positions_are_those_of_the_whole_sample(masks):
    whole = processor(True)(images=IMAGE, videos=CLIP, num_frames=3)
    sparse = processor(True)(images=IMAGE, videos=CLIP, num_frames=3, keep=masks)
    kept = torch.cat([mask.flatten() for mask in masks])
    assert torch.equal(sparse["pixel_values"], whole["pixel_values"][kept])
    assert torch.equal(sparse["patch_positions"], whole["patch_positions"][kept])
    assert torch.equal(sparse["grid_thw"], whole["grid_thw"])
    assert sparse["max_seqlen"] == int(masks[1].sum()) and sparse["cu_seqlens"].dtype == torch.int32
    assert set(sparse["patch_positions"][int(masks[0].sum()) :, 0].tolist()) == {0, 32, 63}


def test_dense_keeps_whole_pixels_and_names_the_visible(masks):
    sparse = processor(False)(videos=CLIP, num_frames=3, keep=masks[1:])
    whole = processor(False)(videos=CLIP, num_frames=3)
    assert torch.equal(sparse["pixel_values"], whole["pixel_values"])
    assert torch.equal(sparse["visible_indices"][0], masks[1].flatten().nonzero()[:, 0])
    assert torch.equal(sparse["patch_positions"][0], whole["patch_positions"][0][sparse["visible_indices"][0]])


@pytest.mark.parametrize("kind", ["flat", "numpy", "list", "single"])
def test_every_form_of_a_mask(masks, kind):
    mask = masks[1]
    given = {"flat": [mask.flatten()], "numpy": [mask.numpy()], "list": [mask.tolist()], "single": mask}[kind]
    expected = processor(True)(videos=CLIP, num_frames=3, keep=[mask])
    actual = processor(True)(videos=CLIP, num_frames=3, keep=given)
    assert all(torch.equal(torch.as_tensor(actual[key]), torch.as_tensor(expected[key])) for key in expected)


def test_image_and_video_parts_take_a_selection_too(masks):
    image_processor = processor(True).image_processor
    expected = processor(True)(images=IMAGE, keep=masks[:1])["pixel_values"]
    assert torch.equal(image_processor(IMAGE, keep=masks[0])["pixel_values"], expected)
    video = processor(True).video_processor(CLIP, num_frames=3, keep=masks[1], return_metadata=True)
    assert video["metadata"][0]["kept_patches"] == masks[1].flatten().nonzero()[:, 0].tolist()
    json.dumps(video["metadata"])


def test_a_sample_without_a_mask_keeps_all(masks):
    inputs = processor(True)(images=IMAGE, videos=CLIP, num_frames=3, keep=[None, masks[1]])
    assert inputs["cu_seqlens"].tolist() == [0, 30, 30 + int(masks[1].sum())]


class TestScores:
    def test_the_best_are_kept_in_order(self):
        scores = np.array([0.1, 5, -2, 5, 3, 0.2]).reshape(1, 2, 3)
        assert kept_patches([(1, 2, 3)], scores=scores, top_k=3)[0].tolist() == [1, 3, 4]

    def test_of_equal_scores_the_first_win(self):
        assert kept_patches([(1, 1, 5)], scores=[torch.tensor([1, 2, 1, 1, 2])], top_k=3)[0].tolist() == [0, 1, 4]
        # Sorting is only unstable from some size on.
        many = kept_patches([(1, 100, 100)], scores=[torch.ones(10000)], top_k=50)
        assert many[0].tolist() == list(range(50))

    def test_one_number_per_sample_and_small_samples_keep_all(self):
        scores = [torch.arange(4.0), torch.arange(6.0)]
        kept = kept_patches([(1, 2, 2), (1, 2, 3)], scores=scores, top_k=[1, 99])
        assert [indices.tolist() for indices in kept] == [[3], [0, 1, 2, 3, 4, 5]]

    @torch.no_grad()
    def test_scores_through_the_models(self, models):
        dense, packing = models
        scores = torch.rand(2, 1, 5, 6, generator=torch.Generator().manual_seed(3))
        images = [IMAGE, IMAGE.transpose(0)]
        packed = processor(True)(images=images, scores=scores, top_k=7)
        assert packed["cu_seqlens"].tolist() == [0, 7, 14]
        batch = processor(False)(images=images, scores=scores, top_k=7)
        assert batch["visible_indices"].shape == (2, 7) and batch["patch_positions"].shape == (2, 7, 3)
        actual, expected = packing(**packed).last_hidden_state, dense(**batch).last_hidden_state
        torch.testing.assert_close(actual, expected.flatten(0, 1), rtol=0, atol=1e-4)


GOOD_MASK = np.ones(IMAGE_GRID, bool)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": [GOOD_MASK] * 2}, r"keep: found 2 for 1 sample\(s\); expected a list of one array per sample"),
        ({"keep": 3}, r"keep: found int for 1 sample\(s\)"),
        ({"keep": [np.ones((1, 6, 5), bool)]}, r"keep\[0\]: found shape \(1, 6, 5\); .* \(1, 5, 6\) or flat \(30,\)"),
        ({"keep": [np.ones(29, bool)]}, r"keep\[0\]: found shape \(29,\)"),
        ({"keep": [np.ones(IMAGE_GRID)]}, r"keep\[0\]: found torch.float64; expected booleans"),
        ({"keep": [np.zeros(IMAGE_GRID, bool)]}, r"keep\[0\] keeps no patch"),
        ({"keep": [GOOD_MASK], "top_k": 3}, "found keep and top_k; pass keep alone"),
        ({"keep": [GOOD_MASK], "scores": [GOOD_MASK * 1.0]}, "found keep and scores; pass keep alone"),
        ({"top_k": 3}, "found top_k; pass .* scores and top_k"),
        ({"scores": [GOOD_MASK * 1.0]}, "found scores; pass .* scores and top_k"),
        ({"scores": [GOOD_MASK * 1.0], "top_k": 0}, "top_k must be an integer of at least 1, found 0"),
        ({"scores": [GOOD_MASK * 1.0], "top_k": True}, "top_k must be an integer of at least 1, found True"),
        ({"scores": [GOOD_MASK * 1.0], "top_k": 2.5}, "top_k must be an integer of at least 1, found 2.5"),
        ({"scores": [GOOD_MASK * 1.0], "top_k": [1, 2]}, "top_k: found 2 numbers for 1 samples"),
        ({"scores": [GOOD_MASK * np.nan], "top_k": 2}, r"scores\[0\]: .*without NaN"),
        ({"scores": [GOOD_MASK], "top_k": 2}, r"scores\[0\]: found torch.bool; expected real numbers"),
        ({"keep": [["a", "b"]]}, r"keep\[0\]: found list, which is no array of numbers"),
    ],
)
def test_bad_selections_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(True)(images=IMAGE, **arguments)


def test_dense_samples_keep_equally_many():
    masks = [np.zeros(IMAGE_GRID, bool), np.zeros(IMAGE_GRID, bool)]
    masks[0][0, 0, :3], masks[1][0, 0, :4] = True, True
    with pytest.raises(ValueError, match=r"same number of patches, found \[3, 4\].*packing"):
        processor(False)(images=[IMAGE, IMAGE], keep=masks)
