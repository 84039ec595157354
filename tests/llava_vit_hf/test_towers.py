# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What the towers of VLMs have beside the encoder: windows of frames, patches in blocks, no post norm, a merger."""

import numpy as np
import pytest
import torch
from torch import nn

from llava_vit_hf import (
    LlavaViTConfig,
    LlavaViTImageProcessor,
    LlavaViTPackingConfig,
    LlavaViTPackingModel,
    LlavaViTProcessor,
)
from tests.models import TINY, check_same_but_for_rounding, random_pixels, sharpen


PATCH, MERGE, WINDOW = 4, 2, 3
TOWER = {"attention_window": WINDOW, "merge_size": MERGE, "merger_output_size": 24, "use_head": False}
# A clip of ten frames, cut into windows of 3, 3, 3 and 1, between two images.
GRIDS = [(1, 4, 6), (10, 2, 4), (1, 2, 2)]


def tower(**overrides) -> LlavaViTPackingModel:
    sizes = {**TINY, "patch_size": PATCH, "use_post_norm": False, "temporal_rule": "index", **TOWER, **overrides}
    return sharpen(LlavaViTPackingModel(LlavaViTPackingConfig(**sizes)))


def in_blocks(grid: tuple[int, int, int], merge: int = MERGE) -> np.ndarray:
    """`(t, h, w)` of the rows of a sample as they come, by plain loops."""
    frames, rows, columns = grid
    return np.array(
        [
            (t, top + h, left + w)
            for t in range(frames)
            for top in range(0, rows, merge)
            for left in range(0, columns, merge)
            for h in range(merge)
            for w in range(merge)
        ]
    )


def pack(grids=GRIDS, step: int = 4, seed: int = 1) -> dict[str, torch.Tensor]:
    """A pack whose clips have every fourth frame of a video."""
    places = [in_blocks(grid) * [step, 1, 1] for grid in grids]
    positions = torch.from_numpy(np.concatenate(places))
    return {
        "pixel_values": random_pixels(len(positions), 3 * PATCH**2, seed=seed),
        "grid_thw": torch.tensor(grids),
        "patch_positions": positions,
    }


def split(states: torch.Tensor, grids=GRIDS) -> tuple[torch.Tensor, ...]:
    return states.split([t * h * w for t, h, w in grids])


@torch.no_grad()
def run(model, **inputs):
    return model(**inputs, output_hidden_states=True)


def test_windows_are_samples_of_their_own():
    """The same bits as a model without windows that gets every window as a sample; each sample as it is alone."""
    model, inputs = tower(), pack()
    found = run(model, **inputs)
    windowed = [(1, 4, 6), *((count, 2, 4) for count in (3, 3, 3, 1)), (1, 2, 2)]
    plain = tower(attention_window=None)
    plain.load_state_dict(model.state_dict())
    expected = run(plain, **{**inputs, "grid_thw": torch.tensor(windowed)})
    for ours, theirs in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(found.merged_hidden_state, expected.merged_hidden_state)
    # Negative control: windows matter.
    assert not torch.equal(found.last_hidden_state, run(plain, **inputs).last_hidden_state)
    start = 0
    for grid, states in zip(GRIDS, split(found.last_hidden_state), strict=True):
        rows = slice(start, start + len(states))
        alone = {name: inputs[name][rows] for name in ("pixel_values", "patch_positions")}
        check_same_but_for_rounding(run(model, **alone, grid_thw=torch.tensor([grid])).last_hidden_state, states)
        start += len(states)


