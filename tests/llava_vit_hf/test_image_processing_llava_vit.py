# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Image processor: CLIP's exact pixels, native resolution, every kind of input, clear refusals."""

import importlib.util
import json
import struct
import warnings
import zlib

import numpy as np
import PIL.Image
import pytest
import torch
import transformers

from llava_vit_hf.image_processing_llava_vit import LlavaViTImageProcessor
from llava_vit_hf.pixels_llava_vit import open_image
from llava_vit_hf.settings_llava_vit import LlavaViTSettings
from tests import media


MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


def clip_processor(**kwargs):
    # Up to 5.3 the class of this name is the one on PIL.
    if importlib.util.find_spec("transformers.models.clip.image_processing_pil_clip") is None:
        return transformers.CLIPImageProcessor(**kwargs)
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(**kwargs)


def normalized(array: np.ndarray) -> np.ndarray:
    return (array / 255 - MEAN) / STD


@pytest.fixture
def dense() -> LlavaViTImageProcessor:
    return LlavaViTImageProcessor(size=56, crop_size=56)


@pytest.fixture
def packing() -> LlavaViTImageProcessor:
    return LlavaViTImageProcessor(packing=True)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"size": {"shortest_edge": 448}, "crop_size": {"height": 448, "width": 448}},
        {"size": {"height": 60, "width": 80}, "do_center_crop": False},
        {"crop_size": {"height": 100, "width": 40}},
        {"do_resize": False},
        {"resample": PIL.Image.Resampling.BILINEAR},
        {"do_rescale": False},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 0.9, 0.8], "image_std": [1.0, 0.5, 0.3]},
    ],
    ids=lambda settings: " ".join(settings) or "default",
)
@pytest.mark.parametrize("size", [(97, 61), (61, 97), (30, 200), (56, 56)], ids=str)
def test_pixels_equal_clip_bit_for_bit(settings, size):
    settings = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}, **settings}
    picture = media.image(*size)
    expected = clip_processor(**settings)(picture, return_tensors="pt")["pixel_values"]
    found = LlavaViTImageProcessor(**settings)(picture)["pixel_values"]
    assert found.dtype == torch.float32
    assert torch.equal(found, expected.float())


def test_float_arrays_equal_clip_bit_for_bit():
    array = media.pattern(61, 97).astype(np.float32) / 255
    settings = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}, "do_rescale": False}
    expected = clip_processor(**settings)(array, return_tensors="pt")["pixel_values"]
    assert torch.equal(LlavaViTImageProcessor(**settings)(array)["pixel_values"], expected)


def test_published_default_is_clip_at_448():
    picture = media.image(97, 61)
    expected = clip_processor(size={"shortest_edge": 448}, crop_size={"height": 448, "width": 448})
    found = LlavaViTImageProcessor()(picture)
    assert list(found) == ["pixel_values"]
    assert torch.equal(found["pixel_values"], expected(picture, return_tensors="pt")["pixel_values"])


def test_packing_output_is_raster_patches_in_channel_row_column_order(packing):
    pictures = [media.pattern(30, 45), media.pattern(43, 14)]
    out = packing(pictures)
    assert list(out) == ["pixel_values", "grid_thw", "patch_positions", "cu_seqlens", "max_seqlen"]
    assert out["grid_thw"].tolist() == [[1, 2, 3], [1, 3, 1]] and out["grid_thw"].dtype == torch.int64
    assert out["cu_seqlens"].tolist() == [0, 6, 9] and out["cu_seqlens"].dtype == torch.int32
    assert out["max_seqlen"] == 6 and type(out["max_seqlen"]) is int
    assert out["pixel_values"].shape == (9, 588) and out["pixel_values"].dtype == torch.float32
    rows = [(0, y, x) for y in range(2) for x in range(3)] + [(1, y, 0) for y in range(3)]
    for row, (sample, y, x) in enumerate(rows):
        patch = pictures[sample][14 * y : 14 * y + 14, 14 * x : 14 * x + 14]
        expected = normalized(patch).transpose(2, 0, 1).reshape(-1)
        np.testing.assert_allclose(out["pixel_values"][row].numpy(), expected, atol=1e-6)
        assert out["patch_positions"][row].tolist() == [0, y, x]


