# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""One run over files that go wrong: each gives right features or a recorded error, and none stops or hangs it."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor

from conversion.common.metrics import compare
from examples.extraction.decoding import pixels_digest
from examples.extraction.feature_sets import open_features
from tests.examples.commands import extract, read_lines
from tests.examples.extraction.bad_files import MAX_SAMPLE_TOKENS, write_cases


# Written once here to name the tests; the run has its own copies.
NAMES = """zero_bytes.jpg zero_bytes.png text.jpg page.png noise.jpg header_only.jpg truncated.jpg truncated.png
damaged.png bomb.png unknown_suffix.xyz 1x10000.png 10000x3.png over_the_cap.png missing.jpg pipe.jpg rgba.png
grey_alpha.png grey.png one_bit.png palette.png palette_transparent.png 16_bit.png cmyk.jpg progressive.jpg
exif_rotated_6.jpg exif_rotated_8.jpg exif_mirrored_2.jpg broken_exif.jpg animated.gif png_named.jpg no_suffix
UPPER.PNG a.tif png_named.mp4 name_with_spaces_é.png zero_bytes.mp4 text.mp4 truncated.mp4 header_only.mp4 noise.mkv
audio_only.mp4 empty_folder unequal_frames long_over_the_cap.mp4 variable_rate.mp4 one_frame.mp4 three_frames.mp4
odd_size.mp4 damaged_end.mp4 rotated.mp4 video_named.jpg frames""".split()


@pytest.fixture(scope="module")
def run_over_all(models, tmp_path_factory):
    """The cases by name, and what the run recorded of each."""
    folder = tmp_path_factory.mktemp("bad")
    cases = {case.name.replace(" ", "_"): case for case in write_cases(folder)}
    manifest = folder / "list.csv"
    manifest.write_text("path\n" + "".join(f"{case.name}\n" for case in cases.values()), encoding="utf-8")
    arguments = ["--packing_model_path", models / "tiny_packing", "--inputs", manifest, "--output_dir", folder / "f"]
    arguments += ["--max_sample_tokens", MAX_SAMPLE_TOKENS, "--decode_timeout", 30, "--device", "cpu"]
    assert extract(*arguments) == 0
    records = read_lines(folder / "f" / "index.jsonl") + read_lines(folder / "f" / "failures.jsonl")
    return cases, {record["id"]: record for record in records}, open_features(folder / "f")


@pytest.fixture(scope="module")
def model(models):
    folder = models / "tiny_packing"
    return AutoModel.from_pretrained(folder, dtype=torch.float32), AutoProcessor.from_pretrained(folder)


def test_nothing_is_left_out(run_over_all):
    cases, records, _ = run_over_all
    assert sorted(cases) == sorted(NAMES)
    assert sorted(records) == sorted(case.name for case in cases.values())


@pytest.mark.parametrize("name", NAMES)
def test_right_features_or_a_recorded_error(run_over_all, model, name):
    cases, records, features = run_over_all
    case = cases[name]
    record = records[case.name]
    if case.error is not None:
        assert case.error in record.get("error", "no error"), record
        return
    assert "error" not in record, record["error"]
    model, processor = model
    video = case.expected.ndim == 4
    assert record["kind"] == ("video" if video else "image")
    expected = np.ascontiguousarray(case.expected)
    inputs = processor(**({"videos": [expected]} if video else {"images": [expected]}), num_frames=8)
    assert record["grid_thw"] == inputs["grid_thw"][0].tolist()
    actual = features.load(f"{case.name} -2")
    if not video or record["decoder"] == "frames":
        assert record["pixels_sha256"] == pixels_digest(inputs["pixel_values"].numpy())
    with torch.no_grad():
        wanted = model(**inputs, vision_feature_layer=-2).hidden_states[0].reshape(actual.shape)
    # Two decoders round colours differently, which these sharp weights amplify; another frame is far from that.
    assert compare(actual, wanted).mean_cosine > (0.97 if video else 0.99999)
