# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Video part: pinned frame indices, decoders that agree, damaged files, every kind of input."""

import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch

from llava_vit_hf import decoding_llava_vit, video_processing_llava_vit
from llava_vit_hf.image_processing_llava_vit import LlavaViTImageProcessor
from llava_vit_hf.video_processing_llava_vit import (
    LlavaViTVideoProcessor,
    decode_video,
    sample_frame_indices,
    split_videos,
)
from tests import media


HAS_DECORD = importlib.util.find_spec("decord") is not None
BACKENDS = [
    pytest.param("decord", marks=pytest.mark.skipif(not HAS_DECORD, reason="decord is not installed")),
    "pyav",
]


@pytest.fixture
def video() -> LlavaViTVideoProcessor:
    return LlavaViTVideoProcessor(LlavaViTImageProcessor(packing=True))


@pytest.mark.parametrize(
    ("total", "num_frames", "expected"),
    [
        (64, 8, [0, 9, 18, 27, 36, 45, 54, 63]),
        (20, 8, [0, 2, 5, 8, 10, 13, 16, 19]),
        (300, 8, [0, 42, 85, 128, 170, 213, 256, 299]),
        (1, 8, [0] * 8),
        (3, 8, [0, 0, 0, 0, 1, 1, 1, 2]),
        (9, 1, [0]),
        (4, "all", [0, 1, 2, 3]),
    ],
)
def test_sampled_indices_are_pinned(total, num_frames, expected):
    assert sample_frame_indices(total, num_frames).tolist() == expected


@pytest.mark.parametrize(("total", "num_frames"), [(0, 8), (8, 0), (8, -1), (8, "few")])
def test_impossible_sampling(total, num_frames):
    with pytest.raises(ValueError, match="total" if total == 0 else "num_frames"):
        sample_frame_indices(total, num_frames)


@pytest.mark.parametrize("backend", BACKENDS)
def test_decoded_frames_and_metadata(tmp_path, backend):
    path = media.write_video(tmp_path / "a.mp4", media.frames(20))
    frames, metadata = decode_video(path, 8, backend)
    assert frames.shape == (8, 64, 64, 3) and frames.dtype == np.uint8
    assert media.frame_numbers(frames) == metadata["frame_indices"] == [0, 2, 5, 8, 10, 13, 16, 19]
    np.testing.assert_allclose(metadata["timestamps"], np.array(metadata["frame_indices"]) / 10, atol=1e-6)
    assert metadata["decoder"] == backend and metadata["total_frames"] == 20 and metadata["fps"] == 10
    assert (metadata["height"], metadata["width"]) == (64, 64) and metadata["source"] == str(path)


@pytest.mark.skipif(not HAS_DECORD, reason="decord is not installed")
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_decoders_agree(tmp_path, suffix):
    path = media.write_video(tmp_path / f"a.{suffix}", media.frames(25, 48, 80))
    (decord, first), (pyav, second) = (decode_video(path, 6, backend) for backend in ("decord", "pyav"))
    assert np.array_equal(decord, pyav)
    assert {**first, "decoder": "pyav"} == second


def _write_awkward(kind: str, folder) -> tuple:
    """Files that decord opens, and from which it returns other frames than asked for; and their frames' numbers."""
    video = media.frames(36)
    if kind == "open GOP":
        path = media.write_video(folder / "a.mp4", video, x264="open-gop=1:bframes=3:keyint=3:b-adapt=0:scenecut=0")
    elif kind == "edit list":
        return media.write_trimmed(folder / "a.mp4", video, hidden=13), list(range(13, 36))
    else:
        path = media.write_video(folder / f"a.{kind}", video)
    return path, list(range(36))


@pytest.mark.parametrize("kind", ["open GOP", "edit list", "ts", "avi", "flv"])
def test_frames_are_right_where_decord_would_be_wrong(tmp_path, kind):
    path, numbers = _write_awkward(kind, tmp_path)
    frames, metadata = decode_video(path, 8)
    assert metadata["total_frames"] == len(numbers) and metadata["decoder"] == "pyav"
    assert media.frame_numbers(frames) == [numbers[index] for index in metadata["frame_indices"]]
    if kind != "avi":  # which stores no presentation times
        # MPEG-TS starts its clock later; times count from the first frame.
        np.testing.assert_allclose(metadata["timestamps"], np.array(metadata["frame_indices"]) / 10, atol=1e-3)
    if HAS_DECORD:
        assert "could return wrong frames" in metadata["decoder_fallback"]
        with pytest.raises(ValueError, match="could return wrong frames"):
            decode_video(path, 8, "decord")


