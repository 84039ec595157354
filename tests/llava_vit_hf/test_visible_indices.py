# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""`visible_indices` as the released OneVision-Encoder takes them: places in a grid of 64 frames, or a selection."""

import numpy as np
import pytest
import torch

from llava_vit_hf import LlavaViTConfig, LlavaViTImageProcessor, LlavaViTProcessor
from tests.models import dense_model, random_pixels


CONTEXT, FRAMES, SIDE, PATCH = 64, 16, 56, 14
PER_FRAME = (SIDE // PATCH) ** 2
INDEXED = {"fps": 1, "total_num_frames": 99, "frames_indices": [0, 9, 70]}


@pytest.fixture(scope="module")
def model():
    return dense_model(patch_size=PATCH, rope_temporal_size=CONTEXT)


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    return random_pixels(1, 3, FRAMES, SIDE, SIDE)


def places(times: torch.Tensor) -> torch.Tensor:
    """Indices `(1, T * n)` of all patches of frames at these times, as the released quick start makes them."""
    return (times.long()[:, None] * PER_FRAME + torch.arange(PER_FRAME)).reshape(1, -1)


def positions_of(indices: torch.Tensor) -> torch.Tensor:
    """`(t, h, w)` of indices into frames of 4 x 4 patches, `(1, K, 3)`."""
    return torch.tensor([[[i // PER_FRAME, i % PER_FRAME // 4, i % 4] for i in indices[0].tolist()]])


@torch.no_grad()
def run(model, pixels, **inputs) -> list[torch.Tensor]:
    output = model(pixels, output_hidden_states=True, **inputs)
    return [*output.hidden_states, output.last_hidden_state, output.pooler_output]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_released_quick_start_gives_the_bits_of_positions(model, clip):
    released = places(torch.linspace(0, CONTEXT - 1, FRAMES))
    found = run(model, clip, visible_indices=released)
    assert equal(found, run(model, clip, patch_positions=positions_of(released)))
    # Negative controls: plain times, and the rule that rounds, which at 16 frames is another one.
    assert not equal(found, run(model, clip))
    assert not equal(found, run(model, clip, visible_indices=places(torch.linspace(0, 63, FRAMES).round())))
    # Frame by frame, an image has no indices, or those of frame 0.
    frame = clip[:, :, 3]
    assert equal(run(model, frame), run(model, frame, visible_indices=places(torch.zeros(1))))


def test_fewer_indices_choose_patches_and_their_places(model):
    padded = torch.zeros(1, 3, CONTEXT, SIDE, SIDE)
    padded[:, :, ::9] = random_pixels(1, 3, 8, SIDE, SIDE)
    kept = torch.randperm(CONTEXT * PER_FRAME, generator=torch.Generator().manual_seed(0))[None, :50]
    found = run(model, padded, visible_indices=kept)
    assert equal(found, run(model, padded, visible_indices=kept, patch_positions=positions_of(kept)))
    assert not equal(found, run(model, padded, visible_indices=kept.sort().values))


def test_without_the_field_and_with_positions_indices_choose(clip):
    plain = dense_model(patch_size=PATCH)
    order = torch.randperm(FRAMES * PER_FRAME, generator=torch.Generator().manual_seed(0))[None]
    whole = run(plain, clip)
    chosen = run(plain, clip, visible_indices=order)
    assert torch.equal(chosen[0], whole[0][:, order[0]])
    config = plain.config.rope_temporal_size
    try:
        plain.config.rope_temporal_size = CONTEXT
        assert equal(chosen, run(plain, clip, visible_indices=order, patch_positions=positions_of(order)))
        assert not equal(chosen, run(plain, clip, visible_indices=order))
    finally:
        plain.config.rope_temporal_size = config


def test_what_fits_neither_form_says_which_was_meant(model, clip):
    tokens = FRAMES * PER_FRAME
    beyond = places(torch.linspace(0, CONTEXT, FRAMES))
    with pytest.raises(ValueError, match="from 0 to 1023 .* found 0 to 1039. As many as patches, they give positions"):
        model(clip, visible_indices=beyond)
    with pytest.raises(ValueError, match=f"from 0 to {tokens - 1} .* 5 of {tokens} patches, they choose among"):
        model(clip, visible_indices=torch.tensor([[0, 1, 2, 3, tokens]]))
    with pytest.raises(ValueError, match=f"from 0 to {tokens - 1} .* {tokens + 1} of {tokens} patches"):
        model(clip, visible_indices=torch.arange(tokens + 1)[None])
    with pytest.raises(ValueError, match="rope_temporal_size must be a positive integer or None, found 0"):
        LlavaViTConfig(rope_temporal_size=0)


@pytest.mark.parametrize("frames", [4, 8, 16])
def test_the_processor_gives_indices_in_that_form(model, frames):
    processor = LlavaViTProcessor(LlavaViTImageProcessor(patch_size=PATCH, size=SIDE, crop_size=SIDE))
    video = np.random.default_rng(0).integers(0, 256, (frames, SIDE, SIDE, 3), np.uint8)
    asked = {"videos": [video], "num_frames": "all", "temporal_rule": "floor"}
    inputs = processor(**asked, return_visible_indices=True)
    assert set(inputs) == {"pixel_values", "visible_indices"}
    assert torch.equal(inputs["visible_indices"], places(torch.linspace(0, CONTEXT - 1, frames)))
    pixels = inputs.pop("pixel_values")
    given = processor(**asked)
    assert equal(run(model, pixels, **inputs), run(model, pixels, patch_positions=given["patch_positions"]))


def test_the_processor_says_where_there_is_no_such_form():
    video = np.zeros((3, SIDE, SIDE, 3), np.uint8)
    for packing, arguments, reason in (
        (True, {}, "whole samples of the dense model"),
        (False, {"keep": [np.arange(48) < 9]}, "whole samples of the dense model"),
        (
            False,
            {
                "temporal_rule": "index",
                "video_metadata": [{"fps": 1, "total_num_frames": 99, "frames_indices": [0, 9, 70]}],
            },
            "a frame is at t = 70, beyond the 64 frames",
        ),
    ):
        processor = LlavaViTProcessor(LlavaViTImageProcessor(patch_size=PATCH, packing=packing))
        with pytest.raises(ValueError, match=reason):
            processor(
                videos=[video],
                num_frames=None if "video_metadata" in arguments else "all",
                native_resolution=True,
                return_visible_indices=True,
                **arguments,
            )


@pytest.mark.long
@pytest.mark.parametrize("count", [FRAMES * PER_FRAME, 50])
def test_compiled_and_exported(model, clip, count):
    indices = places(torch.linspace(0, CONTEXT - 1, FRAMES)) if count == FRAMES * PER_FRAME else torch.arange(50)[None]
    expected = run(model, clip, visible_indices=indices)[-2]
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)(clip, visible_indices=indices).last_hidden_state
        program = torch.export.export(model, (clip,), {"visible_indices": indices})
        exported = program.module()(clip, visible_indices=indices).last_hidden_state
    assert (compiled - expected).abs().max() < 2e-4
    assert (exported - expected).abs().max() < 2e-4
