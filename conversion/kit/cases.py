# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What the conformance kit asks: checkpoints whose faults show, and cases, both from exact arithmetic.

Two checkpoints, one of each kind of norm, patch size and head dim. Weights are sums of a generator's raw bits, so no
machine's logarithm rounds them otherwise.
"""

from dataclasses import dataclass

import numpy as np
import torch

from conversion.source.encoder import SourceConfig
from conversion.source.peaked_weights import peaked_state_dict
from conversion.verification.cases import Sample, clip_sample, image_sample


CHECKPOINTS = {
    "layer_norm": SourceConfig(
        hidden_size=64, num_attention_heads=2, num_hidden_layers=3, intermediate_size=96, patch_size=14
    ),
    "rms_norm": SourceConfig(
        hidden_size=96,
        num_attention_heads=1,
        num_hidden_layers=2,
        intermediate_size=64,
        patch_size=16,
        layer_norm_type="rms_norm",
    ),
}

# What the first norm and that of the head get is made small by these, so that a wrong epsilon shows.
FAINT = {"conv1.weight": 0.03, "head.attention.out_proj.weight": 0.3, "head.attention.out_proj.bias": 0.3}


@dataclass(frozen=True)
class ShiftedSample(Sample):
    """A sample that lies elsewhere than at the origin of its grid, such as a crop of a larger picture."""

    shift: tuple[int, int, int] = (0, 0, 0)

    def positions(self, patch_size: int) -> torch.Tensor:
        return super().positions(patch_size) + torch.tensor(self.shift)


def kit_weights(config: SourceConfig) -> dict[str, torch.Tensor]:
    """A pretraining checkpoint with peaked attention, the same bits on every machine."""
    generator = np.random.PCG64(0)

    def noise(shape: torch.Size) -> torch.Tensor:
        # The sum of four uniform values has variance 1/3.
        raw = generator.random_raw(4 * shape.numel()).reshape(-1, 4) >> 11
        values = ((raw * 2.0**-53).sum(1) - 2.0) * 3.0**0.5
        return torch.from_numpy(values.astype(np.float32)).view(shape)

    weights = peaked_state_dict(config, noise=noise)
    for name, scale in FAINT.items():
        weights[name] *= scale
    return weights


def kit_cases(patch_size: int) -> dict[str, tuple[str, tuple[Sample, ...]]]:
    """By name: description and samples. Sizes are few patches, in both directions different ones."""

    def image(rows: int, columns: int, phase: float) -> Sample:
        return image_sample(rows * patch_size, columns * patch_size, phase)

    def clip(frames: int, rows: int, columns: int, phase: float) -> Sample:
        return clip_sample(rows * patch_size, columns * patch_size, phase, frames)

    def sparse(sample: Sample, seed: int, count: int) -> Sample:
        total = int(np.prod(sample.grid(patch_size)))
        # Raw bits in place of a shuffle, whose stream numpy may change.
        kept = np.argsort(np.random.PCG64(seed).random_raw(total), kind="stable")[:count]
        return Sample(sample.frames, sample.is_clip, kept)

    def elsewhere(sample: Sample, *shift: int) -> Sample:
        return ShiftedSample(sample.frames, sample.is_clip, shift=shift)

    odd = image_sample(3 * patch_size + 5, 5 * patch_size + 9, 2.0)
    pack = (image(2, 3, 1.0), image(4, 2, 2.5), image(1, 5, 3.5), clip(3, 2, 1, 4.5), clip(2, 1, 3, 5.5))
    return {
        "image": ("an image of 4 x 5 patches", (image(4, 5, 0.5),)),
        "native": ("an image of an odd size, whose right and bottom edge fill no patch", (odd,)),
        "clip": ("a clip of 8 frames", (clip(8, 2, 3, 1.5),)),
        "clip_1": ("a clip of 1 frame", (clip(1, 3, 4, 2.5),)),
        "clip_64": ("a clip of 64 frames", (clip(64, 1, 2, 3.5),)),
        "pack": ("three images and two clips, ragged", pack),
        "visible_indices": (
            "16 of the 48 patches of a clip, in no order; `visible_indices` of the dense model",
            (sparse(clip(8, 2, 3, 4.5), 1, 16),),
        ),
        "cu_seqlens": (
            "9 of 20 patches of an image and 10 of 18 of a clip, as lengths by `cu_seqlens`",
            (sparse(image(5, 4, 5.5), 2, 9), sparse(clip(3, 2, 3, 6.5), 3, 10)),
        ),
        "elsewhere": (
            "an image and a clip at positions beyond their grid and beyond the 64-frame context",
            (elsewhere(image(3, 2, 7.5), 0, 40, 90), elsewhere(clip(3, 2, 2, 8.5), 70, 5, 11)),
        ),
    }