@pytest.mark.parametrize("frame", [0, 4, 9])
def test_a_frame_moves_its_window_and_nothing_else(frame):
    model, inputs = tower(), pack()
    before = run(model, **inputs)
    rows = slice(24 + frame * 8, 24 + frame * 8 + 8)
    inputs["pixel_values"][rows] += 1
    after = run(model, **inputs)
    first = frame // WINDOW * WINDOW
    window = slice(24 + first * 8, 24 + min(first + WINDOW, 10) * 8)
    changed = (before.last_hidden_state != after.last_hidden_state).any(-1)
    assert changed[window].all() and changed.sum() == len(changed[window])
    merged = (before.merged_hidden_state != after.merged_hidden_state).any(-1)
    assert merged[window.start // 4 : window.stop // 4].all() and merged.sum() == changed.sum() // 4


def test_there_is_no_post_norm_and_the_merger_takes_blocks():
    model, inputs = tower(), pack()
    found = run(model, **inputs)
    assert torch.equal(found.last_hidden_state, found.hidden_states[-1])
    assert not any("layernorm_post" in name for name in model.state_dict())
    merger, rows = model.merger, []
    for block in found.last_hidden_state.view(-1, MERGE**2, TINY["hidden_size"]):
        normed = nn.functional.layer_norm(
            block, block.shape[-1:], merger.ln_q.weight, merger.ln_q.bias, model.config.layer_norm_eps
        )
        rows.append(merger.mlp[2](nn.functional.gelu(merger.mlp[0](normed.reshape(-1)))))
    torch.testing.assert_close(found.merged_hidden_state, torch.stack(rows).detach(), rtol=0, atol=1e-5)
    assert tower(merger_output_size=None)(**inputs).merged_hidden_state is None
    assert model(**inputs, vision_feature_layer=-2).merged_hidden_state is None


def test_a_head_pools_samples_and_not_windows():
    model, inputs = tower(use_head=True, use_post_norm=True), pack()
    found = run(model, **inputs)
    assert found.pooler_output.shape == (3, TINY["hidden_size"])
    plain = tower(use_head=True, use_post_norm=True, attention_window=None)
    plain.load_state_dict(model.state_dict())
    images = [0, 2]
    assert torch.equal(found.pooler_output[images], run(plain, **inputs).pooler_output[images])
    assert not torch.equal(found.pooler_output[1], run(plain, **inputs).pooler_output[1])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_gradients_and_attentions(implementation):
    model, inputs = tower(), pack()
    model.set_attn_implementation(implementation)
    model(**inputs).merged_hidden_state.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    if implementation == "eager":
        attentions = model(**inputs, output_attentions=True).attentions[0]
        assert [len(weights[0]) for weights in attentions] == [24, 24, 24, 24, 8, 4]


def test_saved_and_loaded(tmp_path):
    model = tower()
    model.save_pretrained(tmp_path)
    again = LlavaViTPackingModel.from_pretrained(tmp_path).eval()
    assert again.config.attention_window == WINDOW and again.config.temporal_rule == "index"
    assert torch.equal(run(again, **pack()).merged_hidden_state, run(model, **pack()).merged_hidden_state)


def processor(**settings) -> LlavaViTProcessor:
    given = {"packing": True, "patch_size": PATCH, "merge_size": MERGE, **settings}
    return LlavaViTProcessor(LlavaViTImageProcessor(**given))


def test_the_processor_gives_blocks_and_raw_frames_in_one_call():
    ours, plain = processor(temporal_rule="index"), processor(temporal_rule="index", merge_size=1)
    image = np.random.default_rng(0).integers(0, 256, (19, 27, 3), np.uint8)
    clip = np.random.default_rng(1).integers(0, 256, (5, 10, 16, 3), np.uint8)
    known = {"fps": 25, "total_num_frames": 99, "frames_indices": [3, 20, 21, 70, 98]}
    asked = {"images": [image], "videos": [clip], "video_metadata": [known]}
    found = ours(**asked)
    assert found["grid_thw"].tolist() == [[1, 4, 6], [5, 2, 4]]
    times = np.array(known["frames_indices"])
    places = [in_blocks((1, 4, 6)), in_blocks((5, 2, 4))]
    places[1][:, 0] = times[places[1][:, 0]]
    assert found["patch_positions"].tolist() == np.concatenate(places).tolist()
    assert ours.grid_for(19, 27) == [1, 4, 6] and ours.image_processor.get_number_of_image_patches(19, 27) == 24

    # Row by row again, the pixels are those of the plain processor, of whole blocks.
    rows = plain(images=[image[:16, :24]], videos=[clip[:, :8]], video_metadata=[known])
    assert rows["grid_thw"].tolist() == found["grid_thw"].tolist()
    expected = plain.split_features(rows["pixel_values"], rows["grid_thw"])
    for one, other in zip(ours.split_features(found["pixel_values"], found["grid_thw"]), expected, strict=True):
        assert torch.equal(one, other)
    in_numpy = ours.split_features(found["pixel_values"].numpy(), found["grid_thw"])
    assert all(np.array_equal(one, other) for one, other in zip(in_numpy, expected, strict=True))
    assert not torch.equal(found["pixel_values"], rows["pixel_values"])

    # And the model gives the features of rows in any order, so it is only the order that differs.
    model = tower(merge_size=1, merger_output_size=None)
    blocks = tower(merger_output_size=None)
    blocks.load_state_dict(model.state_dict())
    raster = plain.split_features(run(model, **rows).last_hidden_state, rows["grid_thw"])
    for one, other in zip(
        ours.split_features(run(blocks, **found).last_hidden_state, found["grid_thw"]), raster, strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4)


def test_a_budget_is_kept_in_whole_blocks():
    ours = processor()
    for budget in (3, 4, 15, 16, 100):
        frames, rows, columns = ours.grid_for(60, 90, max_patches=budget)
        assert rows % MERGE == columns % MERGE == 0 and rows * columns <= max(budget, MERGE**2)
    assert ours.grid_for(9, 9, min_patches=30)[1] % MERGE == 0


def test_what_does_not_fit_is_refused():
    model, inputs = tower(), pack()
    kept = {**inputs, "cu_seqlens": torch.tensor([0, 20, 100, 104], dtype=torch.int32)}
    kept |= {name: inputs[name][4:] for name in ("pixel_values", "patch_positions")}
    odd = {"pixel_values": inputs["pixel_values"][:15], "patch_positions": inputs["patch_positions"][:15]}
    negative = inputs["patch_positions"].clone()
    negative[7] = -1
    no_grid = {name: inputs[name] for name in ("pixel_values", "patch_positions")}
    no_grid |= {"cu_seqlens": torch.tensor([0, 24, 104, 108], dtype=torch.int32)}
    for wrong, reason in (
        (kept, "grid_thw adds up to 108 tokens, but pixel_values has 104 rows, and attention_window=3"),
        ({**odd, "grid_thw": torch.tensor([[1, 3, 5]])}, "3 x 5 patches, which blocks of merge_size=2 do not fill"),
        ({**inputs, "patch_positions": negative}, "patch_positions has -1, which marks the padding of canvases"),
        ({**inputs, "patch_positions": None}, "patch_positions is missing: attention_window=3"),
        (no_grid, "grid_thw is missing: attention_window=3 in the config needs it"),
    ):
        with pytest.raises(ValueError, match=reason):
            model(**wrong)
    for fields, reason in (
        ({"merge_size": 0}, "merge_size must be a positive integer, found 0"),
        ({"attention_window": 0}, "attention_window must be a positive integer or None"),
        ({"merger_output_size": 1.5}, "merger_output_size must be a positive integer or None"),
        ({"temporal_rule": "nearest"}, "temporal_rule must be one of"),
        ({"use_post_norm": None}, "use_post_norm must be True or False"),
    ):
        with pytest.raises(ValueError, match=reason):
            LlavaViTPackingConfig(**fields)
    with pytest.raises(ValueError, match="attention_window=4: the dense model attends over whole clips"):
        LlavaViTConfig(attention_window=4)
    with pytest.raises(ValueError, match="merge_size=2 is for packing"):
        LlavaViTImageProcessor(merge_size=2)
    clip = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="keep or scores with merge_size=2: blocks need whole frames"):
        processor()(videos=[clip], num_frames="all", keep=[np.arange(8) < 3])
    with pytest.raises(ValueError, match="7 x 7 patches, which blocks of merge_size=2 do not fill"):
        processor()(images=[np.zeros((28, 28, 3), np.uint8)], native_resolution=False, size=28, crop_size=28)
    with pytest.raises(ValueError, match="smaller than one block of 2x2 patches of 8x8"):
        processor()(images=[np.zeros((7, 28, 3), np.uint8)])
    with pytest.raises(ValueError, match="blocks of merge_size=2 do not fill 3 x 4 patches"):
        processor().split_features(torch.zeros(12, 2), [[1, 3, 4]])


@pytest.mark.long
def test_windows_compile():
    model, inputs = tower(), pack()
    expected = run(model, **inputs).merged_hidden_state
    with torch.no_grad():
        found = torch.compile(model)(**inputs).merged_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)
