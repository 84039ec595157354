# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Inputs of the verification, made by formula, and what they should become, computed apart from the processor.

Like the oracle, this file imports nothing of `llava_vit_hf`: pixels, positions and patches are worked out here again.
"""

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image

from conversion.source.encoder import SourceConfig


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CONTEXT_FRAMES = 64
CLIP_FRAMES = 8


def rings(height: int, width: int, phase: float) -> np.ndarray:
    """Coloured rings that move with `phase`: `(height, width, 3)` uint8."""
    y, x = np.mgrid[:height, :width] / min(height, width)
    centre_y, centre_x = 0.5 + 0.3 * np.sin(phase), 0.7 + 0.3 * np.cos(phase)
    radius = np.hypot(y - centre_y, x - centre_x)
    channels = [np.sin(frequency * radius + phase + shift) for frequency, shift in ((20, 0), (31, 2), (43, 4))]
    return np.stack([127.5 + 127.5 * channel for channel in channels], axis=-1).astype(np.uint8)


@dataclass(frozen=True)
class Sample:
    """One image or clip.

    Attributes:
        frames: `(T, H, W, 3)` uint8.
        is_clip: whether it goes in as a video.
        kept: indices of the patches that are kept, in `(t, h, w)` order of the sampled frames, or None for all.
        padded: whether a dense model gets what is kept as `visible_indices` of the padded 64-frame clip, and not as
            those of the sampled frames with their positions beside them.
        numbers: where a clip's frames are put by their number in the video: those numbers, `(T,)`; else None.
        merge_size: frames are cut to whole blocks of `merge_size x merge_size` patches.
    """

    frames: np.ndarray
    is_clip: bool = False
    kept: np.ndarray | None = None
    padded: bool = False
    numbers: np.ndarray | None = None
    merge_size: int = 1

    @property
    def times(self) -> np.ndarray:
        """Positions of the frames: their numbers, or in the 64-frame context, half to even: `(T,)` int64."""
        frames = len(self.frames)
        if self.numbers is not None:
            return self.numbers
        steps = np.arange(frames) * (CONTEXT_FRAMES - 1) / max(frames - 1, 1)
        return np.rint(steps).astype(np.int64) if self.is_clip else np.zeros(frames, dtype=np.int64)

    def grid(self, patch_size: int) -> tuple[int, int, int]:
        frames, height, width, _ = self.frames.shape
        unit = patch_size * self.merge_size
        return frames, height // unit * self.merge_size, width // unit * self.merge_size

    def positions(self, patch_size: int) -> torch.Tensor:
        """`(t, h, w)` of every kept patch: `(N, 3)` int64."""
        frames, rows, columns = np.indices(self.grid(patch_size)).reshape(3, -1)
        positions = torch.from_numpy(np.stack([self.times[frames], rows, columns], axis=1))
        return positions if self.kept is None else positions[torch.from_numpy(self.kept)]

    def pixels(self) -> torch.Tensor:
        """What the processor should make of the frames: normalized `(3, T, H, W)` float32."""
        return normalize(self.frames).permute(3, 0, 1, 2)


@dataclass(frozen=True)
class Case:
    """Samples that go through the model together; images come before clips."""

    name: str
    description: str
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = field(default=())

    def sha256(self) -> str:
        """Of the shapes and pixels of all samples."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(str((sample.frames.shape, sample.is_clip)).encode())
            digest.update(np.ascontiguousarray(sample.frames).tobytes())
            digest.update(b"" if sample.kept is None else sample.kept.tobytes())
        return digest.hexdigest()

    def tokens(self, patch_size: int) -> list[int]:
        """Patches of each sample, before any are left out."""
        return [int(np.prod(sample.grid(patch_size))) for sample in self.samples]


def normalize(frames: np.ndarray) -> torch.Tensor:
    """`(..., 3)` uint8 to float32: `(x / 255 - mean) / std`, each step rounded to float32."""
    pixels = (frames.astype(np.float64) * (1 / 255)).astype(np.float32)
    return torch.from_numpy((pixels - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32))


