# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Scores of patches by what a video codec spends on them: motion and residual, or bits.

H.264 and MPEG-4 files bring their own motion vectors and quantisers, which stock PyAV exports. Of everything else each
sampled frame is encoded after the frame before it, in memory, with libx264 at pinned settings, and its vectors are
read. Scores are made of cells of 4 x 4 pixels, or macroblocks, and averaged over the area of each patch, wherever
rotation, resizing and cropping put it.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .collation_llava_vit import Sample, kept_patches
from .decoding_llava_vit import EXPORTING_CODECS, import_av, packet_sizes, stream_frames
from .pixels_llava_vit import output_size, resized_size
from .settings_llava_vit import LlavaViTSettings
from .video_metadata_llava_vit import each_metadata, frame_numbers
from .video_processing_llava_vit import PLAIN_SETTINGS, decode_video, frame_files, is_url, split_videos


VECTORS, QUANTISERS = {"flags2": "+export_mvs"}, {"export_side_data": "venc_params"}
# Every second frame is intra coded, so pairs of frames know nothing of each other; one thread, so that no machine
# cuts them up otherwise.
X264 = {
    **{"preset": "superfast", "tune": "zerolatency", "qp": "28"},
    "x264-params": "keyint=2:min-keyint=1:scenecut=0:bframes=0:ref=1:weightp=0:aq-mode=0:mbtree=0:sliced-threads=0",
}
B_FRAME = 3  # FFmpeg's AV_PICTURE_TYPE_B
BLOCK = 8  # pixels that a vector is exported for at least, also where the stream has smaller blocks
CELL = 4  # pixels that a residual is summed over
MACROBLOCK = 16
PERCENTILE = 95
FRAMES_BEHIND = 4

LEVEL_BITS = 8.0  # of a level of 1, with its place and sign
DEFAULT_STEP = 10.0  # where a frame has no quantisers

# Of one axis: where the first patch starts and how long each is, in pixels of the frame, and how many there are.
Axis = tuple[float, float, int]


@dataclass(frozen=True)
class CodedFrame:
    """A frame and how its codec predicts it.

    Args:
        luma: `(H, W)` uint8, as coded.
        before: that of the frame shown before; of the first frame its own.
        past, future: those that vectors of the first and second list refer to, as far as stock PyAV lets know: the
            nearest frames that are no B frames.
        vectors: FFmpeg's records, or `None` in a frame predicted from itself alone.
        parameters: FFmpeg's quantisers of macroblocks, as PyAV has them.
        codec: FFmpeg's name of what it is coded in.
        size: of its packet in bytes, `None` if unknown.
        turns: quarter turns counter-clockwise that show it upright.
    """

    luma: np.ndarray
    before: np.ndarray
    past: np.ndarray
    future: np.ndarray
    vectors: np.ndarray | None
    parameters: Any
    codec: str
    size: int | None
    turns: int = 0


def codec_scores(
    video: Any,
    frame_indices: Sequence[int],
    patch_size: int,
    codec_score: str = "motion+residual",
    square: int | None = None,
    **settings,
) -> np.ndarray:
    """Scores of the patches of some frames of a video; higher is more worth keeping.

    Args:
        video: as `decode_video` takes it.
        frame_indices: of the frames, among those that decode; any order.
        patch_size: in pixels.
        codec_score: `"motion"` is the length of the vectors of the first list in whole pixels, without their median;
            `"residual"` the change from the frame before; either is divided by the frame's 95th percentile and cut
            off at 1. `"motion+residual"` is their mean. `"bits"` is the logarithm of an estimate of a macroblock's
            bits, divided by the 99th percentile.
        square: the frames are resized to have this longer side, and padded to a square around the centre, as the
            released files have it. Default: native resolution.
        settings: other arguments of [`LlavaViTSettings`], such as limits and `native_resolution`.

    Returns:
        `(T, h, w)` float32, at least 0. Padding scores 0.

    Raises:
        FileNotFoundError, TypeError, ValueError: as `decode_video`, and for frames that the video has not.
        ImportError: if PyAV is missing, or is built without libx264 where that is needed.
    """
    given = {"native_resolution": True, **settings, "patch_size": patch_size, "codec_score": codec_score}
    return score_video(video, frame_indices, replace(PLAIN_SETTINGS, **given), square)[0]


