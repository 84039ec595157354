# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Patches chosen by a video's codec: right vectors, right frames, right places, from every kind of video."""

import hashlib
import json
import subprocess
import sys

import av
import numpy as np
import pytest
import torch

from llava_vit_hf import LlavaViTImageProcessor, LlavaViTProcessor, codec_llava_vit, codec_scores
from llava_vit_hf.codec_llava_vit import best_patches, macroblock_bits, motion_field, patch_axes
from llava_vit_hf.settings_llava_vit import CODEC_SCORES, LlavaViTSettings
from tests import media
from tests.models import as_packing, dense_model


PATCH = 16
# The square moves from frame 6 on, down by 1 and right by 4 pixels a frame: out of (32, 32), which is whole patches.
START, STEP = 6, (1, 4)
COUNT = 12
# x264 without B frames and with whole vectors of one frame's motion.
PLAIN = "bframes=0:ref=1:weightp=0:scenecut=0"


def encoder_or_skip(name: str) -> str:
    if name not in av.codecs_available:
        pytest.skip(f"this PyAV has no {name}")
    return name


@pytest.fixture(scope="module")
def clip():
    return media.moving_square(COUNT, START, STEP)


@pytest.fixture(scope="module")
def file(clip, tmp_path_factory):
    return media.write_video(tmp_path_factory.mktemp("codec") / "clip.mp4", clip, x264=PLAIN)


def coded(path, indices, codec_score="motion+residual"):
    settings = LlavaViTSettings(codec_score=codec_score)
    return dict(codec_llava_vit._coded_frames(path, sorted(indices), settings)[1])


