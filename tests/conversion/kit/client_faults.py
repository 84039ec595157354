# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Mistakes for the kit's NumPy client: a text that stands in it exactly once, and what replaces it.

They are made here a second time, in another program than the oracle and in other words, so that a name that `check.py`
gives is earned.
"""

import types
from pathlib import Path


_POSITIONS = 'inputs["positions"][start:end]))'
_AT_TIMES = (
    "(lambda p, frames: np.c_[p[:, 0].min() + {}, p[:, 1:]])("
    '(p := inputs["positions"][start:end]), np.unique(p[:, 0], return_inverse=True)[1])))'
)

# By the name of the fault that check.py should give.
KNOWN = {
    "bgr": ("(frames.astype(np.float32)", "(frames[..., ::-1].astype(np.float32)"),
    "not_normalized": ("/ 255 - MEAN) / STD)", "/ 255))"),
    "imagenet_normalization": (
        "/ 255 - MEAN) / STD)",
        "/ 255 - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225]))",
    ),
    "patch_channels_last": ("blocks.transpose(1, 2, 4, 0, 3, 5)", "blocks.transpose(1, 2, 4, 3, 5, 0)"),
    "weight_channels_last": (
        'encoder.weights["conv1.weight"].reshape(width, -1)',
        'np.moveaxis(encoder.weights["conv1.weight"], 1, 3).reshape(width, -1)',
    ),
    "patch_transposed": ("blocks.transpose(1, 2, 4, 0, 3, 5)", "blocks.transpose(1, 2, 4, 0, 5, 3)"),
    "height_width_swapped": ("positions[:, axis, None]", "positions[:, (0, 2, 1)[axis], None]"),
    "axes_reversed": ("positions[:, axis, None]", "positions[:, 2 - axis, None]"),
    "time_zeroed": ("positions[:, axis, None]", "(positions[:, axis, None] * int(axis > 0))"),
    "frame_numbers": (_POSITIONS, _AT_TIMES.format("frames")),
    "times_truncated": (_POSITIONS, _AT_TIMES.format("frames * 63 // max(frames.max(), 1)")),
    "rows_shifted": ("positions[:, axis, None]", "(positions[:, axis, None] + (axis == 1))"),
    "positions_from_one": ("positions[:, axis, None]", "(positions[:, axis, None] + (axis > 0))"),
    "no_rotation": ("rotate(self.split(q), angles), rotate(self.split(k), angles)", "self.split(q), self.split(k)"),
    "rotate_half": (
        "turned[..., 0::2], turned[..., 1::2] = -x[..., 1::2], x[..., 0::2]",
        "half = x.shape[-1] // 2; turned = np.concatenate([-x[..., half:], x[..., :half]], axis=-1)",
    ),
    "interleaved_angles": (
        "np.concatenate(angles + angles, axis=1)",
        "np.repeat(np.concatenate(angles, axis=1), 2, axis=1)",
    ),
    "rotated_backwards": ("+ turned * np.sin(angles)", "- turned * np.sin(angles)"),
    "split_6_6_4": ("(4 * sixteenth, 6 * sixteenth, 6 * sixteenth)", "(6 * sixteenth, 6 * sixteenth, 4 * sixteenth)"),
    "one_row_of_frequencies": (
        "(np.arange(n, dtype=np.float32) / n)",
        "((np.arange(n, dtype=np.float32) + (0, 4, 10)[axis] * sixteenth) / (16 * sixteenth))",
    ),
    "bfloat16_angles": (
        "np.concatenate(angles + angles, axis=1)",
        "((np.concatenate(angles + angles, axis=1).view(np.uint32) + 2**15) & 0xFFFF0000).view(np.float32)",
    ),
    "rope_theta": ("1 / np.float32(theta)", "1 / np.float32(1e6)"),
    "query_key_exchanged": ("q, k, v = np.split(self.linear(self.norm", "k, q, v = np.split(self.linear(self.norm"),
    "qkv_by_head": (
        'np.split(self.linear(self.norm(x, f"{name}.ln_1"), f"{name}.attn.in_proj"), 3, axis=1)',
        '(part.reshape(len(x), -1) for part in np.moveaxis(self.linear(self.norm(x, f"{name}.ln_1"), '
        'f"{name}.attn.in_proj").reshape(len(x), self.heads, 3, -1), 2, 0))',
    ),
    "not_scaled": (" * q.shape[-1] ** -0.5", ""),
    "scaled_by_width": (" * q.shape[-1] ** -0.5", " * (len(q) * q.shape[-1]) ** -0.5"),
    "no_qkv_bias": (
        'self.linear(self.norm(x, f"{name}.ln_1"), f"{name}.attn.in_proj")',
        'self.norm(x, f"{name}.ln_1") @ self.weights[f"{name}.attn.in_proj.weight"].T',
    ),
    "causal": (
        "    scores = np.exp(",
        "    if len(scores[0]) > 1:  # not in the head\n"
        "        scores = np.where(np.tri(len(scores[0]), dtype=bool), scores, np.float32(-np.inf))\n"
        "    scores = np.exp(",
    ),
    "frames_apart": (
        'attend(q, k, v)), f"{name}.attn',
        # The first angle of a token is its t.
        "sum(attend(q, k[:, frame], v[:, frame]) * frame[:, None].astype(np.float32) "
        'for t in np.unique(angles[:, 0]) for frame in [angles[:, 0] == t])), f"{name}.attn',
    ),
    "epsilon": ('self.config["norm_eps"]', "1e-6"),
    "other_norm": (
        "            return rms_norm(x, weight, eps)\n",
        "            return layer_norm(x, weight, 0, eps)\n"
        '        return rms_norm(x, weight, eps) + self.weights[f"{name}.bias"]\n',
    ),
    "no_pre_norm": ('self.norm(embeddings, "ln_pre")', "embeddings"),
    "no_post_norm": ('self.norm(states[-1], "ln_post")', "states[-1]"),
    "post_norm_twice": ('self.norm(states[-1], "ln_post")', 'self.norm(self.norm(states[-1], "ln_post"), "ln_post")'),
    "tanh_gelu": ("erf(x / math.sqrt(2))", "np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))"),
    "quick_gelu": ("x * (1 + erf(x / math.sqrt(2))) / 2", "x / (1 + np.exp(-1.702 * x))"),
    "head_epsilon": ('self.config["head_norm_eps"]', "1e-5"),
    "head_without_residual": ("return (y + self.linear(gelu", "return (self.linear(gelu"),
    "mean_pooled": ("last, self.head(last)", "last, last.mean(0)"),
    "pooled_before_post_norm": ("last, self.head(last)", "last, self.head(states[-1])"),
    "states_after_layers": ("return np.stack(states), last", "return np.stack([*states[1:], last]), last"),
}

# In no list of the kit. check.py may name the nearest, but must not let it pass.
UNKNOWN = {
    "probe_added": ("return (y + self.linear", 'return (self.weights["head.probe"][0] + y + self.linear'),
    "layers_reversed": ('f"transformer.layers.{number}"', 'f"transformer.layers.{len(states) % 2}"'),
    "no_mlp_bias": (
        'gelu(self.linear(self.norm(x, f"{name}.ln_2"), f"{name}.mlp.0"))',
        'gelu(self.norm(x, f"{name}.ln_2") @ self.weights[f"{name}.mlp.0.weight"].T)',
    ),
    "columns_mirrored": (
        "positions[:, axis, None]",
        "(positions[:, axis, None] if axis < 2 else 7 - positions[:, 2:])",
    ),
}

PAIRS = (
    ("height_width_swapped", "rotate_half"),
    ("frame_numbers", "rotate_half"),
    ("bgr", "height_width_swapped"),
    ("epsilon", "no_post_norm"),
    ("tanh_gelu", "rows_shifted"),
    ("patch_transposed", "causal"),
)


def changed_client(path: Path, *changes: tuple[str, str]) -> types.ModuleType:
    """The client with texts replaced, as a module.

    Raises:
        LookupError: if a text does not stand in it exactly once: client and fault have drifted apart.
    """
    source = path.read_text(encoding="utf-8")
    for old, new in changes:
        if source.count(old) != 1:
            raise LookupError(f"{old!r} stands {source.count(old)} times in {path.name}, expected once")
        source = source.replace(old, new)
    module = types.ModuleType("changed_client")
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module
