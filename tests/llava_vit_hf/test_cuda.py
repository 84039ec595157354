# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Attention on CUDA: PyTorch's own varlen attention in half precision, and no waiting for the device.

Without a CUDA device the same forward runs on fake CUDA tensors, which have shapes and no numbers: reading one on the
host, as waiting for the device does, is an error there too.
"""

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from llava_vit_hf import LlavaViTConfig, LlavaViTModel, LlavaViTPackingConfig, LlavaViTPackingModel
from llava_vit_hf import segments_llava_vit as segments_module
from llava_vit_hf.grid_llava_vit import cumulative_lengths, grid_positions
from tests.models import TINY, as_packing, dense_model, min_cosine, random_pixels, relative_error


pytest.importorskip("torch.nn.attention.varlen", reason="torch.nn.attention.varlen needs PyTorch 2.10")

GRIDS = [(1, 8, 6), (4, 5, 4), (1, 1, 1), (1, 6, 8), (2, 4, 4)]
LENGTHS = [t * h * w for t, h, w in GRIDS]
HALF = [torch.bfloat16, torch.float16]


def bookkept(device: str, dtype: torch.dtype) -> dict:
    """A pack as the processor gives it, moved to a device."""
    tensors = {
        "pixel_values": random_pixels(sum(LENGTHS), 48).to(dtype),
        "grid_thw": torch.tensor(GRIDS),
        "patch_positions": grid_positions(GRIDS),
        "cu_seqlens": cumulative_lengths(LENGTHS),
    }
    return {**{name: tensor.to(device) for name, tensor in tensors.items()}, "max_seqlen": max(LENGTHS)}


class Watch(TorchDispatchMode):
    """Counts calls of varlen attention, and refuses copies from the host that wait for the device."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.ops.torch_attn._varlen_attn.default:
            self.calls.append(tuple(args[index].shape[0] for index in range(3)) + tuple(args[5:7]))
        target = kwargs.get("device")
        moved = function is torch.ops.aten._to_copy.default and target is not None and args[0].device != target
        assert not moved or kwargs.get("non_blocking"), f"{args[0].device} to {target} waits for the device"
        return function(*args, **kwargs)


