# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""A budget of patches: the documented grid, one antialiased resize to it, and nothing where none is asked."""

import json

import numpy as np
import PIL.Image
import pytest
import torch

from llava_vit_hf import LlavaViTImageProcessor, LlavaViTProcessor
from llava_vit_hf.grid_llava_vit import budget_grid
from tests import media


MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])


@pytest.fixture
def packing() -> LlavaViTProcessor:
    return LlavaViTProcessor(LlavaViTImageProcessor(packing=True))


@pytest.mark.parametrize(
    ("height", "width", "budget", "expected"),
    [
        (3000, 4000, (None, 1024), (27, 36)),
        (4000, 3000, (None, 1024), (36, 27)),
        (448, 448, (None, 1024), (32, 32)),  # its own
        (449, 461, (None, 1024), (32, 32)),  # its own, and edges that fill no patch
        (462, 462, (None, 1024), (32, 32)),
        (100, 4000, (None, 100), (1, 59)),
        (20, 4000, (None, 16), (1, 16)),
        (20, 4000, (None, 1), (1, 1)),
        (20, 4000, (None, None), (1, 285)),
        (10, 4000, (None, 16), (0, 285)),  # smaller than a patch: enlarged only by a least number
        (10, 4000, (1, 16), (1, 16)),
        (10, 4000, (1, None), (1, 285)),
        (20, 27, (None, 1), (1, 1)),
        (20, 27, (6, None), (2, 3)),
        (30, 40, (10, 11), (2, 3)),  # no grid in between: the most holds
        (5, 5, (4, 4), (2, 2)),
    ],
)
def test_grids_are_pinned(height, width, budget, expected):
    assert budget_grid(height, width, 14, *budget) == expected


