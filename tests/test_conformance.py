# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The conformance data: golden outputs of other code for the same weights, and the four real media files."""

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from conversion import convert_vlm_tower_to_hf
from conversion.common.metrics import Bounds, compare
from llava_vit_hf import (
    LlavaViTImageProcessor,
    LlavaViTModel,
    LlavaViTPackingModel,
    LlavaViTProcessor,
    codec_llava_vit,
    codec_scores,
)
from llava_vit_hf.codec_llava_vit import best_patches


pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[1]
# The goldens themselves are up to 1.8e-4 from float64; another epsilon shows in the relative error.
BOUNDS = Bounds(relative_error=2e-5, max_abs=5e-4)


@pytest.fixture(scope="module")
def golden(conformance):
    with np.load(conformance / "golden" / "expected.npz") as archive:
        return {name: archive[name] for name in archive.files}


@pytest.fixture(scope="module")
def processors():
    """The dense and the packing processor of a folder without one, as the conversion makes them."""
    return {packing: LlavaViTProcessor(LlavaViTImageProcessor(packing=packing)) for packing in (False, True)}


def check(actual: torch.Tensor, expected: np.ndarray, bounds: Bounds = BOUNDS) -> None:
    assert bounds.check(compare(actual, expected)) == []


def golden_image(conformance, name: str, columns: int, rows: int) -> Image.Image:
    with Image.open(conformance / "media" / name) as image:
        return image.convert("RGB").resize((14 * columns, 14 * rows), Image.Resampling.BICUBIC)


def run(*command: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )


@pytest.fixture(scope="module")
def converted(conformance, tmp_path_factory):
    """`backbone.pt` converted by the scripts."""
    folder = tmp_path_factory.mktemp("converted")
    for layout, script in (("dense", "convert_llava_vit_to_hf"), ("packing", "convert_llava_vit_packing_to_hf")):
        result = run(
            ROOT / "conversion" / f"{script}.py",
            "auto",
            conformance / "golden" / "backbone.pt",
            *("--num_attention_heads", "2", "--output_dir", folder / layout, "--time_budget", "1"),
        )
        assert result.returncode == 0, result.stderr
    return folder


