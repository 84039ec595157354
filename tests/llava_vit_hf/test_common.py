# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What the common tests of transformers ask of every model and config, re-thought for these two."""

import inspect
import json
import typing
from pathlib import Path

import pytest
import torch
from transformers import AutoBackbone, AutoConfig, AutoModel

import llava_vit_hf
from llava_vit_hf import LlavaViTConfig, LlavaViTPackingConfig
from tests.llava_vit_hf.both_models import GRIDS, LAYOUTS, make_case
from tests.models import TINY, relative_error


CONFIGS = {"dense": LlavaViTConfig, "packing": LlavaViTPackingConfig}


@pytest.fixture(scope="module", params=LAYOUTS)
def case(request):
    return make_case(request.param)


@pytest.fixture(params=LAYOUTS)
def fresh(request):
    """A case that a test may change."""
    return make_case(request.param)


class TestSaving:
    def test_save_and_load_is_the_identity(self, case, tmp_path):
        case.model.save_pretrained(tmp_path)
        loaded = type(case.model).from_pretrained(tmp_path)
        state, again = case.model.state_dict(), loaded.state_dict()
        assert list(state) == list(again)
        assert all(torch.equal(state[name], again[name]) for name in state)
        assert torch.equal(case.features(loaded), case.features())
        loaded.save_pretrained(tmp_path / "again")
        for name in ("config.json", "model.safetensors"):
            assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()

    def test_sharded_checkpoint(self, case, tmp_path):
        case.model.save_pretrained(tmp_path, max_shard_size="100KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 2
        assert torch.equal(case.features(AutoModel.from_pretrained(tmp_path)), case.features())

    def test_nothing_is_missing_or_unexpected(self, case, tmp_path):
        case.model.save_pretrained(tmp_path)
        _, report = type(case.model).from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))

    def test_mismatched_sizes(self, case, tmp_path):
        case.model.save_pretrained(tmp_path)
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes|size mismatch"):
            type(case.model).from_pretrained(tmp_path, intermediate_size=96)
        model = type(case.model).from_pretrained(tmp_path, intermediate_size=96, ignore_mismatched_sizes=True)
        layer, before = model.encoder.layers[0], case.model.encoder.layers[0]
        assert layer.mlp.fc1.weight.shape == (96, 64)
        # What did not fit is initialised, what fits is loaded.
        assert layer.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.15)
        assert torch.equal(layer.mlp.fc1.bias, torch.zeros(96))
        assert torch.equal(layer.layer_norm1.weight, before.layer_norm1.weight)

    def test_a_checkpoint_without_head_initialises_one(self, fresh, tmp_path):
        headless = make_case(fresh.layout, use_head=False)
        headless.model.save_pretrained(tmp_path)
        model, report = type(fresh.model).from_pretrained(tmp_path, use_head=True, output_loading_info=True)
        assert {name.split(".")[0] for name in report["missing_keys"]} == {"head"}
        for name, parameter in model.head.named_parameters():
            if parameter.ndim > 1:
                assert parameter.std().item() == pytest.approx(0.02, rel=0.3), name
            else:
                assert torch.equal(parameter, torch.full_like(parameter, float("norm" in name)))
        assert torch.equal(fresh.features(model), headless.features())

    def test_without_head_there_is_no_pooled_vector(self, fresh):
        model = make_case(fresh.layout, use_head=False).model
        with torch.no_grad():
            assert model(**fresh.inputs).pooler_output is None
            assert len(model(**fresh.inputs, return_dict=False)) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
class TestConfig:
    def test_round_trips(self, layout, tmp_path):
        config = CONFIGS[layout](**{**TINY, "attention_dropout": 0.25, "layer_norm_eps": 1e-5})
        file = tmp_path / "config.json"
        config.to_json_file(file)
        assert CONFIGS[layout].from_json_file(file).to_dict() == config.to_dict()
        config.save_pretrained(tmp_path)
        saved = json.loads(file.read_text())
        assert saved["model_type"] == CONFIGS[layout].model_type and saved["attention_dropout"] == 0.25
        assert type(AutoConfig.from_pretrained(tmp_path)) is CONFIGS[layout]
        assert CONFIGS[layout].from_dict(config.to_dict()).to_dict() == config.to_dict()

    def test_every_argument_is_kept(self, layout):
        arguments = {**inspect.signature(LlavaViTConfig.__init__).parameters}
        arguments |= inspect.signature(CONFIGS[layout].__init__).parameters
        values = {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 5, "intermediate_size": 7}
        values |= {"patch_size": 3, "image_size": 9, "num_channels": 1, "hidden_act": "relu", "head_norm_eps": 1e-4}
        values |= {"layer_norm_type": "rms_norm", "layer_norm_eps": 1e-3, "rope_theta": 2.0, "use_head": False}
        values |= {"attention_dropout": 0.5, "initializer_range": 0.1, "chunk_size_feed_forward": 3}
        values |= {"rope_temporal_size": 6, "use_post_norm": False}
        if layout == "packing":
            values |= {"attention_window": 5, "merge_size": 3, "merger_output_size": 8, "temporal_rule": "index"}
        assert set(arguments) - {"self", "kwargs"} == set(values)
        config = CONFIGS[layout](**values)
        assert {name: getattr(config, name) for name in values} == values

    def test_defaults_build_without_arguments(self, layout):
        with torch.device("meta"):
            model = AutoModel.from_config(CONFIGS[layout]())
        # 24 layers of the large variant: 12 C^2 + 13 C each, and the head as one more, with a norm and the probe less.
        assert 300e6 < model.num_parameters() < 325e6

    def test_fields_of_every_model_are_there(self, layout):
        config = CONFIGS[layout](**TINY, output_hidden_states=True, id2label={0: "a", 1: "b"})
        assert config.output_hidden_states is True and config.num_labels == 2
        for name in ("hidden_size", "num_attention_heads", "num_hidden_layers"):
            assert getattr(config, name) == TINY[name]


