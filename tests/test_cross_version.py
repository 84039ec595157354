# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""A folder saved under one transformers major loads under the other with the same outputs, and without the package."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from llava_vit_hf import LlavaViTImageProcessor, LlavaViTProcessor
from tests.media import image as sample_image
from tests.models import as_packing, dense_model


pytestmark = [pytest.mark.long, pytest.mark.once]


# Runs under either major. The package is made unimportable, so the folder's own code is what runs.
LOAD_AND_RUN = """
import sys
sys.modules["llava_vit_hf"] = None
import numpy, torch
from transformers import AutoModel, AutoProcessor

folder, image, output, again = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    found = model(**processor(images=[image]), output_hidden_states=True)
numpy.savez(output, *[state.numpy() for state in found.hidden_states], pooled=found.pooler_output.numpy())
model.save_pretrained(again)
processor.save_pretrained(again)
"""


def run_under(python: str, folder, image, output, again, cache) -> None:
    variables = {**os.environ, "HF_MODULES_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    result = subprocess.run(
        [python, "-c", LOAD_AND_RUN, *map(str, (folder, image, output, again))],
        cwd=cache.parent,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("layout", ["dense", "packing"])
def test_folders_cross_the_majors_both_ways(layout, other_python, tmp_path):
    model = dense_model(patch_size=14)
    model = as_packing(model) if layout == "packing" else model
    processor = LlavaViTProcessor(LlavaViTImageProcessor(packing=layout == "packing", size=56, crop_size=56))
    image = tmp_path / "image.png"
    sample_image(71, 60).save(image)
    folder = tmp_path / f"{layout}_here"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    with torch.no_grad():
        output = model(**processor(images=[str(image)]), output_hidden_states=True)
    expected = [*(state.numpy() for state in output.hidden_states), output.pooler_output.numpy()]

    # Saved here and loaded there; saved there and loaded here; and each in its own major without the package.
    for name, python, source in (
        ("there", other_python, folder),
        ("here_again", sys.executable, tmp_path / f"{layout}_there"),
        ("there_again", other_python, tmp_path / f"{layout}_here_again"),
    ):
        found = tmp_path / f"{name}.npz"
        run_under(python, source, image, found, tmp_path / f"{layout}_{name}", tmp_path / f"modules_{name}")
        with np.load(found) as arrays:
            assert len(arrays.files) == len(expected)
            actual = [*(arrays[f"arr_{index}"] for index in range(len(expected) - 1)), arrays["pooled"]]
        for mine, reference in zip(actual, expected, strict=True):
            assert mine.shape == reference.shape
            # A matrix product may round by where its weights lie in memory, which differs between processes.
            assert np.abs(mine - reference).max() <= 1e-6 * max(1, np.abs(reference).max())
    config = json.loads((tmp_path / f"{layout}_there_again" / "config.json").read_text())
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel"}
