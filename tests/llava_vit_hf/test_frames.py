# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Which frames, and where in time: frames per second, frames decoded elsewhere, the rule from frame to position."""

import base64
import importlib.util

import numpy as np
import PIL.Image
import pytest
import torch
from transformers.video_utils import VideoMetadata

from llava_vit_hf import LlavaViTImageProcessor, LlavaViTProcessor
from llava_vit_hf.decoding_llava_vit import sample_by_time
from llava_vit_hf.grid_llava_vit import temporal_positions
from llava_vit_hf.video_processing_llava_vit import decode_video
from tests import media


BACKENDS = ["pyav"] + ["decord"] * (importlib.util.find_spec("decord") is not None)
# frames -> positions, by hand: i * 63 / (n - 1), to the nearest (half to even) and down.
RULES = {
    ("round", 4): [0, 21, 42, 63],
    ("floor", 4): [0, 21, 42, 63],
    ("round", 8): [0, 9, 18, 27, 36, 45, 54, 63],
    ("floor", 8): [0, 9, 18, 27, 36, 45, 54, 63],
    ("round", 16): [0, 4, 8, 13, 17, 21, 25, 29, 34, 38, 42, 46, 50, 55, 59, 63],
    ("floor", 16): [0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 58, 63],
    ("round", 64): list(range(64)),
    ("floor", 64): list(range(64)),
}


@pytest.fixture
def packing() -> LlavaViTProcessor:
    return LlavaViTProcessor(LlavaViTImageProcessor(packing=True))


def times_of(out) -> list[int]:
    """Positions of the frames of the only clip of a pack."""
    frames, rows, columns = out["grid_thw"][0].tolist()
    return out["patch_positions"].view(frames, rows * columns, 3)[:, 0, 0].tolist()


@pytest.mark.parametrize(
    ("total", "rate", "fps", "most", "expected"),
    [
        (20, 10, 1, 99, [0, 10]),
        (20, 10, 2, 99, [0, 5, 10, 15]),
        (21, 10, 1, 99, [0, 10, 20]),
        (20, 10, 3, 99, [0, 3, 6, 10, 13, 16]),
        (90, 30, 3, 99, [0, 10, 20, 30, 40, 50, 60, 70, 80]),  # 20 / 30 s is 0.666667 in the file
        (60, 29.97, 2, 99, [0, 14, 29, 44]),
        (5, 10, 10, 99, [0, 1, 2, 3, 4]),
        (5, 10, 1000, 99, [0, 1, 2, 3, 4]),  # each once
        (5, 10, 1e30, 99, [0, 1, 2, 3, 4]),
        (5, 10, 1e-30, 99, [0]),
        (1, 10, 4, 99, [0]),
        (90, 30, 3, 4, [0, 20, 50, 80]),  # of nine, at most four
        (90, 30, 3, 1, [0]),
    ],
)
def test_indices_by_time_are_pinned(total, rate, fps, most, expected):
    times = [round(index / rate, 6) for index in range(total)]
    assert sample_by_time(times, fps, most).tolist() == expected
    # MPEG-TS starts its clock later.
    assert sample_by_time([time + 1.4 for time in times], fps, most).tolist() == expected


def test_indices_by_time_of_a_variable_rate():
    # A frame is shown until the next one.
    times = [0, 0.05, 0.25, 0.3, 0.5, 0.55, 3.0]
    assert sample_by_time(times, 4, 99).tolist() == [0, 2, 4, 5, 6]
    with pytest.raises(ValueError, match="fps=4.*times of the frames are unknown.*video_metadata"):
        sample_by_time([0, None], 4, 99)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fps_of_files(packing, tmp_path, backend):
    path = media.write_video(tmp_path / "a.mp4", media.frames(20))
    out = packing(videos=path, fps=2, video_backend=backend, return_metadata=True)
    (found,) = out["metadata"]
    assert found["frame_indices"] == [0, 5, 10, 15] and found["timestamps"] == [0.0, 0.5, 1.0, 1.5]
    assert times_of(out) == found["temporal_positions"] == [0, 21, 42, 63]
    # With fps the limit on frames is the most that are sampled: the file may have more.
    (capped,) = packing(videos=path, fps=10, max_frames=3, return_metadata=True, video_backend=backend)["metadata"]
    assert capped["frame_indices"] == [0, 9, 19]
    slow = media.write_video(tmp_path / "b.mkv", media.frames(4), times_ms=[0, 400, 500, 1500])
    (found,) = packing(videos=slow, fps=2, video_backend=backend, return_metadata=True)["metadata"]
    assert found["frame_indices"] == [0, 2, 3]


def test_fps_of_a_damaged_file_counts_what_decodes(packing, tmp_path):
    path = media.write_damaged(tmp_path / "a.mp4", media.frames(30), 0.8)
    (found,) = packing(videos=path, fps=5, return_metadata=True)["metadata"]
    assert found["total_frames"] < 30
    assert found["frame_indices"] == list(range(0, found["total_frames"], 2))


