# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The dense model: its contract, every way of loading it, and bad input."""

import math

import pytest
import torch
from transformers import AutoModel

from llava_vit_hf import LlavaViTConfig, LlavaViTModel
from llava_vit_hf.attention_llava_vit import apply_rotary, rotary_embedding
from llava_vit_hf.grid_llava_vit import frame_positions, temporal_positions
from tests.models import TINY, dense_model, min_cosine, random_pixels


@pytest.fixture(scope="module")
def model():
    return dense_model()


@torch.no_grad()
def test_shapes_of_images_and_clips(model):
    # 33 x 26 pixels hold 8 x 6 whole patches of 4; the rest is dropped.
    images = model(random_pixels(2, 3, 33, 26), output_hidden_states=True)
    assert images.last_hidden_state.shape == (2, 48, 64)
    assert images.pooler_output.shape == (2, 64)
    assert [tuple(state.shape) for state in images.hidden_states] == [(2, 48, 64)] * 4
    assert model(random_pixels(1, 3, 5, 8, 12)).last_hidden_state.shape == (1, 5 * 2 * 3, 64)


@torch.no_grad()
def test_dropped_edge_is_a_crop(model):
    pixels = random_pixels(1, 3, 33, 26)
    assert torch.equal(model(pixels).last_hidden_state, model(pixels[..., :32, :24]).last_hidden_state)


@torch.no_grad()
def test_hidden_states_are_what_the_layers_saw(model):
    seen = []
    hooks = [
        layer.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output[0])))
        for layer in model.encoder.layers
    ]
    hooks.append(model.layernorm_pre.register_forward_hook(lambda module, inputs, output: seen.append(output)))
    hooks.append(model.layernorm_post.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0])))
    output = model(random_pixels(1, 3, 16, 16), output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    before, *layers, last = seen
    assert torch.equal(output.hidden_states[0], before)
    for index, (given, made) in enumerate(layers):
        assert torch.equal(output.hidden_states[index], given)
        assert torch.equal(output.hidden_states[index + 1], made)
    assert torch.equal(output.hidden_states[-1], last)
    assert torch.equal(output.last_hidden_state, model.layernorm_post(last))


@torch.no_grad()
def test_plain_tuple(model):
    pixels = random_pixels(1, 3, 16, 16)
    output, plain = model(pixels), model(pixels, return_dict=False)
    assert isinstance(plain, tuple) and len(plain) == 2
    assert torch.equal(plain[0], output.last_hidden_state) and torch.equal(plain[1], output.pooler_output)


@torch.no_grad()
@pytest.mark.parametrize("layer", [-2, 0, [1, -1], [-2, "pooler"]])
def test_vision_feature_layer_equals_the_full_run(model, layer):
    pixels = random_pixels(1, 3, 16, 16)
    full = model(pixels, output_hidden_states=True)
    output = model(pixels, vision_feature_layer=layer)
    indices = [index for index in (layer if isinstance(layer, list) else [layer]) if index != "pooler"]
    assert len(output.hidden_states) == len(indices)
    for state, index in zip(output.hidden_states, indices, strict=True):
        assert torch.equal(state, full.hidden_states[index])
    if isinstance(layer, list) and "pooler" in layer:
        assert torch.equal(output.pooler_output, full.pooler_output)
    else:
        assert output.last_hidden_state is None and output.pooler_output is None


@torch.no_grad()
def test_vision_feature_layer_stops_there(model):
    calls = []
    hooks = [
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
        for index, layer in enumerate(model.encoder.layers)
    ]
    model(random_pixels(1, 3, 16, 16), vision_feature_layer=-2)
    for hook in hooks:
        hook.remove()
    assert calls == [0, 1]


@torch.no_grad()
def test_visible_indices_and_their_positions(model):
    clip = random_pixels(2, 3, 4, 16, 16)
    indices = torch.stack([torch.tensor([63, 5, 17, 40]), torch.tensor([0, 1, 2, 3])])
    grid = frame_positions(torch.arange(4), 4, 4)
    kept = model(clip, visible_indices=indices).last_hidden_state
    explicit = model(clip, visible_indices=indices, patch_positions=grid[indices]).last_hidden_state
    assert kept.shape == (2, 4, 64) and torch.equal(kept, explicit)
    # Attention is permutation equivariant once positions travel with the tokens.
    shuffled = model(clip, visible_indices=indices.flip(1)).last_hidden_state
    torch.testing.assert_close(shuffled.flip(1), kept, rtol=0, atol=1e-4)


@torch.no_grad()
def test_padded_clip_equals_direct_positions(model):
    frames, times = random_pixels(1, 3, 8, 12, 8), temporal_positions(8)
    padded = torch.zeros(1, 3, 64, 12, 8)
    padded[:, :, times] = frames
    visible = (times[:, None] * 6 + torch.arange(6)).reshape(1, -1)
    positions = frame_positions(times, 3, 2)[None]
    from_padding = model(padded, visible_indices=visible)
    direct = model(frames, patch_positions=positions)
    assert torch.equal(from_padding.last_hidden_state, direct.last_hidden_state)
    assert torch.equal(from_padding.pooler_output, direct.pooler_output)
    natural = model(frames).last_hidden_state
    assert min_cosine(natural, direct.last_hidden_state) < 0.9


@torch.no_grad()
def test_padded_clip_embeds_only_what_is_visible(model):
    rows = []
    hook = model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: rows.append(output.shape))
    model(random_pixels(1, 3, 64, 12, 8), visible_indices=torch.arange(12)[None])
    hook.remove()
    assert rows == [(1, 12, 64)]


