# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Folders of codec-selected patches: what is written, and both layouts as inputs of both models."""

import json

import numpy as np
import PIL.Image
import pytest
import torch

from examples import codec_assets
from examples.extraction.codec_assets import (
    Padding,
    WriteRequest,
    block_order,
    choose,
    load_processor,
    model_inputs,
    read_assets,
)
from tests import media
from tests.models import as_packing, dense_model


PATCH = 96  # a canvas of 6 x 6 patches
FRAMES, KEPT = 6, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a clip that is wider than high."""
    root = tmp_path_factory.mktemp("assets")
    media.write_video(root / "clip.mp4", media.moving_square(12, 2, (1, 4)))
    options = ("--patch_size", PATCH, "--num_frames", FRAMES, "--keep_frames", KEPT)
    assert run("write", root / "clip.mp4", "--output_dir", root / "assets", *options) == 0
    return root / "assets"


def run(*arguments) -> int:
    return codec_assets.main([str(argument) for argument in arguments])


class TestWritten:
    def test_files_and_order(self, folder):
        assert sorted(path.name for path in folder.iterdir()) == [
            *("canvas_000.png", "canvas_001.png", "frame_ids.npy", "meta.json", "positions_thw.npy"),
            "visidx_thw.npy",
        ]
        chosen, positions = (np.load(folder / name) for name in ("visidx_thw.npy", "positions_thw.npy"))
        assert chosen.shape == positions.shape == (KEPT * 36, 3) and chosen.dtype == positions.dtype == np.int32
        assert [tuple(row) for row in positions] == sorted(tuple(row) for row in chosen)
        assert chosen[:36].tolist() == [[0, row, column] for row in range(6) for column in range(6)]
        assert np.load(folder / "frame_ids.npy").tolist() == [0, 2, 4, 6, 8, 11]
        # 432 of 576 rows are picture: 72 above and below are padding, so rows 0 and 5 touch it and come last.
        assert set(chosen[36:, 1].tolist()) <= {1, 2, 3, 4}

    def test_meta(self, folder):
        meta = json.loads((folder / "meta.json").read_text())
        assert (meta["hb"], meta["S_total"], meta["S_valid"], meta["K"]) == (6, 36, 24, 72)
        assert meta["pad_info"] == {
            **{"scale": 4.5, "Hn": 432, "Wn": 576, "pad_top": 72, "pad_left": 0, "pad_bottom": 72, "pad_right": 0},
            **{"out_size": 576, "H0": 96, "W0": 128},
        }
        ranges = {name: meta["valid_ranges"][f"valid_{name}"] for name in ("h_start", "h_end", "w_start", "w_end")}
        assert ranges == {"h_start": 1, "h_end": 5, "w_start": 0, "w_end": 6}

    def test_canvases_hold_the_patches_that_positions_name(self, folder):
        frames, _ = load_processor().decode_video(str(folder.parent / "clip.mp4"), FRAMES)
        positions = np.load(folder / "positions_thw.npy")
        for place in (0, 40, 71):
            t, h, w = positions[place]
            with PIL.Image.open(folder / f"canvas_{place // 36:03d}.png") as picture:
                canvas = np.asarray(picture)
            row, column = (place % 36) // 6, place % 6
            frame = Padding.around(96, 128, 576).apply(frames[t])
            patches = (
                picture[y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH]
                for picture, y, x in ((canvas, row, column), (frame, h, w))
            )
            assert np.array_equal(*patches)

    def test_padding_comes_last_even_with_the_best_scores(self):
        scores, whole = np.zeros((3, 2, 2)), np.array([[True, True], [False, True]])
        scores[1, 1, 0], scores[2, 0, 1] = 9, 1
        assert choose(scores, whole, 12)[4].tolist() == [2, 0, 1]
        assert choose(scores, whole, 12)[10:].tolist() == [[1, 1, 0], [2, 1, 0]]

    def test_bad_requests(self, folder, capsys):
        video, other = folder.parent / "clip.mp4", folder.parent / "b"
        for arguments, message in (
            (("--output_dir", folder), f"--output_dir {folder} exists. Give another folder, or --overwrite."),
            (("--output_dir", other, "--patch_size", 17), "--patch_size must divide 576, found 17."),
            (
                ("--output_dir", folder.parent / "b", "--keep_frames", 65),
                "--keep_frames 65 is more than --num_frames 64",
            ),
            (("--output_dir", other, "--num_frames", 0), "--num_frames must be at least 1, found 0."),
        ):
            assert run("write", video, *arguments) == 2
            assert message in capsys.readouterr().err
        assert run("write", folder.parent / "none.mp4", "--output_dir", folder.parent / "b") == 2
        assert sorted(path.name for path in folder.parent.iterdir()) == ["assets", "clip.mp4"]

    def test_jpeg_and_overwrite(self, folder, tmp_path):
        arguments = ("write", folder.parent / "clip.mp4", "--output_dir", tmp_path / "a", "--patch_size", PATCH)
        arguments += ("--num_frames", 2, "--keep_frames", 1)
        assert run(*arguments, "--canvas_format", "jpg") == 0 and (tmp_path / "a" / "canvas_000.jpg").is_file()
        assert run(*arguments, "--overwrite") == 0
        assert not (tmp_path / "a" / "canvas_000.jpg").exists() and (tmp_path / "a" / "canvas_000.png").is_file()


def features(inputs: dict, patch_size: int, packing: bool) -> torch.Tensor:
    dense = dense_model(patch_size=patch_size)
    with torch.no_grad():
        states = (as_packing(dense) if packing else dense)(**inputs).last_hidden_state
    return states if packing else states[0]


def write_later(folder, grids, seed=0, padding=3):
    """The later layout: canvases of 8-pixel patches, of which the last ones are padding."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    count = sum(h * w for h, w in grids)
    positions = np.stack([random.integers(0, limit, count) for limit in (300, 40, 40)], axis=-1)
    positions[count - padding :] = -1
    names = [f"canvas_{number}.png" for number in range(len(grids))]
    for name, (h, w) in zip(names, grids, strict=True):
        PIL.Image.fromarray(random.integers(0, 256, (8 * h, 8 * w, 3), np.uint8)).save(folder / name)
    np.save(folder / "src_patch_position.npy", positions)
    (folder / "meta.json").write_text(json.dumps({"fps": 25.0, "canvas_files": names}))
    return positions


