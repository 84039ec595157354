# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What users type, and what happens: the rows of the table in `tests/README.md`, which names these tests."""

import http.server
import importlib.util
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from llava_vit_hf import LlavaViTImageProcessor, LlavaViTProcessor, pixels_llava_vit
from tests import media


ROOT = Path(__file__).resolve().parents[2]
HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None

# What a stranger types, in an interpreter that cannot import this package. Prints the class, and a hash of the pixels.
AUTO = """
import hashlib, sys
import numpy as np
import transformers
folder, name, options = sys.argv[1], sys.argv[2], eval(sys.argv[3])
clip = (np.arange(5 * 30 * 45 * 3) * 7 % 251).reshape(5, 30, 45, 3).astype(np.uint8)
loaded = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True, **options)
out = loaded(videos=clip) if "Video" in name else loaded(images=clip[0])
print(type(loaded).__name__, out["grid_thw"].tolist(), hashlib.sha256(out["pixel_values"].numpy()).hexdigest())
"""


@pytest.fixture
def dense() -> LlavaViTProcessor:
    return LlavaViTProcessor(LlavaViTImageProcessor())


@pytest.fixture
def packing() -> LlavaViTProcessor:
    return LlavaViTProcessor(LlavaViTImageProcessor(packing=True))


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    """What the processor warns of."""
    said = []
    monkeypatch.setattr(pixels_llava_vit.logger, "warning", said.append)
    monkeypatch.setattr(pixels_llava_vit, "_WARNED", [])
    return said


