# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What the card says of the model itself, from `config.json` and the headers of the weights. Needs no torch."""

import math

from safetensors import SafetensorError, safe_open

from conversion.checkpoints.hub_configs import fitting_variant
from conversion.common.json_files import check_shape
from conversion.common.model_folder import CONFIG, ModelFolder, PublishError, PublishInputError
from conversion.verification.report_tables import table


_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size")
_NUMBERS = ("layer_norm_eps", "head_norm_eps", "rope_theta")
FACTS = (*_SIZES, "layer_norm_type", *_NUMBERS)


def facts_table(folder: ModelFolder) -> str:
    """What `config.json` and the weights say.

    Raises:
        PublishInputError: if `config.json` lacks a field, or has a value that no model can have.
        PublishError: if a weight file is no complete safetensors file.
    """
    config, (parameters, dtypes) = folder.config, weight_facts(folder)
    check_shape(config, dict.fromkeys(FACTS, object), folder.path / CONFIG, PublishInputError)
    wrong = wrong_fact(config)
    if wrong:
        raise PublishInputError(f"{folder.path / CONFIG}: {wrong} Convert the model again.")
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    head_norm_eps = config["layer_norm_eps"] if config["head_norm_eps"] is None else config["head_norm_eps"]
    rows = [
        ("layout", f"{folder.layout} (`model_type: {config['model_type']}`)"),
        ("parameters", f"{parameters:,} ({', '.join(dtypes)})"),
        ("hidden size, layers", f"{config['hidden_size']}, {config['num_hidden_layers']}"),
        ("heads, head dim", f"{config['num_attention_heads']}, {head_dim}"),
        ("MLP size", config["intermediate_size"]),
        ("patch size", f"{config['patch_size']} pixels"),
        ("norm", f"{config['layer_norm_type']}, epsilon {config['layer_norm_eps']}"),
        ("pooling head", f"yes, epsilon {head_norm_eps}" if config.get("use_head", True) else "no"),
        ("rotary embedding", f"time, height, width = 4:6:6, theta {config['rope_theta']:g}"),
    ]
    rows += _tower_rows(config)
    variant = fitting_variant(config)
    return table(("", ""), [("variant", f"`{variant}`"), *rows] if variant else rows)


def _tower_rows(config: dict) -> list[tuple[str, object]]:
    """What only the towers of VLMs have."""
    window, merge, merged = (config.get(name) for name in ("attention_window", "merge_size", "merger_output_size"))
    rows = []
    if window is not None:
        rows.append(("attention", f"in windows of {window} frames"))
    if merge not in (None, 1):
        rows.append(("patches", f"in blocks of {merge} x {merge}; `processor.split_features` puts them row by row"))
    if merged is not None:
        rows.append(("merger", f"a token of {merged} channels of each block: `merged_hidden_state`"))
    if config.get("temporal_rule") == "index":
        rows.append(("times", "numbers of the frames in their video"))
    return rows


def wrong_fact(config: dict) -> str | None:
    """Which of the facts no model can have; None if all can be.

    The rules are those of `LlavaViTConfig`, written again because importing it loads torch; a test holds the two
    together.
    """
    for name in _SIZES:
        if type(config[name]) is not int or not 0 < config[name] < 2**31:
            return f"{name} must be a positive integer below 2**31, found {config[name]!r}."
    head_dim, rest = divmod(config["hidden_size"], config["num_attention_heads"])
    if rest or head_dim % 32:
        return (
            f"hidden_size={config['hidden_size']} over num_attention_heads={config['num_attention_heads']} must be a "
            "multiple of 32, half of which the rotary embedding splits t:h:w = 4:6:6."
        )
    if config["layer_norm_type"] not in ("layer_norm", "rms_norm"):
        return f"layer_norm_type must be layer_norm or rms_norm, found {config['layer_norm_type']!r}."
    for name in _NUMBERS:
        value, optional = config[name], name == "head_norm_eps"
        if not (value is None and optional) and not (type(value) in (int, float) and 0 < value < math.inf):
            return f"{name} must be a positive number, found {value!r}."
    if config["rope_theta"] >= 2**53:
        return f"rope_theta must be below 2**53, found {config['rope_theta']!r}."
    return None


def weight_facts(folder: ModelFolder) -> tuple[int, list[str]]:
    """Number of parameters and the dtypes of the weights, from the headers of the safetensors files.

    Raises:
        PublishError: if a file is no safetensors file.
    """
    parameters, dtypes = 0, set()
    for file in folder.files.values():
        if file.path is None:
            continue
        try:
            with safe_open(file.path, framework="np") as weights:
                for name in weights.keys():
                    tensor = weights.get_slice(name)
                    parameters += math.prod(tensor.get_shape())
                    dtypes.add(tensor.get_dtype())
        except SafetensorError as error:
            raise PublishError(f"{file.path} is no complete safetensors file: {error}.") from error
    return parameters, sorted(dtypes)