def true_patches() -> np.ndarray:
    """`(T, h, w)`: where the square moves, or has just moved away."""
    truth = np.zeros((COUNT, 6, 8), bool)
    for index in range(START, COUNT):
        for moved in (index - START, index - START + 1):
            top, left = (32 + side * moved for side in STEP)
            truth[index, top // 16 : -(-(top + 32) // 16), left // 16 : -(-(left + 32) // 16)] = True
    return truth


def hit_rate(scores: np.ndarray) -> float:
    """The part of the best patches, half as many as there are true ones, that are true."""
    truth = true_patches()
    return float(truth.reshape(-1)[np.argsort(-scores, axis=None, kind="stable")[: truth.sum() // 2]].mean())


class TestVectors:
    def test_they_are_in_pixels_and_not_exchanged(self, file):
        frames = coded(file, range(START, 10))  # 10 is intra coded
        for index, frame in frames.items():
            field, found = motion_field(frame.vectors, *frame.luma.shape)
            assert field.shape == (2, 12, 16) and found.any()
            # The middle of the square, which came from up and left of there.
            row, column = ((32 + side * (index - START + 1) + 16) // 8 for side in STEP)
            assert field[:, row, column].tolist() == [-STEP[1], -STEP[0]]
            assert np.abs(field[:, :3]).max() == 0

    def test_both_lists_of_b_frames_are_told_apart(self, clip, tmp_path):
        path = media.write_video(tmp_path / "b.mp4", clip, x264="bframes=2:b-adapt=0:ref=1:scenecut=0:b-pyramid=0")
        frames = [frame for frame in coded(path, range(START, COUNT)).values() if frame.vectors is not None]
        both = [frame for frame in frames if (frame.vectors["source"] > 0).any()]
        assert both
        pairs = [[motion_field(f.vectors, *f.luma.shape, way)[0][0] for way in (True, False)] for f in both]
        assert min(past.min() for past, _ in pairs) < 0 < max(future.max() for _, future in pairs)

    @pytest.mark.parametrize("size", [(8, 8), (16, 16), (16, 8), (8, 16), (4, 4)])
    def test_every_size_of_block_and_those_outside(self, size):
        names = ("source", "w", "h", "dst_x", "dst_y", "motion_x", "motion_y", "motion_scale")
        row = (-1, *size, 16 + size[0] // 2, 8 + size[1] // 2, 8, -12, 4)
        outside = (-1, *size, 900, -40, 8, 8, 4)
        vectors = np.array([row, outside], [(name, np.int32) for name in names])
        field, found = motion_field(vectors, 30, 50)
        assert field.shape == (2, 4, 7)
        where = np.zeros((4, 7), bool)
        where[1 : 1 + max(size[1] // 8, 1), 2 : 2 + max(size[0] // 8, 1)] = True
        assert np.array_equal(found, where)
        assert (field[0][where] == 2).all() and (field[1][where] == -3).all() and not field[:, ~where].any()


class TestScores:
    @pytest.mark.parametrize("kind", CODEC_SCORES)
    def test_what_moves_is_found_when_it_moves(self, file, kind):
        scores = codec_scores(file, range(COUNT), PATCH, codec_score=kind)
        assert scores.shape == (COUNT, 6, 8) and scores.dtype == np.float32 and scores.min() >= 0
        # An intra frame has bits everywhere, and so has the first.
        scores[[0, 10]] = 0
        assert hit_rate(scores) > 0.95
        if kind != "bits":
            assert not scores[1:START].any()

    def test_faults_show(self, file, monkeypatch):
        scores = codec_scores(file, range(COUNT), PATCH)
        scores[[0, 10]] = 0
        assert hit_rate(np.roll(scores, 3, axis=0)) < 0.8
        assert hit_rate(np.roll(scores, -3, axis=0)) < 0.8
        read = motion_field

        def exchanged(*arguments):
            field, found = read(*arguments)
            return field[::-1], found

        monkeypatch.setattr(codec_llava_vit, "motion_field", exchanged)
        assert coded(file, [8])[8].vectors is not None
        field = codec_llava_vit.motion_field(coded(file, [8])[8].vectors, 96, 128)[0]
        assert -STEP[1] not in field[0] and -STEP[0] in field[0]

    def test_only_asked_frames_in_their_order_and_repeated(self, file):
        whole = codec_scores(file, range(COUNT), PATCH)
        assert np.array_equal(codec_scores(file, [8, 7, 8], PATCH), whole[[8, 7, 8]])

    def test_motion_is_relative_to_the_camera(self, clip, tmp_path):
        # All of a noisy picture moves by 4 pixels; a square stays.
        random = np.random.default_rng(1).integers(0, 256, (96, 200, 1)).astype(np.uint8).repeat(3, -1)
        video = np.stack([random[:, 4 * index : 4 * index + 128] for index in range(8)])
        video[:, 32:64, 32:64] = clip[0, 32:64, 32:64]
        path = media.write_video(tmp_path / "pan.mp4", video, x264=PLAIN + ":qp=10")
        motion = codec_scores(path, [4], PATCH, codec_score="motion")[0]
        assert motion[2:4, 2:4].min() > 0.5 > 0.2 > np.median(motion)


class TestPlaces:
    @pytest.mark.parametrize("degrees", [90, 180, 270])
    def test_rotated_files(self, clip, tmp_path, degrees):
        clip = clip[:, :90, :122]  # neither side fills blocks
        plain = media.write_video(tmp_path / "plain.mp4", clip, x264=PLAIN)
        turned = media.write_rotated(tmp_path / "turned.mp4", clip, degrees)
        expected = [np.rot90(frame, -degrees // 90) for frame in codec_scores(plain, [8], 1)]
        assert np.allclose(codec_scores(turned, [8], 1, codec_score="residual").mean(), np.mean(expected), atol=0.1)
        plain = media.write_video(tmp_path / "plain.mp4", clip)  # as write_rotated does
        expected = np.rot90(codec_scores(plain, [8], 2)[0], -degrees // 90)
        assert np.allclose(codec_scores(turned, [8], 2)[0], expected, atol=1e-6)

    def test_patches_that_are_no_whole_cells(self, file):
        settings = {"patch_size": 14, "native_resolution": False, "size": 84, "crop_size": 70}
        scores = codec_scores(file, [8], **settings)
        assert scores.shape == (1, 5, 5)
        # By brute force: every pixel of the resized picture takes the cell that its centre is in.
        frame = coded(file, [8])[8]
        cells = codec_llava_vit._motion_and_residual(frame)
        grow, scale = 8, 96 / 84
        places = (np.arange(70 * grow) + 0.5) / grow
        rows, columns = ((places + (side - 70) // 2) * scale // 4 for side in (84, 112))
        pixels = cells[np.ix_(rows.astype(int), columns.astype(int))]
        expected = pixels.reshape(5, 14 * grow, 5, 14 * grow).mean((1, 3))
        assert np.abs(scores[0] - expected).max() < 0.01 < np.ptp(expected)

    def test_padding_scores_nothing(self, file):
        scores = codec_scores(file, [8], PATCH, square=128)
        assert scores.shape == (1, 8, 8)
        assert not scores[0, [0, -1]].any()
        assert np.array_equal(scores[0, 1:-1], codec_scores(file, [8], PATCH)[0])
        # Half a patch of padding counts as nothing.
        narrow = codec_scores(file, [8], PATCH, square=64)[0]
        axes = patch_axes(96, 128, LlavaViTSettings(patch_size=PATCH), square=64)
        assert axes == [(-16.0, 32.0, 4), (0.0, 32.0, 4)]
        assert np.allclose(narrow[0], codec_scores(file, [8], PATCH)[0, 0].reshape(4, 2).sum(1) / 4, atol=1e-6)

    def test_what_fills_no_patch_is_left_out(self, file):
        assert codec_scores(file, [8], 40).shape == (1, 2, 3)


class TestEveryVideo:
    @pytest.mark.parametrize(
        ("codec", "suffix"),
        [("libx265", "mp4"), ("libvpx-vp9", "webm"), ("libsvtav1", "mp4"), ("mpeg4", "avi"), ("gif", "gif")],
    )
    def test_codecs(self, clip, tmp_path, codec, suffix, capfd):
        pixels = "rgb8" if codec == "gif" else "yuv420p"
        path = tmp_path / f"clip.{suffix}"
        media.write_video(path, clip, codec=encoder_or_skip(codec), pixel_format=pixels)
        scores = codec_scores(path, range(1, COUNT), PATCH)
        truth = true_patches()[1:]
        best = np.argsort(-scores, axis=None, kind="stable")[: truth.sum() // 2]
        assert truth.reshape(-1)[best].mean() > 0.9

    def test_frames_in_every_form(self, clip, tmp_path):
        for index, frame in enumerate(clip):
            media.PIL.Image.fromarray(frame).save(tmp_path / f"{index}.png")
        expected = codec_scores(clip, range(COUNT), PATCH)
        assert hit_rate(expected) > 0.95
        forms = (list(clip), tmp_path, torch.from_numpy(clip).permute(0, 3, 1, 2), clip / np.float32(255))
        for video in forms:
            assert np.array_equal(codec_scores(video, range(COUNT), PATCH), expected)

    def test_b_frames_open_gops_and_odd_sizes(self, clip, tmp_path):
        for x264 in ("bframes=3", "bframes=3:open-gop=1:keyint=6", "bframes=0:ref=4:weightp=2"):
            path = media.write_video(tmp_path / "a.mp4", clip[:, :90, :122], x264=x264)
            assert codec_scores(path, range(COUNT), PATCH)[START:].max() > 0.5
        path = media.write_video(tmp_path / "odd.mp4", clip[:, :91, :123], pixel_format="yuv444p")
        assert codec_scores(path, range(COUNT), PATCH).shape == (COUNT, 5, 7)
        times = [0, 40, 80, 500, 540, 1000, 1040, 1080, 1120, 1500, 1540, 2000]
        path = media.write_video(tmp_path / "vfr.mp4", clip, times_ms=times, x264=PLAIN)
        assert hit_rate(codec_scores(path, range(COUNT), PATCH)) > 0.9

    def test_truncated_files(self, clip, tmp_path):
        path = media.write_damaged(tmp_path / "a.mp4", np.concatenate([clip] * 4), 0.5)
        inputs = processor(True)(videos=path, num_frames=4, scores="codec", top_k=60, return_metadata=True)
        assert inputs["metadata"][0]["undecodable_frames"] > 0 and len(inputs["pixel_values"]) == 60
        with pytest.raises(ValueError, match=r"frame_indices: .*a\.mp4 has no frame 47"):
            codec_scores(path, [0, 47], PATCH)

    def test_without_libx264(self, clip, file, monkeypatch):
        def create(name, mode):
            raise ValueError(name)

        fake = type("av", (), {"CodecContext": type("C", (), {"create": staticmethod(create)})})
        monkeypatch.setattr(codec_llava_vit, "import_av", lambda: fake)
        with pytest.raises(ImportError, match="no motion vectors of its own, and this PyAV is built without libx264"):
            codec_scores(clip, [3], PATCH)
        assert codec_scores(file, [3], PATCH).shape == (1, 6, 8)

    @pytest.mark.parametrize(
        ("content", "message"),
        [(b"", "cannot read"), (b"nothing" * 99, "cannot read"), (b"#EXTM3U\n#EXTINF:1,\na.ts\n", "cannot read")],
    )
    def test_no_videos(self, tmp_path, content, message):
        (tmp_path / "a.mp4").write_bytes(content)
        with pytest.raises(ValueError, match=f"pyav {message}"):
            codec_scores(tmp_path / "a.mp4", [0], PATCH)
        with pytest.raises(FileNotFoundError, match="there is no file or folder"):
            codec_scores(tmp_path / "b.mp4", [0], PATCH)
        with pytest.raises(ValueError, match="frame_indices must be"):
            codec_scores(tmp_path / "b.mp4", [-1], PATCH)

    def test_limits(self, file):
        with pytest.raises(ValueError, match="max_frames=3"):
            codec_scores(file, [0], PATCH, max_frames=3)
        with pytest.raises(ValueError, match="max_image_pixels=99"):
            codec_scores(file, [0], PATCH, max_image_pixels=99)


SAME = """
import os, sys
if sys.argv[1] == "one":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import hashlib
import numpy as np
from llava_vit_hf import codec_scores
from llava_vit_hf.settings_llava_vit import CODEC_SCORES
digest = hashlib.sha256()
for kind in CODEC_SCORES:
    for path in sys.argv[2:]:
        digest.update(codec_scores(path, range(12), 14, codec_score=kind))
print(digest.hexdigest())
"""


@pytest.mark.long
def test_the_same_on_every_run_thread_count_and_major(clip, file, tmp_path, other_python):
    video = media.write_video(tmp_path / "clip.webm", clip, codec=encoder_or_skip("libvpx-vp9"))
    digest = hashlib.sha256()
    for kind in CODEC_SCORES:
        for path in (file, video):
            digest.update(codec_scores(path, range(COUNT), 14, codec_score=kind))
    for python, cores in ((sys.executable, "one"), (other_python, "all")):
        command = [python, "-c", SAME, cores, str(file), str(video)]
        run = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        assert run.stdout.strip() == digest.hexdigest(), run.stderr


@pytest.fixture(scope="module")
def noisy() -> np.ndarray:
    """Frames that cost unlike much: noise comes and goes."""
    random = np.random.default_rng(2)
    video = media.moving_square(24, 8, (1, 2)).astype(int)
    for index in range(24):
        video[index] += random.integers(-1, 2, video[index].shape) * (index % 5) * 4
    return video.clip(0, 255).astype(np.uint8)


class TestBits:
    def test_a_frame_costs_its_packet(self, noisy, tmp_path):
        path = media.write_video(tmp_path / "a.mp4", noisy, x264="bframes=2")
        with av.open(str(path)) as container:
            packets = sorted((packet.pts, packet.size) for packet in container.demux(video=0) if packet.size)
        frames = coded(path, range(24), "bits")
        estimated = [macroblock_bits(frames[index]).sum() / 8 for index in range(24)]
        assert np.allclose(estimated, [size for _, size in packets], rtol=1e-3)
        scores = codec_scores(path, range(24), PATCH, codec_score="bits")
        assert np.corrcoef(np.expm1(scores * 9).sum((1, 2)), estimated)[0, 1] > 0.9

    def test_without_packets_the_estimate_follows_them(self, noisy, tmp_path):
        path = media.write_video(tmp_path / "a.mp4", noisy, x264=PLAIN)
        frames = coded(path, range(24), "bits")
        sizes = [frames[index].size for index in range(24)]
        estimated = [macroblock_bits(codec_llava_vit.replace(frames[index], size=None)).sum() for index in range(24)]
        assert np.corrcoef(estimated, sizes)[0, 1] > 0.9

    def test_macroblocks_are_ordered_as_in_streams_of_one_slice_each(self, noisy, tmp_path):
        path = tmp_path / "a.h264"
        media.write_video(path, noisy, x264=PLAIN + ":slice-max-mbs=1", container_format="h264")
        # A slice starts with 0 0 1 and the type of its unit; each holds one macroblock, in raster order.
        data = path.read_bytes()
        starts = [place for place in range(len(data)) if data.startswith(b"\0\0\1", place)] + [len(data)]
        units = [(data[a + 3] & 31, b - a) for a, b in zip(starts, starts[1:], strict=False)]
        real = np.array([size for kind, size in units if kind in (1, 5)]).reshape(24, 6, 8)
        frames = coded(path, range(24), "bits")
        # A raw stream has no times, so no packet is known; of a frame of equal macroblocks there is no order.
        assert frames[3].size is None
        shares = [correlation(macroblock_bits(frames[index]), real[index]) for index in range(24) if real[index].std()]
        assert len(shares) > 10 and np.mean(shares) > 0.75
        turned = [correlation(macroblock_bits(frames[index])[::-1, ::-1], real[index]) for index in (9, 14, 19)]
        assert np.mean(turned) < 0.5


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, of all elements; 0 where one side does not tell them apart."""
    if not a.std() or not b.std():
        return 0.0
    return float(np.corrcoef(*(ranks(values.reshape(-1)) for values in (a, b)))[0, 1])


def ranks(values: np.ndarray) -> np.ndarray:
    """Equal values share the middle of their ranks."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


class TestChoice:
    SCORES = np.random.default_rng(0).random((3, 5, 7))

    def test_the_first_frame_counts(self):
        mask = best_patches(self.SCORES, 40)
        assert mask[0].all() and mask.sum() == 40
        assert self.SCORES[1:][mask[1:]].min() > self.SCORES[1:][~mask[1:]].max()
        mask = best_patches(self.SCORES, 40, keep_first_frame=False)
        assert mask.sum() == 40 and self.SCORES[mask].min() > self.SCORES[~mask].max()

    def test_blocks_are_whole(self):
        mask = best_patches(self.SCORES, 22, keep_first_frame=False, block=2)
        assert mask.sum() == 20 and not mask[:, 4].any() and not mask[:, :, 6].any()
        blocks = mask[:, :4, :6].reshape(3, 2, 2, 3, 2)
        assert (blocks.all((2, 4)) == blocks.any((2, 4))).all()
        sums = self.SCORES[:, :4, :6].reshape(3, 2, 2, 3, 2).sum((2, 4))
        assert sums[blocks.all((2, 4))].min() > sums[~blocks.any((2, 4))].max()
        assert best_patches(self.SCORES, 35 + 8, block=2).sum() == 43

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((34,), "top_k=34 is too small: the first frame alone has 35 patches; pass keep_first_frame=False"),
            ((3, False, 2), "top_k=3 is too small"),
            ((0,), "top_k must be an integer of at least 1"),
            ((2.5,), "top_k must be an integer of at least 1"),
        ],
    )
    def test_too_few(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            best_patches(self.SCORES, *arguments)


def processor(packing: bool, **settings) -> LlavaViTProcessor:
    given = {"patch_size": PATCH, "packing": packing, "native_resolution": True, **settings}
    return LlavaViTProcessor(LlavaViTImageProcessor(**given))


class TestProcessor:
    def test_packing_and_dense_agree(self, file):
        call = {"videos": [str(file)], "num_frames": 6, "scores": "codec", "top_k": 100, "return_metadata": True}
        packed, batch = processor(True)(**call), processor(False)(**call)
        assert packed["metadata"] == batch["metadata"]
        report = packed["metadata"][0]
        assert packed["pixel_values"].shape == (100, 768) and report["kept_patches"][:48] == list(range(48))
        assert batch["visible_indices"][0].tolist() == report["kept_patches"]
        assert (report["codec_score"], report["keep_first_frame"], report["block"]) == ("motion+residual", True, 1)
        assert report["codec_way"] == "stream: h264"
        json.dumps(report)
        dense = dense_model(patch_size=PATCH)
        with torch.no_grad():
            packed, batch = (
                model(**{key: value for key, value in inputs.items() if key != "metadata"}).last_hidden_state
                for model, inputs in ((as_packing(dense), packed), (dense, batch))
            )
        torch.testing.assert_close(packed, batch[0], rtol=0, atol=1e-4)

    def test_the_choice_is_that_of_the_scores(self, file):
        report = processor(True)(videos=file, num_frames=6, scores="codec", top_k=100, return_metadata=True)
        report = report["metadata"][0]
        scores = codec_scores(file, report["frame_indices"], PATCH)
        assert best_patches(scores, 100).reshape(-1).nonzero()[0].tolist() == report["kept_patches"]

    def test_any_number_per_sample_beside_an_image(self, file, clip):
        inputs = processor(True)(
            images=media.image(40, 33), videos=[file, clip], num_frames=4, scores="codec", top_k=[9, 60, 70]
        )
        assert inputs["cu_seqlens"].tolist() == [0, 4, 64, 134]

    def test_options_are_saved_and_can_be_overridden(self, file, tmp_path):
        processor(True, codec_score="bits", keep_first_frame=False, block=2).save_pretrained(tmp_path)
        loaded = LlavaViTProcessor.from_pretrained(tmp_path)
        call = {"videos": file, "num_frames": 4, "scores": "codec", "return_metadata": True}
        report = loaded(**call, top_k=20)["metadata"][0]
        assert (report["codec_score"], report["keep_first_frame"], report["block"]) == ("bits", False, 2)
        report = loaded(**call, top_k=60, codec_score="motion", keep_first_frame=True, block=1)["metadata"][0]
        assert report["codec_score"] == "motion" and report["kept_patches"][:48] == list(range(48))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"scores": "code", "top_k": 60}, "scores must be arrays or \"codec\", without keep; found 'code'"),
            ({"scores": "codec", "top_k": 60, "keep": [None]}, "without keep"),
            ({"scores": "codec"}, "needs videos and top_k"),
            ({"scores": "codec", "top_k": 20}, "the first frame alone has 48 patches"),
            ({"scores": "codec", "top_k": [60, 60]}, "top_k: found 2 numbers for 1 samples"),
            ({"scores": "codec", "top_k": 60, "codec_score": "mv"}, "codec_score must be one of 'motion.residual'"),
            ({"scores": "codec", "top_k": 60, "block": 3}, "block must be one of 1, 2, found 3"),
            ({"scores": "codec", "top_k": 60, "keep_first_frame": 1}, "keep_first_frame must be True or False"),
        ],
    )
    def test_bad_arguments(self, file, arguments, message):
        with pytest.raises(ValueError, match=message):
            processor(True)(videos=file, **arguments)

    def test_images_alone_have_no_codec(self):
        with pytest.raises(ValueError, match="needs videos"):
            processor(True)(images=media.image(40, 33), scores="codec", top_k=2)


def test_frames_decoded_elsewhere_are_scored_as_what_they_are(clip):
    """Numbers in a longer video say when frames are shown, not where they lie in the list."""
    processor = LlavaViTProcessor(LlavaViTImageProcessor(patch_size=PATCH, packing=True))
    chosen = {"scores": "codec", "top_k": 60, "return_metadata": True}
    known = {"fps": 25.0, "total_num_frames": 1000, "frames_indices": [50 + 7 * index for index in range(COUNT)]}
    told, plain = (
        processor(videos=[clip], do_sample_frames=False, video_metadata=metadata, **chosen)
        for metadata in ([known], None)
    )
    assert torch.equal(told["pixel_values"], plain["pixel_values"])
    assert told["metadata"][0]["frame_indices"] == known["frames_indices"]
    assert not torch.equal(told["patch_positions"], plain["patch_positions"])


def test_a_video_at_an_address_is_to_be_downloaded_first():
    with pytest.raises(ValueError, match="Download the file, and pass its path"):
        codec_scores("https://127.0.0.1:9/clip.mp4", [0], PATCH)


def test_vectors_are_those_of_their_frame_on_every_run(tmp_path):
    """FFmpeg's frame threads mix the vectors of frames that they decode side by side, so that every run had others."""
    ground = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    video = np.stack([np.roll(ground, (3 * index, 5 * index), (0, 1)) for index in range(48)])
    path = media.write_video(tmp_path / "long.mp4", video)
    first, *others = (codec_scores(path, range(0, 48, 2), PATCH, codec_score="motion") for _ in range(4))
    assert first.any() and all(np.array_equal(first, other) for other in others)
