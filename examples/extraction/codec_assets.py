# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Folders of codec-selected patches, as the released pipelines leave them: written, and read as model inputs.

    canvas_000.png ...      the chosen patches as pictures, row by row; or canvas_000.jpg
    positions_thw.npy       (patches of all canvases, 3) int32: the frame, row and column each of them came from
    visidx_thw.npy          the same rows, those of frame 0 first and then by score
    frame_ids.npy           (T,) int32: which frames of the video those are
    meta.json               how it was made

The later layout has src_patch_position.npy instead: canvas after canvas in blocks of 2 x 2 patches, with -1 where a
canvas is padded, and raw frame numbers.
"""

import io
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from tqdm import tqdm
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from conversion.common.files import write_atomically
from conversion.common.json_files import read_json_object


CODE = Path(__file__).resolve().parents[2] / "llava_vit_hf"
POSITIONS, LATER_POSITIONS = "positions_thw.npy", "src_patch_position.npy"
CANVAS_SUFFIXES = ("png", "jpg")
LAYOUTS = {"square576": 576}
ORDERS = ("raster", "block")
BLOCK = 2  # of the later layout


@dataclass(frozen=True, kw_only=True)
class WriteRequest:
    """What to write.

    Attributes:
        video: file or folder of frames.
        output_dir: must not exist, unless `overwrite`.
        layout: `square576`: the longer side at 576, padded to a square around the centre.
        num_frames: sampled evenly.
        patch_size: in pixels.
        keep_frames: as many patches are kept as so many frames have; a canvas holds those of one.
        codec_score: see the processor.
        canvas_format: `png`, or `jpg` at quality 95.
    """

    video: Path
    output_dir: Path
    layout: str = "square576"
    num_frames: int = 64
    patch_size: int = 16
    keep_frames: int = 8
    codec_score: str = "motion+residual"
    canvas_format: str = "png"
    overwrite: bool = False

    def __post_init__(self):
        for name, choices in (("layout", LAYOUTS), ("canvas_format", CANVAS_SUFFIXES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"--{name} must be one of {', '.join(choices)}, found {getattr(self, name)!r}.")
        for name in ("num_frames", "patch_size", "keep_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, found {getattr(self, name)}.")
        if LAYOUTS[self.layout] % self.patch_size:
            raise ValueError(f"--patch_size must divide {LAYOUTS[self.layout]}, found {self.patch_size}.")
        if self.keep_frames > self.num_frames:
            raise ValueError(f"--keep_frames {self.keep_frames} is more than --num_frames {self.num_frames}.")
        if self.output_dir.exists() and not self.overwrite:
            raise ValueError(f"--output_dir {self.output_dir} exists. Give another folder, or --overwrite.")


@dataclass(frozen=True)
class Padding:
    """A frame's place on a square canvas, in pixels."""

    scale: float
    height: int
    width: int
    top: int
    left: int
    side: int

    @classmethod
    def around(cls, height: int, width: int, side: int) -> "Padding":
        scale = side / max(height, width)
        new = max(1, round(height * scale)), max(1, round(width * scale))
        return cls(scale, *new, (side - new[0]) // 2, (side - new[1]) // 2, side)

    def apply(self, frame: np.ndarray) -> np.ndarray:
        """`(H, W, 3)` to `(side, side, 3)`; padding is black."""
        resized = PIL.Image.fromarray(frame).resize((self.width, self.height), PIL.Image.Resampling.BILINEAR)
        canvas = np.zeros((self.side, self.side, 3), np.uint8)
        canvas[self.top : self.top + self.height, self.left : self.left + self.width] = resized
        return canvas

    def whole(self, patch: int) -> np.ndarray:
        """`(rows, columns)`: which patches touch no padding."""
        starts = np.arange(self.side // patch) * patch
        rows, columns = (
            (starts >= first) & (starts + patch <= first + size)
            for first, size in ((self.top, self.height), (self.left, self.width))
        )
        return rows[:, None] & columns


def load_processor():
    """The processor of this clone with CLIP's normalization, loaded as that of a model folder is."""
    image, both = (
        get_class_from_dynamic_module(f"{file}_llava_vit.LlavaViT{name}", str(CODE))
        for file, name in (("image_processing", "ImageProcessor"), ("processing", "Processor"))
    )
    return both(image())


def choose(scores: np.ndarray, whole: np.ndarray, count: int) -> np.ndarray:
    """The chosen patches in the released order: frame 0 by rows, then the best, those with padding last.

    Args:
        scores: `(T, h, w)`, at least 0.
        whole: `(h, w)`, the patches without padding.

    Returns:
        `(count, 3)` int32, `(t, h, w)`.
    """
    ranked = np.where(whole, scores, -1.0)
    ranked[0] = np.inf
    order = np.argsort(-ranked, axis=None, kind="stable")[:count]
    return np.stack(np.unravel_index(order, scores.shape), axis=-1).astype(np.int32)


def write_assets(request: WriteRequest) -> Path:
    """Chooses patches of a video and writes the folder, which appears when it is complete.

    Raises:
        FileNotFoundError, ValueError: for a video that is not there or cannot be read.
        ImportError: as the processor's `codec_scores`.
    """
    patch, side = request.patch_size, LAYOUTS[request.layout]
    processor = load_processor()
    frames, metadata = processor.decode_video(str(request.video), request.num_frames)
    indices = metadata["frame_indices"]
    scores = processor.codec_scores(str(request.video), indices, patch, codec_score=request.codec_score, square=side)
    padding = Padding.around(*frames.shape[1:3], side)
    per_canvas = (side // patch) ** 2
    chosen = choose(scores, padding.whole(patch), request.keep_frames * per_canvas)
    positions = chosen[np.lexsort(chosen.T[::-1])]
    arrays = {POSITIONS: positions, "visidx_thw.npy": chosen, "frame_ids.npy": np.array(indices, np.int32)}

    request.output_dir.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=request.output_dir.parent))
    try:
        for name, array in arrays.items():
            np.save(partial / name, array)
        (partial / "meta.json").write_text(json.dumps(_describe(request, padding, frames.shape[1:3]), indent=2) + "\n")
        patches = iter(_cut(frames, positions, padding, patch))
        for number in tqdm(range(request.keep_frames), unit="canvas"):
            canvas = np.stack([next(patches) for _ in range(per_canvas)])
            picture = PIL.Image.fromarray(_join(canvas, side // patch))
            picture.save(partial / f"canvas_{number:03d}.{request.canvas_format}", quality=95)
        partial.chmod(0o755)
        if request.overwrite and request.output_dir.exists():
            shutil.rmtree(request.output_dir)
        os.replace(partial, request.output_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return request.output_dir


def _cut(frames: np.ndarray, positions: np.ndarray, padding: Padding, patch: int):
    """Patches `(P, P, 3)` of the padded frames, one frame at a time."""
    for time in np.unique(positions[:, 0]):
        frame = padding.apply(frames[time])
        for _, row, column in positions[positions[:, 0] == time]:
            yield frame[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]


def _join(patches: np.ndarray, columns: int) -> np.ndarray:
    """`(n, P, P, 3)` side by side in rows of `columns`."""
    patch = patches.shape[1]
    rows = patches.reshape(-1, columns, patch, patch, 3).swapaxes(1, 2)
    return rows.reshape(-1, columns * patch, 3)


def _describe(request: WriteRequest, padding: Padding, size: tuple[int, int]) -> dict[str, Any]:
    rows, valid = padding.side // request.patch_size, padding.whole(request.patch_size)
    heights, widths = valid.any(1).nonzero()[0], valid.any(0).nonzero()[0]
    ranges = {
        **{"S_valid": int(valid.sum()), "hb_total": rows, "wb_total": rows},
        **{"valid_h_start": int(heights.min(initial=rows)), "valid_h_end": int(heights.max(initial=-1)) + 1},
        **{"valid_w_start": int(widths.min(initial=rows)), "valid_w_end": int(widths.max(initial=-1)) + 1},
    }
    pad = {
        **{"scale": padding.scale, "Hn": padding.height, "Wn": padding.width},
        **{"pad_top": padding.top, "pad_left": padding.left},
        "pad_bottom": padding.side - padding.height - padding.top,
        "pad_right": padding.side - padding.width - padding.left,
        **{"out_size": padding.side, "H0": size[0], "W0": size[1]},
    }
    return {
        **{"sample_id": request.video.stem, "sample_key": request.video.name, "video": request.video.name},
        **{"T": request.num_frames, "frame_ids": None, "preprocess": request.layout, "square_size": padding.side},
        **{"patch": request.patch_size, "keep_frames_equiv": request.keep_frames, "padding_policy": "zero"},
        **{"keep_uniform_first": False, "keep_first_full_frame": True, "H0": size[0], "W0": size[1], "pad_info": pad},
        **{"hb": rows, "wb": rows, "S_total": rows**2, "S_valid": ranges["S_valid"]},
        **{"K": request.keep_frames * rows**2, "padding_patch_filtered": rows**2 - ranges["S_valid"]},
        **{"valid_ranges": ranges, "codec_score": request.codec_score},
    }


@dataclass(frozen=True)
class Assets:
    """A folder as it was read.

    Attributes:
        canvases: `(H, W, 3)` uint8 each.
        positions: per canvas `(h, w, 3)`, `(t, h, w)` of each of its patches; -1 for padding.
        blocks: whether the file has them in blocks of 2 x 2.
    """

    canvases: list[np.ndarray]
    positions: list[np.ndarray]
    patch_size: int
    blocks: bool


def read_assets(folder: Path) -> Assets:
    """Reads a folder of either layout.

    Raises:
        ValueError: if a file is missing or damaged, or canvases and positions do not fit.
    """
    names = [name for name in (POSITIONS, LATER_POSITIONS) if (folder / name).is_file()]
    if len(names) != 1:
        raise ValueError(f"{folder} has {' and '.join(names) or 'neither'} of {POSITIONS} and {LATER_POSITIONS}.")
    path, blocks = folder / names[0], names[0] == LATER_POSITIONS
    canvases = [_open_canvas(file) for file in _canvas_files(folder)]
    try:
        positions = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is no array of NumPy ({error}).") from error
    if positions.ndim != 2 or positions.shape[1] != 3 or positions.dtype.kind not in "iu" or not len(positions):
        raise ValueError(f"{path} must be integers (patches, 3), found {positions.dtype} {positions.shape}.")
    if positions.min() < -1:
        raise ValueError(f"{path}: {positions.min()} is below -1, which stands for padding.")
    pixels = sum(canvas.shape[0] * canvas.shape[1] for canvas in canvases)
    patch = round((pixels / len(positions)) ** 0.5)
    step = patch * (BLOCK if blocks else 1)
    if patch < 1 or pixels != len(positions) * patch**2 or any(side % step for c in canvases for side in c.shape[:2]):
        sizes = ", ".join(sorted({f"{canvas.shape[1]}x{canvas.shape[0]}" for canvas in canvases}))
        raise ValueError(
            f"{path}: {len(positions)} patches do not fill {len(canvases)} canvases of {sizes} pixels (width x "
            "height). A canvas may be missing."
        )
    grids = [(canvas.shape[0] // patch, canvas.shape[1] // patch) for canvas in canvases]
    parts = np.split(positions.astype(np.int64), np.cumsum([h * w for h, w in grids])[:-1])
    if blocks:
        parts = [part[np.argsort(block_order(*grid))] for part, grid in zip(parts, grids, strict=True)]
    return Assets(canvases, [part.reshape(*grid, 3) for part, grid in zip(parts, grids, strict=True)], patch, blocks)


def block_order(rows: int, columns: int) -> np.ndarray:
    """`(rows * columns,)`: the patches of a grid block after block of 2 x 2, as numbers row by row."""
    grid = np.arange(rows * columns).reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    return grid.swapaxes(1, 2).reshape(-1)


def _canvas_files(folder: Path) -> list[Path]:
    meta = folder / "meta.json"
    names = read_json_object(meta).get("canvas_files") if meta.exists() else None
    if names is None:
        files = sorted(file for suffix in CANVAS_SUFFIXES for file in folder.glob(f"canvas_*.{suffix}"))
    elif isinstance(names, list) and all(isinstance(name, str) and Path(name).name == name for name in names):
        files = [folder / name for name in names]
    else:
        raise ValueError(f"{meta}: canvas_files must be a list of names in this folder.")
    if not files:
        raise ValueError(f"{folder} has no canvas_*.png or canvas_*.jpg.")
    return files


def _open_canvas(file: Path) -> np.ndarray:
    try:
        with PIL.Image.open(file) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read as an image ({error}).") from error


def model_inputs(assets: Assets, packing: bool, order: str = "raster", processor: Any = None) -> dict[str, Any]:
    """What the dense or the packing model takes: all canvases as one sample, without padding.

    With the processor of a VLM's tower, which takes patches in blocks, each canvas is a sample of its own: see
    `_tower_inputs`.

    Args:
        order: `raster` has patches row by row; `block` in blocks of 2 x 2, as the later layout has them on disk.
        processor: whose normalization and blocks count; default CLIP's, and no blocks.

    Returns:
        Packing: `pixel_values` `(K, 3 * P * P)`, `patch_positions` `(K, 3)`, `cu_seqlens`, `max_seqlen`.
        Dense: `pixel_values` `(1, 3, canvases, H, W)`, `patch_positions` `(1, K, 3)`, and `visible_indices` `(1, K)`
        unless they are all in order.

    Raises:
        ValueError: for canvases of unequal size in a dense batch, nothing but padding, or an unknown order.
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, found {order!r}.")
    processor = processor or load_processor()
    if packing and processor.image_processor.merge_size > 1:
        return _tower_inputs(assets, processor)
    plain = {"native_resolution": True, "patch_size": assets.patch_size}
    grids = [part.shape[:2] for part in assets.positions]
    starts = np.cumsum([0, *(h * w for h, w in grids)])
    places = [block_order(h, w) if order == "block" else np.arange(h * w) for h, w in grids]
    rows = np.concatenate([place + start for place, start in zip(places, starts, strict=False)])
    positions = np.concatenate([part.reshape(-1, 3) for part in assets.positions])[rows]
    used = (positions >= 0).all(1)
    rows, positions = torch.from_numpy(rows[used]), torch.from_numpy(positions[used])
    if not len(rows):
        raise ValueError("the canvases hold nothing but padding (-1).")
    if packing:
        pixels = processor(images=assets.canvases, packing=True, **plain)["pixel_values"]
        lengths = torch.tensor([0, len(rows)], dtype=torch.int32)
        return {
            "pixel_values": pixels[rows],
            "patch_positions": positions,
            "cu_seqlens": lengths,
            "max_seqlen": len(rows),
        }
    if len(set(grids)) > 1:
        raise ValueError(f"a dense batch needs canvases of one size, found patches {sorted(set(grids))}; use packing.")
    pixels = processor(videos=[assets.canvases], num_frames="all", packing=False, **plain)["pixel_values"]
    inputs = {"pixel_values": pixels, "patch_positions": positions[None]}
    if len(rows) < starts[-1] or order == "block":
        inputs["visible_indices"] = rows[None]
    return inputs


def _tower_inputs(assets: Assets, processor: Any) -> dict[str, Any]:
    """Each canvas as a sample, in the blocks of the processor, without those that are padding.

    A canvas that has `n` blocks of `m x m` patches beside its padding has the grid `(1, m, n * m)`: its rows are those
    of a strip of these blocks, and where they are from `patch_positions` says.
    """
    merge, patch = processor.image_processor.merge_size, processor.image_processor.patch_size
    if patch != assets.patch_size:
        raise ValueError(f"the canvases have patches of {assets.patch_size} pixels, the processor takes {patch}.")
    packed = processor(images=assets.canvases, native_resolution=True)
    kept, grids, places = [], [], []
    for index, positions in enumerate(assets.positions):
        rows, columns, _ = positions.shape
        if rows % merge or columns % merge:
            raise ValueError(f"canvas {index} has {rows} x {columns} patches, which blocks of {merge} do not fill.")
        blocks = positions.reshape(rows // merge, merge, columns // merge, merge, 3).swapaxes(1, 2)
        blocks = blocks.reshape(-1, merge**2, 3)
        used = (blocks >= 0).all(-1)
        whole = used.all(1)
        if (mixed := used.any(1) & ~whole).any():
            raise ValueError(
                f"canvas {index}: block {int(mixed.argmax())} of {merge} x {merge} patches is partly padding (-1), so "
                "the merger has no token for it. Write the assets in blocks of that size."
            )
        kept.append(np.repeat(whole, merge**2))
        places.append(blocks[whole].reshape(-1, 3))
        if whole.any():
            grids.append([1, rows, columns] if whole.all() else [1, merge, int(whole.sum()) * merge])
    if not grids:
        raise ValueError("the canvases hold nothing but padding (-1).")
    lengths = [h * w for _, h, w in grids]
    return {
        "pixel_values": packed["pixel_values"][torch.from_numpy(np.concatenate(kept))],
        "grid_thw": torch.tensor(grids),
        "patch_positions": torch.from_numpy(np.concatenate(places)),
        "cu_seqlens": torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        "max_seqlen": max(lengths),
    }


def save_inputs(inputs: dict[str, Any], path: Path) -> None:
    """Writes model inputs as an `.npz` file, when it is complete."""
    stream = io.BytesIO()
    np.savez(stream, **{name: np.asarray(value) for name, value in inputs.items()})
    write_atomically(path, lambda file: file.write(stream.getbuffer()))
