# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The encoder in NumPy alone, as encoder.md describes it: from the kit's raw pixels to all of its outputs.

    python clients/numpy_client.py outputs.npz
    python check.py outputs.npz

Written to be read beside that page and to be compared with, in float32; needs numpy and safetensors.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)

# NumPy has no erf.
erf = np.vectorize(math.erf, otypes=[np.float32])


def normalize(frames):
    """Section 1: `(T, H, W, 3)` uint8 to `(3, T, H, W)` float32."""
    return ((frames.astype(np.float32) / 255 - MEAN) / STD).transpose(3, 0, 1, 2)


def patchify(pixels, size):
    """Section 1: `(3, T, H, W)` to flat patches `(N, 3 * size * size)`."""
    _, frames, height, width = pixels.shape
    rows, columns = height // size, width // size
    blocks = pixels[:, :, : rows * size, : columns * size].reshape(3, frames, rows, size, columns, size)
    # (3, t, h, P, w, P) -> (t, h, w, 3, P, P)
    return blocks.transpose(1, 2, 4, 0, 3, 5).reshape(frames * rows * columns, -1)


def rotary_angles(positions, head_dim, theta):
    """Section 4: positions `(N, 3)` to angles `(N, head_dim)`, in float32."""
    sixteenth = head_dim // 32
    angles = []
    for axis, n in enumerate((4 * sixteenth, 6 * sixteenth, 6 * sixteenth)):
        frequencies = 1 / np.float32(theta) ** (np.arange(n, dtype=np.float32) / n)
        angles.append(positions[:, axis, None].astype(np.float32) * frequencies.astype(np.float32))
    return np.concatenate(angles + angles, axis=1)


def rotate(x, angles):
    """Section 4: turns neighbouring channels of `(heads, N, D)` by angles `(N, D)`."""
    turned = np.empty_like(x)
    turned[..., 0::2], turned[..., 1::2] = -x[..., 1::2], x[..., 0::2]
    return x * np.cos(angles) + turned * np.sin(angles)


def gelu(x):
    return x * (1 + erf(x / math.sqrt(2))) / 2


def layer_norm(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


def rms_norm(x, weight, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def attend(q, k, v):
    """Section 3: `softmax(q k^T D^-0.5) v` of `(heads, N, D)`; the queries may be fewer."""
    scores = q @ k.transpose(0, 2, 1) * q.shape[-1] ** -0.5
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return scores / scores.sum(-1, keepdims=True) @ v


def linear(x, weight, bias):
    return x @ weight.T + bias


class Encoder:
    """A checkpoint of the kit."""

    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = load_file(folder / "backbone.safetensors")
        self.heads = self.config["num_attention_heads"]

    def norm(self, x, name):
        """Section 3, norms."""
        weight, eps = self.weights[f"{name}.weight"], self.config["norm_eps"]
        if self.config["layer_norm_type"] == "rms_norm":
            return rms_norm(x, weight, eps)
        return layer_norm(x, weight, self.weights[f"{name}.bias"], eps)

    def linear(self, x, name):
        return linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def split(self, x):
        """`(N, C)` to heads `(heads, N, D)`."""
        return x.reshape(len(x), self.heads, -1).transpose(1, 0, 2)

    def merge(self, x):
        return x.transpose(1, 0, 2).reshape(x.shape[1], -1)

    def layer(self, x, angles, name):
        """Section 3: one layer over the tokens `(N, C)` of a sample."""
        q, k, v = np.split(self.linear(self.norm(x, f"{name}.ln_1"), f"{name}.attn.in_proj"), 3, axis=1)
        q, k, v = rotate(self.split(q), angles), rotate(self.split(k), angles), self.split(v)
        x = x + self.linear(self.merge(attend(q, k, v)), f"{name}.attn.out_proj")
        inner = gelu(self.linear(self.norm(x, f"{name}.ln_2"), f"{name}.mlp.0"))
        return x + self.linear(inner, f"{name}.mlp.2")

    def head(self, x):
        """Section 5: tokens `(N, C)` to a vector `(C,)`."""
        weights = np.split(self.weights["head.attention.in_proj_weight"], 3)
        biases = np.split(self.weights["head.attention.in_proj_bias"], 3)
        inputs = (self.weights["head.probe"][0], x, x)
        q, k, v = (self.split(linear(*part)) for part in zip(inputs, weights, biases))
        y = self.linear(self.merge(attend(q, k, v)), "head.attention.out_proj")
        inner = rms_norm(y, self.weights["head.norm.weight"], self.config["head_norm_eps"])
        return (y + self.linear(gelu(self.linear(inner, "head.mlp.fc1")), "head.mlp.fc2"))[0]

    def __call__(self, embeddings, positions):
        """Sections 3 to 6: embedded tokens `(N, C)` of one sample and their positions `(N, 3)`."""
        angles = rotary_angles(positions, self.config["hidden_size"] // self.heads, self.config["rope_theta"])
        states = [self.norm(embeddings, "ln_pre")]
        for number in range(self.config["num_hidden_layers"]):
            states.append(self.layer(states[-1], angles, f"transformer.layers.{number}"))
        last = self.norm(states[-1], "ln_post")
        return np.stack(states), last, self.head(last)


def run_case(encoder, inputs):
    """All outputs of a case, from its raw pixels; samples one after another."""
    size, width = encoder.config["patch_size"], encoder.config["hidden_size"]
    bounds, parts = inputs["cu_seqlens"], []
    for number, (start, end) in enumerate(zip(bounds[:-1], bounds[1:])):
        patches = patchify(normalize(inputs[f"pixels.{number}"]), size)
        patches = patches[inputs.get(f"visible_indices.{number}", slice(None))]
        embeddings = patches @ encoder.weights["conv1.weight"].reshape(width, -1).T
        parts.append((embeddings, *encoder(embeddings, inputs["positions"][start:end])))
    embeddings, states, last, pooled = zip(*parts)
    return {
        "embeddings": np.concatenate(embeddings),
        "hidden_states": np.concatenate(states, axis=1),
        "last_hidden_state": np.concatenate(last),
        "pooled": np.stack(pooled),
    }


def run_kit(kit):
    """The outputs of all checkpoints and cases under the names that check.py asks for."""
    outputs = {}
    description = json.loads((kit / "kit.json").read_text())
    for checkpoint in description["checkpoints"]:
        encoder, inputs = Encoder(kit / checkpoint), load_file(kit / checkpoint / "inputs.safetensors")
        for case in description["cases"]:
            of_case = {name.split("/")[1]: array for name, array in inputs.items() if name.startswith(f"{case}/")}
            for name, array in run_case(encoder, of_case).items():
                outputs[f"{checkpoint}/{case}/{name}"] = array
    return outputs


if __name__ == "__main__":
    np.savez(sys.argv[1], **run_kit(Path(__file__).resolve().parents[1]))