def test_only_idr_keyframes_are_trusted():
    avcc = bytes([1, 0, 0, 0, 0xFF])  # lengths of 4 bytes
    information, other, idr = (bytes([0, 0, 0, 2, kind, 0]) for kind in (0x06, 0x41, 0x65))
    assert decoding_llava_vit._open_gop("h264", avcc, information + idr) is None
    assert "IDR" in decoding_llava_vit._open_gop("h264", avcc, information + other)
    assert "avcC" in decoding_llava_vit._open_gop("h264", bytes([0, 0, 0, 1, 0x67]), idr)
    assert decoding_llava_vit._open_gop("vp9", b"", b"any") is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("degrees", "corner"), [(90, "top right"), (180, "bottom right"), (270, "bottom left")])
def test_rotation_is_applied(tmp_path, backend, degrees, corner):
    path = media.write_rotated(tmp_path / "phone.mp4", media.frames(3, 64, 128), degrees)
    frames, metadata = decode_video(path, 2, backend)
    size = (64, 128) if degrees == 180 else (128, 64)
    assert frames.shape[1:3] == size == (metadata["height"], metadata["width"])
    assert media.red_corner(frames[0]) == corner


@pytest.mark.parametrize("backend", BACKENDS)
def test_variable_frame_rate_timestamps(tmp_path, backend):
    times = [0, 50, 250, 300, 500, 550, 750, 800, 1000]
    path = media.write_video(tmp_path / "a.mkv", media.frames(9), times_ms=times)
    _, metadata = decode_video(path, 5, backend)
    np.testing.assert_allclose(metadata["timestamps"], [0, 0.25, 0.5, 0.75, 1.0], atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_frame_video_repeats_it(tmp_path, backend):
    path = media.write_video(tmp_path / "a.mp4", media.frames(1))
    frames, metadata = decode_video(path, 8, backend)
    assert metadata["frame_indices"] == [0] * 8 and len(frames) == 8
    assert all(np.array_equal(frame, frames[0]) for frame in frames)


def test_header_count_is_not_believed(tmp_path):
    # Matroska headers carry no count; AVI headers of a cut file carry the old one.
    for suffix, kept in (("mkv", 0.6), ("avi", 0.85)):
        whole = media.write_video(tmp_path / f"whole.{suffix}", media.frames(30), x264="bframes=0").read_bytes()
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(whole[: int(len(whole) * kept)])
        frames, metadata = decode_video(cut, 4, "pyav")
        assert 1 < metadata["total_frames"] < 30
        assert metadata["frame_indices"] == sample_frame_indices(metadata["total_frames"], 4).tolist()
        # The last frame may be cut in its middle.
        assert media.frame_numbers(frames)[:-1] == metadata["frame_indices"][:-1]


def test_damaged_file_is_clamped_to_what_decodes_and_the_fallback_is_recorded(tmp_path):
    path = media.write_damaged(tmp_path / "a.mp4", media.frames(30), 0.8)
    frames, metadata = decode_video(path, 4)
    assert metadata["decoder"] == "pyav" and 1 < metadata["total_frames"] < 30
    assert metadata["frame_indices"][-1] == metadata["total_frames"] - 1
    assert media.frame_numbers(frames) == metadata["frame_indices"]
    if HAS_DECORD:
        assert metadata["decoder_fallback"].startswith("decord: ")
        assert metadata["undecodable_frames"] == 30 - metadata["total_frames"]
        with pytest.raises(ValueError, match="decord cannot read.*a.mp4"):
            decode_video(path, 4, "decord")


def test_only_sampled_frames_are_converted(tmp_path, monkeypatch):
    import av

    path = media.write_video(tmp_path / "a.mp4", media.frames(30))
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
    converted = []
    read = decoding_llava_vit._decodable_frames

    class Spy:
        rotation = 0

        def __init__(self, frame):
            self.frame, self.pts = frame, frame.pts
            self.height, self.width = frame.height, frame.width

        def to_ndarray(self, **kwargs):
            converted.append(self.frame.pts)
            return self.frame.to_ndarray(**kwargs)

    monkeypatch.setattr(decoding_llava_vit, "_decodable_frames", lambda *args: (Spy(frame) for frame in read(*args)))
    decode_video(path, 3, "pyav")
    assert converted == [decoded[index].pts for index in (0, 14, 29)]


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video " * 100)
    media.write_audio(tmp_path / "audio.mp4")
    media.image(28, 28).save(tmp_path / "still.png")
    whole = media.write_video(tmp_path / "whole.mp4", media.frames(30)).read_bytes()
    (tmp_path / "headless.mp4").write_bytes(whole[: len(whole) // 2])
    for name in ("empty.mp4", "text.mp4", "audio.mp4", "still.png", "headless.mp4"):
        for backend in (None, "pyav"):
            with pytest.raises(ValueError, match=name):
                decode_video(tmp_path / name, 8, backend)
    with pytest.raises(FileNotFoundError, match="nowhere.mp4"):
        decode_video(tmp_path / "nowhere.mp4")
    with pytest.raises(ValueError, match="video_backend.*pyav"):
        decode_video(tmp_path / "whole.mp4", 8, "vlc")


def test_pyav_is_the_default_without_decord(tmp_path, monkeypatch):
    path = media.write_video(tmp_path / "a.mp4", media.frames(4))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "decord" else pytest.fail(name))
    _, metadata = decode_video(path)
    assert metadata["decoder"] == "pyav" and "decoder_fallback" not in metadata


def test_every_kind_of_frames_gives_the_same_pixels(video, tmp_path):
    array = np.stack([media.pattern(30, 45, shift) for shift in range(11)])
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, frame in enumerate(array):
        PIL.Image.fromarray(frame).save(folder / f"frame{index}.png")  # frame10 sorts before frame2 as text
    (folder / "notes.txt").write_text("not a frame")
    paths = [folder / f"frame{index}.png" for index in range(11)]
    expected = video(array, num_frames=4)
    kinds = {
        "chw": array.transpose(0, 3, 1, 2),
        "torch": torch.from_numpy(array),
        "torch chw": torch.from_numpy(array).permute(0, 3, 1, 2),
        "list of arrays": list(array),
        "list of pil": [PIL.Image.fromarray(frame) for frame in array],
        "list of torch": list(torch.from_numpy(array).permute(0, 3, 1, 2)),
        "list of paths": paths,
        "list of str": [str(path) for path in paths],
        "folder": folder,
        "folder as str": str(folder),
        "list of one video": [array],
        "float": array.astype(np.float32),
    }
    for kind, value in kinds.items():
        out = video(value, num_frames=4, return_metadata=True)
        assert torch.equal(out["pixel_values"], expected["pixel_values"]), kind
        assert out["metadata"][0]["frame_indices"] == [0, 3, 6, 10], kind
        assert out["metadata"][0]["total_frames"] == 11 and out["metadata"][0]["decoder"] == "frames"
    everything = video(array, num_frames="all")
    assert everything["grid_thw"].tolist() == [[11, 2, 3]]


def test_frames_are_those_of_the_indices(video):
    array = np.stack([media.pattern(28, 28, shift) for shift in range(11)])
    out = video(array, num_frames=4)["pixel_values"].reshape(4, 4, -1)
    for position, index in enumerate([0, 3, 6, 10]):
        alone = video.image_processor(array[index])["pixel_values"]
        assert torch.equal(out[position], alone)


def test_one_video_or_several():
    clip = np.zeros((2, 28, 28, 3), np.uint8)
    frame = PIL.Image.new("RGB", (28, 28))
    assert len(split_videos(clip)) == len(split_videos("a.mp4")) == len(split_videos([frame, frame])) == 1
    assert len(split_videos(["0.png", "1.png"])) == 1 and len(split_videos(["0.mp4", "1.mp4"])) == 2
    assert len(split_videos([clip, clip])) == len(split_videos(np.stack([clip, clip]))) == 2
    assert len(split_videos([[frame, frame], clip, "a.mp4"])) == 3
    for wrong in ([], frame, clip[0], [frame, clip]):
        with pytest.raises(ValueError, match="videos"):
            split_videos(wrong)


def test_paths_of_images_are_frames_of_a_clip_and_no_videos(tmp_path):
    paths = [str(tmp_path / f"{index}.png") for index in range(2)]
    for value, path in zip((10, 200), paths, strict=True):
        PIL.Image.new("RGB", (28, 28), (value,) * 3).save(path)
    for one_clip in (paths, [paths]):
        (video,) = split_videos(one_clip)
        assert decode_video(video, num_frames=2)[0][:, 0, 0, 0].tolist() == [10, 200]
    assert [len(video) for video in split_videos([paths, paths[:1]])] == [2, 1]
    with pytest.raises(ValueError, match="0.png is an image.*wrap a clip's frames in a list"):
        decode_video(*split_videos(paths[0]))
    with pytest.raises(ValueError, match="mixes single frames and videos; wrap the frames of each clip in a list"):
        split_videos([paths[0], "a.mp4"])


def test_clip_refusals(video, tmp_path):
    clip = np.zeros((3, 28, 28, 3), np.uint8)
    (tmp_path / "nothing").mkdir()
    for value, message in (
        (clip[:0], "no frames"),
        ([[]], "no frames"),
        (tmp_path / "nothing", "nothing has no frames"),
        ([clip[0], np.zeros((28, 42, 3), np.uint8)], "28x28, 42x28"),
        (clip[:, :10], "smaller than one patch"),
        (clip.astype(np.float32) + 0.5, "do_rescale=False"),
        (clip[None, None], "T, H, W, C"),
    ):
        with pytest.raises(ValueError, match=message):
            video(value)
    with pytest.raises(ValueError, match="max_tokens=31.*fewer frames"):
        video(clip, max_tokens=31)
    with pytest.raises(TypeError, match="int"):
        video([clip, 3])


def test_long_clips_are_refused_before_decoding(video, tmp_path, monkeypatch):
    path = media.write_video(tmp_path / "a.mp4", media.frames(30))
    monkeypatch.setattr(video_processing_llava_vit, "to_frame", lambda *_: pytest.fail("decoded"))
    for backend in ("pyav", None):
        with pytest.raises(ValueError, match="a.mp4.*480 tokens, more than max_tokens=100"):
            video(path, num_frames="all", max_tokens=100, video_backend=backend)


def test_temporal_positions(video):
    clip = media.frames(20, 28, 28)
    out = video(clip, return_metadata=True)
    assert out["patch_positions"][::4, 0].tolist() == [0, 9, 18, 27, 36, 45, 54, 63]
    assert out["metadata"][0]["temporal_positions"] == [0, 9, 18, 27, 36, 45, 54, 63]
    assert video(clip, num_frames=3)["patch_positions"][::4, 0].tolist() == [0, 32, 63]
    assert video(clip, num_frames=1)["patch_positions"][:, 0].tolist() == [0] * 4
    assert video(clip, num_frames=3, temporal_context=9)["patch_positions"][::4, 0].tolist() == [0, 4, 8]


def test_backends_of_transformers(tmp_path, monkeypatch):
    path = media.write_video(tmp_path / "a.mp4", media.frames(3))

    def load_video(name, backend, sample_indices_fn):
        metadata = SimpleNamespace(total_num_frames=3, fps=10.0, height=64, width=64)
        indices = sample_indices_fn(metadata=metadata)
        # Like the real ones: each frame once, and torchcodec with channels first.
        frames = torch.from_numpy(media.frames(3)[sorted(set(indices))])
        return (frames.permute(0, 3, 1, 2) if backend == "torchcodec" else frames), metadata

    monkeypatch.setattr(decoding_llava_vit, "load_video", load_video)
    for backend in ("torchcodec", "opencv"):
        frames, metadata = decode_video(path, 8, backend)
        assert metadata["decoder"] == backend and metadata["frame_indices"] == [0, 0, 0, 0, 1, 1, 1, 2]
        assert media.frame_numbers(frames) == metadata["frame_indices"]
        assert metadata["timestamps"][-1] == 0.2

    def short(name, backend, sample_indices_fn):
        metadata = SimpleNamespace(total_num_frames=3, fps=10.0, height=64, width=64)
        return media.frames(3)[sample_indices_fn(metadata=metadata)][:-1], metadata

    monkeypatch.setattr(decoding_llava_vit, "load_video", short)
    with pytest.raises(ValueError, match="only 2 of 3 frames"):
        decode_video(path, 8, "opencv")


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_frame_indices(conformance, video, backend):
    meta = json.loads((conformance / "golden/meta.json").read_text())["inputs"]
    paths = [conformance / f"media/{number}.mp4" for number in (1, 2)]
    out = video(paths, return_metadata=True, video_backend=backend)
    for number, (sample, grid) in enumerate(zip(out["metadata"], out["grid_thw"], strict=True), start=1):
        for key in ("frame_indices", "temporal_positions", "total_frames", "height", "width"):
            assert sample[key] == meta[f"video{number}"][key], key
        assert grid.prod() == meta[f"video{number}"]["tokens"]
