# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""`tp_plan="auto"`: a model split over two processes on a CPU gives the features of the whole one."""

import pytest
import torch
import transformers

from llava_vit_hf import LlavaViTPackingModel
from tests.models import as_packing, dense_model, min_cosine, random_pixels
from tests.processes import run_in_two


# One of two processes: loads its part, and saves how much that is and what it computes.
PART = """
import os, sys, torch
from llava_vit_hf import LlavaViTModel
model = LlavaViTModel.from_pretrained(sys.argv[1], tp_plan="auto").eval()
with torch.no_grad():
    output = model(torch.load(sys.argv[1] + "/pixels.pt"), output_hidden_states=True)
layer = model.encoder.layers[0]
weights = (layer.self_attn.q_proj, layer.self_attn.out_proj, layer.mlp.fc1, layer.mlp.fc2)
# transformers 4 has plain parameters in places.
shapes = [tuple(getattr(module.weight, "to_local", lambda: module.weight)().shape) for module in weights]
torch.save((shapes, output.hidden_states[-2], output.pooler_output), sys.argv[1] + f"/{os.environ['RANK']}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.long
def test_two_processes_give_the_features_of_one(tmp_path):
    model, pixels = dense_model(), random_pixels(2, 3, 16, 20)
    model.save_pretrained(tmp_path)
    torch.save(pixels, tmp_path / "pixels.pt")
    run_in_two(PART, tmp_path)
    with torch.no_grad():
        expected = model(pixels, output_hidden_states=True)
    for rank in range(2):
        shapes, states, pooled = torch.load(tmp_path / f"{rank}.pt")
        # Half of the heads, and half of the MLP's channels, which transformers 4 leaves whole.
        inner = 64 if transformers.__version__ >= "5" else 128
        assert shapes == [(32, 64), (64, 32), (inner, 64), (64, inner)]
        torch.testing.assert_close(states, expected.hidden_states[-2], atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(pooled, expected.pooler_output, atol=2e-4, rtol=2e-4)
        assert min_cosine(states, expected.hidden_states[-2]) > 0.999999


def test_the_packing_model_says_that_it_cannot(tmp_path):
    as_packing(dense_model()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="^tp_plan='auto'.*dense"):
        LlavaViTPackingModel.from_pretrained(tmp_path, tp_plan="auto")
    assert LlavaViTPackingModel.from_pretrained(tmp_path)
