# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The packing model: equal to the dense one, blind to its neighbours, and clear about bad packs."""

import pytest
import torch

from conversion.verification.faults import rotated_halves
from llava_vit_hf import inputs_llava_vit
from llava_vit_hf.grid_llava_vit import (
    cumulative_lengths,
    frame_positions,
    grid_positions,
    patchify,
    split_features,
    temporal_positions,
)
from llava_vit_hf.inputs_llava_vit import sample_lengths
from tests.models import as_packing, dense_model, min_cosine, random_pixels


GRIDS = [(1, 8, 6), (1, 1, 1), (4, 5, 4), (1, 6, 8), (1, 2, 7), (1, 8, 6), (2, 4, 4)]
DTYPES = [torch.float32, torch.bfloat16]


def pixels_of(grids, seed=0):
    """One clip `(T, 3, H, W)` per grid, for patches of 4 pixels."""
    return [random_pixels(t, 3, 4 * h, 4 * w, seed=seed + index) for index, (t, h, w) in enumerate(grids)]


def pack(clips, grids, clip_times=True):
    """Arguments of the packing model; frames of clips in the 64-frame context."""
    times = [temporal_positions(t) if clip_times else None for t, _, _ in grids]
    return {
        "pixel_values": torch.cat([patchify(clip, 4).flatten(0, 1) for clip in clips]),
        "grid_thw": torch.tensor(grids),
        "patch_positions": grid_positions(grids, times),
    }


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def models(request):
    dense = dense_model(num_hidden_layers=4).to(request.param)
    return dense, as_packing(dense)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("grid", [(1, 8, 6), (4, 5, 4), (1, 1, 1), (1, 16, 17)], ids=str)
def test_one_sample_equals_dense_bit_for_bit(models, implementation, grid):
    dense, packing = models
    dense.set_attn_implementation(implementation)
    packing.set_attn_implementation(implementation)
    (clip,) = pixels_of([grid])
    inputs = pack([clip], [grid])
    packed = packing(**inputs, output_hidden_states=True)
    alone = dense(
        clip.transpose(0, 1)[None], patch_positions=inputs["patch_positions"][None], output_hidden_states=True
    )
    assert torch.equal(packed.last_hidden_state, alone.last_hidden_state[0])
    assert torch.equal(packed.pooler_output, alone.pooler_output)
    for actual, expected in zip(packed.hidden_states, alone.hidden_states, strict=True):
        assert torch.equal(actual, expected[0])


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_ragged_pack_equals_each_sample_alone(models, implementation):
    _, packing = models
    packing.set_attn_implementation(implementation)
    clips = pixels_of(GRIDS)
    together = packing(**pack(clips, GRIDS), output_hidden_states=True)
    features = split_features(together.hidden_states[-2], GRIDS)
    # A product of few rows may sum in another order; from 16 rows up the bits are the same.
    few_rows = 1e-4 if packing.dtype == torch.float32 else 0.02
    for index, (clip, grid) in enumerate(zip(clips, GRIDS, strict=True)):
        alone = packing(**pack([clip], [grid]), output_hidden_states=True)
        actual, expected = features[index].flatten(0, 2), alone.hidden_states[-2]
        scale = expected.abs().max().item()
        bound = 0.0 if len(expected) >= 16 else few_rows * scale
        torch.testing.assert_close(actual, expected, rtol=0, atol=bound)
        pooled_scale = alone.pooler_output.abs().max().item()
        torch.testing.assert_close(
            together.pooler_output[index], alone.pooler_output[0], rtol=0, atol=few_rows * pooled_scale
        )


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_order_of_samples_does_not_matter(models, implementation):
    _, packing = models
    packing.set_attn_implementation(implementation)
    clips, order = pixels_of(GRIDS), [3, 6, 1, 0, 5, 2, 4]
    forward = packing(**pack(clips, GRIDS))
    shuffled_grids = [GRIDS[index] for index in order]
    shuffled = packing(**pack([clips[index] for index in order], shuffled_grids))
    expected = split_features(forward.last_hidden_state, GRIDS)
    for position, features in enumerate(split_features(shuffled.last_hidden_state, shuffled_grids)):
        torch.testing.assert_close(features, expected[order[position]], rtol=0, atol=0)
    # The head's products have one row per sample: too few for equal bits in another order.
    few_rows = 1e-4 if packing.dtype == torch.float32 else 0.02
    pooled = forward.pooler_output[order]
    torch.testing.assert_close(shuffled.pooler_output, pooled, rtol=0, atol=few_rows * pooled.abs().max().item())


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("changed", range(len(GRIDS)))
def test_no_sample_sees_another(models, implementation, changed):
    _, packing = models
    packing.set_attn_implementation(implementation)
    clips = pixels_of(GRIDS)
    before = packing(**pack(clips, GRIDS))
    clips[changed] = clips[changed] + 1
    after = packing(**pack(clips, GRIDS))
    first = split_features(before.last_hidden_state, GRIDS)
    second = split_features(after.last_hidden_state, GRIDS)
    for index in range(len(GRIDS)):
        assert torch.equal(first[index], second[index]) == (index != changed)
        assert torch.equal(before.pooler_output[index], after.pooler_output[index]) == (index != changed)


