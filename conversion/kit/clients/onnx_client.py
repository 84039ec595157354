# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Runs the exported dense models in ONNX Runtime over the kit; see export_dense.py.

    python clients/onnx_client.py onnx_models outputs.npz
    python check.py outputs.npz

Needs onnxruntime, numpy and safetensors. Preprocessing is that of numpy_client.py beside it; the samples of a pack go
through the model one after another. The graphs know no selection of patches; a token is told by its position alone, so
what is selected goes in as a picture of one row of patches, with the positions that they had.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from numpy_client import normalize, patchify
from safetensors.numpy import load_file


ARRAYS = ("embeddings", "hidden_states", "last_hidden_state", "pooled")


def one_row(pixels, visible, size):
    """The selected patches of `(3, T, H, W)` side by side: `(3, 1, size, N * size)`."""
    patches = patchify(pixels, size)[visible].reshape(-1, 3, size, size)
    return patches.transpose(1, 2, 0, 3).reshape(3, 1, size, -1)


def run_case(session, inputs, size):
    """All outputs of a case, from its raw pixels."""
    bounds, parts = inputs["cu_seqlens"], []
    for number, (start, end) in enumerate(zip(bounds[:-1], bounds[1:])):
        pixels = normalize(inputs[f"pixels.{number}"])
        visible = inputs.get(f"visible_indices.{number}")
        if visible is not None:
            pixels = one_row(pixels, visible, size)
        positions = inputs["positions"][start:end]
        parts.append(session.run(ARRAYS, {"pixel_values": pixels[None], "patch_positions": positions[None]}))
    embeddings, states, last, pooled = zip(*parts)
    joined = (np.concatenate(embeddings), np.concatenate(states, axis=1), np.concatenate(last), np.concatenate(pooled))
    return dict(zip(ARRAYS, joined))


def run_kit(kit, models):
    """The outputs of all checkpoints and cases under the names that check.py asks for."""
    outputs = {}
    description = json.loads((kit / "kit.json").read_text())
    for checkpoint, config in description["checkpoints"].items():
        session = onnxruntime.InferenceSession(models / f"{checkpoint}.onnx", providers=["CPUExecutionProvider"])
        inputs = load_file(kit / checkpoint / "inputs.safetensors")
        for case in description["cases"]:
            of_case = {name.split("/")[1]: array for name, array in inputs.items() if name.startswith(f"{case}/")}
            for name, array in run_case(session, of_case, config["patch_size"]).items():
                outputs[f"{checkpoint}/{case}/{name}"] = array
    return outputs


if __name__ == "__main__":
    np.savez(sys.argv[2], **run_kit(Path(__file__).resolve().parents[1], Path(sys.argv[1])))