class Server(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def address(tmp_path, monkeypatch):
    """Of a server on 127.0.0.1 with the files of `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def same(first, second) -> bool:
    return all(torch.equal(torch.as_tensor(first[key]), torch.as_tensor(second[key])) for key in first)


def test_arguments_in_the_order_of_transformers(packing):
    image, clip = media.image(30, 45), media.frames(3)
    assert same(packing(image, None, clip), packing(images=image, videos=clip))


def test_a_caption_is_refused_as_text(packing):
    for text in ("a caption", ["a caption"], media.frames(3)):
        with pytest.raises(ValueError, match="^text: this processor has no tokenizer.*videos=..."):
            packing(media.image(30, 45), text)
    assert packing(media.image(30, 45), text="")


def test_arguments_of_one_modality(packing):
    image, clip = media.image(90, 60), media.frames(3, 60, 90)
    out = packing(
        images=image, videos=clip, images_kwargs={"max_patches": 6}, videos_kwargs={"num_frames": 2, "max_patches": 1}
    )
    assert out["grid_thw"].tolist() == [[1, 2, 3], [2, 1, 1]]
    # The particular wins over the common one, and says how videos are read and what comes back.
    out = packing(
        videos=clip,
        num_frames=3,
        videos_kwargs={"do_sample_frames": True, "num_frames": 1, "return_metadata": True, "return_tensors": "np"},
    )
    assert isinstance(out["pixel_values"], np.ndarray) and out["metadata"][0]["frame_indices"] == [0]
    with pytest.raises(ValueError, match="^packing: images and videos of one call share it, found True and False"):
        packing(images=image, videos=clip, videos_kwargs={"packing": False})
    with pytest.raises(TypeError, match="siz3"):
        packing(images=image, images_kwargs={"siz3": 3})


def test_padding_is_ignored(packing):
    image = media.image(30, 45)
    for padding in (True, False, "longest"):
        assert same(packing(images=image, padding=padding), packing(images=image))


def test_metadata_of_images_alone(packing):
    (found,) = packing.image_processor(media.image(30, 45), return_metadata=True)["metadata"]
    assert (found["kind"], found["height"], found["width"], found["grid_thw"]) == ("image", 45, 30, [1, 3, 2])


def test_bytes_of_a_file(packing, tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    media.image(42, 28).save(tmp_path / "a.png", exif=exif)
    content = (tmp_path / "a.png").read_bytes()
    found, expected = packing(images=content), packing(images=tmp_path / "a.png")
    assert same(found, expected) and found["grid_thw"].tolist() == [[1, 3, 2]]
    assert same(packing(videos=[content, content]), packing(videos=[tmp_path / "a.png"] * 2))
    for wrong in (b"", b"no picture", content[:100]):
        with pytest.raises(ValueError, match=rf"images\[0\].*{len(wrong)} bytes"):
            packing(images=wrong)
    with pytest.raises(ValueError, match="1176 pixels, more than max_image_pixels=1175"):
        packing(images=content, max_image_pixels=1175)


def test_a_video_by_its_address(packing, tmp_path, address):
    path = media.write_video(tmp_path / "a.mp4", media.frames(20))
    out = packing(videos=[f"{address}/a.mp4", f"{address}/a.mp4?name=b"], return_metadata=True)
    assert torch.equal(out["pixel_values"], packing(videos=[path, path])["pixel_values"])
    assert out["metadata"][0]["source"] == f"{address}/a.mp4"
    with pytest.raises(ValueError, match=rf"^videos: {address}/absent.mp4 cannot be fetched.*404"):
        packing(videos=f"{address}/absent.mp4")
    (tmp_path / "text.mp4").write_text("no video " * 100)
    with pytest.raises(ValueError, match=rf"{address}/text.mp4 cannot be read as a video"):
        packing(videos=f"{address}/text.mp4")
    (tmp_path / "endless.mp4").write_bytes(bytes(2**20 + 8 * 4096 + 1))
    with pytest.raises(ValueError, match="endless.mp4 is larger than 1081344 bytes.*max_image_pixels=4096"):
        packing(videos=f"{address}/endless.mp4", max_image_pixels=4096)
    with pytest.raises(ValueError, match="4096 pixels, more than max_image_pixels=4095"):
        packing(videos=f"{address}/a.mp4", max_image_pixels=4095)
    # Frames by their addresses are a clip, as paths are.
    media.image(28, 28).save(tmp_path / "0.png")
    assert packing(videos=[f"{address}/0.png"] * 2, num_frames=2)["grid_thw"].tolist() == [[2, 2, 2]]


@pytest.mark.parametrize(
    ("arguments", "size", "share"),
    [({"size": 224}, (500, 333), "62%"), ({"do_resize": False}, (500, 333), "26%")],
    ids=str,
)
def test_black_borders_are_said_once(dense, warnings, arguments, size, share):
    for _ in range(2):
        pixels = dense(images=media.image(*size), **arguments)["pixel_values"]
    black = (dense(images=np.zeros((448, 448, 3), np.uint8))["pixel_values"][0, :, :1, :1] == pixels[0]).all(0)
    assert f"{black.float().mean().item():.0%}" == share
    (said,) = warnings
    assert said.startswith(f"{share} of a picture is black") and "crop_size={'height': 448, 'width': 448}" in said


def test_no_warning_without_black(dense, packing, warnings):
    dense(images=media.image(500, 333))
    dense(images=media.image(500, 333), size=224, crop_size=224)
    dense(images=media.image(500, 333), size={"height": 600, "width": 600})
    packing(images=media.image(500, 333))
    assert warnings == []


def test_splitting_a_dense_batch_says_what_to_do(dense):
    features = torch.zeros(2, 16, 8)
    for grid in ((None,), ([[1, 4, 4]] * 2,)):
        with pytest.raises(ValueError, match=r"dense model, found \(2, 16, 8\).*features\[i\].reshape\(t, h, w, -1\)"):
            dense.split_features(features, *grid)
    # And that works.
    grid = dense.grid_for(60, 80, size=56, crop_size=56)
    assert features[0].reshape(*grid, -1).shape == (1, 4, 4, 8)


@pytest.mark.parametrize("device", ["cpu", "meta", torch.device("cpu"), "cuda"], ids=str)
def test_pixels_on_a_device(dense, packing, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    image, clip = media.image(61, 42), media.frames(3, 42, 61)
    floats = media.pattern(42, 61).astype(np.float32)
    calls = [
        (packing, {"images": [image, floats], "videos": clip}),
        (dense, {"videos": clip}),
        (dense, {"images": image}),
    ]
    calls.append((packing, {"images": image, "keep": [np.arange(12) < 5]}))
    for processor, call in calls:
        expected, found = processor(**call), processor(**call, device=device)
        assert found["pixel_values"].device.type == torch.device(device).type
        assert found["pixel_values"].shape == expected["pixel_values"].shape
        if device != "meta":
            torch.testing.assert_close(found["pixel_values"].cpu(), expected["pixel_values"], rtol=0, atol=1e-6)
        for key in set(expected) - {"pixel_values"}:
            assert torch.equal(torch.as_tensor(found[key]), torch.as_tensor(expected[key])), key


def run_auto(folder: Path, name: str, **options) -> str:
    command = [sys.executable, "-c", AUTO, str(folder), name, repr(options)]
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "packing"
    LlavaViTProcessor(LlavaViTImageProcessor(packing=True, num_frames=3)).save_pretrained(folder)
    return folder


def test_auto_classes_are_named_in_the_saved_file(saved):
    auto_map = json.loads((saved / "preprocessor_config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoImageProcessor", "AutoFeatureExtractor", "AutoVideoProcessor", "AutoProcessor"}
    for name in auto_map.values():
        module, cls = name.split(".")
        assert re.search(rf"^class {cls}\b", (saved / f"{module}.py").read_text(), re.M)


def test_a_feature_extractor_is_the_image_processor(saved, packing):
    assert run_auto(saved, "AutoFeatureExtractor").startswith("LlavaViTImageProcessor [[1, 2, 3]]")


@pytest.mark.skipif(not HAS_TORCHVISION, reason="torchvision is not installed: make test-torchvision")
def test_a_video_processor_where_torchvision_is(saved):
    assert run_auto(saved, "AutoVideoProcessor").startswith("LlavaViTVideoProcessor [[3, 2, 3]]")


@pytest.mark.skipif(not HAS_TORCHVISION, reason="torchvision is not installed: make test-torchvision")
def test_fast_and_slow_are_one(saved):
    (found,) = {run_auto(saved, "AutoImageProcessor", use_fast=fast) for fast in (True, False)}
    assert found.startswith("LlavaViTImageProcessor [[1, 2, 3]]")


def test_a_video_processor_from_its_parts(saved):
    """What the Auto class calls, by transformers 5 and by 4, without torchvision."""
    from llava_vit_hf.video_processing_llava_vit import LlavaViTVideoProcessor

    clip = media.frames(5, 28, 28)
    settings = json.loads((saved / "preprocessor_config.json").read_text())
    for video in (LlavaViTVideoProcessor.from_pretrained(saved), LlavaViTVideoProcessor.from_dict(settings)):
        assert video(videos=clip)["grid_thw"].tolist() == [[3, 2, 2]]
        assert video(videos=clip, num_frames=2, device="cpu")["grid_thw"].tolist() == [[2, 2, 2]]


def test_every_row_of_the_table_is_a_test():
    text = (ROOT / "tests/README.md").read_text()
    rows = text.split("## What users type")[1].split("\n## ")[0]
    named = re.findall(r"\| `(test_\w+\.py)::(test_\w+)` \|", rows)
    assert len(named) >= 20 and len(named) == rows.count("\n| ") - 1
    for file, test in named:
        assert re.search(rf"^def {test}\(", (Path(__file__).parent / file).read_text(), re.M), f"{file}::{test}"