def clip_preprocessing(image: np.ndarray, resize: int | tuple[int, int] | None, crop: tuple[int, int] | None):
    """CLIP's preprocessing of `(H, W, 3)` uint8: bicubic resizing, centre crop, normalizing: `(3, H', W')`.

    Args:
        resize: the shortest edge, or `(height, width)`; None leaves the size.
        crop: `(height, width)`, not larger than the resized image; None does not crop.
    """
    height, width, _ = image.shape
    if isinstance(resize, int):
        short = min(height, width)
        resize = (int(resize * height / short), int(resize * width / short))
    if resize is not None:
        image = np.asarray(Image.fromarray(image).resize(resize[::-1], Image.Resampling.BICUBIC))
    if crop is not None:
        top, left = (image.shape[0] - crop[0]) // 2, (image.shape[1] - crop[1]) // 2
        image = image[top : top + crop[0], left : left + crop[1]]
    return normalize(image).permute(2, 0, 1)


def unpack_patches(patches: torch.Tensor, grid: tuple[int, int, int], patch_size: int) -> torch.Tensor:
    """Flat patches `(t * h * w, 3 * P * P)` back to pixels `(3, t, h * P, w * P)`."""
    frames, rows, columns = grid
    blocks = patches.view(frames, rows, columns, 3, patch_size, patch_size)
    # (t, h, w, 3, P, P) -> (3, t, h, P, w, P)
    pixels = blocks.permute(3, 0, 1, 4, 2, 5)
    return pixels.reshape(3, frames, rows * patch_size, columns * patch_size)


def rows_in_blocks(grid: tuple[int, int, int], merge_size: int) -> np.ndarray:
    """Which patch of the grid, in `(t, h, w)` order, each row is where rows come in blocks: `(t * h * w,)`."""
    frames, rows, columns = grid
    places = [
        (t * rows + h) * columns + w
        for t in range(frames)
        for top in range(0, rows, merge_size)
        for left in range(0, columns, merge_size)
        for h in range(top, top + merge_size)
        for w in range(left, left + merge_size)
    ]
    return np.array(places)


def image_sample(height: int, width: int, phase: float) -> Sample:
    return Sample(rings(height, width, phase)[None])


def clip_sample(height: int, width: int, phase: float, frames: int = CLIP_FRAMES) -> Sample:
    return Sample(np.stack([rings(height, width, phase + 0.7 * index) for index in range(frames)]), is_clip=True)


