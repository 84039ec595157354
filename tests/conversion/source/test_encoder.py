# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The oracle against the pretraining code's own outputs, and against its description."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conversion.common.metrics import Bounds, compare
from conversion.source import encoder as source_encoder
from conversion.source.encoder import SourceConfig, SourceEncoder
from tests.conversion.weights import peaked_state_dict, random_pixels, tiny_config


CONFORMANCE_BOUNDS = Bounds(relative_error=2e-5, max_abs=5e-4)


def tiny_encoder(dtype=torch.float32, **overrides) -> SourceEncoder:
    config = tiny_config(**overrides)
    return SourceEncoder.from_state_dict(config, peaked_state_dict(config), dtype)


@pytest.fixture(scope="module")
def golden(conformance):
    weights = torch.load(conformance / "golden" / "backbone.pt", weights_only=True)
    config = SourceConfig(128, 2, 4, 512, 14)
    with np.load(conformance / "golden" / "expected.npz") as expected:
        return SourceEncoder.from_state_dict(config, weights), dict(expected), conformance / "media"


def normalized(pixels) -> torch.Tensor:
    """`(..., H, W, 3)` bytes to `(3, ..., H, W)`."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    return ((torch.from_numpy(np.array(pixels)).float() / 255 - mean) / std).movedim(-1, 0)


def require_agreement(outputs, expected, prefix, step=1):
    tokens = compare(outputs["last_hidden_state"][:, ::step], expected[f"{prefix}.visible_embeddings"])
    assert CONFORMANCE_BOUNDS.check(tokens) == []
    assert CONFORMANCE_BOUNDS.check(compare(outputs["pooled"], expected[f"{prefix}.head_output"])) == []


def test_golden_image(golden):
    encoder, expected, media = golden
    image = Image.open(media / "2.jpg").convert("RGB").resize((12 * 14, 16 * 14), Image.Resampling.BICUBIC)
    require_agreement(encoder(normalized(image)), expected, "source.image")


@pytest.mark.parametrize("number", [1, 2])
def test_golden_video(golden, number):
    decord = pytest.importorskip("decord")
    encoder, expected, media = golden
    reader = decord.VideoReader(str(media / f"{number}.mp4"))
    frames = reader.get_batch(np.linspace(0, len(reader) - 1, 8, dtype=int).tolist()).asnumpy()
    rows, columns = frames.shape[1] // 14, frames.shape[2] // 14
    positions = torch.cartesian_prod(torch.arange(0, 64, 9), torch.arange(rows), torch.arange(columns))
    require_agreement(encoder(normalized(frames), positions), expected, f"source.video{number}", step=7)


def test_golden_bounds_see_the_wrong_epsilon(golden):
    encoder, expected, media = golden
    wrong = SourceEncoder.from_state_dict(SourceConfig(128, 2, 4, 512, 14, norm_eps=1e-6), encoder.state_dict())
    image = Image.open(media / "2.jpg").convert("RGB").resize((12 * 14, 16 * 14), Image.Resampling.BICUBIC)
    tokens = compare(wrong(normalized(image))["last_hidden_state"], expected["source.image.visible_embeddings"])
    assert CONFORMANCE_BOUNDS.check(tokens)


def test_the_oracle_imports_nothing_it_could_share_a_fault_with():
    tree = ast.parse(Path(source_encoder.__file__).read_text(encoding="utf-8"))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {module.split(".")[0] for module in modules} == {"collections", "dataclasses", "torch"}


def test_rotary_embedding_by_hand():
    angles = source_encoder.rotary_angles(torch.tensor([[2, 3, 5]]), head_dim=32, theta=10000.0)[0]
    time = [2.0 * 10000.0 ** (-i / 4) for i in range(4)]
    height = [3.0 * 10000.0 ** (-i / 6) for i in range(6)]
    width = [5.0 * 10000.0 ** (-i / 6) for i in range(6)]
    assert torch.allclose(angles, torch.tensor((time + height + width) * 2), rtol=1e-6)
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    cos, sin = torch.tensor([[0.1, 0.2, 0.3, 0.4]]), torch.tensor([[0.5, 0.6, 0.7, 0.8]])
    expected = x * cos + torch.tensor([[[-2.0, 1.0, -4.0, 3.0]]]) * sin
    assert torch.allclose(source_encoder.rotate(x, cos, sin), expected)


@pytest.mark.parametrize("head_dim, norm", [(32, "layer_norm"), (96, "rms_norm")])
def test_weights_are_peaked_enough_to_show_a_missing_rotary_embedding(head_dim, norm):
    encoder = tiny_encoder(hidden_size=2 * head_dim, layer_norm_type=norm)
    pixels = random_pixels(3, 24, 20)
    right, flat = encoder(pixels), encoder(pixels, torch.zeros(30, 3))
    assert compare(flat["hidden_states"][-2], right["hidden_states"][-2]).min_cosine < 0.9


def test_blocks_of_queries_give_what_one_block_gives(monkeypatch):
    encoder, pixels = tiny_encoder(torch.float64), random_pixels(3, 24, 20)
    whole = encoder(pixels)["last_hidden_state"]
    monkeypatch.setattr(source_encoder, "_BLOCK_SCORES", 2 * 30 * 7)
    assert compare(encoder(pixels)["last_hidden_state"], whole).max_abs < 1e-10


def test_float64_is_near_float32():
    pixels = random_pixels(3, 2, 16, 12)
    single, double = tiny_encoder()(pixels), tiny_encoder(torch.float64)(pixels)
    assert double["last_hidden_state"].dtype == torch.float64
    result = compare(single["last_hidden_state"], double["last_hidden_state"])
    assert 0 < result.relative_error < 2e-5


def test_hidden_states_are_layer_inputs_and_the_last_output():
    encoder, seen = tiny_encoder(), []
    for layer in encoder.transformer.layers:
        layer.register_forward_hook(lambda module, inputs, output: seen.extend([inputs[0], output]))
    outputs = encoder(random_pixels(3, 16, 12))
    states = outputs["hidden_states"]
    assert len(states) == 3
    for state, recorded in zip(states, [seen[0], seen[2], seen[3]], strict=True):
        assert torch.equal(state[0], recorded)
    assert torch.equal(encoder.ln_post(states[-1]), outputs["last_hidden_state"])
    assert outputs["pooled"].shape == (1, 64)


def test_padded_clip_with_visible_indices_equals_direct_positions():
    encoder = tiny_encoder(torch.float64)
    clip, times = random_pixels(3, 2, 8, 12), torch.tensor([0, 5])
    padded = torch.zeros(3, 8, 8, 12)
    padded[:, times] = clip
    visible = (times[:, None] * 6 + torch.arange(6)).flatten()
    positions = torch.cartesian_prod(times, torch.arange(2), torch.arange(3))
    kept, direct = encoder(padded, visible_indices=visible), encoder(clip, positions)
    assert compare(kept["last_hidden_state"], direct["last_hidden_state"]).max_abs < 1e-10
    assert compare(kept["pooled"], direct["pooled"]).max_abs < 1e-10
    assert compare(encoder(clip)["last_hidden_state"], direct["last_hidden_state"]).min_cosine < 0.9


def test_samples_of_a_batch_do_not_see_each_other():
    encoder, clips = tiny_encoder(use_head=False), random_pixels(2, 3, 2, 8, 12)
    batch = encoder(clips)
    assert batch["pooled"] is None
    for index, clip in enumerate(clips):
        assert torch.equal(batch["last_hidden_state"][index], encoder(clip)["last_hidden_state"][0])
    assert encoder(random_pixels(2, 3, 10, 13))["last_hidden_state"].shape == (2, 6, 64)


@pytest.mark.parametrize("shape", [(3, 3, 8, 8), (4, 8, 8), (1, 1, 3, 8, 8), (8, 8), (3, 3, 8)])
def test_pixels_that_cannot_be_told_are_refused(shape):
    with pytest.raises(ValueError, match="pixels"):
        tiny_encoder()(random_pixels(*shape))


def test_wrong_arguments_are_refused():
    encoder, pixels = tiny_encoder(), random_pixels(3, 8, 8)
    with pytest.raises(ValueError, match="positions must be"):
        encoder(pixels, torch.zeros(3, 3))
    with pytest.raises(ValueError, match="both"):
        encoder(pixels, torch.zeros(4, 3), torch.arange(2))
    with pytest.raises(ValueError, match="fits neither"):
        encoder(pixels, torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match="multiple of 32"):
        tiny_config(hidden_size=96)
    with pytest.raises(ValueError, match="does not divide"):
        tiny_config(num_attention_heads=3)


def test_weights_load_strictly():
    config = tiny_config()
    weights = peaked_state_dict(config)
    extra = weights | {"spare": torch.zeros(1)}
    weights.pop("ln_post.bias")
    for state_dict in (weights, extra):
        with pytest.raises(RuntimeError, match="spare|ln_post.bias"):
            SourceEncoder.from_state_dict(config, state_dict)


def test_default_epsilons_are_the_pretraining_codes():
    layer, rms = tiny_config(), tiny_config(layer_norm_type="rms_norm")
    assert layer.norm_eps == torch.nn.LayerNorm(4).eps
    for eps in (rms.norm_eps, layer.head_norm_eps, rms.head_norm_eps):
        assert eps == pytest.approx(torch.finfo(torch.float32).eps, rel=1e-7)