@torch.no_grad()
def test_a_frame_changes_the_other_frames_of_its_clip(models):
    _, packing = models
    (clip,) = pixels_of([(4, 5, 4)])
    before = split_features(packing(**pack([clip], [(4, 5, 4)])).last_hidden_state, [(4, 5, 4)])[0]
    clip[3] += 1
    after = split_features(packing(**pack([clip], [(4, 5, 4)])).last_hidden_state, [(4, 5, 4)])[0]
    assert not torch.equal(before[0], after[0])


@torch.no_grad()
def test_no_mask_and_one_call_per_run(models, monkeypatch):
    _, packing = models
    packing.set_attn_implementation("sdpa")
    calls = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def record(query, key, value, attn_mask=None, **kwargs):
        calls.append((tuple(query.shape[::2]), attn_mask, kwargs.get("is_causal")))
        return attention(query, key, value, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    packing(**pack(pixels_of(GRIDS), GRIDS))
    # Lengths 48, 1, 80, 48, 14, 48, 32 have no equal neighbours: seven calls per layer and seven of the pooling head.
    assert len(calls) == 7 * (4 + 1)
    assert [shape for shape, _, _ in calls[:7]] == [(1, length) for length in (48, 1, 80, 48, 14, 48, 32)]
    assert all(mask is None and not causal for _, mask, causal in calls)


@torch.no_grad()
def test_bookkeeping_from_outside_changes_nothing(models):
    _, packing = models
    inputs = pack(pixels_of(GRIDS), GRIDS, clip_times=False)
    lengths = [t * h * w for t, h, w in GRIDS]
    expected = packing(**inputs).last_hidden_state
    given = packing(**inputs, cu_seqlens=cumulative_lengths(lengths), max_seqlen=max(lengths)).last_hidden_state
    assert torch.equal(given, expected)
    del inputs["patch_positions"]
    assert torch.equal(packing(**inputs).last_hidden_state, expected)
    assert torch.equal(packing(hidden_states=inputs["pixel_values"], grid_thw=inputs["grid_thw"])[0], expected)


@torch.no_grad()
def test_hidden_states_and_attentions_keep_the_order_of_the_pack(models):
    dense, packing = models
    dense.set_attn_implementation("eager")
    packing.set_attn_implementation("eager")
    clips = pixels_of(GRIDS)
    output = packing(**pack(clips, GRIDS), output_attentions=True, output_hidden_states=True)
    assert len(output.attentions) == 4 and len(output.attentions[0]) == len(GRIDS)
    for index, (t, h, w) in enumerate(GRIDS):
        inputs = pack([clips[index]], [GRIDS[index]])
        alone = dense(
            clips[index].transpose(0, 1)[None],
            patch_positions=inputs["patch_positions"][None],
            output_attentions=True,
            output_hidden_states=True,
        )
        assert output.attentions[-1][index].shape == (2, t * h * w, t * h * w)
        torch.testing.assert_close(output.attentions[-1][index], alone.attentions[-1][0], rtol=0, atol=0.02)
        state = split_features(output.hidden_states[2], GRIDS)[index].flatten(0, 2)
        assert min_cosine(state, alone.hidden_states[2][0]) > 0.999
    partial = packing(**pack(clips, GRIDS), vision_feature_layer=[-2, 0])
    assert torch.equal(partial.hidden_states[0], output.hidden_states[-2])
    assert torch.equal(partial.hidden_states[1], output.hidden_states[0])


@torch.no_grad()
def test_sparse_patches_equal_dense_visible_indices(models):
    dense, packing = models
    (clip,) = pixels_of([(4, 5, 4)])
    visible = torch.tensor([3, 70, 21, 22, 40, 41, 66, 7, 9, 50, 51, 52, 33, 34, 35, 79, 0])
    positions = frame_positions(torch.arange(4), 5, 4)[visible]
    other = random_pixels(1, 3, 16, 12)
    packed = packing(
        torch.cat([patchify(clip, 4).flatten(0, 1)[visible], patchify(other, 4)[0]]),
        grid_thw=torch.tensor([[4, 5, 4], [1, 4, 3]]),
        patch_positions=torch.cat([positions, grid_positions([(1, 4, 3)])]),
        cu_seqlens=torch.tensor([0, 17, 29], dtype=torch.int32),
    )
    alone = dense(clip.transpose(0, 1)[None], visible_indices=visible[None])
    assert torch.equal(packed.last_hidden_state[:17], alone.last_hidden_state[0])


CONTROLS = {
    "height and width swapped": lambda inputs: inputs["patch_positions"][:, [0, 2, 1]],
    "time zeroed": lambda inputs: inputs["patch_positions"] * torch.tensor([0, 1, 1]),
    "rows shifted by one": lambda inputs: inputs["patch_positions"] + torch.tensor([0, 1, 0]),
    "positions zeroed": lambda inputs: inputs["patch_positions"] * 0,
}


@pytest.fixture(scope="module")
def case():
    """Two clips, a model, and the right features."""
    packing = as_packing(dense_model(num_hidden_layers=4))
    inputs = pack(pixels_of([(4, 8, 6)] * 2), [(4, 8, 6)] * 2)
    with torch.no_grad():
        return packing, inputs, packing(**inputs, vision_feature_layer=-2).hidden_states[0]


class TestNegativeControls:
    """Each fault breaks the agreement that the tests above assert, so those tests can fail."""

    def check(self, packing, inputs, expected):
        with torch.no_grad():
            actual = packing(**inputs, vision_feature_layer=-2).hidden_states[0]
        assert min_cosine(actual, expected) < 0.9

    @pytest.mark.parametrize("control", CONTROLS)
    def test_positions(self, case, control):
        packing, inputs, expected = case
        self.check(packing, {**inputs, "patch_positions": CONTROLS[control](inputs)}, expected)

    def test_rotated_halves(self, case):
        packing, inputs, expected = case
        with rotated_halves(packing):
            self.check(packing, inputs, expected)

    def test_attention_across_samples(self, case):
        packing, inputs, expected = case
        merged = {**inputs, "cu_seqlens": torch.tensor([0, 384]), "grid_thw": torch.tensor([(8, 8, 6)])}
        self.check(packing, merged, expected)

    def test_one_layers_queries_and_keys_exchanged(self, case):
        _, inputs, expected = case
        packing = as_packing(dense_model(num_hidden_layers=4))
        with torch.no_grad():
            projection = packing.encoder.layers[1].self_attn.qkv
            for parameter in (projection.weight, projection.bias):
                query, key, value = parameter.chunk(3)
                parameter.copy_(torch.cat([key, query, value]))
        self.check(packing, inputs, expected)

    def test_attention_is_peaked(self, case):
        packing, inputs, _ = case
        packing.set_attn_implementation("eager")
        with torch.no_grad():
            attentions = packing(**inputs, output_attentions=True).attentions
        packing.set_attn_implementation("sdpa")
        largest = torch.stack([layer[0].amax(-1).mean() for layer in attentions])
        assert (largest > 20 / 192).all()


GOOD = pack(pixels_of([(1, 2, 3), (1, 2, 2)]), [(1, 2, 3), (1, 2, 2)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid_thw": None}, "grid_thw is missing"),
        ({"grid_thw": torch.tensor([[1, 2, 3]])}, "adds up to 6 tokens, but pixel_values has 10 rows"),
        ({"grid_thw": torch.tensor([[1, 2, 3], [1, 2, -2]])}, r"grid_thw\[1\] is \[1, 2, -2\]"),
        ({"grid_thw": torch.tensor([[1, 2, 3], [0, 2, 2]])}, r"grid_thw\[1\] is \[0, 2, 2\]"),
        (
            {"grid_thw": torch.tensor([[1.0, 2.0, 5.0]])},
            r"integer tensor of shape \(samples, 3\), found torch.float32",
        ),
        ({"grid_thw": torch.tensor([2, 5])}, r"of shape \(samples, 3\), found torch.int64 \(2,\)"),
        ({"patch_positions": torch.zeros(9, 3, dtype=torch.long)}, r"of shape \(10, 3\)"),
        ({"patch_positions": torch.zeros(10, 2, dtype=torch.long)}, r"of shape \(10, 3\)"),
        ({"patch_positions": torch.zeros(10, 3)}, "integer tensor"),
        ({"cu_seqlens": torch.tensor([0, 6, 9])}, "must rise from 0 to the 10 rows"),
        ({"cu_seqlens": torch.tensor([1, 6, 10])}, "must rise from 0 to the 10 rows"),
        ({"cu_seqlens": torch.tensor([0, 0, 10])}, "must rise from 0 to the 10 rows"),
        ({"cu_seqlens": torch.tensor([0, 10])}, r"of shape \(3,\), found torch.int64 \(2,\)"),
        ({"cu_seqlens": torch.tensor([0.0, 6.0, 10.0])}, r"integer tensor of shape \(3,\), found torch.float32"),
        ({"cu_seqlens": torch.tensor([0, 5, 10])}, r"\[5, 5\] tokens, of \[6, 4\] by grid_thw"),
        (
            {"cu_seqlens": torch.tensor([0, 5, 10]), "patch_positions": None},
            r"\[5, 5\] of them.*patch_positions to say which",
        ),
        ({"cu_seqlens": torch.tensor([0, 6, 10]), "max_seqlen": 5}, "max_seqlen=5 is no integer of at least 6"),
        ({"max_seqlen": [6]}, r"max_seqlen=\[6\] is no integer"),
        ({"max_seqlen": 3}, "max_seqlen=3 is no integer of at least 6"),
        ({"pixel_values": torch.zeros(10, 47)}, r"shape \(total_tokens, 48\), found \(10, 47\)"),
        ({"pixel_values": torch.zeros(0, 48)}, r"shape \(total_tokens, 48\)"),
        ({"pixel_values": torch.zeros(1, 3, 8, 8)}, "for the dense model"),
        ({"pixel_values": torch.zeros(10, 48, dtype=torch.uint8)}, "floating point tensor, found torch.uint8"),
        ({"pixel_values": None}, "Pass the flat patches as pixel_values"),
        ({"hidden_states": torch.zeros(10, 48)}, "Pass the flat patches as pixel_values"),
    ],
)
def test_bad_input_is_named(arguments, message):
    packing = as_packing(dense_model(num_hidden_layers=1))
    with pytest.raises(ValueError, match=message):
        packing(**{**GOOD, **arguments})


def test_dense_inputs_are_refused_by_name():
    with pytest.raises(TypeError, match="takes no visible_indices. .* input of the dense model"):
        as_packing(dense_model(num_hidden_layers=1))(**GOOD, visible_indices=torch.zeros(1, 2, dtype=torch.long))


def test_max_seqlen_is_checked_where_lengths_stay_on_the_device():
    """Packs joined by `torch.cat` sometimes keep the first one's. There it is held against the mean length."""
    meta = {"device": "meta"}
    boundaries = torch.zeros(3, dtype=torch.int32, **meta)
    arguments = {"grid_thw": None, "cu_seqlens": boundaries, "patch_positions": torch.zeros(128, 3, **meta)}
    assert sample_lengths(128, max_seqlen=64, **arguments) is None
    with pytest.raises(ValueError, match="max_seqlen=3 is no integer of at least 64"):
        sample_lengths(128, max_seqlen=3, **arguments)


@pytest.mark.parametrize("layout", ["dense", "packing"])
def test_a_clip_without_positions_warns(layout, monkeypatch):
    told = []
    monkeypatch.setattr(inputs_llava_vit.logger, "warning_once", told.append)
    dense = dense_model(num_hidden_layers=1)
    model = dense if layout == "dense" else as_packing(dense)

    def run(frames: int, **positions) -> int:
        if layout == "dense":
            model(random_pixels(1, 3, frames, 8, 8), **positions)
        else:
            positions = {name: value[0] for name, value in positions.items()}
            model(random_pixels(4 * frames, 48), torch.tensor([[frames, 2, 2]]), **positions)
        return len(told)

    # An image, a clip with positions, and one whose frames fill the context.
    assert run(1) == run(2, patch_positions=torch.zeros(1, 8, 3, dtype=torch.long)) == run(64) == 0
    assert run(2) == 1 and "patch_positions" in told[0]