class TestFakeDevice:
    """What runs on which device, on any machine."""

    @pytest.fixture(autouse=True)
    def ampere(self, monkeypatch):
        if not torch.cuda.is_available():
            monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=8, minor=0))

    def forward(self, model_class, config, inputs, dtype, on_host=("grid_thw",)) -> Watch:
        model = model_class(config(**TINY)).eval()
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            # With the device's number, as torch without CUDA cannot ask which one is current.
            place = {"dtype": dtype, "device": "cuda:0"}
            for module in model.modules():
                for name, weight in list(module.named_parameters(recurse=False)):
                    module.register_parameter(name, torch.nn.Parameter(torch.empty(weight.shape, **place)))
            moved = [name for name, value in inputs.items() if isinstance(value, torch.Tensor) and name not in on_host]
            inputs = {**inputs, **{name: inputs[name].to("cuda:0") for name in moved}}
            with Watch() as watch:
                output = model(**inputs)
        assert output.last_hidden_state.device.type == "cuda"
        return watch

    @pytest.mark.parametrize("dtype", HALF, ids=str)
    @pytest.mark.parametrize("on_host", [(), ("grid_thw",), ("grid_thw", "patch_positions")], ids=str)
    def test_packing_takes_varlen_attention_and_reads_nothing(self, dtype, on_host):
        inputs = bookkept("cpu", dtype)
        watch = self.forward(LlavaViTPackingModel, LlavaViTPackingConfig, inputs, dtype, on_host)
        tokens, longest = sum(LENGTHS), max(LENGTHS)
        layer, pooling = (tokens, tokens, tokens, longest, longest), (len(GRIDS), tokens, tokens, 1, longest)
        assert watch.calls == [layer] * TINY["num_hidden_layers"] + [pooling]

    def test_a_grid_on_the_host_is_enough(self):
        inputs = bookkept("cpu", torch.bfloat16)
        inputs = {name: inputs[name] for name in ("pixel_values", "grid_thw")}
        watch = self.forward(LlavaViTPackingModel, LlavaViTPackingConfig, inputs, torch.bfloat16)
        assert len(watch.calls) == TINY["num_hidden_layers"] + 1

    def test_dense_takes_varlen_attention_and_reads_nothing(self):
        inputs = {"pixel_values": random_pixels(2, 3, 16, 20).bfloat16()}
        watch = self.forward(LlavaViTModel, LlavaViTConfig, inputs, torch.bfloat16)
        assert watch.calls == [(40, 40, 40, 20, 20)] * TINY["num_hidden_layers"] + [(2, 40, 40, 1, 20)]

    def test_float32_takes_the_path_by_lengths_which_reads_them(self):
        inputs = bookkept("cpu", torch.float32)
        with pytest.raises(DataDependentOutputException):
            self.forward(LlavaViTPackingModel, LlavaViTPackingConfig, inputs, torch.float32, on_host=())

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_other_devices_take_the_path_by_lengths(self, device):
        states = torch.empty(1, dtype=torch.bfloat16, device=device)
        assert segments_module.needs_lengths(segments_module.attention_kernel("sdpa", states, dropout=0.0))

    @pytest.mark.parametrize(
        ("dtype", "dropout", "major", "taken"),
        [
            (torch.bfloat16, 0.0, 8, True),
            (torch.float16, 0.0, 9, True),
            (torch.float32, 0.0, 9, False),
            (torch.bfloat16, 0.1, 9, False),
            (torch.bfloat16, 0.0, 7, False),
        ],
    )
    def test_what_varlen_attention_takes(self, monkeypatch, dtype, dropout, major, taken):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
        with FakeTensorMode():
            states = torch.empty(4, 2, 32, dtype=dtype, device="cuda")
        kernel = segments_module.attention_kernel("sdpa", states, dropout)
        assert kernel.func is (segments_module.attend_by_varlen if taken else segments_module.attend_by_run)