def test_fps_is_saved_and_replaced(tmp_path):
    LlavaViTImageProcessor(packing=True, fps=2).save_pretrained(tmp_path)
    loaded = LlavaViTProcessor(LlavaViTImageProcessor.from_pretrained(tmp_path))
    clip, known = media.frames(20), {"video_metadata": {"fps": 10}}
    assert loaded(videos=clip, **known)["grid_thw"][0, 0] == 4
    assert loaded(videos=clip, fps=1, **known)["grid_thw"][0, 0] == 2
    assert loaded(videos=clip, num_frames=3, **known)["grid_thw"][0, 0] == 3
    other = LlavaViTImageProcessor.from_pretrained(tmp_path, num_frames=5)
    assert other.fps is None and LlavaViTProcessor(other)(videos=clip)["grid_thw"][0, 0] == 5


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), "2", True], ids=str)
def test_impossible_rates(packing, fps):
    with pytest.raises(ValueError, match="^fps must be"):
        packing(videos=media.frames(3), fps=fps)
    with pytest.raises(ValueError, match="^video_metadata: fps must be above 0"):
        packing(videos=media.frames(3), video_metadata={"fps": fps, "total_num_frames": 3})


def test_contradicting_requests(packing):
    clip = media.frames(4)
    with pytest.raises(ValueError, match="num_frames=4 and fps=2 exclude each other"):
        packing(videos=clip, num_frames=4, fps=2)
    with pytest.raises(ValueError, match="fps=2: the times of the frames are unknown"):
        packing(videos=clip, fps=2)
    for asked in ({"num_frames": 3}, {"fps": 2}):
        with pytest.raises(ValueError, match=f"do_sample_frames=False takes every frame: leave {next(iter(asked))}"):
            packing(videos=clip, do_sample_frames=False, **asked)
    with pytest.raises(ValueError, match="do_sample_frames must be"):
        packing(videos=clip, do_sample_frames="no")


FORMS = [
    lambda fields: fields,
    lambda fields: [fields],
    lambda fields: [[fields]],
    lambda fields: VideoMetadata(**fields),
    lambda fields: [VideoMetadata(**fields)],
]


@pytest.mark.parametrize("form", range(len(FORMS)))
@pytest.mark.parametrize("kind", ["array", "tensor", "list", "folder"])
def test_frames_decoded_elsewhere(packing, tmp_path, form, kind):
    indices = [0, 9, 30, 63]
    clip = media.frames(64, 28, 28)[indices]
    video = {"array": clip, "tensor": torch.from_numpy(clip), "list": [PIL.Image.fromarray(frame) for frame in clip]}
    if kind == "folder":
        for number, frame in enumerate(clip):
            PIL.Image.fromarray(frame).save(tmp_path / f"{number}.png")
        video[kind] = tmp_path
    fields = {"fps": 25.0, "frames_indices": indices, "total_num_frames": 64, "video_backend": "opencv"}
    given = FORMS[form](fields)
    for sampled in ({"do_sample_frames": False}, {}):
        out = packing(videos=[video[kind]], video_metadata=given, return_metadata=True, **sampled)
        assert torch.equal(out["pixel_values"].view(4, 4, -1)[2], packing(images=clip[2])["pixel_values"])
        (found,) = out["metadata"]
        assert found["frame_indices"] == indices and found["timestamps"] == [0.0, 0.36, 1.2, 2.52]
        assert times_of(out) == found["temporal_positions"] == [0, 9, 30, 63]
        assert (found["fps"], found["total_frames"], found["decoder"]) == (25.0, 64, "opencv")
        assert found["temporal_rule"] == "round"


def test_given_indices_are_positions_by_each_rule(packing):
    given = {"frames_indices": np.array([0, 50, 99]), "total_num_frames": 100}
    calls = {"round": [0, 32, 63], "floor": [0, 31, 63], "index": [0, 50, 99]}
    for rule, expected in calls.items():
        out = packing(videos=media.frames(3), video_metadata=given, temporal_rule=rule, return_metadata=True)
        assert times_of(out) == expected and out["metadata"][0]["temporal_rule"] == rule
    # Out of those given, some can still be asked for: their numbers stay those in the video.
    for asked in ({"num_frames": 2}, {"do_sample_frames": True, "num_frames": 2}):
        assert times_of(packing(videos=media.frames(3), video_metadata=given, temporal_rule="index", **asked)) == [
            0,
            99,
        ]
    timed = {**given, "fps": 50}
    assert times_of(packing(videos=media.frames(3), video_metadata=timed, temporal_rule="index", fps=1)) == [0, 50]