def test_grids_keep_the_rule():
    """Of all grids, by trying them: the longer side as many patches as fit, the shorter one nearest to the aspect."""
    draw = np.random.default_rng(0)
    for _ in range(300):
        long, short = sorted((int(side) for side in draw.integers(8, 500, 2)), reverse=True)
        least, most = sorted(int(count) for count in draw.integers(1, 300, 2))
        own = (long // 8) * (short // 8)
        # Half a patch rounds up, and there is at least one.
        grids = [(count, max(1, int(count * short / long + 0.5))) for count in range(1, 400)]
        largest = max((grid for grid in grids if grid[0] * grid[1] <= most), default=None)
        smallest = min(grid for grid in grids if grid[0] * grid[1] >= least)
        if own > most:
            expected = (min(largest[0], long // 8), min(largest[1], short // 8))
        elif own < least:
            expected = min(max(smallest, grids[long // 8 - 1]), largest)
        else:
            expected = (long // 8, short // 8)
        assert budget_grid(short, long, 8, least, most) == tuple(reversed(expected)), (long, short, least, most)
        assert budget_grid(long, short, 8, least, most) == (expected if long > short else tuple(reversed(expected)))


@pytest.mark.parametrize("size", [(500, 333), (333, 500), (640, 100), (64, 48)], ids=str)
def test_pixels_are_those_of_one_antialiased_bicubic_resize(packing, size):
    picture = media.image(*size)
    for most in (1, 7, 60, 300):
        out = packing(images=picture, max_patches=most)
        rows, columns = budget_grid(size[1], size[0], 14, None, most)
        assert out["grid_thw"].tolist() == [[1, rows, columns]] and rows * columns <= most
        # Pillow's reduces with a filter as wide as the scale: that is what antialiased means.
        resized = picture.resize((14 * columns, 14 * rows), PIL.Image.Resampling.BICUBIC)
        if rows * columns == (size[0] // 14) * (size[1] // 14):
            resized = picture
        expected = packing(images=resized)["pixel_values"]
        differences = (out["pixel_values"] - expected).abs() * 255 * STD.max()
        assert differences.max() < 2.2 and differences.mean() < 0.2
        plain = picture.resize((14 * columns, 14 * rows), PIL.Image.Resampling.NEAREST)
        if most == 7:
            assert (packing(images=plain)["pixel_values"] - out["pixel_values"]).abs().max() > 0.1


def test_within_the_budget_not_a_bit_changes(packing):
    for picture in (media.image(45, 30), media.pattern(45, 30).astype(np.float32)):
        native = packing(images=picture)
        for budget in ({"max_patches": 6}, {"max_pixels": 6 * 196}, {"min_patches": 6}, {"min_pixels": 6 * 196}):
            found = packing(images=picture, **budget)
            assert torch.equal(found["pixel_values"], native["pixel_values"]), budget
            assert torch.equal(found["grid_thw"], native["grid_thw"])


def test_nothing_is_enlarged_unless_asked(packing):
    assert packing(images=media.image(30, 30), max_patches=10_000)["grid_thw"].tolist() == [[1, 2, 2]]
    assert packing(images=media.image(30, 30), min_patches=9)["grid_thw"].tolist() == [[1, 3, 3]]
    assert packing(images=media.image(5, 5), min_patches=1)["grid_thw"].tolist() == [[1, 1, 1]]
    with pytest.raises(ValueError, match="smaller than one patch.*min_patches=1"):
        packing(images=media.image(5, 5), max_patches=4)


def test_pixels_are_patches_by_another_name(packing):
    picture = media.image(500, 333)
    for pixels, patches in ((60 * 196, 60), (60 * 196 + 195, 60)):
        found, expected = packing(images=picture, max_pixels=pixels), packing(images=picture, max_patches=patches)
        assert torch.equal(found["pixel_values"], expected["pixel_values"])
    small = media.image(30, 30)
    for pixels in (9 * 196, 8 * 196 + 1):
        assert packing(images=small, min_pixels=pixels)["grid_thw"].tolist() == [[1, 3, 3]]


def test_a_clip_has_the_budget_in_each_frame_and_the_cap_as_a_whole(packing):
    clip = media.frames(5, 60, 90)
    out = packing(videos=clip, num_frames=3, max_patches=8)
    assert out["grid_thw"].tolist() == [[3, 2, 3]]
    for index, frame in enumerate((0, 2, 4)):
        alone = packing(images=clip[frame], max_patches=8)["pixel_values"]
        assert torch.equal(out["pixel_values"].view(3, 6, -1)[index], alone)
    assert packing(videos=clip, num_frames=3, max_patches=8, max_tokens=18)
    with pytest.raises(ValueError, match="18 tokens, more than max_tokens=17.*max_patches"):
        packing(videos=clip, num_frames=3, max_patches=8, max_tokens=17)
    # What is over the cap as it is fits once resized, before anything is decoded.
    assert packing(images=media.image(420, 280), max_tokens=24, max_patches=24)["grid_thw"].tolist() == [[1, 4, 6]]


def test_dense_models_have_budgets_too():
    dense = LlavaViTProcessor(LlavaViTImageProcessor())
    out = dense(images=media.image(500, 333), native_resolution=True, max_patches=60)
    assert out["pixel_values"].shape == (1, 3, 6 * 14, 9 * 14)
    with pytest.raises(ValueError, match="max_patches was given.*native_resolution=True"):
        dense(images=media.image(500, 333), max_patches=60)


def test_the_grid_without_pixels(packing):
    calls = [{}, {"max_patches": 40}, {"min_patches": 900}, {"native_resolution": False}, {"max_pixels": 9999}]
    for size in ((500, 333), (61, 200)):
        for call in calls:
            found = packing(images=media.image(*size), **call)["grid_thw"].tolist()
            assert found == [packing.grid_for(size[1], size[0], **call)], (size, call)
    assert packing.grid_for(60, 90, frames=3, max_patches=8) == [3, 2, 3]
    for arguments in ((0, 5), (5, 1.5), (14, 14, 0)):
        with pytest.raises(ValueError, match="height|width|frames"):
            packing.grid_for(*arguments)
    with pytest.raises(ValueError, match="smaller than one patch"):
        packing.grid_for(13, 50)
    with pytest.raises(ValueError, match="max_image_pixels"):
        packing.grid_for(20_000, 20_000, max_patches=4)


def test_budgets_are_saved_and_replaced_by_either_name(tmp_path):
    assert LlavaViTImageProcessor().max_patches is None
    LlavaViTImageProcessor(packing=True, max_patches=60, min_pixels=1000).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["max_patches"] == 60 and saved["min_pixels"] == 1000
    loaded = LlavaViTImageProcessor.from_pretrained(tmp_path)
    picture = media.image(500, 333)
    assert loaded(picture)["grid_thw"].tolist() == [[1, 6, 9]]
    assert loaded(picture, max_pixels=20 * 196)["grid_thw"].tolist() == [[1, 3, 5]]
    assert LlavaViTImageProcessor.from_pretrained(tmp_path, max_pixels=20 * 196)(picture)["max_seqlen"] == 15
    # A saved budget does not stand in the way of CLIP's preprocessing, and do_resize=False does without it.
    assert loaded(picture, native_resolution=False)["grid_thw"].tolist() == [[1, 32, 32]]
    assert loaded(picture, do_resize=False)["grid_thw"].tolist() == [[1, 23, 35]]


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"max_patches": 0}, "max_patches must be an integer of at least 1.*found 0"),
        ({"max_patches": -3}, "max_patches.*-3"),
        ({"max_patches": 2.5}, "max_patches.*2.5"),
        ({"max_patches": True}, "max_patches.*True"),
        ({"min_patches": 0}, "min_patches"),
        ({"max_pixels": 0}, "max_pixels"),
        ({"min_pixels": -1}, "min_pixels"),
        ({"max_pixels": 195}, "max_pixels=195 is less than one patch of 14x14 = 196 pixels"),
        ({"max_patches": 4, "max_pixels": 9999}, "max_patches=4 and max_pixels=9999 exclude each other"),
        ({"min_patches": 4, "min_pixels": 9999}, "min_patches=4 and min_pixels=9999 exclude each other"),
        ({"max_patches": 4, "min_patches": 5}, "min_patches=5 and max_patches=4: the least, 5 patches, is above"),
        ({"max_patches": 4, "min_pixels": 785}, "min_pixels=785 and max_patches=4: the least, 5"),
    ],
)
def test_impossible_budgets(packing, budget, message):
    with pytest.raises(ValueError, match=message):
        packing(images=media.image(28, 28), **budget)
    with pytest.raises(ValueError, match=message.replace("exclude each other", "are two names")):
        LlavaViTImageProcessor(packing=True, **budget)


@pytest.mark.parametrize("size", [28, {"shortest_edge": 28}, {"shortest_edge": 56, "longest_edge": 99}], ids=str)
def test_size_at_native_resolution_names_the_budget(packing, size):
    with pytest.raises(ValueError, match="size was given.*max_patches or max_pixels.*native_resolution=False"):
        packing(images=media.image(28, 28), size=size)
    # The filter is of use with a budget, and only then.
    assert packing(images=media.image(280, 280), resample=2, max_patches=4)
    with pytest.raises(ValueError, match="resample was given"):
        packing(images=media.image(280, 280), resample=2)


def test_floats(packing):
    scaled = media.pattern(280, 420).astype(np.float32) / 255
    expected = packing(images=media.image(420, 280), max_patches=24)["pixel_values"]
    found = packing(images=scaled, do_rescale=False, max_patches=24)["pixel_values"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1.01 / 255 / STD.min())
    with pytest.raises(ValueError, match="cannot be resized.*without a budget"):
        packing(images=scaled * 700 - 100, do_rescale=False, max_patches=24)
