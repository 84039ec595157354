# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The engine: complete or an error that names what is wrong, and the same bytes there and back."""

import json

import pytest
import torch
from safetensors import safe_open

from conversion.checkpoints.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from conversion.checkpoints.convert import convert_weights, converted_state_dict, expected_shapes, resolve_dtype
from conversion.checkpoints.hub_configs import read_architecture, variant_names
from conversion.checkpoints.rename_tables import table_between
from conversion.checkpoints.renaming import rename
from conversion.checkpoints.source_config import infer_source_config, model_config
from conversion.common.metrics import Bounds, compare
from conversion.source.encoder import SourceEncoder
from llava_vit_hf import LlavaViTModel, LlavaViTPackingModel
from tests.conversion.weights import SourceConfig, peaked_state_dict, random_pixels, tiny_config


def target_config(config: SourceConfig, layout: str):
    return config if layout == "source" else model_config(config, layout)


def convert(checkpoint: Checkpoint, config: SourceConfig, layout: str, folder, **arguments) -> Checkpoint:
    table = table_between(checkpoint.layout, layout)
    convert_weights(checkpoint, table, target_config(config, layout), folder, **arguments)
    return read_checkpoint(folder)


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_returns_the_same_bytes(tmp_path, norm, head, dtype):
    config = tiny_config(layer_norm_type=norm, use_head=head)
    weights = peaked_state_dict(config, dtype=dtype)
    checkpoint = Checkpoint.from_state_dict(weights)
    for step, layout in enumerate(("dense", "packing", "dense", "source")):
        checkpoint = convert(checkpoint, config, layout, tmp_path / str(step))
        assert checkpoint.layout == layout
    assert checkpoint.specs.keys() == weights.keys()
    for name, tensor in checkpoint.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor.view(torch.uint8), weights[name].view(torch.uint8)), name


def test_q_k_and_v_come_from_their_rows():
    config = tiny_config()
    weights = peaked_state_dict(config)
    checkpoint = Checkpoint.from_state_dict(weights)
    dense = converted_state_dict(checkpoint, table_between("source", "dense"), model_config(config, "dense"))
    stacked = weights["transformer.layers.1.attn.in_proj.bias"]
    for part, rows in zip("qkv", stacked.split(64), strict=True):
        assert torch.equal(dense[f"encoder.layers.1.self_attn.{part}_proj.bias"], rows)


@pytest.mark.parametrize("layout", ["dense", "packing"])
def test_golden_folders_are_what_the_origins_converters_leave(conformance, tmp_path, layout):
    source = read_checkpoint(conformance / "golden" / "backbone.pt")
    config = infer_source_config(source, "auto", num_attention_heads=2)
    ours = convert(source, config, layout, tmp_path / layout)
    theirs = read_checkpoint(conformance / "golden" / f"{layout}_hf")
    assert ours.specs == theirs.specs
    assert all(torch.equal(tensor, theirs.tensor(name)) for name, tensor in ours.items())
    assert infer_source_config(theirs).norm_eps == infer_source_config(theirs).head_norm_eps == 1e-6