def score_video(
    video: Any, frame_indices: Sequence[int], settings: LlavaViTSettings, square: int | None = None
) -> tuple[np.ndarray, str]:
    """As `codec_scores`, by settings; and the way taken, `"stream: CODEC"` or `"libx264: CODEC"`, in words."""
    indices = [int(index) for index in frame_indices]
    if not indices or min(indices) < 0:
        raise ValueError(f"frame_indices must be frame numbers of at least 0, found {indices or 'none'}.")
    way, coded = _coded_frames(video, sorted(set(indices)), settings)
    scores, pending = {}, deque()
    # Scoring beside decoding, a few frames behind it, as the decoder uses several cores.
    with ThreadPoolExecutor(1) as pool:
        for index, frame in coded:
            pending.append((index, pool.submit(_patch_means, frame, settings, square)))
            if len(pending) > FRAMES_BEHIND:
                done, future = pending.popleft()
                scores[done] = future.result()
    scores |= {index: future.result() for index, future in pending}
    if missing := sorted(set(indices) - set(scores)):
        raise ValueError(f"frame_indices: {video} has no frame {missing[0]}; {len(scores)} of those asked for decode.")
    result = np.ascontiguousarray([scores[index] for index in indices], dtype=np.float32)
    if settings.codec_score == "bits":
        result /= max(float(np.percentile(result, 99)), 1e-6)
    return result, way


def codec_selection(
    videos: Any,
    samples: list[Sample],
    settings: LlavaViTSettings,
    top_k: int | Sequence[int] | None,
    video_metadata: Any = None,
) -> list[np.ndarray | None]:
    """Masks `(t, h, w)` of the patches that samples keep, as `kept_patches` takes them; images, which come before the
    videos, keep all. What was done is added to the samples' metadata.

    Raises:
        ValueError: if there is no video, or `top_k` has not room for a first frame that is kept whole.
    """
    if videos is None or top_k is None:
        raise ValueError('scores="codec" needs videos and top_k, how many patches each of them keeps.')
    listed = split_videos(videos)
    images = len(samples) - len(listed)
    counts = top_k if isinstance(top_k, list | tuple | np.ndarray) else [top_k] * len(samples)
    if len(counts) != len(samples):
        raise ValueError(
            f"top_k: found {len(counts)} numbers for {len(samples)} samples; expected one each or an int."
        )
    masks: list[np.ndarray | None] = [None] * images
    known = each_metadata(video_metadata, listed)
    for video, about, sample, count in zip(listed, known, samples[images:], counts[images:], strict=True):
        indices = sample.metadata["frame_indices"]
        if about is not None:
            # Numbers in the video that the given frames are of: of which of those they are.
            numbers, _ = frame_numbers(len(_given_frames(video)), about)
            indices = [numbers.index(index) for index in indices]
        scores, way = score_video(video, indices, settings)
        masks.append(best_patches(scores, count, settings.keep_first_frame, settings.block))
        chosen = {name: getattr(settings, name) for name in ("codec_score", "keep_first_frame", "block")}
        sample.metadata.update(chosen, codec_way=way)
    return masks


