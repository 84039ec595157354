# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Exports the kit's dense models to ONNX, for onnx_client.py.

    python clients/export_dense.py onnx_models

Needs torch, transformers, onnx and onnxscript, and runs the code in the dense folders. The graphs take images and
clips of any size, with the positions of their patches.
"""

import json
import sys
from pathlib import Path

import torch
from torch.export import Dim
from transformers import AutoModel


class AllOutputs(torch.nn.Module):
    """The dense model with the outputs of the kit, for one sample."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values, patch_positions):
        """Pixels `(1, 3, T, H, W)` and positions `(1, N, 3)`."""
        embeddings, _ = self.model.embeddings(pixel_values)
        output = self.model(pixel_values, patch_positions=patch_positions, output_hidden_states=True)
        states = torch.cat(output.hidden_states)
        return embeddings[0], states, output.last_hidden_state[0], output.pooler_output


def export(folder, path):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, attn_implementation="eager").eval()
    size = model.config.patch_size
    example = (torch.zeros(1, 3, 2, 3 * size, 5 * size), torch.zeros(1, 2 * 3 * 5, 3, dtype=torch.int64))
    torch.onnx.export(
        AllOutputs(model),
        example,
        path,
        dynamo=True,
        verbose=False,
        external_data=False,
        input_names=["pixel_values", "patch_positions"],
        output_names=["embeddings", "hidden_states", "last_hidden_state", "pooled"],
        dynamic_shapes=(dict.fromkeys((2, 3, 4), Dim.DYNAMIC), {1: Dim.DYNAMIC}),
    )


if __name__ == "__main__":
    kit, target = Path(__file__).resolve().parents[1], Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for checkpoint in json.loads((kit / "kit.json").read_text())["checkpoints"]:
        export(kit / checkpoint / "dense", target / f"{checkpoint}.onnx")