def test_native_dense_crops_to_whole_patches(dense):
    out = dense(media.image(45, 30), native_resolution=True)["pixel_values"]
    assert out.shape == (1, 3, 28, 42)
    expected = normalized(media.pattern(30, 45)[:28, :42]).transpose(2, 0, 1)
    np.testing.assert_allclose(out[0].numpy(), expected, atol=1e-6)


def test_both_switches_agree(dense):
    picture = media.image(45, 30)
    native = dense(picture, native_resolution=True)["pixel_values"]
    packed = dense(picture, packing=True)
    blocks = native[0].reshape(3, 2, 14, 3, 14).permute(1, 3, 0, 2, 4).reshape(6, -1)
    assert torch.equal(packed["pixel_values"], blocks)
    resized = dense(picture, packing=True, native_resolution=False)
    assert resized["grid_thw"].tolist() == [[1, 4, 4]]


def test_native_resolution_follows_packing_and_can_be_fixed():
    assert LlavaViTImageProcessor(packing=True).settings().native is True
    assert LlavaViTImageProcessor().settings().native is False
    assert LlavaViTImageProcessor().settings(packing=True).native is True
    assert LlavaViTImageProcessor(native_resolution=True).settings().native is True


def test_every_kind_of_input_gives_the_same_pixels(packing, tmp_path):
    array = media.pattern(30, 45)
    path = tmp_path / "a.png"
    PIL.Image.fromarray(array).save(path)
    expected = packing(array)["pixel_values"]
    read_only = array.copy()
    read_only.setflags(write=False)
    inputs = {
        "pil": PIL.Image.fromarray(array),
        "path": path,
        "str": str(path),
        "chw": array.transpose(2, 0, 1),
        "torch hwc": torch.from_numpy(array),
        "torch chw": torch.from_numpy(array).permute(2, 0, 1),
        "int64": array.astype(np.int64),
        "uint16": array.astype(np.uint16) * 257,
        "read-only": read_only,
        "negative strides": array[::-1].copy()[::-1],
        "float 0...255": array.astype(np.float32),
        "alpha": np.dstack([array, np.full((30, 45), 9, np.uint8)]),
        "list": [array],
        "nested": [[array]],
        "batch": array[None],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind, value in inputs.items():
            assert torch.equal(packing(value)["pixel_values"], expected), kind


def test_floats_in_unit_range_need_do_rescale_false(packing):
    array = media.pattern(28, 28)
    expected = packing(array)["pixel_values"]
    scaled = array.astype(np.float32) / 255
    torch.testing.assert_close(packing(scaled, do_rescale=False)["pixel_values"], expected)
    tensor = torch.from_numpy(scaled)
    for floats in (scaled, tensor, tensor.double(), tensor.bfloat16(), scaled.astype(np.float16)):
        with pytest.raises(ValueError, match=r"images\[0\].*do_rescale=False"):
            packing(floats)
    with pytest.raises(ValueError, match="do_normalize=False"):
        packing(normalized(array))
    with pytest.raises(ValueError, match="0...255"):
        packing(array.astype(np.float32) * 2)
    with pytest.raises(ValueError, match="NaN"):
        packing(np.full((28, 28, 3), np.nan))
    black = np.zeros((28, 28, 3))
    assert torch.equal(packing(black)["pixel_values"], packing(black.astype(np.uint8))["pixel_values"])


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "YCbCr"])
def test_modes_are_converted_to_rgb(packing, mode):
    picture = media.image(30, 30, mode)
    assert torch.equal(packing(picture)["pixel_values"], packing(picture.convert("RGB"))["pixel_values"])


def test_alpha_is_dropped_not_blended(packing):
    assert torch.equal(
        packing(media.image(30, 30, "RGBA"))["pixel_values"], packing(media.image(30, 30))["pixel_values"]
    )


def test_sixteen_bit_grey_is_scaled_not_clipped(packing, tmp_path):
    grey = media.pattern(28, 28)[..., 0]
    expected = packing(grey)["pixel_values"]
    wide = PIL.Image.fromarray(grey.astype(np.uint16) * 257)
    wide.save(tmp_path / "wide.png")
    assert torch.equal(packing(wide)["pixel_values"], expected)
    assert torch.equal(packing(tmp_path / "wide.png")["pixel_values"], expected)
    with pytest.raises(ValueError, match="0...255"):
        packing(PIL.Image.fromarray(grey.astype(np.int32) * 257))


