# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Narrow dtypes, far positions, many samples and long ones, against float64 and the independent encoder.

Weights have peaked attention, so that a wrong position or a lost sample shows. What is promised for float16: finite
and near float64 while the hidden states fit (below 65,504), whatever the attention scores and the squares in the
norms; hidden states that do not fit come out as infinity or NaN.
"""

import copy
import json
import subprocess
import sys
from itertools import accumulate

import pytest
import torch
from torch import nn

from conversion.checkpoints.model_folder_writer import ConversionRequest, convert_folder
from conversion.source.encoder import SourceConfig, SourceEncoder, rotary_angles, rotate
from conversion.source.peaked_weights import peaked_state_dict
from llava_vit_hf import LlavaViTPackingModel, LlavaViTProcessor
from llava_vit_hf import modeling_llava_vit as modeling
from llava_vit_hf.attention_llava_vit import apply_rotary, rotary_embedding
from llava_vit_hf.grid_llava_vit import patchify
from llava_vit_hf.image_processing_llava_vit import LlavaViTImageProcessor
from llava_vit_hf.segments_llava_vit import Segments, attention_kernel
from tests import media
from tests.conversion.scripts import ROOT
from tests.conversion.weights import tiny_config
from tests.models import dense_model, random_pixels, relative_error


IMPLEMENTATIONS = ["sdpa", "eager"]
FLOAT16_LARGEST = torch.finfo(torch.float16).max


def models_of(config: SourceConfig, folder) -> tuple[SourceEncoder, LlavaViTPackingModel]:
    """The oracle in float64, and the packing model that the conversion makes of the same weights."""
    weights = peaked_state_dict(config)
    torch.save(weights, folder / "backbone.pt")
    request = ConversionRequest(
        str(folder / "backbone.pt"), "packing", folder / "model", num_attention_heads=config.num_attention_heads
    )
    convert_folder(request)
    model = LlavaViTPackingModel.from_pretrained(folder / "model", dtype=torch.float32)
    return SourceEncoder.from_state_dict(config, weights, torch.float64), model.eval()


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    return models_of(tiny_config(), tmp_path_factory.mktemp("encoders"))


def grid_at(grid: tuple[int, int, int], corner: tuple[int, int, int] = (0, 0, 0)) -> torch.Tensor:
    """`(t * h * w, 3)`, the positions of a grid whose first patch sits at `corner`."""
    axes = [torch.arange(count) + first for count, first in zip(grid, corner, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def clip_of(grid: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    """`(3, T, H, W)` for patches of 4 pixels."""
    return random_pixels(3, grid[0], 4 * grid[1], 4 * grid[2], seed=seed)


def pack_of(clips: list[torch.Tensor], positions: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    lengths = [len(rows) for rows in positions]
    return {
        "pixel_values": torch.cat([patchify(clip.transpose(0, 1), 4).flatten(0, 1) for clip in clips]),
        "patch_positions": torch.cat(positions),
        "cu_seqlens": torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
    }


class TestPositions:
    LAST = 4096

    def exact_angles(self, positions: torch.Tensor, head_dim: int) -> torch.Tensor:
        """Written out once more, in float64 from the start."""
        axes = []
        for axis, share in enumerate((4, 6, 6)):
            channels = head_dim // 2 * share // 16
            steps = torch.arange(channels, dtype=torch.float64) / channels
            axes.append(positions[:, axis, None].double() * 10000.0**-steps)
        return torch.cat(axes * 2, dim=1)

    def turned(self, positions: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return apply_rotary(states, rotary_embedding(positions, states.shape[-1], 10000.0, torch.float64))

    @pytest.mark.parametrize("head_dim", [32, 64, 96])
    def test_rotation_at_far_positions(self, head_dim):
        """The oracle's up to rounding in float64, and within `2**-23 * position` radians of exact, float32's unit in
        the last place: 8e-6 in the 64-frame context and 5e-4 at 4,096, which bfloat16 and float16 do not resolve."""
        positions = torch.arange(self.LAST + 1)[:, None].expand(-1, 3)
        states = random_pixels(len(positions), 1, head_dim).double()
        actual = self.turned(positions, states)
        angles = rotary_angles(positions, head_dim, 10000.0)
        expected = rotate(states.transpose(0, 1), angles.cos().double(), angles.sin().double()).transpose(0, 1)
        assert torch.allclose(actual, expected, rtol=0, atol=1e-14)

        exact = self.exact_angles(positions, head_dim)
        bound = 2.0**-23 * positions[:, :1].double()
        assert ((angles.double() - exact).abs() <= bound + 1e-12).all()
        turned = rotate(states.transpose(0, 1), exact.cos(), exact.sin()).transpose(0, 1)
        # An angle's error moves a pair by at most that times the pair's largest entry, twice; cosines round, too.
        largest = states.abs().amax(-1)
        assert ((actual - turned).abs().amax(-1) <= 2 * (bound + 2.0**-23) * largest).all()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_positions_in_a_narrow_dtype_would_be_seen(self, dtype):
        positions = torch.arange(self.LAST + 1)[:, None].expand(-1, 3)
        states = random_pixels(len(positions), 1, 64).double()
        narrow = self.turned(positions.to(dtype) + torch.tensor(0, dtype=dtype), states)
        wrong = (narrow - self.turned(positions, states)).abs().amax((1, 2)) > 1e-2
        first = {torch.bfloat16: 257, torch.float16: 2049}[dtype]
        assert not wrong[:first].any() and wrong[first::2].all()

    def test_model_at_far_positions(self, encoders):
        """Frames far beyond the 64-frame context, rows and columns up to 4,000."""
        oracle, model = encoders
        grids, corners = [(3, 4, 5), (1, 4, 4), (2, 3, 3)], [(4093, 3996, 3995), (0, 3999, 0), (64, 0, 3997)]
        clips = [clip_of(grid, seed) for seed, grid in enumerate(grids)]
        positions = [grid_at(*pair) for pair in zip(grids, corners, strict=True)]
        with torch.no_grad():
            states = model(**pack_of(clips, positions), output_hidden_states=True).hidden_states
        row = 0
        for clip, where in zip(clips, positions, strict=True):
            expected = oracle(clip[None], positions=where)["hidden_states"]
            for actual, reference in zip(states, expected, strict=True):
                assert relative_error(actual[row : row + len(where)], reference[0]) < 1e-5
            shifted = oracle(clip[None], positions=where + torch.tensor([0, 1, 0]))["hidden_states"]
            assert relative_error(shifted[-1], expected[-1]) > 0.05
            row += len(where)

    def test_processor_beyond_the_context(self, encoders):
        """More frames than the context has share positions 0 to 63; the features are those of these positions."""
        oracle, model = encoders
        processor = LlavaViTProcessor(LlavaViTImageProcessor(patch_size=4, packing=True))
        video = media.frames(100, 8, 12)
        inputs = processor(videos=video, num_frames="all", native_resolution=True)
        times = inputs["patch_positions"][::6, 0]
        assert inputs["grid_thw"].tolist() == [[100, 2, 3]]
        assert times.tolist() == [round(frame * 63 / 99) for frame in range(100)]
        mean, std = (torch.tensor(getattr(processor.image_processor, f"image_{name}")) for name in ("mean", "std"))
        pixels = ((torch.from_numpy(video) / 255 - mean) / std).permute(3, 0, 1, 2)
        where = grid_at((100, 2, 3))
        where[:, 0] = times.repeat_interleave(6)
        with torch.no_grad():
            actual = model(**inputs)
        expected = oracle(pixels.double()[None], positions=where)
        assert relative_error(actual.last_hidden_state, expected["last_hidden_state"][0]) < 1e-5
        assert relative_error(actual.pooler_output, expected["pooled"]) < 1e-5


class TestFloat16:
    """Hidden states of thousands, as trained encoders have them in single channels, and scores beyond float16."""

    def run(self, model, implementation="sdpa"):
        """Hidden states, last and pooled: in float16, and in float64 of the same rounded weights and pixels."""
        model.half().set_attn_implementation(implementation)
        pixels = random_pixels(2, 3, 32, 32).half()
        with torch.no_grad():
            narrow = model(pixels, output_hidden_states=True)
            wide = model.double()(pixels.double(), output_hidden_states=True)
        return [[*output.hidden_states, output.last_hidden_state, output.pooler_output] for output in (narrow, wide)]

    def scaled(self, name: str, factor: float, **config):
        model = dense_model(num_hidden_layers=2, **config)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter_name.startswith(("encoder", "embeddings")) and f"{name}.weight" in parameter_name:
                    parameter.mul_(factor)
        return model

    @pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
    @pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
    @pytest.mark.parametrize("factor", [1, 1e4])
    def test_near_float64_while_hidden_states_fit(self, implementation, norm, factor):
        narrow, wide = self.run(self.scaled("fc2", factor, layer_norm_type=norm), implementation)
        largest = wide[2].abs().max()
        assert largest < 10 if factor == 1 else 30_000 < largest < FLOAT16_LARGEST
        for actual, expected in zip(narrow, wide, strict=True):
            assert actual.dtype == torch.float16 and relative_error(actual, expected) < 5e-3

    def test_squares_in_float16_would_be_seen(self, monkeypatch):
        def forward(self, x):
            return x / ((x * x).mean(-1, keepdim=True) + self.eps).sqrt() * self.weight

        monkeypatch.setattr(nn.RMSNorm, "forward", forward)
        narrow, wide = self.run(self.scaled("fc2", 1e4, layer_norm_type="rms_norm"))
        assert relative_error(narrow[3], wide[3]) > 0.5

    @pytest.mark.parametrize("name, factor", [("fc2", 5e4), ("v_proj", 5e4), ("patch_embedding", 5e4)])
    @pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
    def test_what_does_not_fit_is_not_finite(self, implementation, name, factor):
        """Infinity or NaN in everything after it, never a finite feature that is wrong."""
        narrow, wide = self.run(self.scaled(name, factor), implementation)
        assert all(states.isfinite().all() for states in wide)
        assert not any(states.isfinite().all() for states in narrow[-3:])
        for actual, expected in zip(narrow[:3], wide[:3], strict=True):
            assert relative_error(actual, expected) < 5e-3 or not actual.isfinite().all()

    @pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
    def test_a_key_that_does_not_fit_is_not_hidden(self, implementation):
        """Scores of -inf: torch's fused kernel on the CPU makes finite rows of them, which must not come out."""
        for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            model = dense_model(num_hidden_layers=1)
            attention = model.encoder.layers[0].self_attn
            with torch.no_grad():
                attention.q_proj.weight[:2] = attention.k_proj.weight[:2] = 0
                attention.k_proj.weight[:2, 0] = 60_000
                attention.k_proj.bias[:2] = 30_000 * torch.tensor(signs)
                attention.q_proj.bias[:2] = -3 * torch.tensor(signs)
            model.half().set_attn_implementation(implementation)
            pixels = torch.cat([random_pixels(1, 3, 4, 8, seed=seed) for seed in range(60)]).half()
            positions = torch.tensor([[[3, 5, 2], [3, 5, 3]]]).expand(60, -1, -1)
            with torch.no_grad():
                narrow = model(pixels, patch_positions=positions).last_hidden_state
                wide = model.double()(pixels.double(), patch_positions=positions).last_hidden_state
            finite = [index for index in range(60) if narrow[index].isfinite().all()]
            assert len(finite) < 60
            assert all(relative_error(narrow[index], wide[index]) < 0.05 for index in finite)

    @pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
    def test_scores_beyond_float16(self, implementation):
        module = nn.Module().eval()
        module.is_causal = False
        query, key, value = (random_pixels(40, 2, 32, seed=seed).half() for seed in range(3))
        query, key = 150 * query, 150 * key
        scores = torch.einsum("qhd,khd->hqk", query.double(), key.double()) * 32**-0.5
        assert scores.max() > FLOAT16_LARGEST
        expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value.double())
        kernel = attention_kernel(implementation, query, dropout=0.0)
        segments = Segments(torch.tensor([0, 40], dtype=torch.int32), 40, kernel, runs=((1, 40),))
        output, _ = kernel(module, query, key, value, segments)
        assert relative_error(output, expected) < 1e-3
        assert not torch.einsum("qhd,khd->hqk", query, key).softmax(-1).isfinite().all()