class TestRead:
    def test_dense_and_packing_have_the_same_bits(self, folder, tmp_path):
        assets = read_assets(folder)
        dense, packing = (model_inputs(assets, packing) for packing in (False, True))
        assert dense["pixel_values"].shape == (1, 3, KEPT, 576, 576) and "visible_indices" not in dense
        assert dense["patch_positions"][0].tolist() == np.load(folder / "positions_thw.npy").tolist()
        states = [features(inputs, PATCH, which) for inputs, which in ((dense, False), (packing, True))]
        assert torch.equal(*states)
        assert run("read", folder, "--output", tmp_path / "inputs.npz") == 0
        with np.load(tmp_path / "inputs.npz") as saved:
            assert np.array_equal(saved["pixel_values"], packing["pixel_values"])

    @pytest.mark.parametrize("order", ["raster", "block"])
    def test_the_later_layout(self, tmp_path, order):
        positions = write_later(tmp_path / "a", [(4, 6), (4, 6)])
        assets = read_assets(tmp_path / "a")
        assert assets.patch_size == 8
        dense, packing = (model_inputs(assets, packing, order) for packing in (False, True))
        kept = positions[:-3]
        if order == "block":
            assert packing["patch_positions"].tolist() == kept.tolist()
        else:
            assert sorted(packing["patch_positions"].tolist()) == sorted(kept.tolist())
        assert packing["cu_seqlens"].tolist() == [0, 45] and dense["visible_indices"].shape == (1, 45)
        states = [features(inputs, 8, which) for inputs, which in ((dense, False), (packing, True))]
        assert torch.equal(*states)
        # Row 1 of the file is right of row 0 on the canvas, and row 2 below it.
        place = packing["patch_positions"].tolist().index(positions[2].tolist())
        with PIL.Image.open(tmp_path / "a" / "canvas_0.png") as picture:
            patch = np.asarray(picture)[8:16, :8].transpose(2, 0, 1)
        plain = load_processor()(images=patch.transpose(1, 2, 0), packing=True, native_resolution=True, patch_size=8)[
            "pixel_values"
        ][0]
        assert torch.equal(packing["pixel_values"][place], plain)

    def test_block_order(self):
        assert block_order(2, 4).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]

    def test_canvases_of_unequal_size_are_for_packing(self, tmp_path):
        write_later(tmp_path / "a", [(4, 6), (2, 4)])
        assets = read_assets(tmp_path / "a")
        assert model_inputs(assets, True)["max_seqlen"] == 29
        with pytest.raises(ValueError, match="canvases of one size"):
            model_inputs(assets, False)

    def test_damaged_folders(self, folder, tmp_path):
        with pytest.raises(ValueError, match="has neither of positions_thw.npy and src_patch_position.npy"):
            read_assets(tmp_path)
        (tmp_path / "canvas_000.png").write_bytes((folder / "canvas_000.png").read_bytes())
        np.save(tmp_path / "positions_thw.npy", np.load(folder / "positions_thw.npy"))
        with pytest.raises(ValueError, match="72 patches do not fill 1 canvases of 576x576.*may be missing"):
            read_assets(tmp_path)
        for array, message in (
            (np.zeros((36, 3)), r"must be integers \(patches, 3\), found float64 \(36, 3\)"),
            (np.zeros((36, 2), int), r"must be integers \(patches, 3\)"),
            (np.full((36, 3), -2), "-2 is below -1"),
        ):
            np.save(tmp_path / "positions_thw.npy", array)
            with pytest.raises(ValueError, match=message):
                read_assets(tmp_path)
        np.save(tmp_path / "positions_thw.npy", np.array([{"a": 1}], object), allow_pickle=True)
        with pytest.raises(ValueError, match="is no array of NumPy"):
            read_assets(tmp_path)
        np.save(tmp_path / "positions_thw.npy", np.full((36, 3), -1))
        with pytest.raises(ValueError, match="nothing but padding"):
            model_inputs(read_assets(tmp_path), True)
        (tmp_path / "meta.json").write_text(json.dumps({"canvas_files": ["../a.png"]}))
        with pytest.raises(ValueError, match="canvas_files must be a list of names in this folder"):
            read_assets(tmp_path)
        (tmp_path / "meta.json").unlink()
        (tmp_path / "canvas_000.png").write_bytes(b"no picture")
        with pytest.raises(ValueError, match="cannot be read as an image"):
            read_assets(tmp_path)

    def test_unknown_choices(self, folder):
        with pytest.raises(ValueError, match="order must be one of raster, block"):
            model_inputs(read_assets(folder), True, "hilbert")
        with pytest.raises(ValueError, match="--layout must be one of square576"):
            WriteRequest(video=folder, output_dir=folder / "x", layout="square224")