def test_exif_rotation_is_applied_to_paths(packing, tmp_path):
    picture = media.image(42, 28)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by 90 degrees
    picture.save(tmp_path / "phone.png", exif=exif)
    out = packing(tmp_path / "phone.png")
    assert out["grid_thw"].tolist() == [[1, 3, 2]]
    turned = packing(picture.transpose(PIL.Image.Transpose.ROTATE_270))
    assert torch.equal(out["pixel_values"], turned["pixel_values"])


def test_ambiguous_layout_can_be_given(dense):
    array = media.pattern(4, 30)
    expected = dense(PIL.Image.fromarray(array))["pixel_values"]
    assert torch.equal(dense(array, input_data_format="channels_last")["pixel_values"], expected)
    swapped = dense(array.transpose(2, 0, 1), input_data_format="channels_first")["pixel_values"]
    assert torch.equal(swapped, expected)


def test_missing_and_unreadable_files_are_named(packing, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"images\[1\].*nowhere.png"):
        packing([media.image(28, 28), tmp_path / "nowhere.png"])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no picture")
    media.image(200, 200).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:500])
    for name in ("empty.png", "text.jpg", "cut.png"):
        with pytest.raises(ValueError, match=name):
            packing(tmp_path / name)
    with pytest.raises(ValueError, match="folder"):
        packing(tmp_path)


def test_decompression_bombs_are_refused(packing, tmp_path, monkeypatch):
    media.image(60, 60).save(tmp_path / "bomb.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="bomb.png"):
        packing(tmp_path / "bomb.png")
    # Between once and twice its limit Pillow warns.
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 2000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert packing(tmp_path / "bomb.png")["grid_thw"].tolist() == [[1, 4, 4]]
    assert [warning.category for warning in caught] == [PIL.Image.DecompressionBombWarning]


def test_a_png_of_108_megapixels_opens(packing, tmp_path, monkeypatch):
    """Over Pillow's MAX_IMAGE_PIXELS, where it warns, and below twice that, from where it refuses."""
    assert PIL.Image.MAX_IMAGE_PIXELS < 12_000 * 9_000 < LlavaViTSettings().max_image_pixels
    assert LlavaViTSettings().max_image_pixels == 2 * PIL.Image.MAX_IMAGE_PIXELS
    header = struct.pack(">IIBBBBB", 12_000, 9_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    (tmp_path / "large.png").write_bytes(png)
    with pytest.warns(PIL.Image.DecompressionBombWarning):
        opened = open_image(tmp_path / "large.png", "images[0]", LlavaViTSettings().max_image_pixels)
    assert opened.size == (12_000, 9_000)
    with pytest.raises(ValueError, match="108000000 pixels, more than max_image_pixels=100000000"), pytest.warns():
        packing(tmp_path / "large.png", max_image_pixels=100_000_000)


def test_size_is_refused_before_decoding(packing, tmp_path, monkeypatch):
    media.image(42, 28).save(tmp_path / "big.png")
    monkeypatch.setattr(PIL.Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"big.png.*6 tokens, more than max_tokens=5.*native_resolution=False"):
        packing(tmp_path / "big.png", max_tokens=5)


def test_token_cap(packing):
    assert packing(media.image(42, 28), max_tokens=6)["grid_thw"].tolist() == [[1, 2, 3]]
    # The cap is per sample, not per call.
    assert len(packing([media.image(42, 28)] * 3, max_tokens=6)["pixel_values"]) == 18
    assert packing(media.image(420, 280), max_tokens=16, native_resolution=False, size=56, crop_size=56)


@pytest.mark.parametrize("size", [(13, 50), (50, 13), (1, 1)])
def test_smaller_than_a_patch(packing, size):
    with pytest.raises(ValueError, match=rf"images\[0\].*{size[0]}x{size[1]}.*14x14"):
        packing(media.image(*size))


def test_dense_batch_of_unequal_sizes(dense):
    with pytest.raises(ValueError, match=r"42x28, 28x42.*native_resolution=False.*packing"):
        dense([media.image(42, 28), media.image(28, 42)], native_resolution=True)
    # What is dropped at the edge does not make sizes differ.
    assert len(dense([media.image(42, 28), media.image(43, 29)], native_resolution=True)["pixel_values"]) == 2


@pytest.mark.parametrize("value", [None, 3, bytearray(b"bytes"), {"a": 1}])
def test_what_is_no_image(packing, value):
    with pytest.raises(TypeError, match=r"images\[0\]"):
        packing([value])


def test_empty_and_odd_shapes(packing):
    for value, message in (
        ([], "empty"),
        (np.zeros((0, 28, 3)), "no pixels"),
        (np.zeros((28, 28, 5)), "channels"),
        (np.zeros((28, 28, 3), complex), "dtype"),
        (np.zeros(28), "2 or 3 dimensions"),
        (np.full((28, 28, 3), 300), "0...255"),
        (np.full((28, 28, 3), -1), "0...255"),
    ):
        with pytest.raises(ValueError, match=message):
            packing(value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"patch_size": 0},
        {"patch_size": 14.0},
        {"max_tokens": 0},
        {"num_frames": 0},
        {"num_frames": "some"},
        {"temporal_context": True},
        {"size": {"longest_edge": 3}},
        {"crop_size": {"shortest_edge": 3}},
        {"size": {"shortest_edge": 0}},
    ],
    ids=str,
)
def test_impossible_settings(dense, arguments):
    for use in (LlavaViTImageProcessor, dense.settings):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            use(**arguments)