class TestOutputs:
    @torch.no_grad()
    def test_hidden_states_by_argument_and_by_config(self, fresh):
        asked = fresh.model(**fresh.inputs, output_hidden_states=True).hidden_states
        assert len(asked) == TINY["num_hidden_layers"] + 1
        assert all(state.shape[-1] == TINY["hidden_size"] for state in asked)
        assert fresh.model(**fresh.inputs).hidden_states is None
        fresh.model.config.output_hidden_states = True
        by_config = fresh.model(**fresh.inputs).hidden_states
        assert all(torch.equal(first, second) for first, second in zip(asked, by_config, strict=True))
        assert fresh.model(**fresh.inputs, output_hidden_states=False).hidden_states is None

    @torch.no_grad()
    def test_attentions_by_argument_and_by_config(self, fresh):
        fresh.model.set_attn_implementation("eager")
        assert fresh.model(**fresh.inputs).attentions is None
        asked = fresh.model(**fresh.inputs, output_attentions=True).attentions
        fresh.model.config.output_attentions = True
        by_config = fresh.model(**fresh.inputs).attentions
        assert len(asked) == len(by_config) == TINY["num_hidden_layers"]
        for layer, again in zip(asked, by_config, strict=True):
            samples = list(layer) if fresh.layout == "packing" else list(layer.unbind(0))
            lengths = [t * h * w for t, h, w in GRIDS] if fresh.layout == "packing" else [20, 20]
            assert [tuple(weights.shape) for weights in samples] == [(2, length, length) for length in lengths]
            for weights, second in zip(samples, again, strict=True):
                torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
                assert torch.equal(weights, second)

    @torch.no_grad()
    def test_order_and_length_of_the_plain_tuple(self, fresh):
        fresh.model.set_attn_implementation("eager")
        output = fresh.model(**fresh.inputs, output_hidden_states=True, output_attentions=True)
        plain = fresh.model(**fresh.inputs, output_hidden_states=True, output_attentions=True, return_dict=False)
        assert list(output) == ["last_hidden_state", "pooler_output", "hidden_states", "attentions"]
        assert isinstance(plain, tuple) and len(plain) == 4
        assert torch.equal(plain[0], output[0]) and torch.equal(plain[1], output[1])
        assert torch.equal(plain[2][1], output.hidden_states[1])
        fresh.model.config.return_dict = False
        assert isinstance(fresh.model(**fresh.inputs), tuple)

    def test_gradients_are_retained_on_hidden_states(self, fresh):
        output = fresh.model(**fresh.inputs, output_hidden_states=True)
        for state in output.hidden_states:
            state.retain_grad()
        output.last_hidden_state.square().sum().backward()
        assert all(state.grad is not None and state.grad.abs().min() > 0 for state in output.hidden_states)

    def test_gradients_are_retained_on_attentions(self):
        case = make_case("dense", attn_implementation="eager")
        output = case.model(**case.inputs, output_attentions=True)
        for weights in output.attentions:
            weights.retain_grad()
        output.last_hidden_state.square().sum().backward()
        assert all(weights.grad.abs().max() > 0 for weights in output.attentions)

    @torch.no_grad()
    def test_evaluation_is_deterministic(self, case):
        assert torch.equal(case.features(), case.features())

    @torch.no_grad()
    def test_left_out_optional_inputs_mean_their_defaults(self, case):
        defaults = inspect.signature(type(case.model).forward).parameters
        optional = {
            name: parameter.default
            for name, parameter in defaults.items()
            if parameter.default is not inspect.Parameter.empty and name not in case.inputs
        }
        assert torch.equal(case.model(**case.inputs, **optional).last_hidden_state, case.features())

    def test_the_first_argument_is_the_main_input(self, case):
        names = list(inspect.signature(type(case.model).forward).parameters)
        assert names[1] == case.model.main_input_name == "pixel_values"


