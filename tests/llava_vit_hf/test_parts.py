# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Inference on a CPU gives an MLP some rows at a time, and attention of many tokens some heads: the same bits, and
hooks that see what they always saw."""

import pytest
import torch

from llava_vit_hf import attention_llava_vit, modeling_llava_vit
from tests.llava_vit_hf.both_models import LAYOUTS
from tests.models import as_packing, dense_model, random_pixels


ROWS, LONG = 64, 16
GRIDS = [(1, 8, 5), (1, 4, 5), (2, 10, 8), (1, 8, 5), *[(1, 4, 4)] * 7, (1, 8, 8), (1, 4, 5), (3, 5, 5)]


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of 64 rows, and the rows that each call of an MLP got."""
    monkeypatch.setattr(modeling_llava_vit, "CPU_ROWS", ROWS)
    rows, forward = [], modeling_llava_vit.LlavaViTMLP.forward

    def record(self, hidden_states):
        rows.append(hidden_states.shape[:-1].numel())
        return forward(self, hidden_states)

    monkeypatch.setattr(modeling_llava_vit.LlavaViTMLP, "forward", record)
    return rows


def pack() -> dict[str, torch.Tensor]:
    return {
        "pixel_values": random_pixels(sum(t * h * w for t, h, w in GRIDS), 48),
        "grid_thw": torch.tensor(GRIDS),
    }


def outputs(model, **inputs) -> list[torch.Tensor]:
    found = model(**inputs, output_hidden_states=True)
    return [*found.hidden_states, found.last_hidden_state, found.pooler_output]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parts_give_the_same_bits(small_parts, layout, dtype):
    dense = dense_model().to(dtype)
    model = dense if layout == "dense" else as_packing(dense)
    inputs = {"pixel_values": random_pixels(9, 3, 20, 20)} if layout == "dense" else pack()
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    whole = outputs(model, **inputs)  # gradients are on: in one piece
    rows = small_parts[0]
    assert rows > 3 * ROWS
    small_parts.clear()
    with torch.no_grad():
        in_parts = outputs(model, **inputs)
    assert small_parts[:4] == [ROWS, ROWS, ROWS, min(ROWS, rows - 3 * ROWS)] and max(small_parts) == ROWS
    for actual, expected in zip(in_parts, whole, strict=True):
        assert torch.equal(actual, expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mlp", "mlp.fc1", "layer_norm2", ""])
def test_hooks_see_all_rows(small_parts, name):
    model = as_packing(dense_model())
    inputs, seen = pack(), []
    expected = model(**inputs).last_hidden_state
    layer = model.encoder.layers[1]
    layer.get_submodule(name).register_forward_hook(lambda module, arguments, _: seen.append(len(arguments[0])))
    small_parts.clear()
    assert torch.equal(model(**inputs).last_hidden_state, expected)
    assert seen == [len(inputs["pixel_values"])]
    # Only within the MLP is there anything to give up for them.
    assert (max(small_parts) > ROWS) == name.startswith("mlp")


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_hook_on_attention_sees_all_rows(small_parts, layout):
    """And the same bits as in parts."""
    dense = dense_model()
    model = dense if layout == "dense" else as_packing(dense)
    inputs = (
        {"pixel_values": random_pixels(1, 3, 40, 40)}
        if layout == "dense"
        else {
            "pixel_values": random_pixels(100, 48),
            "grid_thw": torch.tensor([[1, 10, 10]]),
        }
    )
    in_parts, seen = outputs(model, **inputs), []
    for layer in model.encoder.layers:
        layer.self_attn.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[:-1].numel()))
    for actual, expected in zip(outputs(model, **inputs), in_parts, strict=True):
        assert torch.equal(actual, expected)
    assert seen == [100] * len(model.encoder.layers)


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("groups", [2, 3])
def test_some_heads_at_a_time_give_the_same_bits(small_parts, monkeypatch, layout, dtype, groups):
    dense = dense_model(hidden_size=128, num_attention_heads=4).to(dtype)
    model = dense if layout == "dense" else as_packing(dense)
    inputs = {"pixel_values": random_pixels(9, 3, 20, 20)} if layout == "dense" else pack()
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    whole = outputs(model, **inputs)
    monkeypatch.setattr(attention_llava_vit, "GROUPED_TOKENS", LONG)
    monkeypatch.setattr(attention_llava_vit, "HEAD_GROUPS", groups)
    heads, project = [], attention_llava_vit.LlavaViTAttention.project_heads
    monkeypatch.setattr(
        attention_llava_vit.LlavaViTAttention,
        "project_heads",
        lambda self, states, some: heads.append(some) or project(self, states, some),
    )
    for actual, expected in zip(outputs(model, **inputs), whole, strict=True):
        assert torch.equal(actual, expected)
    # Of four heads both make groups of two.
    assert {(some.start, some.stop) for some in heads} == {(0, 2), (2, 4)}


@torch.no_grad()
def test_weights_of_heads_in_groups_are_put_together(small_parts, monkeypatch):
    model, inputs = as_packing(dense_model(hidden_size=128, num_attention_heads=4)), pack()
    model.set_attn_implementation("eager")
    whole = model(**inputs, output_attentions=True).attentions
    monkeypatch.setattr(attention_llava_vit, "GROUPED_TOKENS", LONG)
    in_groups = model(**inputs, output_attentions=True).attentions
    for ours, theirs in zip(in_groups, whole, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, other)


@torch.no_grad()
def test_an_adapter_in_place_of_the_projection_is_asked_as_a_whole(small_parts, monkeypatch):
    class Adapted(torch.nn.Linear):
        def forward(self, states):
            return super().forward(states) + 1

    model, inputs = as_packing(dense_model()), pack()
    for layer in model.encoder.layers:
        layer.self_attn.qkv.__class__ = Adapted
    whole = outputs(model, **inputs)
    monkeypatch.setattr(attention_llava_vit, "GROUPED_TOKENS", LONG)
    for actual, expected in zip(outputs(model, **inputs), whole, strict=True):
        assert torch.equal(actual, expected)


@torch.no_grad()
def test_short_samples_are_not_grouped(small_parts, monkeypatch):
    """However many they are: each call of attention costs."""
    monkeypatch.setattr(attention_llava_vit, "GROUPED_TOKENS", max(t * h * w for t, h, w in GRIDS))
    monkeypatch.setattr(attention_llava_vit.LlavaViTAttention, "project_heads", None)
    as_packing(dense_model())(**pack())