def test_an_engine_gets_what_the_file_gives(packing, tmp_path):
    """Frames decoded here and handed over with their metadata have the pixels and times of the file itself."""
    path = media.write_video(tmp_path / "a.mp4", media.frames(64))
    whole = packing(videos=path, return_metadata=True)
    found = whole["metadata"][0]
    frames, _ = decode_video(path)
    fields = {"fps": found["fps"], "frames_indices": found["frame_indices"], "total_num_frames": found["total_frames"]}
    again = packing(videos=frames, video_metadata=fields, do_sample_frames=False)
    for key in ("pixel_values", "patch_positions", "grid_thw"):
        assert torch.equal(again[key], whole[key]), key


def test_every_frame(packing, tmp_path):
    path = media.write_video(tmp_path / "a.mp4", media.frames(11))
    for asked in ({"num_frames": "all"}, {"do_sample_frames": False}):
        for video in (path, media.frames(11)):
            assert packing(videos=video, **asked)["grid_thw"][0, 0] == 11
    assert packing(videos=media.frames(11))["grid_thw"][0, 0] == 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frames_indices": [0, 1], "total_num_frames": 9}, "3 numbers, one for each frame.*found 2"),
        ({"frames_indices": [0, 1, 9], "total_num_frames": 9}, "below total_num_frames=9"),
        ({"frames_indices": [0, 2, 1], "total_num_frames": 9}, "rising"),
        ({"frames_indices": [-1, 2, 3], "total_num_frames": 9}, "from 0"),
        ({"frames_indices": [0, 1, 2]}, "total_num_frames=None"),
        ({"frames_indices": [0, 0.5, 2], "total_num_frames": 9}, "frames_indices"),
        ({"frames_indices": 3, "total_num_frames": 9}, "frames_indices"),
        ({"total_num_frames": 9}, "total_num_frames is 9, but 3 frames were given: frames_indices must say"),
        ({"total_num_frames": 2}, "total_num_frames is 2, but 3 frames"),
        ({"total_num_frames": 0}, "total_num_frames must be at least 1"),
        ({"frame_indices": [0, 1, 2]}, "found frame_indices; expected some of.*frames_indices"),
        (7, r"found int for 1 video\(s\)"),
        ([7], "found int; expected a dict or VideoMetadata"),
        ([{}, {}], r"found 2 for 1 video\(s\)"),
    ],
    ids=str,
)
def test_metadata_that_contradicts_the_frames(packing, fields, message):
    for sampled in (None, False, True):
        with pytest.raises(ValueError, match=f"^video_metadata.*{message}"):
            packing(videos=media.frames(3), video_metadata=fields, do_sample_frames=sampled)


def test_metadata_of_a_file_is_its_own(packing, tmp_path):
    path = media.write_video(tmp_path / "a.mp4", media.frames(4))
    with pytest.raises(ValueError, match="video_metadata is of frames decoded elsewhere, but .*a.mp4 is decoded here"):
        packing(videos=path, video_metadata={"fps": 3})
    # Of several videos only the frames have some.
    out = packing(videos=[path, media.frames(4)], video_metadata=[None, {"fps": 10}], fps=5, return_metadata=True)
    assert [found["frame_indices"] for found in out["metadata"]] == [[0, 2], [0, 2]]


@pytest.mark.parametrize(("rule", "frames"), RULES, ids=str)
def test_rules_are_pinned(packing, rule, frames):
    assert temporal_positions(frames, rule=rule).tolist() == RULES[rule, frames]
    clip = media.frames(64, 14, 14)
    assert times_of(packing(videos=clip, num_frames=frames, temporal_rule=rule)) == RULES[rule, frames]
    if rule == "floor":
        for count in range(1, 130):
            expected = torch.linspace(0, 63, count).long()
            assert torch.equal(temporal_positions(count, rule="floor"), expected), count


def test_the_rule_of_indices(packing):
    clip = media.frames(200, 14, 14)
    assert times_of(packing(videos=clip, num_frames=4, temporal_rule="index")) == [0, 66, 132, 199]
    assert temporal_positions(3, rule="index").tolist() == [0, 1, 2]


@pytest.mark.parametrize("rule", ["ceil", "", 3, None, ["round"]], ids=str)
def test_unknown_rules(rule):
    with pytest.raises(ValueError, match="temporal_rule must be one of.*round.*floor.*index"):
        LlavaViTImageProcessor(temporal_rule=rule)
    with pytest.raises(ValueError, match="rule must be one of"):
        temporal_positions(8, rule=rule)


def test_videos_inside_urls(packing, tmp_path):
    path = media.write_video(tmp_path / "a.mp4", media.frames(20))
    url = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
    out = packing(videos=url, return_metadata=True)
    assert torch.equal(out["pixel_values"], packing(videos=path)["pixel_values"])
    assert len(out["metadata"][0]["source"]) < 50
