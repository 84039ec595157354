# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Faults to plant in a copy of the project: a text that must stand in its room exactly once, and what replaces it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutation:
    """A fault: `old` becomes `new` in one file of `room`, and a conversion to `layout` must then be refused."""

    name: str
    room: str
    old: str
    new: str
    layout: str = "dense"

    def file(self, root: Path) -> Path:
        """The one file below `root` that holds `old`, once; an error means that code and fault have drifted apart."""
        counts = {path: path.read_text(encoding="utf-8").count(self.old) for path in (root / self.room).rglob("*.py")}
        places = [path for path, count in counts.items() for _ in range(count)]
        if len(places) != 1:
            raise LookupError(f"{self.name}: {self.old!r} stands {len(places)} times in {self.room}/, expected once")
        return places[0]


_CONVERSION, _SHIPPED = "conversion", "llava_vit_hf"
_CONFIG_FIELDS = "    return config_class(**fields, architectures=[model_class], dtype=dtype)"

MUTATIONS = (
    Mutation("dropped_key", _CONVERSION, '    "head.mlp.fc2.[parameter]",\n', ""),
    Mutation(
        "layer_left_out",
        _CONVERSION,
        "for name in checkpoint.specs:",
        'for name in [n for n in checkpoint.specs if ".layers.1." not in n]:',
        "packing",
    ),
    Mutation("qkv_order", _CONVERSION, 'for part in "qkv"', 'for part in "kqv"'),
    Mutation(
        "layer_norms_exchanged",
        _CONVERSION,
        '"ln_1.[parameter]", _LAYER + "layer_norm1.[parameter]"),\n    (_SOURCE_LAYER + "ln_2.[parameter]", '
        '_LAYER + "layer_norm2.[parameter]")',
        '"ln_2.[parameter]", _LAYER + "layer_norm1.[parameter]"),\n    (_SOURCE_LAYER + "ln_1.[parameter]", '
        '_LAYER + "layer_norm2.[parameter]")',
        "packing",
    ),
    Mutation(
        "mlp_exchanged",
        _CONVERSION,
        '"mlp.0.[parameter]", _LAYER + "mlp.fc1.[parameter]"),\n    (_SOURCE_LAYER + "mlp.2.[parameter]", '
        '_LAYER + "mlp.fc2.[parameter]")',
        '"mlp.2.[parameter]", _LAYER + "mlp.fc1.[parameter]"),\n    (_SOURCE_LAYER + "mlp.0.[parameter]", '
        '_LAYER + "mlp.fc2.[parameter]")',
    ),
    Mutation(
        "patch_rows_reversed",
        _CONVERSION,
        "shapes[0], lambda: checkpoint.tensor(wanted[0]))",
        'shapes[0], lambda: checkpoint.tensor(wanted[0]).flip(2) if wanted[0] == "conv1.weight" else '
        "checkpoint.tensor(wanted[0]))",
    ),
    Mutation(
        "qkv_split_reversed", _CONVERSION, "narrow(0, index * rows, rows)", "narrow(0, (2 - index) * rows, rows)"
    ),
    Mutation(
        "square_weights_transposed",
        _CONVERSION,
        "shapes[0], lambda: checkpoint.tensor(wanted[0]))",
        'shapes[0], lambda: checkpoint.tensor(wanted[0]).T if "proj.weight" in wanted[0] else '
        "checkpoint.tensor(wanted[0]))",
        "packing",
    ),
    Mutation(
        "silent_bfloat16", _CONVERSION, "cast = stored.to(dtype)", "cast = stored.bfloat16().to(dtype)", "packing"
    ),
    Mutation(
        "epsilon_of_the_origin",
        _CONVERSION,
        _CONFIG_FIELDS,
        f'    fields["layer_norm_eps"] = 1e-6\n{_CONFIG_FIELDS}',
    ),
    Mutation(
        "head_epsilon", _CONVERSION, _CONFIG_FIELDS, f'    fields["head_norm_eps"] = 1e-6\n{_CONFIG_FIELDS}', "packing"
    ),
    Mutation(
        "number_of_heads", _CONVERSION, _CONFIG_FIELDS, f'    fields["num_attention_heads"] = 1\n{_CONFIG_FIELDS}'
    ),
    Mutation(
        "rope_theta", _CONVERSION, _CONFIG_FIELDS, f'    fields["rope_theta"] = 1e5\n{_CONFIG_FIELDS}', "packing"
    ),
    Mutation("rope_split", _SHIPPED, "unbind(-1), (4, 6, 6)", "unbind(-1), (6, 6, 4)"),
    Mutation("rope_frequencies", _SHIPPED, "(steps / channels)))", "(steps / (channels - 1))))", "packing"),
    Mutation("rope_sign", _SHIPPED, "angles.sin().to(dtype)", "-angles.sin().to(dtype)"),
    Mutation(
        "rope_angles_interleaved",
        _SHIPPED,
        "torch.cat(axes * 2, dim=-1).unsqueeze(1)",
        "torch.cat(axes, dim=-1).repeat_interleave(2, -1).unsqueeze(1)",
    ),
    Mutation(
        "rope_rotates_halves",
        _SHIPPED,
        "    wide = states.to(cosines.dtype)\n",
        "    wide = torch.cat((-states.chunk(2, -1)[1], states.chunk(2, -1)[0]), -1)\n"
        "    return (states * cosines + wide * (previous_sines - next_sines)).to(states.dtype)\n",
        "packing",
    ),
    Mutation("rope_half_precision", _SHIPPED, "angles.cos().to(dtype)", "angles.cos().half().to(dtype)"),
    Mutation(
        "causal_attention",
        _SHIPPED,
        "unless the module says otherwise.\n    is_causal = False",
        "unless the module says otherwise.\n    is_causal = True",
    ),
    Mutation(
        "attention_scale", _SHIPPED, '"scaling": query.shape[-1] ** -0.5', '"scaling": query.shape[-1] ** -0.499'
    ),
    Mutation("keys_not_rotated", _SHIPPED, "apply_rotary(key, rotary, places[1])", "key", "packing"),
    Mutation(
        "head_key_value_exchanged",
        _SHIPPED,
        "        key, value = nn.functional",
        "        value, key = nn.functional",
    ),
    Mutation("probe_not_used", _SHIPPED, "linear(probe.squeeze(0)", "linear(probe.squeeze(0) * 0", "packing"),
    Mutation(
        "leak_between_equal_samples",
        _SHIPPED,
        "    outputs, weights = [], []\n",
        "    outputs, weights = [], []\n"
        "    runs = runs if pooling else [(1, count * length) for count, length in runs]\n",
        "packing",
    ),
    Mutation(
        "dense_batch_leaks",
        _SHIPPED,
        "    outputs, weights = [], []\n",
        "    outputs, weights = [], []\n"
        "    runs = runs if pooling else [(1, count * length) for count, length in runs]\n",
    ),
    Mutation(
        "runs_out_of_order",
        _SHIPPED,
        "runs=runs_of(lengths) if by_run",
        "runs=runs_of(sorted(lengths)) if by_run",
        "packing",
    ),
    Mutation("tanh_gelu", _SHIPPED, "ACT2FN[config.hidden_act]", 'ACT2FN["gelu_pytorch_tanh"]'),
    Mutation(
        "same_norm_twice",
        _SHIPPED,
        "self.feed_forward(self.layer_norm2(",
        "self.feed_forward(self.layer_norm1(",
        "packing",
    ),
    Mutation("pre_norm_left_out", _SHIPPED, "self.layernorm_pre(embeddings)", "embeddings"),
    Mutation("post_norm_left_out", _SHIPPED, "self.layernorm_post(hidden_states)", "hidden_states", "packing"),
    Mutation(
        "hidden_states_off_by_one",
        _SHIPPED,
        "kept = tuple(states[index] for index in wanted)",
        "kept = tuple(states[max(index - 1, 0)] for index in wanted)",
    ),
    Mutation("head_residual_left_out", _SHIPPED, "return pooled + self.mlp(", "return self.mlp("),
    Mutation(
        "missing_head",
        _SHIPPED,
        "            if self.head is not None:\n",
        "            if False:\n",
    ),
    Mutation(
        "head_norm_epsilon_ignored", _SHIPPED, "eps=config.head_norm_eps", "eps=config.layer_norm_eps", "packing"
    ),
    Mutation(
        "patch_order", _SHIPPED, "self.weight.flatten(1))", "self.weight.permute(0, 2, 3, 1).flatten(1))", "packing"
    ),
    Mutation(
        "visible_indices_sorted",
        _SHIPPED,
        "visible_indices = visible_indices.to(pix",
        "visible_indices = visible_indices.sort().values.to(pix",
    ),
    Mutation("rows_off_by_one", _SHIPPED, "torch.arange(rows, device", "torch.arange(1, rows + 1, device", "packing"),
    Mutation(
        "height_width_swapped",
        _SHIPPED,
        "torch.stack(grid, dim=-1)",
        "torch.stack((grid[0], grid[2], grid[1]), dim=-1)",
    ),
    Mutation("time_rounded_down", _SHIPPED, "return steps.round()", "return steps.floor()", "packing"),
    Mutation("time_in_steps_of_one", _SHIPPED, "* (context - 1) / max(num_frames - 1, 1)", "* 1", "dense"),
    Mutation("wrong_mean", _SHIPPED, "list(OPENAI_CLIP_MEAN) if", "[0.485, 0.456, 0.406] if"),
    Mutation("wrong_std", _SHIPPED, "list(OPENAI_CLIP_STD) if", "[0.229, 0.224, 0.225] if", "packing"),
    Mutation("bilinear_resizing", _SHIPPED, "= PILImageResampling.BICUBIC", "= PILImageResampling.BILINEAR"),
    # Only a switch that a packing repo is not saved with shows it there.
    Mutation(
        "bilinear_resizing_in_packing",
        _SHIPPED,
        "= PILImageResampling.BICUBIC",
        "= PILImageResampling.BILINEAR",
        "packing",
    ),
    Mutation(
        "crop_shifted_in_packing",
        _SHIPPED,
        "return center_crop(array, crop, input_data_format=ChannelDimension.LAST)",
        "return center_crop(np.roll(array, 1, axis=0), crop, input_data_format=ChannelDimension.LAST)",
        "packing",
    ),
    Mutation(
        "whole_patches_of_the_other_end_in_dense",
        _SHIPPED,
        "array = array[: rows * settings.unit, : columns * settings.unit]",
        "array = array[-rows * settings.unit :, : columns * settings.unit]",
    ),
    Mutation(
        "bgr",
        _SHIPPED,
        "return torch.from_numpy(array).permute(2, 0, 1)",
        "return torch.from_numpy(array).permute(2, 0, 1).flip(0)",
    ),
    Mutation(
        "shifted_by_a_pixel",
        _SHIPPED,
        "    if array.dtype != np.uint8:\n        array = re",
        "    array = np.roll(array, 1, axis=1)\n    if array.dtype != np.uint8:\n        array = re",
        "packing",
    ),
    Mutation(
        "shifted_by_half_a_pixel",
        _SHIPPED,
        "    if array.dtype != np.uint8:\n        array = re",
        "    array = ((array.astype(int) + np.roll(array, 1, axis=1)) // 2).astype(np.uint8)\n"
        "    if array.dtype != np.uint8:\n        array = re",
    ),
    Mutation("centre_crop_off_by_one", _SHIPPED, "center_crop(array, crop", "center_crop(array[:, 1:], crop"),
    Mutation(
        "frames_sampled_otherwise",
        _SHIPPED,
        "np.linspace(0, total - 1, num_frames, dtype=int)",
        "np.linspace(0, total - 1, num_frames).round().astype(int)",
        "packing",
    ),
)