@pytest.mark.parametrize("overrides", [{}, {"hidden_size": 192, "layer_norm_type": "rms_norm", "patch_size": 8}])
def test_converted_models_compute_what_the_oracle_computes(overrides):
    config = tiny_config(**overrides)
    checkpoint = Checkpoint.from_state_dict(peaked_state_dict(config))
    pixels = random_pixels(3, 40, 32)
    expected = SourceEncoder.from_state_dict(config, dict(checkpoint.items()))(pixels)
    bounds = Bounds(min_cosine=0.99999, relative_error=2e-5, max_abs=5e-4)
    rows, patch = pixels.unfold(1, config.patch_size, config.patch_size), config.patch_size
    flat = rows.unfold(2, patch, patch).permute(1, 2, 0, 3, 4).reshape(-1, 3 * patch * patch)
    grid = torch.tensor([[1, 40 // patch, 32 // patch]])
    for layout, model_class, inputs in (
        ("dense", LlavaViTModel, {"pixel_values": pixels[None]}),
        ("packing", LlavaViTPackingModel, {"pixel_values": flat, "grid_thw": grid}),
    ):
        hf_config = model_config(config, layout)
        model = model_class(hf_config).eval()
        model.load_state_dict(converted_state_dict(checkpoint, table_between("source", layout), hf_config))
        with torch.no_grad():
            outputs = model(**inputs, output_hidden_states=True)
        for ours, oracle in (
            (outputs.last_hidden_state, expected["last_hidden_state"]),
            (outputs.hidden_states[-2], expected["hidden_states"][-2]),
            (outputs.pooler_output, expected["pooled"]),
        ):
            assert bounds.check(compare(ours.reshape(oracle.shape), oracle)) == []


@pytest.mark.parametrize("name", variant_names())
@pytest.mark.parametrize("layout", ["dense", "packing"])
def test_names_of_every_variant_are_covered(name, layout):
    config = SourceConfig(**read_architecture(name))
    weights = {name: torch.empty(1).expand(shape) for name, shape in expected_shapes("source", config).items()}
    checkpoint = Checkpoint.from_state_dict(weights)
    assert infer_source_config(checkpoint, name) == config
    renamed = rename(checkpoint, table_between("source", layout))
    expected = expected_shapes(layout, model_config(config, layout))
    assert {tensor.name: tensor.shape for tensor in renamed} == expected
    back = {source for tensor in renamed for source in tensor.sources}
    assert back == weights.keys()


@pytest.fixture
def tiny():
    config = tiny_config(num_hidden_layers=1)
    return config, peaked_state_dict(config)


def require_error(config, weights, message, folder, layout="dense", **arguments):
    with pytest.raises(CheckpointError, match=message):
        convert(Checkpoint.from_state_dict(weights), config, layout, folder, **arguments)
    assert not folder.exists() or not list(folder.iterdir())


def test_unused_names_are_listed(tmp_path, tiny):
    config, weights = tiny
    extra = {name: torch.zeros(1) for name in ("transformer.layers.0.gate", "head.norm2.weight", "ln_pre.weight2")}
    message = "3 weights.*head.norm2.weight, ln_pre.weight2, transformer.layers.0.gate"
    require_error(config, weights | extra, message, tmp_path / "out")


def test_patterns_are_anchored_and_literal(tmp_path, tiny):
    config, weights = tiny
    for name in ("conv1xweight", "transformer.layers.00.ln_1.weight", "xln_post.weight"):
        require_error(config, weights | {name: torch.zeros(64)}, name, tmp_path / "out")


def test_uncovered_names_are_listed(tmp_path, tiny):
    config, weights = tiny
    for name in ("ln_post.weight", "transformer.layers.0.mlp.2.bias"):
        weights.pop(name)
    message = "nothing fills encoder.layers.0.mlp.fc2.bias, layernorm_post.weight"
    require_error(config, weights, message, tmp_path / "out")


def test_names_that_the_model_lacks_are_listed(tmp_path, tiny):
    config, weights = tiny
    weights["head.norm.bias"] = torch.zeros(64)
    require_error(config, weights, r"the model has no head.norm.bias \(from head.norm.bias\)", tmp_path / "out")


def test_shapes_are_checked(tmp_path, tiny):
    config, weights = tiny
    weights["ln_post.weight"] = torch.zeros(65)
    require_error(config, weights, r"layernorm_post.weight \(from ln_post.weight\) is \(65,\)", tmp_path / "out")
    weights["ln_post.weight"] = torch.zeros(64)
    weights["transformer.layers.0.attn.in_proj.bias"] = torch.zeros(191)
    require_error(config, weights, r"in_proj.bias \(191,\) must split into 3", tmp_path / "out")


def test_a_stack_with_a_part_missing_is_named(tmp_path, tiny):
    config, weights = tiny
    dense = converted_state_dict(
        Checkpoint.from_state_dict(weights), table_between("source", "dense"), model_config(config, "dense")
    )
    dense.pop("encoder.layers.0.self_attn.k_proj.bias")
    require_error(config, dense, "lacks encoder.layers.0.self_attn.k_proj.bias", tmp_path / "out", layout="packing")


def test_known_drops_are_reported_with_their_reason(tmp_path, tiny):
    config, weights = tiny
    weights = {name: tensor.bfloat16() for name, tensor in weights.items()} | {"rope.inv_freq_t": torch.zeros(4)}
    checkpoint = Checkpoint.from_state_dict(weights)
    table, target = table_between("source", "dense"), model_config(config, "dense")
    summary = convert_weights(checkpoint, table, target, tmp_path / "out")
    assert "computed from the config" in summary.dropped["rope.inv_freq_t"]
    assert summary.dtype == torch.bfloat16
    assert summary.num_tensors == len(read_checkpoint(tmp_path / "out").specs)


def test_every_weight_that_is_not_finite_is_named(tmp_path, tiny):
    config, weights = tiny
    weights["ln_post.weight"][3] = torch.nan
    weights["head.probe"][0, 0, 1] = -torch.inf
    message = "2 weights hold NaN or infinite values: head.probe; layernorm_post.weight"
    require_error(config, weights, message, tmp_path / "out")
    require_error(config, weights, message, tmp_path / "out", dtype="bfloat16", max_shard_size=20_000)


def test_overflow_of_the_target_dtype_is_told_apart(tmp_path, tiny):
    config, weights = tiny
    weights["ln_post.weight"][3] = 1e6
    require_error(
        config, weights, "layernorm_post.weight .too large for torch.float16", tmp_path / "out", dtype="float16"
    )


def test_mixed_dtypes_need_a_choice(tmp_path, tiny):
    config, weights = tiny
    weights["ln_post.weight"] = weights["ln_post.weight"].half()
    require_error(config, weights, r"mixes dtypes: .*float32 .*float16 \(such as ln_post.weight\)", tmp_path / "out")
    converted = convert(Checkpoint.from_state_dict(weights), config, "dense", tmp_path / "out", dtype="float32")
    assert converted.dtypes == {torch.float32}


def test_unknown_dtypes_are_refused(tiny):
    checkpoint = Checkpoint.from_state_dict(tiny[1])
    for dtype in ("int8", torch.int8):
        with pytest.raises(ValueError, match="dtype must be one of"):
            resolve_dtype(checkpoint, dtype)


def test_a_table_for_another_layout_is_refused(tmp_path, tiny):
    config, weights = tiny
    with pytest.raises(CheckpointError, match="source layout, but the table converts dense"):
        rename(Checkpoint.from_state_dict(weights), table_between("dense", "packing"))
    with pytest.raises(TypeError, match="LlavaViTConfig for the dense layout"):
        table = table_between("source", "dense")
        convert_weights(Checkpoint.from_state_dict(weights), table, config, tmp_path / "out")


def test_shards_and_index(tmp_path, tiny):
    config, weights = tiny
    folder = tmp_path / "out"
    converted = convert(Checkpoint.from_state_dict(weights), config, "dense", folder, max_shard_size=60_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == converted.specs.keys()
    assert index["metadata"]["total_size"] == converted.nbytes
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files and len(files) > 1
    with safe_open(folder / files[0], "pt") as file:
        assert file.metadata() == {"format": "pt"}
    (folder / "config.json").write_text(model_config(config, "dense").to_json_string(use_diff=False))
    model, report = LlavaViTModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, converted.tensor(name)), name