def best_patches(scores: np.ndarray, top_k: int, keep_first_frame: bool = True, block: int = 1) -> np.ndarray:
    """The best patches of a clip, as a mask `(t, h, w)`.

    Args:
        scores: `(t, h, w)`.
        top_k: how many are kept; fewer by less than a block where blocks do not fill it.
        keep_first_frame: keep frame 0 whole, of the `top_k`.
        block: 2 keeps 2 x 2 patches at a time, by the sum of their scores. What fills no block at the right and
            bottom edge is only kept with the first frame.

    Raises:
        ValueError: if `top_k` has not room for the first frame, or for one block.
    """
    frames, rows, columns = scores.shape
    whole = rows * columns if keep_first_frame else 0
    kept_patches([(1, 1, 1)], scores=[np.zeros(1)], top_k=top_k)  # checks top_k
    if top_k < max(whole, block**2):
        reason = f"the first frame alone has {whole} patches; pass keep_first_frame=False" if whole else f"{block=}"
        raise ValueError(f"top_k={top_k} is too small: {reason}, or a larger top_k.")
    h, w = rows // block, columns // block
    sums = scores[:, : h * block, : w * block].reshape(frames, h, block, w, block).sum((2, 4))
    first = 1 if keep_first_frame else 0
    order = np.argsort(-sums[first:], axis=None, kind="stable")[: (top_k - whole) // block**2]
    best = np.zeros((frames, h, w), bool)
    best[first:].reshape(-1)[order] = True
    mask = np.zeros(scores.shape, bool)
    mask[:, : h * block, : w * block] = best.repeat(block, axis=1).repeat(block, axis=2)
    mask[:first] = True
    return mask


def patch_axes(height: int, width: int, settings: LlavaViTSettings, square: int | None = None) -> list[Axis]:
    """Where the patches of a frame lie in it before it is resized, cropped and padded: its rows and its columns."""
    if square is None:
        resized, output = resized_size(height, width, settings), output_size(height, width, settings)
    else:
        resized, output = [max(1, round(side * square / max(height, width))) for side in (height, width)], [square] * 2
    axes = []
    for side, new, out in zip((height, width), resized, output, strict=True):
        scale, start = side / new, (new - out) // 2 if out != new and not settings.native or square else 0
        axes.append((start * scale, settings.patch_size * scale, out // settings.patch_size))
    return axes


def _patch_means(frame: CodedFrame, settings: LlavaViTSettings, square: int | None) -> np.ndarray:
    """`(h, w)`: the mean score of each patch of the upright frame."""
    height, width = frame.luma.shape
    odd = frame.turns % 2
    axes = patch_axes(*((width, height) if odd else (height, width)), settings, square)
    # As they lie in the frame as coded: a turn exchanges the axes, and the other end of some comes first.
    rows, columns = axes[::-1] if odd else axes
    rows = _from_other_end(rows, height) if frame.turns in (2, 3) else rows
    columns = _from_other_end(columns, width) if frame.turns in (1, 2) else columns
    score, side = SCORES[settings.codec_score]
    means = _axis_means(_axis_means(score(frame), rows, side, height).T, columns, side, width).T
    return np.rot90(means, frame.turns)


def _from_other_end(axis: Axis, side: int) -> Axis:
    start, step, count = axis
    return side - start - step * count, step, count


def _axis_means(values: np.ndarray, axis: Axis, side: int, length: int) -> np.ndarray:
    """Means over stretches of the first axis, of cells of `side` pixels that fill `length`; outside is 0.

    Running sums, as matrix products may round differently from one number of threads to another.
    """
    start, step, count = axis
    ends = np.clip(start + step * np.arange(count + 1), 0, length) / side
    whole = np.minimum(ends.astype(int), len(values) - 1)
    sums = np.zeros((len(values) + 1, *values.shape[1:]))
    np.cumsum(values, axis=0, out=sums[1:])
    return np.diff(sums[whole] + (ends - whole)[:, None] * values[whole], axis=0) * (side / step)


def _given_frames(video: Any) -> Any:
    """The frames of what is no file of a video: a list, an array, or the files of a folder; else `None`."""
    if not isinstance(video, str | Path):
        return video
    return frame_files(Path(video)) if Path(video).is_dir() else None


def _coded_frames(
    video: Any, indices: list[int], settings: LlavaViTSettings
) -> tuple[str, Iterator[tuple[int, CodedFrame]]]:
    """The way taken, and the frames at ascending `indices` with how they are predicted."""
    given = _given_frames(video)
    if given is not None:
        return "libx264: frames", _encode_pairs(_given_pairs(given, indices, settings))
    if is_url(video):
        raise ValueError("videos: the codec of an address is not read. Download the file, and pass its path.")
    path = Path(video)
    if not path.exists():
        raise FileNotFoundError(f"videos: there is no file or folder {path}.")
    bits = settings.codec_score == "bits"
    codec, frames = stream_frames(path, settings, VECTORS | (QUANTISERS if bits else {}))
    if codec in EXPORTING_CODECS:
        sizes = packet_sizes(path) if bits else {}
        return f"stream: {codec}", _predicted_frames(frames, set(indices), codec, sizes)
    return f"libx264: {codec}", _encode_pairs(_stream_pairs(frames, set(indices)))


def _predicted_frames(
    frames: Iterator, wanted: set[int], codec: str, sizes: dict[int | None, int]
) -> Iterator[tuple[int, CodedFrame]]:
    """Frames of a stream, with its own vectors and the `sizes` of packets by their time. B frames wait for the next
    frame that is none."""
    before = past = None
    waiting: list[tuple[Any, ...]] = []
    for index, frame in enumerate(frames):
        between = frame.pict_type == B_FRAME
        if not between:
            for number, held, *lumas in waiting:
                yield number, _coded(held, *lumas, _luma(frame), codec, sizes.get(held.pts))
            waiting = []
        if index in wanted:
            lumas = [_luma(frame if other is None else other) for other in (before, past)]
            if between:
                waiting.append((index, frame, *lumas))
            else:
                yield index, _coded(frame, *lumas, lumas[1], codec, sizes.get(frame.pts))
        before, past = frame, past if between else frame
    for number, held, *lumas in waiting:
        yield number, _coded(held, *lumas, lumas[1], codec, sizes.get(held.pts))


def _coded(frame, before, past, future, codec: str, size: int | None) -> CodedFrame:
    """A frame, given the luma of others; one of another size is of no use to it."""
    luma = _luma(frame)
    vectors, parameters = (frame.side_data.get(name) for name in ("MOTION_VECTORS", "VIDEO_ENC_PARAMS"))
    others = (other if other.shape == luma.shape else luma for other in (before, past, future))
    vectors = None if vectors is None else vectors.to_ndarray()
    return CodedFrame(luma, *others, vectors, parameters, codec, size, _turns(frame))


def _turns(frame) -> int:
    return round(frame.rotation / 90) % 4


def _luma(frame) -> np.ndarray:
    """`(H, W)` uint8: a view of the plane where that is 8 bits of luma, as converting takes longer than decoding."""
    kind = frame.format
    if kind.is_rgb or kind.is_bit_stream or kind.components[0].bits != 8 or not kind.is_planar:
        return frame.to_ndarray(format="gray")
    plane = frame.planes[0]
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]


def _stream_pairs(frames: Iterator, wanted: set[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray, int]]:
    """The luma of the frame before each wanted one, and its own."""
    before = None
    for index, frame in enumerate(frames):
        if index in wanted:
            yield index, _luma(frame if before is None else before), _luma(frame), _turns(frame)
        before = frame


def _given_pairs(
    video: Any, indices: list[int], settings: LlavaViTSettings
) -> Iterator[tuple[int, np.ndarray, np.ndarray, int]]:
    for index in indices:
        if index >= len(video):
            return
        frames, _ = decode_video(video[max(index - 1, 0) : index + 1], "all", settings=settings)
        if frames.dtype != np.uint8:
            frames = (frames * (1 if settings.do_rescale else 255)).clip(0, 255).round().astype(np.uint8)
        weights = np.array([77, 150, 29], np.uint32)  # of red, green and blue in luma, of 256
        lumas = (frames @ weights >> 8).astype(np.uint8)
        yield index, lumas[0], lumas[-1], 0


def _encode_pairs(pairs: Iterator[tuple[int, np.ndarray, np.ndarray, int]]) -> Iterator[tuple[int, CodedFrame]]:
    """Frames with the vectors that libx264 finds to them from the frame before."""
    av = import_av()
    encoder = decoder = size = None
    for index, before, luma, turns in pairs:
        before = before if before.shape == luma.shape else luma
        if luma.shape != size:
            encoder, decoder, size = *_x264(av, *luma.shape), luma.shape
        pictures = [av.VideoFrame.from_ndarray(np.ascontiguousarray(array), "gray") for array in (before, luma)]
        packets = [packet for picture in pictures for packet in encoder.encode(picture)]
        *_, frame = (frame for packet in packets for frame in decoder.decode(packet))
        yield index, replace(_coded(frame, before, before, before, "h264", packets[-1].size), luma=luma, turns=turns)


def _x264(av, height: int, width: int) -> tuple[Any, Any]:
    try:
        encoder = av.CodecContext.create("libx264", "w")
    except ValueError as error:
        raise ImportError(
            'scores="codec": this video has no motion vectors of its own, and this PyAV is built without libx264, '
            "which would find them. Install PyAV's wheel (pip install av), or pass an H.264 file."
        ) from error
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = width, height, "gray", Fraction(1, 25)
    encoder.options, encoder.thread_count = X264, 1
    decoder = av.CodecContext.create("h264", "r")
    decoder.options, decoder.thread_count = {**VECTORS, **QUANTISERS, "flags": "low_delay"}, 1
    return encoder, decoder


def motion_field(
    vectors: np.ndarray | None, height: int, width: int, past: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Where blocks of 8 x 8 pixels come from, in pixels: `(2, H / 8, W / 8)` float32, x and y, rounded up; and which
    of them have a vector. Of the list that refers to the past, or to the future."""
    rows, columns = -(-height // BLOCK), -(-width // BLOCK)
    field, found = np.zeros((2, rows, columns), np.float32), np.zeros((rows, columns), bool)
    if vectors is not None:
        vectors = vectors[(vectors["source"] < 0) == past]
        wide, high = (np.maximum(vectors[side] // BLOCK, 1).astype(np.int32) for side in ("w", "h"))
        # One row for every block of every vector: of which, and where in it.
        count = wide * high
        vector = np.repeat(np.arange(len(vectors)), count)
        place = np.arange(len(vector)) - np.repeat(np.cumsum(count) - count, count)
        left, top = ((vectors[f"dst_{axis}"] - vectors[side] // 2) // BLOCK for axis, side in ("xw", "yh"))
        y, x = top[vector] + place // wide[vector], left[vector] + place % wide[vector]
        inside = (0 <= y) & (y < rows) & (0 <= x) & (x < columns)
        y, x, vector = y[inside], x[inside], vector[inside]
        scale = np.maximum(vectors["motion_scale"], 1)
        for channel, name in zip(field, ("motion_x", "motion_y"), strict=True):
            channel[y, x] = (vectors[name] / scale)[vector]
        found[y, x] = True
    return field, found


def _upscale(cells: np.ndarray, side: int, like: np.ndarray) -> np.ndarray:
    return cells.repeat(side, axis=0).repeat(side, axis=1)[: like.shape[0], : like.shape[1]]


def _motion(frame: CodedFrame) -> np.ndarray:
    """`(H / 8, W / 8)` in 0...1."""
    # Whole pixels as C divides them, blocks without a vector at 0: so the released rule has it.
    field = np.trunc(motion_field(frame.vectors, *frame.luma.shape)[0])
    moved = np.hypot(*(channel - np.median(channel) for channel in field))
    return np.minimum(moved / max(np.percentile(moved, PERCENTILE), 1), 1)


def _residual(frame: CodedFrame) -> np.ndarray:
    """`(H / 4, W / 4)` in 0...1: what the frame before does not predict.

    Without the vectors: measured against the released selection this was as near as what motion compensation leaves,
    and it is the same whatever the codec.
    """
    change = np.maximum(frame.luma, frame.before) - np.minimum(frame.luma, frame.before)
    # Of a quarter of the pixels, which is exact enough and four times as fast.
    top = max(int(np.percentile(change[::2, ::2], PERCENTILE, method="lower")), 1)
    change = np.minimum(change, top, dtype=np.uint8, casting="unsafe")
    height, width = change.shape
    if height % CELL or width % CELL:
        change = np.pad(change, ((0, -height % CELL), (0, -width % CELL)), mode="edge")
    rows = sum((change[start::CELL] for start in range(1, CELL)), change[::CELL].astype(np.uint16))
    cells = sum((rows[:, start::CELL] for start in range(1, CELL)), rows[:, ::CELL])
    return cells / (top * CELL**2)


def _motion_and_residual(frame: CodedFrame) -> np.ndarray:
    residual = _residual(frame)
    return (_upscale(_motion(frame), BLOCK // CELL, residual) + residual) / 2


def macroblock_bits(frame: CodedFrame) -> np.ndarray:
    """An estimate of what each macroblock costs, in bits: `(H / 16, W / 16)` float32, rounded up.

    What its vectors do not predict goes through an 8 x 8 DCT and the quantiser; every level that is left costs a
    constant and twice its logarithm, as in an Exp-Golomb code. The bits of the frame's packet, which are known, are
    shared out by that.
    """
    height, width = frame.luma.shape
    pad = (0, -width % MACROBLOCK, 0, -height % MACROBLOCK)
    blocks = torch.nn.functional.pad(torch.from_numpy(_unpredicted(frame)), pad)
    rows, columns = (side // 8 for side in blocks.shape)
    blocks = blocks.reshape(rows, 8, columns, 8).transpose(1, 2)
    steps = torch.from_numpy(_quantiser_steps(frame)).repeat_interleave(2, 0).repeat_interleave(2, 1)
    # Encoders round down what is below about two thirds of a step.
    levels = ((_cosines() @ blocks @ _cosines().T).abs() / steps[..., None, None] + 1 / 3).floor_()
    bits = torch.where(levels > 0, LEVEL_BITS + 2 * levels.clamp(min=1).log2(), 0).sum((2, 3))
    bits = bits.reshape(rows // 2, 2, columns // 2, 2).sum((1, 3))
    return (bits if frame.size is None else (bits + 1) * (8 * frame.size / (bits + 1).sum())).numpy()


@cache
def _cosines() -> torch.Tensor:
    """The orthonormal DCT of 8 samples, a row for each frequency."""
    cosines = torch.cos(torch.outer(torch.arange(8), torch.arange(8) + 0.5) * (math.pi / 8)) / 2
    cosines[0] /= 2**0.5
    return cosines


def _quantiser_steps(frame: CodedFrame) -> np.ndarray:
    """`(H / 16, W / 16)` float32, rounded up."""
    rows, columns = (-(-side // MACROBLOCK) for side in frame.luma.shape)
    if frame.parameters is None:
        return np.full((rows, columns), DEFAULT_STEP, np.float32)
    quantisers = frame.parameters.qp_map()[:rows, :columns].astype(np.float32)
    # MPEG-4 counts half steps; six of H.264's double the step.
    return np.maximum(quantisers * 2 if frame.codec == "mpeg4" else 0.625 * 2 ** (quantisers / 6), 0.625)


def _unpredicted(frame: CodedFrame) -> np.ndarray:
    """`(H, W)` float32: the luma without what the vectors or, where there are none, the neighbours predict."""
    luma = frame.luma.astype(np.float32)
    total, weight = np.zeros_like(luma), np.zeros_like(luma)
    for past, reference in ((True, frame.past), (False, frame.future)):
        field, found = motion_field(frame.vectors, *luma.shape, past)
        if found.any():
            found = _upscale(found, BLOCK, luma)
            total += _compensate(reference, field) * found
            weight += found
    inter = luma - total / np.maximum(weight, 1)
    return inter if weight.all() else np.where(weight > 0, inter, _intra(luma))


def _compensate(reference: np.ndarray, field: np.ndarray) -> np.ndarray:
    """`(H, W)` of the luma that a field points to, interpolated linearly."""
    height, width = reference.shape
    x, y = (torch.from_numpy(_upscale(channel, BLOCK, reference)) for channel in field)
    x, y = x + torch.arange(width), y + torch.arange(height)[:, None]
    places = torch.stack([x * (2 / max(width - 1, 1)) - 1, y * (2 / max(height - 1, 1)) - 1], dim=-1)
    image = torch.from_numpy(reference.astype(np.float32))
    sample = torch.nn.functional.grid_sample
    return sample(image[None, None], places[None], padding_mode="border", align_corners=True)[0, 0].numpy()


def _intra(luma: np.ndarray) -> np.ndarray:
    """What the best of three predictions from the pixels above and left leaves of each block of 8 x 8."""
    height, width = luma.shape
    padded = np.pad(luma, ((1, -height % 8), (1, -width % 8)), mode="edge")
    blocks = padded[1:, 1:].reshape(-1, 8, (padded.shape[1] - 1) // 8, 8).swapaxes(1, 2)
    above = padded[:-1:8, 1:].reshape(blocks.shape[0], blocks.shape[1], 1, 8)
    beside = padded[1:, :-1:8].reshape(blocks.shape[0], 8, blocks.shape[1], 1).swapaxes(1, 2)
    mean = (above.mean((2, 3), keepdims=True) + beside.mean((2, 3), keepdims=True)) / 2
    residuals = np.stack([blocks - prediction for prediction in (above, beside, mean)])
    best = np.abs(residuals).sum((3, 4)).argmin(0)
    chosen = np.take_along_axis(residuals, best[None, :, :, None, None], axis=0)[0]
    return chosen.swapaxes(1, 2).reshape(padded.shape[0] - 1, padded.shape[1] - 1)[:height, :width]


def _bits(frame: CodedFrame) -> np.ndarray:
    return np.log1p(macroblock_bits(frame))


# By name: what scores the cells of a frame, and their side in pixels.
SCORES = {
    "motion+residual": (_motion_and_residual, CELL),
    "motion": (_motion, BLOCK),
    "residual": (_residual, CELL),
    "bits": (_bits, MACROBLOCK),
}