@torch.no_grad()
def test_eager_returns_attentions_and_agrees_with_sdpa():
    eager, sdpa = dense_model(attn_implementation="eager"), dense_model(attn_implementation="sdpa")
    pixels = random_pixels(2, 3, 16, 12)
    output = eager(pixels, output_attentions=True)
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 2, 12, 12)] * 3
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(2, 2, 12))
    torch.testing.assert_close(output.last_hidden_state, sdpa(pixels).last_hidden_state, rtol=0, atol=2e-5)
    assert len(sdpa(pixels, output_attentions=True).attentions) == 3


def test_unknown_attention_is_refused():
    with pytest.raises((ValueError, ImportError), match="not_a_backend"):
        LlavaViTModel._from_config(LlavaViTConfig(**TINY), attn_implementation="not_a_backend")
    model = dense_model()
    model.config._attn_implementation_internal = "not_a_backend"
    with pytest.raises(ValueError, match="attn_implementation 'not_a_backend' is not known"):
        model(random_pixels(1, 3, 16, 16))


class TestLoading:
    """The rotary embedding is right however the model came into being."""

    def reference(self, model):
        with torch.no_grad():
            return model(random_pixels(1, 3, 3, 16, 16)).last_hidden_state

    def test_from_pretrained(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        assert torch.equal(self.reference(LlavaViTModel.from_pretrained(tmp_path)), self.reference(model))
        assert torch.equal(self.reference(AutoModel.from_pretrained(tmp_path)), self.reference(model))

    def test_from_config_and_state_dict(self, model):
        other = AutoModel.from_config(model.config).eval()
        assert not torch.equal(self.reference(other), self.reference(model))
        other.load_state_dict(model.state_dict(), strict=True)
        assert torch.equal(self.reference(other), self.reference(model))

    def test_meta_device_then_to_empty(self, model):
        with torch.device("meta"):
            other = LlavaViTModel(model.config)
        assert all(parameter.is_meta for parameter in other.parameters())
        other.to_empty(device="cpu")
        other.load_state_dict(model.state_dict(), strict=True)
        assert torch.equal(self.reference(other.eval()), self.reference(model))

    def test_device_map_auto(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        other = LlavaViTModel.from_pretrained(tmp_path, device_map="auto")
        assert torch.equal(self.reference(other), self.reference(model))

    def test_half_precision_and_back_keeps_the_frequencies(self, model):
        other = dense_model().to(torch.bfloat16).float()
        weights = {name: value.bfloat16().float() for name, value in model.state_dict().items()}
        plain = dense_model()
        plain.load_state_dict(weights)
        assert torch.equal(self.reference(other), self.reference(plain))

    def test_there_are_no_buffers(self, model):
        assert list(model.buffers()) == []

    def test_every_parameter_is_initialised(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            fresh = LlavaViTModel(LlavaViTConfig(**TINY))
        for name, parameter in fresh.named_parameters():
            if parameter.ndim > 1:
                assert parameter.std().item() == pytest.approx(0.02, rel=0.15), name
            else:
                assert torch.equal(parameter, torch.full_like(parameter, float("norm" in name and "weight" in name)))


def closed_form_rotation(states: torch.Tensor, position: tuple[int, int, int]) -> torch.Tensor:
    """One token `(64,)`, channel by channel in Python floats."""
    angles = []
    for coordinate, channels in zip(position, (8, 12, 12), strict=True):
        angles += [coordinate * 10000.0 ** (-index / channels) for index in range(channels)]
    angles *= 2
    rotated = []
    for index in range(0, 64, 2):
        x0, x1 = states[index].item(), states[index + 1].item()
        rotated.append(x0 * math.cos(angles[index]) - x1 * math.sin(angles[index]))
        rotated.append(x1 * math.cos(angles[index + 1]) + x0 * math.sin(angles[index + 1]))
    return torch.tensor(rotated, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rotation_is_the_closed_form(dtype):
    positions = [(0, 0, 0), (63, 5, 7), (9, 40, 0)]
    states = random_pixels(3, 1, 64).to(dtype)
    precise = torch.promote_types(dtype, torch.float32)
    rotary = rotary_embedding(torch.tensor(positions), 64, 10000.0, precise)
    rotated = apply_rotary(states, rotary)
    assert rotated.dtype == dtype
    # Angles are float32 up to 63, so even in float64 they carry its rounding.
    tolerance = {torch.float32: 2e-5, torch.float64: 2e-5, torch.bfloat16: 2e-2}[dtype]
    for index, position in enumerate(positions):
        expected = closed_form_rotation(states[index, 0], position)
        torch.testing.assert_close(rotated[index, 0].double(), expected, rtol=0, atol=tolerance)
    assert torch.equal(rotated[0], states[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pixel_values": torch.zeros(1, 3, 3, 16)}, r"smaller than one patch"),
        ({"pixel_values": torch.zeros(1, 4, 16, 16)}, r"must have shape \(B, 3, H, W\)"),
        ({"pixel_values": torch.zeros(16, 48)}, "for the packing model"),
        ({"pixel_values": torch.zeros(0, 3, 16, 16)}, r"must have shape \(B, 3, H, W\)"),
        ({"pixel_values": torch.zeros(1, 3, 16, 16, dtype=torch.uint8)}, "floating point tensor, found torch.uint8"),
        ({"visible_indices": torch.tensor([[0, 16]])}, "must be from 0 to 15 .* found 0 to 16"),
        ({"visible_indices": torch.tensor([[-1, 3]])}, "found -1 to 3"),
        ({"visible_indices": torch.tensor([0, 3])}, r"of shape \(1, K\)"),
        ({"visible_indices": torch.tensor([[0.0, 3.0]])}, "integer tensor of .*found torch.float32"),
        ({"patch_positions": torch.zeros(1, 15, 3, dtype=torch.long)}, r"of shape \(1, 16, 3\)"),
        ({"patch_positions": torch.zeros(1, 16, 3)}, "must be an integer tensor"),
        (
            {"visible_indices": torch.tensor([[0, 3]]), "patch_positions": torch.zeros(1, 16, 3, dtype=torch.long)},
            r"of shape \(1, 2, 3\)",
        ),
        ({"vision_feature_layer": 4}, "expected an integer from -4 to 3"),
        ({"vision_feature_layer": []}, "vision_feature_layer is empty"),
        (
            {"vision_feature_layer": -2, "output_hidden_states": True},
            "hidden_states=True .*pass one of the two",
        ),
    ],
)
def test_bad_input_is_named(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model(**{"pixel_values": torch.zeros(1, 3, 16, 16), **arguments})


def test_packing_inputs_are_refused_by_name():
    with pytest.raises(TypeError, match="takes no cu_seqlens, grid_thw.*packing model"):
        dense_model()(torch.zeros(4, 588), grid_thw=torch.tensor([[1, 2, 2]]), cu_seqlens=torch.tensor([0, 4]))
