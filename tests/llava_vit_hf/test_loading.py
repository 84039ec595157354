# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Every way of loading a saved folder: devices and offload, dtypes, quantisation, paths, pipelines, remote code."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel

from llava_vit_hf import LlavaViTImageProcessor, LlavaViTModel, LlavaViTPackingModel, LlavaViTProcessor
from llava_vit_hf.attention_llava_vit import LlavaViTPoolingAttention
from tests import media
from tests.llava_vit_hf.both_models import LAYOUTS, make_case


# A matrix product of few rows depends on where in memory the weights lie, so the pooled vector may differ by rounding.
POOLED = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module", params=LAYOUTS)
def case(request):
    return make_case(request.param)


@pytest.fixture
def folder(case, tmp_path):
    case.model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@torch.no_grad()
def check_equal(case, model) -> None:
    """All outputs of another model are those of the case's."""
    model.eval()
    found = model(**case.inputs, output_hidden_states=True)
    expected = case.model(**case.inputs, output_hidden_states=True)
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    for state, wanted in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(state, wanted)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, **POOLED)


class TestDevices:
    @pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}, "balanced", "sequential"], ids=str)
    def test_device_map(self, case, folder, device_map):
        check_equal(case, AutoModel.from_pretrained(folder, device_map=device_map))

    @pytest.mark.parametrize("low", [True, False])
    def test_low_cpu_mem_usage(self, case, folder, low):
        check_equal(case, AutoModel.from_pretrained(folder, low_cpu_mem_usage=low))

    def test_all_but_a_norm_on_disk(self, case, folder):
        # Some 5.x cannot run any model that is on disk altogether.
        device_map = {name: "disk" for name, _ in case.model.named_children()} | {"layernorm_pre": "cpu"}
        model = AutoModel.from_pretrained(folder, device_map=device_map, offload_folder=folder / "offload")

        def on_disk():
            return {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.is_meta}

        assert on_disk() == set(device_map) - {"layernorm_pre"}
        check_equal(case, model)
        # The weights are fetched for one module at a time, and given back.
        assert on_disk() == set(device_map) - {"layernorm_pre"}

    def test_layers_apart(self, case, folder):
        device_map = {name: "cpu" for name, _ in case.model.named_children() if name != "encoder"}
        places = ["cpu", "disk", "cpu"]
        device_map |= {f"encoder.layers.{index}": place for index, place in enumerate(places)}
        model = AutoModel.from_pretrained(folder, device_map=device_map, offload_folder=folder / "offload")
        assert [next(layer.parameters()).device.type for layer in model.encoder.layers] == ["cpu", "meta", "cpu"]
        check_equal(case, model)

    @pytest.mark.parametrize("kind", ["cpu_offload", "disk_offload"])
    def test_accelerate_offload(self, case, tmp_path, kind):
        accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
        model = make_case(case.layout).model
        where = (tmp_path,) if kind == "disk_offload" else ()
        getattr(accelerate, kind)(model, *where, execution_device=torch.device("cpu"))
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
        check_equal(case, model)

    def test_offload_that_also_splits_layers(self, case, tmp_path):
        accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
        model = make_case(case.layout).model
        # Every leaf has a hook of its own: modules that use a child's weights past its forward would fail here.
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=True)
        hooked = {name for name, module in model.named_modules() if hasattr(module, "_hf_hook")}
        owners = {name.rpartition(".")[0] for name, _ in make_case(case.layout).model.named_parameters()}
        assert owners <= hooked
        check_equal(case, model)

    def test_the_planner_keeps_layers_whole(self, case):
        accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
        with accelerate.init_empty_weights():
            model = type(case.model)(case.model.config)
        size = sum(parameter.numel() * 4 for parameter in model.parameters())
        device_map = accelerate.infer_auto_device_map(
            model, {"cpu": size // 2, "disk": 10 * size}, no_split_module_classes=model._no_split_modules
        )
        layers = [name for name in device_map if name.startswith("encoder.layers.")]
        assert len(set(device_map.values())) == 2
        assert all(name.count(".") == 2 for name in layers), layers


class TestDtypes:
    @pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
    @pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
    def test_auto_is_the_stored_dtype(self, case, tmp_path, name, stored):
        make_case(case.layout).model.to(stored).save_pretrained(tmp_path)
        model = AutoModel.from_pretrained(tmp_path, **{name: "auto"})
        assert model.dtype == stored and {parameter.dtype for parameter in model.parameters()} == {stored}

    @pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
    @pytest.mark.parametrize("dtype", ["float16", torch.bfloat16, torch.float32, torch.float64], ids=str)
    def test_explicit(self, case, folder, name, dtype):
        model = AutoModel.from_pretrained(folder, **{name: dtype})
        expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        assert {parameter.dtype for parameter in model.parameters()} == {expected}
        with torch.no_grad():
            # Pixels stay as the processor makes them, float32: the model casts them.
            output = model(**case.inputs)
        assert output.last_hidden_state.dtype == expected and output.last_hidden_state.isfinite().all()

    def test_from_config(self, case):
        model = AutoModel.from_config(case.model.config, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


class TestQuantisation:
    @pytest.mark.parametrize("settings", [{"load_in_8bit": True}, {"load_in_4bit": True}], ids=["8 bit", "4 bit"])
    def test_bitsandbytes(self, case, folder, settings):
        if importlib.util.find_spec("bitsandbytes") is None:
            pytest.skip("bitsandbytes is not installed")
        if not torch.cuda.is_available():
            pytest.skip("bitsandbytes is installed, but there is no CUDA device")
        from transformers import BitsAndBytesConfig

        quantised = BitsAndBytesConfig(**settings)
        model = AutoModel.from_pretrained(folder, quantization_config=quantised, device_map="cuda")
        inputs = {name: value.cuda() for name, value in case.inputs.items()}
        with torch.no_grad():
            found = model(**inputs).last_hidden_state.float().cpu()
        cosine = torch.nn.functional.cosine_similarity(found, case.features(), dim=-1)
        assert cosine.mean() > 0.9

    def test_replaced_linear_layers_are_called_and_never_read(self, case):
        """What bitsandbytes does to a model: every `nn.Linear` becomes a module with packed weights and a forward."""

        class Packed(torch.nn.Module):
            def __init__(self, linear):
                super().__init__()
                self.weight = torch.nn.Parameter(linear.weight.detach().flatten()[:, None].to(torch.int8), False)
                self.inner = [linear]

            def forward(self, states):
                return self.inner[0](states)

        model = make_case(case.layout).model
        replaced = 0
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, torch.nn.Linear):
                    setattr(module, name, Packed(child))
                    replaced += 1
        per_layer = {"dense": 6, "packing": 4}[case.layout]
        assert replaced == per_layer * len(model.encoder.layers) + 3
        check_equal(case, model)

    def test_the_head_holds_no_multihead_attention(self, case):
        assert not any(isinstance(module, torch.nn.MultiheadAttention) for module in case.model.modules())
        assert isinstance(case.model.head.attention, LlavaViTPoolingAttention)


# What users paste, in a process that has nobody to ask, no network, and no package but transformers.
REMOTE = """
import sys
sys.modules["llava_vit_hf"] = None
import numpy, torch
from transformers import AutoConfig, AutoModel, AutoProcessor
folder, image, out = sys.argv[1:]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    output = model(**processor(images=[image]))
numpy.save(out, output.pooler_output.numpy())
"""
PIPELINE = """
import sys
sys.modules["llava_vit_hf"] = None
import numpy
from transformers import pipeline
folder, image, out = sys.argv[1:]
pipe = pipeline("image-feature-extraction", model=folder, trust_remote_code=True)
assert type(pipe.model).__module__.startswith("transformers_modules"), type(pipe.model)
numpy.save(out, numpy.array(pipe(image)))
"""
BOTH = """
import sys
sys.modules["llava_vit_hf"] = None
from transformers import AutoModel, AutoProcessor
models = [AutoModel.from_pretrained(folder, trust_remote_code=True) for folder in sys.argv[1:] * 2]
assert [type(model).__name__ for model in models] == ["LlavaViTModel", "LlavaViTPackingModel"] * 2
processors = [AutoProcessor.from_pretrained(folder, trust_remote_code=True) for folder in sys.argv[1:]]
assert [processor.image_processor.packing for processor in processors] == [False, True]
"""


def run(code: str, *arguments, cwd: Path, modules: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(modules), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def save_all(folder: Path, layout: str) -> Path:
    """A model folder as it stands on the Hub: weights, configs and code."""
    make_case(layout, patch_size=14).model.save_pretrained(folder)
    image_processor = LlavaViTImageProcessor(packing=layout == "packing", size=42, crop_size=42)
    LlavaViTProcessor(image_processor).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    media.image(45, 44).save(folder / "image.png")
    return folder, {layout: save_all(folder / f"llava-vit-{layout}", layout) for layout in LAYOUTS}


def pooled(folder: Path, image: Path) -> np.ndarray:
    classes = {"llava_vit": LlavaViTModel, "llava_vit_packing": LlavaViTPackingModel}
    model = classes[json.loads((folder / "config.json").read_text())["model_type"]].from_pretrained(folder)
    with torch.no_grad():
        return model(**LlavaViTProcessor.from_pretrained(folder)(images=[image])).pooler_output.numpy()


def as_snapshot(folder: Path, target: Path) -> Path:
    """The folder as the Hub's cache lays it out: a snapshot of links to blobs named by their hashes."""
    blobs, snapshot = target / "blobs", target / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for index, file in enumerate(sorted(folder.iterdir())):
        blob = blobs / f"{index:040x}"
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def release() -> tuple[int, int]:
    """Major and minor version of transformers."""
    return tuple(map(int, transformers.__version__.split(".")[:2]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["symlinked snapshot", "dot", "relative"])
def test_paths_offline_with_remote_code(saved, layout, kind, tmp_path):
    root, folders = saved
    folder, cwd, image = folders[layout], tmp_path, root / "image.png"
    if kind == "symlinked snapshot":
        if (5, 8) <= release() < (5, 13):
            pytest.xfail("transformers 5.8 to 5.12 follow the links and look for the code among the blobs")
        given = as_snapshot(folder, tmp_path / "models--org--name")
    elif kind == "dot":
        given, cwd = ".", folder
    else:
        given, cwd = f"./{folder.name}/", folder.parent
    run(REMOTE, given, image, tmp_path / "out.npy", cwd=cwd, modules=tmp_path / "modules")
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), pooled(folder, image), **POOLED)


def test_pipeline_as_the_hub_prints_it(saved, tmp_path):
    root, folders = saved
    arguments = folders["dense"], root / "image.png", tmp_path / "out.npy"
    run(PIPELINE, *arguments, cwd=tmp_path, modules=tmp_path / "modules")
    model = LlavaViTModel.from_pretrained(folders["dense"])
    with torch.no_grad():
        inputs = LlavaViTProcessor.from_pretrained(folders["dense"])(images=[root / "image.png"])
        expected = model(**inputs).last_hidden_state
    assert inputs["pixel_values"].shape == (1, 3, 42, 42)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected.numpy(), **POOLED)


def test_both_models_in_one_process(saved, tmp_path):
    _, folders = saved
    run(BOTH, folders["dense"], folders["packing"], cwd=tmp_path, modules=tmp_path / "modules")


def test_model_types_are_their_own():
    for layout in LAYOUTS:
        config = make_case(layout).model.config
        assert config.model_type == {"dense": "llava_vit", "packing": "llava_vit_packing"}[layout]
        assert type(AutoConfig.for_model(config.model_type)) is type(config)
        assert type(AutoModel.from_config(config)).__name__.startswith("LlavaViT")