class TestSettings:
    @torch.no_grad()
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_sdpa_against_eager(self, fresh, dtype):
        model = fresh.model.to(dtype)
        results = {}
        for implementation in ("sdpa", "eager"):
            model.set_attn_implementation(implementation)
            assert model.config._attn_implementation == implementation
            results[implementation] = model(**fresh.inputs)
        bound = 1e-5 if dtype == torch.float32 else 0.05
        for key in ("last_hidden_state", "pooler_output"):
            assert relative_error(results["sdpa"][key], results["eager"][key]) < bound

    def test_sdpa_is_the_default(self, case):
        assert case.model.config._attn_implementation == "sdpa"

    @torch.no_grad()
    @pytest.mark.parametrize("chunk", [1, 7, 1000])
    def test_feed_forward_chunking(self, case, chunk):
        chunked = make_case(case.layout, chunk_size_feed_forward=chunk)
        rows = []
        mlp = chunked.model.encoder.layers[0].mlp
        mlp.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:-1].numel()))
        torch.testing.assert_close(chunked.features(), case.features(), rtol=0, atol=1e-4)
        tokens = case.features().shape[:-1].numel()
        assert sum(rows) == tokens and (max(rows) == chunk if chunk < tokens else len(rows) == 1)

    def test_feed_forward_chunks_are_checked(self, case):
        with pytest.raises(ValueError, match="chunk_size_feed_forward must be an integer of at least 0, found -1"):
            type(case.model.config)(**TINY, chunk_size_feed_forward=-1)

    @torch.no_grad()
    def test_one_sample_against_many(self, case):
        if case.layout == "dense":
            together = case.features()
            alone = torch.cat([case.model(pixels[None]).last_hidden_state for pixels in case.inputs["pixel_values"]])
        else:
            together, alone, start = case.features(), [], 0
            for grid in GRIDS:
                rows = slice(start, start + grid[0] * grid[1] * grid[2])
                single = {name: case.inputs[name][rows] for name in ("pixel_values", "patch_positions")}
                alone.append(case.model(**single, grid_thw=torch.tensor([grid])).last_hidden_state)
                start = rows.stop
            alone = torch.cat(alone)
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)

    def test_input_embeddings_are_the_patch_projection(self, case):
        embeddings = case.model.get_input_embeddings()
        assert embeddings.weight.shape == (64, 3, 4, 4)
        assert case.model.get_output_embeddings() is None

    def test_no_split_modules_exist(self, case):
        names = {type(module).__name__ for module in case.model.modules()}
        assert case.model._no_split_modules and set(case.model._no_split_modules) <= names

    def test_every_parameter_and_buffer_is_initialised(self, case):
        # A value that no initialisation leaves behind, put where `from_config` must overwrite it.
        with torch.device("meta"):
            model = type(case.model)(case.model.config)
        model.to_empty(device="cpu")
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.fill_(7.0)
        for module in model.modules():
            module._is_hf_initialized = False
        model.initialize_weights() if hasattr(model, "initialize_weights") else model.init_weights()
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            assert not (tensor == 7.0).any(), name

    def test_backbone_api_is_refused_clearly(self, case):
        with pytest.raises(ValueError, match="Unrecognized configuration class"):
            AutoBackbone.from_config(case.model.config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_items_in_batch": 2}, r"takes no num_items_in_batch\. Trainer .*not pass it on\.$"),
        ({"interpolate_pos_encoding": True}, r"takes no interpolate_pos_encoding\. .*leave the argument out\.$"),
        (
            {"num_items_in_batch": None, "labels": 1, "input_ids": 1},
            r"takes no input_ids, labels, num_items_in_batch\. .*use this folder's processor.* Trainer",
        ),
    ],
)
def test_unexpected_arguments_are_refused_with_what_to_do(case, arguments, message):
    with pytest.raises(TypeError, match=rf"^{type(case.model).__name__}\.forward\(\) {message}"):
        case.model(**case.inputs, **arguments)


class TestHints:
    """What an editor shows."""

    def public(self):
        for name in llava_vit_hf.__all__:
            cls = getattr(llava_vit_hf, name)
            yield f"{name}.__init__", cls, cls.__init__
            for method in ("forward", "__call__", "preprocess", "split_features"):
                if method in vars(cls):
                    yield f"{name}.{method}", cls, vars(cls)[method]

    def test_package_is_typed(self):
        assert (Path(llava_vit_hf.__file__).parent / "py.typed").is_file()

    def test_public_signatures_resolve_and_classes_say_what_they_are(self):
        for name, cls, function in self.public():
            assert cls.__doc__ and len(cls.__doc__.split()) > 5, name
            hints = typing.get_type_hints(function)
            parameters = set(inspect.signature(function).parameters) - {"self", "kwargs", "args"}
            assert parameters <= set(hints), f"{name}: no type for {sorted(parameters - set(hints))}"

    def test_docstrings_name_every_argument(self):
        for name, cls, function in self.public():
            text = cls.__doc__ if name.endswith("__init__") else inspect.getdoc(function)
            assert text, name
            for parameter in set(inspect.signature(function).parameters) - {"self", "kwargs", "args", "config"}:
                assert parameter in text, f"{name}: {parameter}"
