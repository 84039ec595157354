# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Tiny model folders, media and features for the tests of the examples, written once for all of xdist's workers."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from filelock import FileLock

from llava_vit_hf import LlavaViTImageProcessor, LlavaViTProcessor
from tests import media
from tests.examples import commands
from tests.models import TINY, as_packing, dense_model


HANGING_DECODER = """
import ctypes, os, signal

class DECORDError(Exception): pass
class DECORDLimitReachedError(Exception): pass

class VideoReader:
    def __init__(self, path):
        if "hang" in os.path.basename(path):
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            ctypes.PyDLL(None).sleep(1000)  # holds Python's lock, as a native decoder may
        if "crash" in os.path.basename(path):
            ctypes.string_at(0)
        raise DECORDError("not read here")
"""


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """`once(name, write)`: a folder that `write(folder)` fills in the first worker that asks for it.

    All workers and all test files share it, at one path, so whoever changes it works on a copy.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder_of(name: str, write: Callable[[Path], None]) -> Path:
        folder, complete = base / name, base / f"{name}.complete"
        with FileLock(base / f"{name}.lock"):
            if not complete.exists():
                # What a worker left that failed.
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                write(folder)
                complete.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def models(once):
    """A folder with `tiny_dense` and `tiny_packing`, of the same weights."""

    def write(folder: Path) -> None:
        dense = dense_model()
        for model, name, packing in ((dense, "tiny_dense", False), (as_packing(dense), "tiny_packing", True)):
            model.save_pretrained(folder / name)
            processor = LlavaViTImageProcessor(patch_size=TINY["patch_size"], packing=packing)
            LlavaViTProcessor(processor).save_pretrained(folder / name)

    return once("models", write)


@pytest.fixture(scope="session")
def four_files(once):
    """`1.jpg`, `2.jpg`, `1.mp4`, `2.mp4`, with sides that no patch divides."""

    def write(folder: Path) -> None:
        media.image(61, 42).save(folder / "1.jpg")
        media.image(33, 50).save(folder / "2.jpg")
        media.write_video(folder / "1.mp4", media.frames(20, 34, 50))
        media.write_video(folder / "2.mp4", media.frames(5, 42, 30))

    return once("four", write)


@pytest.fixture(scope="session")
def many_files(once):
    """60 images of 10 sizes and 6 videos, in two folders; the images are all different."""

    def write(folder: Path) -> None:
        (folder / "images").mkdir()
        (folder / "videos").mkdir()
        for index in range(60):
            width, height = 20 + 9 * (index % 10), 26 + 5 * (index % 5)
            PIL.Image.fromarray(media.pattern(height, width, shift=index)).save(folder / "images" / f"{index:02d}.png")
        for index in range(6):
            video = np.roll(media.frames(6 + index, 34, 34 + 4 * index), index, axis=2)
            media.write_video(folder / "videos" / f"{index}.mp4", video)

    return once("many", write)


@pytest.fixture(scope="session")
def four_arguments(models, four_files):
    """The four-file command, without its output folder."""
    arguments = ["--hf_model_path", models / "tiny_dense", "--packing_model_path", models / "tiny_packing"]
    for name, file in (("image1", "1.jpg"), ("image2", "2.jpg"), ("video1", "1.mp4"), ("video2", "2.mp4")):
        arguments += [f"--{name}", four_files / file]
    return arguments


@pytest.fixture(scope="session")
def four_features(four_arguments, once):
    """The features of the four files."""

    def write(folder: Path) -> None:
        assert commands.extract(*four_arguments, "--output_dir", folder) == 0

    return once("four_features", write)


@pytest.fixture(scope="session")
def many_arguments(models, many_files):
    """The command over many files in small shards, without its output folder."""
    arguments = ["--packing_model_path", models / "tiny_packing", "--inputs", many_files / "images"]
    return [*arguments, many_files / "videos", "--shard_size", 8, "--pack_tokens", 600, "--layers", "-2,-1,pooler"]


@pytest.fixture(scope="session")
def many_features(many_arguments, once):
    """The features of the many files, extracted by one process without a break."""

    def write(folder: Path) -> None:
        assert commands.extract(*many_arguments, "--output_dir", folder, "--device", "cpu") == 0

    return once("many_features", write)


@pytest.fixture
def hanging_videos(four_files, tmp_path) -> tuple[Path, dict[str, str]]:
    """Videos of which one crashes a decoder and one hangs it, and the environment in which there is that decoder."""
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "decord.py").write_text(HANGING_DECODER)
    (tmp_path / "videos").mkdir()
    for name in ("a", "crash", "hang", "z"):
        (tmp_path / "videos" / f"{name}.mp4").write_bytes((four_files / "1.mp4").read_bytes())
    return tmp_path / "videos", commands.environment(PYTHONPATH=str(tmp_path / "stub"))