@torch.no_grad()
def test_varlen_call_gives_what_the_path_by_lengths_gives(monkeypatch):
    """The kernel's place taken by a plain function with its arguments, so that the call can be checked on a CPU."""
    dense = dense_model()
    packing, inputs = as_packing(dense), bookkept("cpu", torch.float32)
    images = random_pixels(2, 3, 16, 20)
    expected, expected_dense = packing(**inputs, output_hidden_states=True), dense(images)
    calls = []

    def by_hand(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k):
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert (cu_seq_q.diff().max(), cu_seq_k.diff().max()) == (max_q, max_k)
        calls.append(len(query))
        out = []
        for (q0, q1), (k0, k1) in zip(cu_seq_q.unfold(0, 2, 1), cu_seq_k.unfold(0, 2, 1), strict=True):
            q, k, v = query[q0:q1].double(), key[k0:k1].double(), value[k0:k1].double()
            weights = (torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5).softmax(-1)
            out.append(torch.einsum("hqk,khd->qhd", weights, v).to(query.dtype))
        return torch.cat(out)

    monkeypatch.setattr(segments_module, "varlen_attention", lambda states: by_hand)
    actual, actual_dense = packing(**inputs, output_hidden_states=True), dense(images)
    assert len(calls) == 2 * (TINY["num_hidden_layers"] + 1)
    for found, wanted in (
        *zip(actual.hidden_states, expected.hidden_states, strict=True),
        (actual.pooler_output, expected.pooler_output),
        (actual_dense.last_hidden_state, expected_dense.last_hidden_state),
        (actual_dense.pooler_output, expected_dense.pooler_output),
    ):
        assert relative_error(found, wanted) < 2e-6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestDevice:
    """On a real CUDA device."""

    @pytest.fixture(scope="class", params=HALF, ids=str)
    @classmethod
    def models(cls, request):
        dense = dense_model(num_hidden_layers=4)
        packing = as_packing(dense)
        return (
            dense.to("cuda", request.param),
            packing.to("cuda", request.param),
            as_packing(dense_model(num_hidden_layers=4)),
        )

    @torch.no_grad()
    def test_no_synchronisation(self, models):
        _, packing, _ = models
        inputs = bookkept("cuda", packing.dtype)
        packing(**inputs)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            packing(**inputs, output_hidden_states=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @torch.no_grad()
    def test_near_float32_and_equal_to_dense(self, models):
        dense, packing, precise = models
        inputs = bookkept("cuda", packing.dtype)
        output = packing(**inputs, output_hidden_states=True)
        expected = precise(**bookkept("cpu", torch.float32), output_hidden_states=True)
        for actual, reference in zip(output.hidden_states, expected.hidden_states, strict=True):
            assert relative_error(actual.cpu(), reference) < 0.05
        images = random_pixels(2, 3, 16, 20).to("cuda", dense.dtype)
        alone = dense(images).last_hidden_state
        patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(40, 48)
        packed = packing(patches, grid_thw=torch.tensor([[1, 4, 5]] * 2)).last_hidden_state
        assert torch.equal(packed, alone.flatten(0, 1))

    @torch.no_grad()
    def test_no_sample_sees_another(self, models):
        _, packing, _ = models
        inputs = bookkept("cuda", packing.dtype)
        before = packing(**inputs).last_hidden_state
        inputs["pixel_values"][: LENGTHS[0]] += 1
        after = packing(**inputs).last_hidden_state
        assert torch.equal(before[LENGTHS[0] :], after[LENGTHS[0] :])
        assert min_cosine(before[: LENGTHS[0]].cpu(), after[: LENGTHS[0]].cpu()) < 0.99

    @torch.no_grad()
    def test_other_company_changes_a_sample_by_rounding_only(self, models):
        """Varlen attention may split its work by the whole pack, so on CUDA this is no promise of bits."""
        _, packing, _ = models
        inputs = bookkept("cuda", packing.dtype)
        together = packing(**inputs).last_hidden_state.split(LENGTHS)
        rows = inputs["pixel_values"].split(LENGTHS), inputs["patch_positions"].split(LENGTHS)
        for order in ([0], [1, 4], [4, 2, 0, 1], [3, 3, 3, 1]):
            pixels, positions = (torch.cat([part[index] for index in order]) for part in rows)
            grid = torch.tensor([GRIDS[index] for index in order])
            found = packing(pixels, grid, positions).last_hidden_state.split([LENGTHS[index] for index in order])
            for index, sample in zip(order, found, strict=True):
                assert relative_error(sample.cpu(), together[index].cpu()) < 0.02
                assert min_cosine(sample.cpu(), together[index].cpu()) > 0.999

    def test_gradients(self, models):
        _, packing, precise = models
        for model, inputs in (
            (packing, bookkept("cuda", packing.dtype)),
            (precise, bookkept("cpu", torch.float32)),
        ):
            model.zero_grad()
            model(**inputs).pooler_output.float().square().sum().backward()
        for name, parameter in precise.named_parameters():
            assert relative_error(packing.get_parameter(name).grad.cpu(), parameter.grad) < 0.2, name

    @torch.no_grad()
    def test_float32_takes_the_path_by_lengths(self):
        packing = as_packing(dense_model())
        expected = packing(**bookkept("cpu", torch.float32)).last_hidden_state
        actual = packing.cuda()(**bookkept("cuda", torch.float32)).last_hidden_state
        assert relative_error(actual.cpu(), expected) < 1e-3

    @torch.no_grad()
    def test_compiles_in_one_graph(self, models):
        _, packing, _ = models
        inputs = bookkept("cuda", packing.dtype)
        compiled = torch.compile(packing, fullgraph=True, dynamic=True)
        assert relative_error(compiled(**inputs).last_hidden_state, packing(**inputs).last_hidden_state) < 0.02
