# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Inference on a CPU takes a large pack part by part: the same bits, and hooks that see what they always saw."""

import pytest
import torch

from llava_vit_hf import modeling_llava_vit, segments_llava_vit
from llava_vit_hf.segments_llava_vit import Segments
from tests.llava_vit_hf.both_models import LAYOUTS, make_case
from tests.models import as_packing, dense_model, random_pixels


ROWS = 64
# Equal lengths apart and together, samples longer than a part, and runs of samples that fill one exactly.
GRIDS = [(1, 8, 5), (1, 4, 5), (2, 10, 8), (1, 8, 5), *[(1, 4, 4)] * 7, (1, 8, 8), (1, 4, 5), (3, 5, 5)]


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of 64 rows, and the rows that each call of an MLP got."""
    for module in (segments_llava_vit, modeling_llava_vit):
        monkeypatch.setattr(module, "CPU_ROWS", ROWS)
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
    assert max(small_parts) > 3 * ROWS
    small_parts.clear()
    with torch.no_grad():
        in_parts = outputs(model, **inputs)
    assert max(small_parts) <= ROWS and len(small_parts) > 3 * 3
    for actual, expected in zip(in_parts, whole, strict=True):
        assert torch.equal(actual, expected)


def test_a_part_is_whole_samples_or_one_longer():
    lengths = [70, 3, 3, 3, 60, 64, 1, 20, 20, 20, 20, 130]
    found = []
    for rows, part in Segments.from_lengths(sorted(lengths), torch.device("cpu")).parts:
        part_lengths = part.cu_seqlens.diff().tolist()
        assert part.cu_seqlens[0] == 0 and part.cu_seqlens[-1] == rows.stop - rows.start
        assert part.max_seqlen == max(part_lengths)
        assert [length for *_, count, length in part.runs for _ in range(count)] == part_lengths
        found += part_lengths
    assert found == sorted(lengths)


@pytest.mark.parametrize("rows", [1, 20, 64, 1000])
def test_parts_cover_every_row_once(monkeypatch, rows):
    monkeypatch.setattr(segments_llava_vit, "CPU_ROWS", rows)
    lengths = [70, 3, 3, 3, 60, 64, 1, 20, 20, 20, 20, 130]
    parts = Segments.from_lengths(lengths, torch.device("cpu")).parts
    assert [part.start for part, _ in parts] == [0, *(part.stop for part, _ in parts[:-1])]
    assert parts[-1][0].stop == sum(lengths)
    for part, segments in parts:
        assert segments.samples == 1 or part.stop - part.start <= rows


@torch.no_grad()
@pytest.mark.parametrize("name", ["mlp.fc1", "layer_norm1", "self_attn"])
def test_hooks_see_all_rows(small_parts, name):
    model = as_packing(dense_model())
    inputs, seen = pack(), []
    expected = model(**inputs).last_hidden_state
    hook = (
        model.encoder.layers[1]
        .get_submodule(name)
        .register_forward_hook(lambda module, arguments, output: seen.append(arguments[0].shape[0]))
    )
    assert torch.equal(model(**inputs).last_hidden_state, expected)
    assert seen == [len(inputs["pixel_values"])]
    hook.remove()
    # One on the layer itself sees them anyway, and costs nothing.
    small_parts.clear()
    model.encoder.layers[1].register_forward_hook(lambda module, arguments, output: seen.append(output[0].shape[0]))
    assert torch.equal(model(**inputs).last_hidden_state, expected)
    assert seen == [len(inputs["pixel_values"])] * 2 and max(small_parts) <= ROWS


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_weights_are_not_cut(small_parts, layout):
    case = make_case(layout, attn_implementation="eager")
    before = case.model(**case.inputs, output_attentions=True)
    segments_llava_vit.CPU_ROWS = modeling_llava_vit.CPU_ROWS = 10_000
    after = case.model(**case.inputs, output_attentions=True)
    for actual, expected in zip(before.attentions, after.attentions, strict=True):
        for one, other in zip(actual, expected, strict=True):
            assert torch.equal(one, other)
