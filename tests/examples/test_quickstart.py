# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The quickstart prints what the model gives of its images and its clip."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoProcessor


SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "quickstart.py"


def test_shapes_and_cosine(models, four_files, capsys, monkeypatch):
    folder, images, video = models / "tiny_packing", [four_files / "1.jpg", four_files / "2.jpg"], four_files / "1.mp4"
    arguments = ["--model", folder, "--image1", images[0], "--image2", images[1], "--video", video]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    output = capsys.readouterr().out
    shapes = [tuple(map(int, re.findall(r"\d+", line))) for line in re.findall(r"\((\d[\d, ]+)\)", output)]
    # Patches of 4 pixels; what fills none is dropped.
    assert shapes == [(1, 10, 15, 64), (1, 12, 8, 64), (8, 8, 12, 64)]
    # Each image alone: what shares the pass does not matter.
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    with torch.inference_mode():
        pooled = [model(**processor(images=[str(image)])).pooler_output[0] for image in images]
    printed = float(re.search(r"cosine of the pooled images: (-?\d\.\d{4})$", output, re.MULTILINE)[1])
    assert printed == pytest.approx(torch.cosine_similarity(*pooled, dim=0).item(), abs=1e-4)
    assert abs(printed) < 0.999
