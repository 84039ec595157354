# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""torch.compile without graph breaks or recompiles, torch.export and ONNX."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

from llava_vit_hf import segments_llava_vit
from llava_vit_hf.grid_llava_vit import cumulative_lengths, grid_positions
from tests.benchmarks import attention_backward
from tests.models import as_packing, dense_model, random_pixels, relative_error


pytestmark = pytest.mark.long


needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a C++ compiler"
)
# Sizes that happen to be equal are one size to a compiler, so the first pack has not 3 samples: a grid has 3 columns.
PACKS = [
    [(1, 8, 6), (1, 3, 3), (4, 5, 4), (1, 7, 6), (1, 2, 3)],
    [(1, 7, 6), (1, 2, 3), (3, 5, 4)],
    [(1, 4, 4), (1, 4, 4), (2, 4, 4)],
    [(2, 3, 3)] * 7,
    [(3, 2, 9), (1, 10, 7)],
]


@pytest.fixture
def graphs():
    """Counts the graphs that are compiled."""
    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


def bookkept(grids, seed=0):
    """A pack with all of the processor's bookkeeping."""
    lengths = [t * h * w for t, h, w in grids]
    return {
        "pixel_values": random_pixels(sum(lengths), 48, seed=seed),
        "grid_thw": torch.tensor(grids),
        "patch_positions": grid_positions(grids),
        "cu_seqlens": cumulative_lengths(lengths),
        "max_seqlen": max(lengths),
    }


# Left to itself, torch.compile takes the sizes of the first call for constants, and learns better from the second.
@needs_compiler
@torch.no_grad()
@pytest.mark.parametrize(("dynamic", "most"), [(True, 1), (None, 2)])
def test_packing_compiles_once_for_all_sizes(graphs, dynamic, most):
    packing = as_packing(dense_model())
    compiled = torch.compile(packing, fullgraph=True, dynamic=dynamic)
    for seed, grids in enumerate(PACKS):
        inputs = bookkept(grids, seed)
        output, expected = compiled(**inputs), packing(**inputs)
        torch.testing.assert_close(output.last_hidden_state, expected.last_hidden_state, rtol=0, atol=2e-4)
        torch.testing.assert_close(output.pooler_output, expected.pooler_output, rtol=0, atol=2e-4)
        assert graphs() == min(seed + 1, most)


@needs_compiler
@torch.no_grad()
def test_rotary_tables_are_made_once(graphs):
    """In one kernel, and not again for every head of every layer, which is what a compiler makes of a product."""
    packing = as_packing(dense_model())
    assert packing.config.num_hidden_layers > 1
    _, (code,) = run_and_get_code(torch.compile(packing, fullgraph=True), **bookkept(PACKS[0]))
    kernels = code.split("async_compile.cpp")[1:]
    assert [sum(f"{name}(" in kernel for kernel in kernels) for name in ("cos", "sin")] == [1, 1]


@needs_compiler
@torch.no_grad()
def test_packing_compiles_in_bfloat16(graphs):
    """As near to float32 as eager bfloat16 is, and far from what other positions give."""
    packing = as_packing(dense_model()).bfloat16()
    inputs = bookkept(PACKS[0])
    pixels = inputs.pop("pixel_values").bfloat16()
    compiled = torch.compile(packing, fullgraph=True)(pixels, **inputs).last_hidden_state
    eager = packing(pixels, **inputs).last_hidden_state
    packing.float()
    exact = packing(pixels.float(), **inputs).last_hidden_state
    elsewhere = inputs | {"patch_positions": inputs["patch_positions"] * torch.tensor([1, 1, 2])}
    wrong = packing(pixels.float(), **elsewhere).last_hidden_state
    error, eager_error, fault = ((states - exact).norm() / exact.norm() for states in (compiled, eager, wrong))
    assert error < 1.2 * eager_error
    assert fault > 5 * error


@needs_compiler
def test_packing_compiles_for_training(graphs):
    packing = as_packing(dense_model())
    inputs = bookkept(PACKS[0])
    torch.compile(packing, fullgraph=True, dynamic=True)(**inputs).pooler_output.square().sum().backward()
    compiled = {name: parameter.grad.clone() for name, parameter in packing.named_parameters()}
    packing.zero_grad()
    packing(**inputs).pooler_output.square().sum().backward()
    for name, parameter in packing.named_parameters():
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(compiled[name], parameter.grad, rtol=0, atol=1e-3 * scale, msg=name)


