# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Two processes with packs of different sizes have the gradients of one process with all samples."""

from pathlib import Path

import pytest
import torch

from llava_vit_hf import LlavaViTPackingModel
from tests.llava_vit_hf import distributed_steps as steps
from tests.models import as_packing, dense_model
from tests.processes import run_in_two


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    as_packing(dense_model()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ranks(folder) -> list[dict]:
    """What each of two processes found."""
    run_in_two(steps.PROGRAM.format(name="gradients_in_two"), folder)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def in_one(model) -> dict[str, torch.Tensor]:
    for rank in (0, 1):
        steps.loss_on_tokens(model, rank).backward()
    return steps.gradients(model)


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, gradient in found.items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-5 * scale + 1e-7, msg=name)


@pytest.mark.parametrize("checkpointing", steps.CHECKPOINTING, ids=["kept", "checkpointed"])
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_gradients_are_those_of_one_process(folder, ranks, wrapper, checkpointing):
    expected = in_one(steps.load(folder, use_head=False))
    for rank in ranks:
        found, calls = rank[wrapper, checkpointing]
        same(found, expected)
        assert calls == (4 if checkpointing else 2)
    # Of one rank alone they are others.
    alone = steps.load(folder, use_head=False)
    (2 * steps.loss_on_tokens(alone, 0)).backward()
    with pytest.raises(AssertionError):
        same(steps.gradients(alone), expected)


def test_lora_without_a_head(folder, ranks):
    pytest.importorskip("peft", reason="peft is not installed")
    expected = in_one(steps.with_lora(folder))
    assert expected and all("lora_" in name and ".head." not in name for name in expected)
    for rank in ranks:
        same(rank["lora"], expected)


def test_the_head_that_a_loss_on_tokens_leaves_out_stops_ddp(ranks):
    for rank in ranks:
        assert "parameters that were not used in producing loss" in rank["with the head"]


def test_trainer_with_checkpointing(folder):
    model = steps.load(folder, use_head=False)
    gradients = in_one(model)
    run_in_two(steps.PROGRAM.format(name="trainer_in_two"), folder)
    for rank in (0, 1):
        trained = torch.load(folder / f"{rank}.pt")
        step = {name: (weight.detach() - trained[name]) / 0.01 for name, weight in model.named_parameters()}
        for name, change in step.items():
            # A weight of size 1 holds its change to 6e-8, a hundred times that of the gradient.
            torch.testing.assert_close(change, gradients[name], rtol=1e-3, atol=2e-5, msg=name)


@torch.no_grad()
def test_without_what_follows_a_layer_the_output_is_its_state(folder):
    """What the guides advise where a loss takes the second-to-last layer."""
    whole = LlavaViTPackingModel.from_pretrained(folder).eval()
    part = LlavaViTPackingModel.from_pretrained(folder, use_head=False, use_post_norm=False, num_hidden_layers=2)
    expected = whole(**steps.pack_of(0), vision_feature_layer=-2).hidden_states[0]
    assert torch.equal(part.eval()(**steps.pack_of(0)).last_hidden_state, expected)
    names = {name for name, _ in part.named_parameters()}
    assert names < {name for name, _ in whole.named_parameters()} and not any("head." in name for name in names)
