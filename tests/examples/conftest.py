# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Tiny model folders and media for the tests of the examples."""

import os

import numpy as np
import PIL.Image
import pytest

from llava_vit_hf import LlavaViTImageProcessor, LlavaViTProcessor
from tests import media
from tests.examples import commands
from tests.models import TINY, as_packing, dense_model


@pytest.fixture(scope="session", autouse=True)
def _modules_cache(tmp_path_factory):
    """The scripts copy the models' code into a cache: an own one, which no other process changes."""
    previous = os.environ.get("HF_MODULES_CACHE")
    os.environ["HF_MODULES_CACHE"] = str(tmp_path_factory.mktemp("modules"))
    yield
    if previous is None:
        del os.environ["HF_MODULES_CACHE"]
    else:
        os.environ["HF_MODULES_CACHE"] = previous


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A folder with `tiny_dense` and `tiny_packing`, of the same weights."""
    folder = tmp_path_factory.mktemp("models")
    dense = dense_model()
    for model, name, packing in ((dense, "tiny_dense", False), (as_packing(dense), "tiny_packing", True)):
        model.save_pretrained(folder / name)
        processor = LlavaViTImageProcessor(patch_size=TINY["patch_size"], packing=packing)
        LlavaViTProcessor(processor).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="session")
def four_files(tmp_path_factory):
    """`1.jpg`, `2.jpg`, `1.mp4`, `2.mp4`, with sides that no patch divides."""
    folder = tmp_path_factory.mktemp("four")
    media.image(61, 42).save(folder / "1.jpg")
    media.image(33, 50).save(folder / "2.jpg")
    media.write_video(folder / "1.mp4", media.frames(20, 34, 50))
    media.write_video(folder / "2.mp4", media.frames(5, 42, 30))
    return folder


@pytest.fixture(scope="session")
def many_files(tmp_path_factory):
    """60 images of 10 sizes and 6 videos, in two folders; the images are all different."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "images").mkdir()
    (folder / "videos").mkdir()
    for index in range(60):
        width, height = 20 + 9 * (index % 10), 26 + 5 * (index % 5)
        PIL.Image.fromarray(media.pattern(height, width, shift=index)).save(folder / "images" / f"{index:02d}.png")
    for index in range(6):
        video = np.roll(media.frames(6 + index, 34, 34 + 4 * index), index, axis=2)
        media.write_video(folder / "videos" / f"{index}.mp4", video)
    return folder


@pytest.fixture(scope="session")
def four_arguments(models, four_files):
    """The four-file command, without its output folder."""
    arguments = ["--hf_model_path", models / "tiny_dense", "--packing_model_path", models / "tiny_packing"]
    for name, file in (("image1", "1.jpg"), ("image2", "2.jpg"), ("video1", "1.mp4"), ("video2", "2.mp4")):
        arguments += [f"--{name}", four_files / file]
    return arguments


@pytest.fixture(scope="session")
def four_features(four_arguments, tmp_path_factory):
    """The features of the four files."""
    folder = tmp_path_factory.mktemp("four_features")
    commands.run_well("extract_features.py", *four_arguments, "--output_dir", folder)
    return folder


@pytest.fixture(scope="session")
def many_arguments(models, many_files):
    """The command over many files in small shards, without its output folder."""
    arguments = ["--packing_model_path", models / "tiny_packing", "--inputs", many_files / "images"]
    return [*arguments, many_files / "videos", "--shard_size", 8, "--pack_tokens", 600, "--layers", "-2,-1,pooler"]


@pytest.fixture(scope="session")
def many_features(many_arguments, tmp_path_factory):
    """The features of the many files, extracted by one process without a break."""
    folder = tmp_path_factory.mktemp("many_features")
    commands.run_well("extract_features.py", *many_arguments, "--output_dir", folder, "--device", "cpu")
    return folder