@needs_compiler
def test_gradients_of_a_compiled_pack_in_bfloat16(graphs):
    """Each parameter's as near to float32 as eager's, and far from what other positions give."""
    packing, inputs = as_packing(dense_model()), bookkept(PACKS[0])
    elsewhere = inputs | {"patch_positions": inputs["patch_positions"] * torch.tensor([1, 1, 2])}

    def gradients(run, inputs) -> dict[str, torch.Tensor]:
        packing.zero_grad()
        run(**inputs).pooler_output.float().square().sum().backward()
        return {name: parameter.grad.float().clone() for name, parameter in packing.named_parameters()}

    exact, wrong = gradients(packing, inputs), gradients(packing, elsewhere)
    packing.bfloat16()
    eager = gradients(packing, inputs)
    compiled = gradients(torch.compile(packing, fullgraph=True, dynamic=True), inputs)
    for name, reference in exact.items():
        error, eager_error, fault = (relative_error(found[name], reference) for found in (compiled, eager, wrong))
        # By chance one rounds more than the other: of all parameters 0.7 to 1.4 times as much, by pack.
        assert 0 < error < 2 * eager_error and fault > 5 * error, name


@needs_compiler
@torch.no_grad()
def test_dense_compiles_once_for_all_sizes(graphs):
    dense = dense_model()
    compiled = torch.compile(dense, fullgraph=True, dynamic=True)
    for shape in ((2, 3, 32, 24), (3, 3, 16, 28), (5, 3, 40, 12)):
        pixels = random_pixels(*shape)
        expected = dense(pixels).last_hidden_state
        torch.testing.assert_close(compiled(pixels).last_hidden_state, expected, rtol=0, atol=2e-4)
        assert graphs() == 1


def test_segment_attention_operator_is_sound():
    operator = segments_llava_vit.segment_attention.default
    boundaries = torch.tensor([0, 3, 6, 11], dtype=torch.int32)
    states = [random_pixels(11, 2, 8, seed=seed).requires_grad_() for seed in range(3)]
    torch.library.opcheck(operator, (*states, boundaries))
    pooled = [
        random_pixels(3, 2, 8).double().requires_grad_(),
        *(x.detach().double().requires_grad_() for x in states),
    ]
    assert torch.autograd.gradcheck(operator, (*pooled[:3], boundaries))