def test_unknown_argument_and_meaningless_resizing(packing):
    with pytest.raises(TypeError, match="siz3"):
        packing(media.image(28, 28), siz3=3)
    with pytest.raises(ValueError, match="size.*native_resolution=False"):
        packing(media.image(28, 28), size=28)
    with pytest.raises(ValueError, match="return_tensors"):
        packing(media.image(28, 28), return_tensors="tf")
    assert packing(media.image(28, 28), do_resize=False)


def test_numpy_output_and_batch_feature(packing):
    picture = media.image(28, 28)
    out = packing(picture, return_tensors="np")
    assert all(isinstance(value, np.ndarray) for key, value in out.items() if key != "max_seqlen")
    assert out["pixel_values"].dtype == np.float32
    moved = packing(picture, return_tensors=None).to(torch.bfloat16).to("cpu")
    assert moved["pixel_values"].dtype == torch.bfloat16 and moved["grid_thw"].dtype == torch.int64


def test_outputs_do_not_alias_the_input(dense):
    array = media.pattern(28, 28).astype(np.float32)
    before = array.copy()
    dense(array, native_resolution=True, do_rescale=False, do_normalize=False)["pixel_values"].zero_()
    assert np.array_equal(array, before)


def test_model_input_names_are_the_keys(dense, packing):
    for processor in (dense, packing):
        assert processor.model_input_names == list(processor(media.image(28, 28)))


def test_settings_are_saved_flat_and_overrides_reach_the_constructor(tmp_path):
    processor = LlavaViTImageProcessor(patch_size=16, packing=True, native_resolution=False, size=64, num_frames=4)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["size"] == {"shortest_edge": 64} and saved["resample"] == 3 and saved["native_resolution"] is False
    again = LlavaViTImageProcessor.from_pretrained(tmp_path)
    assert again.settings() == processor.settings()
    overridden = LlavaViTImageProcessor.from_pretrained(tmp_path, size=32, packing=False)
    assert overridden.size == {"shortest_edge": 32} and overridden.packing is False
    with pytest.raises(ValueError, match="patch_size"):
        LlavaViTImageProcessor.from_pretrained(tmp_path, patch_size=0)


def test_golden_token_counts(conformance, packing):
    meta = json.loads((conformance / "golden/meta.json").read_text())["inputs"]
    out = packing([conformance / "media/1.jpg", conformance / "media/2.jpg"])
    counts = (out["cu_seqlens"][1:] - out["cu_seqlens"][:-1]).tolist()
    assert counts == [meta["image1"]["tokens"], meta["image2"]["tokens"]]