class TestLargePacks:
    @pytest.mark.long
    @pytest.mark.once
    def test_a_pack_of_100_000_tokens(self, encoders, monkeypatch):
        """Boundaries beyond 65,536 and positions beyond 256, where bfloat16 has no odd integers any more."""
        oracle, model = encoders
        grids = [(1, 10 + index % 7, 50) for index in range(154)]
        corners = [(9 * index % 64, 13 * index, 3 * index) for index in range(154)]
        positions = [grid_at(*pair) for pair in zip(grids, corners, strict=True)]
        starts = [0, *accumulate(map(len, positions))]
        assert starts[-1] > 100_000
        (crossing,) = (index for index in range(154) if starts[index] <= 65_536 < starts[index + 1])
        chosen = {0: 0, crossing: 1, 153: 2}
        pixels = random_pixels(starts[-1], 48, seed=9)
        clips = {index: clip_of(grids[index], seed) for index, seed in chosen.items()}
        for index, clip in clips.items():
            pixels[starts[index] : starts[index + 1]] = patchify(clip.transpose(0, 1), 4).flatten(0, 1)
        inputs = {"patch_positions": torch.cat(positions), "cu_seqlens": torch.tensor(starts, dtype=torch.int32)}

        def errors(dtype) -> list[float]:
            with torch.no_grad():
                narrow = copy.deepcopy(model).to(dtype)
                output = narrow(pixels.to(dtype), **inputs, vision_feature_layer=[1, "pooler"])
            found = []
            for index, clip in clips.items():
                rows = slice(starts[index], starts[index + 1])
                expected = oracle(clip[None], positions=positions[index])
                found.append(relative_error(output.hidden_states[0][rows], expected["hidden_states"][1][0]))
                found.append(relative_error(output.pooler_output[index], expected["pooled"][0]))
            return found

        assert max(errors(torch.float32)) < 1e-5
        rounding = errors(torch.bfloat16)
        assert max(rounding) < 0.05
        precise = rotary_embedding
        monkeypatch.setattr(modeling, "rotary_embedding", lambda where, *rest: precise(where.bfloat16(), *rest))
        assert max(errors(torch.bfloat16)) > 3 * max(rounding)

    def test_10_000_samples_of_one_patch(self, encoders, monkeypatch):
        """Each is itself: attention to one token is its value. And no work grows with the square of the samples."""
        oracle, model = encoders
        patches = random_pixels(10_000, 48)
        grid = torch.ones(10_000, 3, dtype=torch.int64)
        scores = []
        attention = nn.functional.scaled_dot_product_attention

        def count(query, key, *arguments, **options):
            scores.append(query.shape[0] * query.shape[2] * key.shape[2])
            return attention(query, key, *arguments, **options)

        monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", count)
        with torch.no_grad():
            output = model(patches, grid_thw=grid)
        assert sum(scores) == 3 * 10_000  # two layers and the head
        assert len(scores) == 3
        monkeypatch.undo()
        expected, pooled = self.one_token(oracle, patches.double())
        assert (output.last_hidden_state - expected).norm(dim=1).div(expected.norm(dim=1)).max() < 1e-5
        assert (output.pooler_output - pooled).norm(dim=1).div(pooled.norm(dim=1)).max() < 1e-5
        # The reference is that of the whole encoder, and tells one sample from the next.
        alone = oracle(patches[7].view(3, 4, 4))
        assert relative_error(expected[7], alone["last_hidden_state"][0, 0]) < 1e-12
        assert relative_error(expected[8], alone["last_hidden_state"][0, 0]) > 0.5

        # Every other sample with two patches: still two calls a layer.
        lengths = torch.tensor([1, 2]).repeat(2_500)
        grid = torch.stack([lengths.new_ones(5_000), lengths.new_ones(5_000), lengths], 1)
        with torch.no_grad():
            mixed = model(random_pixels(7_500, 48, seed=3), grid_thw=grid)
            ones = model(random_pixels(7_500, 48, seed=3)[::3].contiguous(), grid_thw=grid[::2])
        assert relative_error(mixed.pooler_output[::2], ones.pooler_output) < 1e-5

    def one_token(self, oracle: SourceEncoder, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the oracle gives for samples of one patch, `(samples, 48)`, all at once."""
        width = oracle.config.hidden_size
        x = oracle.ln_pre(patches @ oracle.conv1.weight.flatten(1).t())
        for layer in oracle.transformer.layers:
            x = x + layer.attn.out_proj(layer.attn.in_proj(layer.ln_1(x))[:, 2 * width :])
            x = x + layer.mlp(layer.ln_2(x))
        x, attention = oracle.ln_post(x), oracle.head.attention
        value = x @ attention.in_proj_weight[2 * width :].t() + attention.in_proj_bias[2 * width :]
        pooled = attention.out_proj(value)
        return x, pooled + oracle.head.mlp(oracle.head.norm(pooled))


LONG_SAMPLE = """
import json, resource, sys, torch
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from conversion.source.encoder import rotary_angles, rotate, softmax_attention
from tests.conversion.weights import tiny_config
from tests.robustness.test_numbers import grid_at, models_of, random_pixels, relative_error

torch.set_grad_enabled(False)
grid = (4, 100, 150)
config = tiny_config(hidden_size=32, num_attention_heads=1, num_hidden_layers=1, patch_size=2)
oracle, model = models_of(config, Path(sys.argv[2]))
patches, where = random_pixels(60_000, 12), grid_at(grid)

# Not even one row of blocks more than what is linear in the tokens: tokens ** 2 scores would be 14.4 GB.
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
state = model(patches, grid_thw=torch.tensor([grid]), vision_feature_layer=1).hidden_states[0]
model.set_attn_implementation("eager")
try:
    model(patches, grid_thw=torch.tensor([grid]), vision_feature_layer=1)
    refusal = None
except RuntimeError as error:
    refusal = str(error)

# The layer in float64, for the rows asked for.
rows = torch.cat([torch.arange(32), torch.arange(30_000, 30_032), torch.arange(59_968, 60_000)])
layer = oracle.transformer.layers[0]
x = oracle.ln_pre(patches.double() @ oracle.conv1.weight.flatten(1).t())
angles = rotary_angles(where, 32, 10000.0)
cos, sin = angles.cos().double(), angles.sin().double()
q, k, v = (part[None] for part in layer.attn.in_proj(layer.ln_1(x)).split(32, dim=1))
q, k = rotate(q, cos, sin), rotate(k, cos, sin)
def expected(k, v):
    y = x[rows] + layer.attn.out_proj(softmax_attention(q[:, rows], k, v)[0])
    return y + layer.mlp(layer.ln_2(y))
errors = [relative_error(state[rows], expected(k[:, :end], v[:, :end])) for end in (60_000, 59_000)]
print(json.dumps({"errors": errors, "refusal": refusal}))
"""


@pytest.mark.slow  # 12 s of processor time
@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited as Linux does it")
def test_a_sample_of_60_000_tokens(tmp_path):
    """Within 1 GiB where the scores alone would take 14.4 GB, as `eager` shows, which names what it cannot have."""
    arguments = [sys.executable, "-c", LONG_SAMPLE, str(ROOT), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    (error, error_without_the_end), refusal = found["errors"], found["refusal"]
    assert error < 1e-5 < error_without_the_end
    assert "14400000000 bytes" in refusal