@torch.no_grad()
def test_converted_dense_matches_the_source(conformance, golden, converted):
    model = AutoModel.from_pretrained(converted / "dense", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(converted / "dense")
    image = processor(images=golden_image(conformance, "2.jpg", 12, 16), native_resolution=True)
    output = model(**image)
    check(output.last_hidden_state, golden["source.image.visible_embeddings"])
    check(output.pooler_output, golden["source.image.head_output"])
    for name in ("video1", "video2"):
        clip = processor(videos=str(conformance / "media" / f"{name[-1]}.mp4"), native_resolution=True)
        output = model(**clip)
        check(output.last_hidden_state[:, ::7], golden[f"source.{name}.visible_embeddings"])
        check(output.pooler_output, golden[f"source.{name}.head_output"])


@torch.no_grad()
def test_converted_packing_matches_the_source(conformance, golden, converted):
    model = AutoModel.from_pretrained(converted / "packing", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(converted / "packing")
    media = [str(conformance / "media" / name) for name in ("1.mp4", "2.mp4")]
    inputs = processor(images=golden_image(conformance, "2.jpg", 12, 16), videos=media)
    output = model(**inputs)
    samples = processor.split_features(output.last_hidden_state, inputs["grid_thw"])
    tokens = [sample.flatten(0, 2) for sample in samples]
    check(tokens[0][None], golden["source.image.visible_embeddings"])
    check(output.pooler_output[:1], golden["source.image.head_output"])
    for index in (1, 2):
        check(tokens[index][None, ::7], golden[f"source.video{index}.visible_embeddings"])
        check(output.pooler_output[index : index + 1], golden[f"source.video{index}.head_output"])


@torch.no_grad()
def test_wrong_epsilon_is_seen(conformance, golden, converted):
    """A negative control: the origin's 1e-6 in place of the source's epsilons exceeds the bounds."""
    model = LlavaViTModel.from_pretrained(conformance / "golden" / "dense_hf")
    processor = AutoProcessor.from_pretrained(converted / "dense")
    output = model(**processor(images=golden_image(conformance, "2.jpg", 12, 16), native_resolution=True))
    reasons = BOUNDS.check(compare(output.last_hidden_state, golden["source.image.visible_embeddings"]))
    assert any("relative error" in reason for reason in reasons)


@torch.no_grad()
def test_dense_matches_the_origin(conformance, golden, processors):
    model = LlavaViTModel.from_pretrained(conformance / "golden" / "dense_hf")
    image = processors[False](images=golden_image(conformance, "2.jpg", 12, 16), native_resolution=True)
    output = model(**image, output_hidden_states=True)
    check(output.last_hidden_state, golden["dense.image.last_hidden_state"])
    check(output.pooler_output, golden["dense.image.pooler_output"])
    check(output.hidden_states[-2], golden["dense.image.hidden_states_-2"])
    for name, file in (("image1", "1.jpg"), ("image2", "2.jpg"), ("video1", "1.mp4"), ("video2", "2.mp4")):
        kind = "images" if name.startswith("image") else "videos"
        inputs = processors[False](**{kind: [str(conformance / "media" / file)]}, native_resolution=True)
        output = model(**inputs, vision_feature_layer=[-2, "pooler"])
        check(output.hidden_states[0][:, ::7], golden[f"dense.{name}.hidden_states_-2"])
        check(output.pooler_output, golden[f"dense.{name}.pooler_output"])


@torch.no_grad()
def test_packing_matches_the_origin(conformance, golden, processors):
    model = LlavaViTPackingModel.from_pretrained(conformance / "golden" / "packing_hf")
    images = [golden_image(conformance, "2.jpg", 12, 16), golden_image(conformance, "1.jpg", 9, 5)]
    inputs = processors[True](images=images, videos=str(conformance / "media" / "1.mp4"))
    assert np.array_equal(inputs["grid_thw"], golden["packing.grid_thw"])
    assert np.array_equal(inputs["patch_positions"], golden["packing.patch_positions"])
    output = model(**inputs, output_hidden_states=True)
    check(output.hidden_states[-2][::3], golden["packing.hidden_states_-2"])
    check(output.last_hidden_state[::3], golden["packing.last_hidden_state"])
    check(output.pooler_output, golden["packing.pooler_output"])


def test_four_media_files_through_the_commands(conformance, converted, tmp_path):
    media = conformance / "media"
    arguments = ["--hf_model_path", converted / "dense", "--packing_model_path", converted / "packing"]
    for name, file in (("image1", "1.jpg"), ("image2", "2.jpg"), ("video1", "1.mp4"), ("video2", "2.mp4")):
        arguments += [f"--{name}", media / file]
    result = run(ROOT / "examples" / "extract_features.py", *arguments, "--output_dir", tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("PASS") == 5
    again = run(ROOT / "examples" / "verify_features.py", "--features_dir", tmp_path)
    assert again.returncode == 0 and again.stdout == result.stdout

    metadata = json.loads((tmp_path / "metadata.json").read_text())
    expected = json.loads((conformance / "golden" / "meta.json").read_text())["inputs"]
    dense, packing = np.load(tmp_path / "features_hf.npz"), np.load(tmp_path / "features_packing.npz")
    for name, facts in expected.items():
        assert dense[name].shape == (1, facts["tokens"], 128) and packing[name].shape == (facts["tokens"], 128)
        assert dense[name].dtype == packing[name].dtype == np.float32
        for key in ("frame_indices", "temporal_positions"):
            if key in facts:
                assert metadata["inputs"][name]["dense"][key] == facts[key]
                assert metadata["inputs"][name]["packing"][key] == facts[key]
        if "mode" in facts:
            reported = {key: metadata["inputs"][name]["dense"][key] for key in ("width", "height", "mode", "format")}
            assert reported == {key: facts[key] for key in reported}


@pytest.fixture(scope="module")
def released(conformance):
    folder = conformance / "codec"
    if not (folder / "clip.mp4").is_file():
        pytest.skip("the conformance folder has no codec/")
    chosen = np.zeros((64, 36, 36), bool)
    chosen[tuple(np.load(folder / "visidx_thw.npy").T)] = True
    return folder / "clip.mp4", np.load(folder / "frame_ids.npy"), chosen


class TestCodecSelection:
    """Against what the released pipeline chose of one clip, by a patched decoder."""

    def choose(self, scores: np.ndarray) -> np.ndarray:
        """As the released rule: frame 0 whole, then the best that touch no padding."""
        scores = scores.copy()
        scores[:, :, :8] = scores[:, :, 28:] = -1
        return best_patches(scores, 8 * 1296)

    def overlap(self, ours: np.ndarray, theirs: np.ndarray) -> float:
        return float((ours & theirs)[1:].sum() / theirs[1:].sum())

    def rank_correlation(self, ours: np.ndarray, theirs: np.ndarray) -> float:
        counts = (chosen[1:].sum((1, 2)) for chosen in (ours, theirs))
        return float(np.corrcoef(*(_ranks(count) for count in counts))[0, 1])

    def test_overlap_with_the_released_selection(self, released):
        path, indices, theirs = released
        scores = {
            kind: codec_scores(path, indices, 16, codec_score=kind, square=576)
            for kind in ("motion+residual", "motion", "residual")
        }
        overlaps = {kind: self.overlap(self.choose(values), theirs) for kind, values in scores.items()}
        counts = self.rank_correlation(self.choose(scores["motion+residual"]), theirs)
        print(f"overlap {overlaps}, rank correlation of counts per frame {counts:.3f}")
        assert overlaps["motion+residual"] > 0.80 < overlaps["motion"] and counts > 0.8
        # Frames shifted by one, and padding counted in.
        assert self.overlap(self.choose(np.roll(scores["motion+residual"], 1, axis=0)), theirs) < 0.4
        assert self.overlap(best_patches(np.roll(scores["motion+residual"], 8, axis=2), 8 * 1296), theirs) < 0.4

    @pytest.mark.parametrize("fault", ["x and y exchanged", "quarter pixels"])
    def test_faults_in_the_vectors_show(self, released, monkeypatch, fault):
        path, indices, theirs = released
        right = codec_llava_vit.motion_field

        def wrong(vectors, height, width, past=True):
            field, found = right(vectors, height, width, past)
            if fault == "quarter pixels":
                return field * 4, found
            return np.stack([field[0], np.zeros_like(field[1])]), found

        monkeypatch.setattr(codec_llava_vit, "motion_field", wrong)
        assert self.overlap(self.choose(codec_scores(path, indices, 16, square=576)), theirs) < 0.80

    @pytest.mark.once
    @pytest.mark.slow
    @pytest.mark.parametrize("codec", ["libx265", "libvpx-vp9", "libsvtav1"])
    def test_copies_in_other_codecs(self, released, tmp_path, codec):
        path, indices, _ = released
        if codec not in av.codecs_available:
            pytest.skip(f"this PyAV has no {codec}")
        options = {"libx265": {"preset": "ultrafast"}, "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"}}
        copy = tmp_path / "copy.mkv"
        with av.open(str(path)) as source, av.open(str(copy), "w") as target:
            stream = target.add_stream(codec, rate=30, options=options.get(codec, {"preset": "12"}))
            stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 360, 640, "yuv420p", 1_500_000
            for frame in source.decode(video=0):
                frame.pict_type = 0
                target.mux(stream.encode(frame))
            target.mux(stream.encode())
        original, ours = (self.choose(codec_scores(file, indices, 16, square=576)) for file in (path, copy))
        print(f"{codec}: overlap {self.overlap(ours, original):.3f}")
        assert self.overlap(ours, original) > 0.6


def _ranks(values: np.ndarray) -> np.ndarray:
    """Equal values share the middle of their ranks."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


@pytest.fixture(scope="module")
def tower(conformance, tmp_path_factory):
    """The tower of `golden/ov2` with its merger, as a folder that the script makes; its inputs and outputs."""
    folder, stored = tmp_path_factory.mktemp("towers") / "tower", conformance / "golden" / "ov2"
    arguments = [str(stored), "--output_dir", str(folder), "--with_merger", "--time_budget", "0.05"]
    assert convert_vlm_tower_to_hf.main(arguments) == 0
    with np.load(stored / "expected.npz") as arrays:
        return folder, {name: arrays[name] for name in arrays.files}


TOWER_BOUNDS = Bounds(relative_error=3e-5, max_abs=2e-3)
TOWER_INPUTS = ("pixel_values", "grid_thw", "patch_positions")


def tower_outputs(model, arrays: dict) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        output = model(**{name: torch.from_numpy(arrays[name]) for name in TOWER_INPUTS}, output_hidden_states=True)
    states = {f"hidden_states_{index}": state for index, state in enumerate(output.hidden_states)}
    return {**states, "last_hidden_state": output.last_hidden_state, "merged": output.merged_hidden_state}


def test_the_tower_of_a_vlm_matches_its_own_outputs(tower):
    folder, arrays = tower
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True)
    found = tower_outputs(model, arrays)
    assert found.keys() == arrays.keys() - set(TOWER_INPUTS)
    for name, states in found.items():
        check(states, arrays[name], TOWER_BOUNDS)


@pytest.mark.parametrize("fault", ["window", "no window", "raster", "plain times", "post norm"])
def test_faults_of_a_tower_show(tower, fault):
    folder, arrays = tower
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True)
    if "window" in fault:
        model.config.attention_window = None if fault == "no window" else 5
    elif fault == "post norm":
        model.layernorm_post = torch.nn.LayerNorm(128, eps=1e-6)
    else:
        positions, start = arrays["patch_positions"].copy(), 0
        for t, h, w in arrays["grid_thw"].tolist():
            rows = slice(start, start + t * h * w)
            plain = np.stack(np.indices((t, h, w)), axis=-1).reshape(-1, 3)
            if fault == "raster":
                positions[rows, 1:] = plain[:, 1:]
            else:
                positions[rows, 0] = plain[:, 0]
            start = rows.stop
        arrays = {**arrays, "patch_positions": positions}
    found = tower_outputs(model, arrays)
    # The merger's own norm takes a norm before it back.
    for name in ("last_hidden_state", "merged")[: 1 if fault == "post norm" else 2]:
        assert TOWER_BOUNDS.check(compare(found[name], arrays[name])) != []