def sparse(sample: Sample, patch_size: int, seed: int, padded: bool) -> Sample:
    """The sample with two of every five patches kept, in random order."""
    total = int(np.prod(sample.grid(patch_size)))
    kept = np.random.default_rng(seed).permutation(total)[: max(1, 2 * total // 5)]
    return Sample(sample.frames, sample.is_clip, kept, padded)


IMAGE, VIDEO, MIXED, MULTI = "image_448", "video_224", "mixed", "multi"
NATIVE, BATCH, PADDED = "native", "batch", "padded"
# Frames of a video from one to the next, where they are put by their number: not the same, and none at 0.
FIRST_NUMBER, NUMBER_STEPS = 3, (2, 5, 1, 7)
MULTI_IMAGES, MULTI_CLIPS = (224, 336, 1008), (378, 518)


def frame_numbers(frames: int) -> np.ndarray:
    """Numbers of the frames of a clip in its video, by formula: `(frames,)`."""
    steps = [NUMBER_STEPS[index % len(NUMBER_STEPS)] for index in range(frames - 1)]
    return np.cumsum([FIRST_NUMBER, *steps])


def cases_of(config: SourceConfig) -> list[Case]:
    """All cases for a model but the biggest pack. A tower takes no clips that keep only some of their patches."""
    cases = build_cases(config.patch_size)
    if not is_tower(config):
        return cases
    return [as_in_towers(case, config) for case in cases if case.name != PADDED]


def as_in_towers(case: Case, config: SourceConfig) -> Case:
    """The case with frames cut to whole blocks, and clips that are put where the config says; that of an image and a
    clip has two clips, of which the last window is a shorter one."""
    window = config.attention_window
    if case.name == MIXED and window is not None:
        clips = (clip_sample(112, 168, 3.0, frames=2 * window + 1), clip_sample(64, 96, 4.5, frames=window + 1))
        description = f"an image, and clips of {2 * window + 1} and {window + 1} frames"
        case = Case(MIXED, description, (case.samples[0], *clips))

    def adapted(sample: Sample) -> Sample:
        numbers = frame_numbers(len(sample.frames)) if sample.is_clip and config.temporal_rule == "index" else None
        # At least two blocks each way, so that their order shows.
        least = 2 * config.patch_size * config.merge_size
        high, wide = (max(1, -(-least // side)) for side in sample.frames.shape[1:3])
        frames = sample.frames.repeat(high, axis=1).repeat(wide, axis=2)
        return replace(sample, frames=frames, numbers=numbers, merge_size=config.merge_size)

    return replace(case, samples=tuple(map(adapted, case.samples)))


def is_tower(config: SourceConfig) -> bool:
    """Whether an encoder is computed or fed as those of VLMs are."""
    return config.attention_window is not None or config.merge_size > 1 or config.temporal_rule == "index"


def build_cases(patch_size: int) -> list[Case]:
    """All cases for a patch size but the biggest pack, which is `multi_case`."""
    clip = clip_sample(224, 224, phase=1.0)
    return [
        Case(IMAGE, "one image of 448x448", (image_sample(448, 448, 0.5),)),
        Case(VIDEO, f"one clip of {CLIP_FRAMES} frames of 224x224 in the 64-frame context", (clip,)),
        Case(MIXED, "an image and a clip together", (image_sample(224, 336, 2.0), clip_sample(112, 168, 3.0))),
        Case(
            NATIVE,
            "sizes that do not divide by the patch size, two of them with as many patches, and a clip of 5 frames",
            (
                *(image_sample(333, 251, 4.0), image_sample(150, 407, 5.0), image_sample(251, 333, 7.0)),
                clip_sample(121, 215, 6.0, frames=5),
            ),
        ),
        Case(BATCH, "two images of one size", (image_sample(224, 168, 6.0), image_sample(224, 168, 1.5))),
        Case(
            PADDED,
            "two fifths of a clip's patches, as visible_indices of the padded 64-frame clip and by direct positions",
            (sparse(clip, patch_size, seed=7, padded=True), sparse(clip, patch_size, seed=8, padded=False)),
        ),
    ]


def multi_sides(patch_size: int, scale: float) -> list[tuple[int, int]]:
    """Frames and side of each sample of the biggest pack."""
    sides = [(1, side) for side in MULTI_IMAGES] + [(CLIP_FRAMES, side) for side in MULTI_CLIPS]
    return [(frames, max(patch_size, round(side * scale))) for frames, side in sides]


def multi_tokens(patch_size: int, scale: float) -> list[int]:
    """Patches of each sample of the biggest pack."""
    return [frames * (side // patch_size) ** 2 for frames, side in multi_sides(patch_size, scale)]


def multi_case(patch_size: int, scale: float = 1.0) -> Case:
    """The biggest pack.

    Args:
        scale: of all sides; below 1 the case says so.
    """
    samples = [
        image_sample(side, side, side / 100) if frames == 1 else clip_sample(side, side, side / 100, frames)
        for frames, side in multi_sides(patch_size, scale)
    ]
    notes = () if scale == 1.0 else (f"sides of the multi pack scaled by {scale:g} to fit memory and time budget",)
    return Case(MULTI, "images of 224, 336 and 1008 and clips of 378 and 518 pixels", tuple(samples), notes)