def test_each_revision_has_its_own_operator(tmp_path, monkeypatch):
    """One process may load the code of several model folders: equal files share an operator, others do not."""
    source = Path(segments_llava_vit.__file__).read_text()
    operators = {}
    for name, text in {"same": source, "other": f"{source}\n# Another revision.\n"}.items():
        (tmp_path / f"{name}.py").write_text(text)
        spec = importlib.util.spec_from_file_location(name, tmp_path / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        operators[name] = module.segment_attention
    assert operators["same"] is segments_llava_vit.segment_attention
    assert operators["other"] is not segments_llava_vit.segment_attention


@torch.no_grad()
def test_packing_exports_with_torch_export():
    packing, inputs = as_packing(dense_model()), bookkept(PACKS[0])
    program = torch.export.export(packing, (), kwargs=inputs)
    states = program.module()(**inputs).last_hidden_state
    torch.testing.assert_close(states, packing(**inputs).last_hidden_state, rtol=0, atol=2e-4)


REFUSED = "packing model cannot be exported to ONNX.* Export the dense model"


class TestOnnxOfPacking:
    """Refused with what to do, in place of an operator that has no ONNX function."""

    @pytest.mark.once
    @pytest.mark.parametrize("kind", ["sdpa", "eager", "torch.export"])
    @torch.no_grad()
    def test_of_the_model_or_its_program(self, kind, tmp_path):
        pytest.importorskip("onnxscript")
        packing, inputs = as_packing(dense_model(num_hidden_layers=1)), bookkept(PACKS[0])
        if kind == "torch.export":
            packing = torch.export.export(packing, (), kwargs=inputs)
        else:
            packing.set_attn_implementation(kind)
        with pytest.raises(torch.onnx.errors.OnnxExporterError, match=REFUSED):
            torch.onnx.export(packing, (), tmp_path / "packing.onnx", kwargs=inputs, dynamo=True, verbose=False)

    @torch.no_grad()
    def test_of_the_exporter_by_tracing(self, tmp_path):
        """Which would make constants of the lengths."""
        packing, inputs = as_packing(dense_model(num_hidden_layers=1, use_head=False)), bookkept(PACKS[0])
        with pytest.raises(ValueError, match=REFUSED), pytest.warns(DeprecationWarning):
            torch.onnx.export(packing, (inputs,), tmp_path / "packing.onnx", dynamo=False)


class TestExport:
    SHAPES = ((1, 3, 16, 16), (3, 3, 44, 20), (2, 3, 33, 27))

    @pytest.fixture(scope="class")
    @classmethod
    def dense(cls):
        return dense_model(return_dict=False)

    def dynamic(self, dim):
        return {"pixel_values": {0: dim, 2: dim, 3: dim}}

    @torch.no_grad()
    def test_torch_export_with_dynamic_batch_height_and_width(self, dense):
        shapes = self.dynamic(torch.export.Dim.AUTO)
        program = torch.export.export(dense, (random_pixels(2, 3, 32, 24),), dynamic_shapes=shapes)
        for shape in self.SHAPES:
            pixels = random_pixels(*shape)
            for actual, expected in zip(program.module()(pixels), dense(pixels), strict=True):
                torch.testing.assert_close(actual, expected, rtol=0, atol=2e-4)

    @torch.no_grad()
    def test_onnx_agrees_in_onnxruntime(self, dense, tmp_path):
        runtime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        torch.onnx.export(
            dense,
            (random_pixels(2, 3, 32, 24),),
            tmp_path / "dense.onnx",
            dynamo=True,
            verbose=False,
            input_names=["pixel_values"],
            dynamic_shapes=self.dynamic(torch.export.Dim.DYNAMIC),
        )
        session = runtime.InferenceSession(tmp_path / "dense.onnx", providers=["CPUExecutionProvider"])
        for shape in self.SHAPES:
            pixels = random_pixels(*shape)
            outputs = session.run(None, {"pixel_values": pixels.numpy()})
            for actual, expected in zip(outputs, dense(pixels), strict=True):
                torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("length", [1, 17])
def test_gradients_in_blocks_are_those_of_the_fused_kernel_and_of_autograd(monkeypatch, length):
    monkeypatch.setattr(segments_llava_vit, "WEIGHTS_AT_ONCE", 300)  # two or three queries at a time
    out, query = (random_pixels(2, 3, length, 8, seed=seed).double() for seed in (1, 2))
    key, value = (random_pixels(2, 3, 17, 8, seed=seed).double() for seed in (3, 4))
    states = [part.requires_grad_() for part in (query, key, value)]
    expected = torch.autograd.grad(nn.functional.scaled_dot_product_attention(*states), states, out)
    with torch.no_grad():
        for function in (segments_llava_vit._gradients_in_blocks, segments_llava_vit._fused_gradients):
            for found, wanted in zip(function(out, *states), expected, strict=True):
                torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_the_backward_keeps_no_weights():
    """Those of one sample of 2,048 tokens with 16 heads take 256 MiB in float32."""
    added, _ = attention_backward.measured(2048, "operator")
    assert added < 200


@needs_compiler
@pytest.mark.parametrize("layout", ["dense", "packing"])
@torch.no_grad()
def test_dropout_is_applied_in_a_compiled_forward(layout):
    dense = dense_model(attention_dropout=0.5)
    model = dense if layout == "dense" else as_packing(dense)
    inputs = {"pixel_values": random_pixels(2, 3, 32, 24)} if layout == "dense" else bookkept(PACKS[0])
    if layout == "packing":
        for layer in model.encoder.layers:
            layer.self_attn.config.attention_dropout = 0.5
    expected = model.eval()(**inputs).last_hidden_state
    compiled = torch.compile(model.train())
    first, second = (compiled(**inputs).last_hidden_state for _ in range(2))
    assert (first - second).abs().max() > 0.1 and (first - expected).abs().max() > 0.1


@needs_compiler
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_layers_compiled_one_by_one_are_not_compiled_anew_for_every_pack(graphs, training):
    """Ten packs of one to ten samples of many sizes; what is compiled for a layer is taken for the others."""
    packing = as_packing(dense_model())
    packs = [
        [(1, 2 + index % 3, 3), *[(1 + count % 2, 3 + count % 4, 2 + index) for count in range(index)]]
        for index in range(10)
    ]
    expected = []
    for seed, grids in enumerate(packs):
        output = packing(**bookkept(grids, seed)).last_hidden_state
        output.square().mean().backward()
        expected.append((output.detach(), packing.encoder.layers[0].mlp.fc1.weight.grad.clone()))
        packing.zero_grad()
    for layer in packing.encoder.layers:
        layer.compile(dynamic=True)
    for seed, grids in enumerate(packs):
        with torch.set_grad_enabled(training):
            output = packing(**bookkept(grids, seed)).last_hidden_state
        torch.testing.assert_close(output, expected[seed][0], rtol=0, atol=2e-4)
        if training:
            output.square().mean().backward()
            found = packing.encoder.layers[0].mlp.fc1.weight.grad
            torch.testing.assert_close(
                found, expected[seed][1], rtol=0, atol=1e-3 * expected[seed][1].abs().max().item()
            )
            packing.zero_grad()
    assert graphs() <= 3, "more than two were compiled anew"
