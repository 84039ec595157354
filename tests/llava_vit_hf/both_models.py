# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Both tiny models with inputs that suit them, for tests that hold for either."""

from dataclasses import dataclass, field

import torch

from llava_vit_hf.grid_llava_vit import grid_positions, patchify, temporal_positions
from llava_vit_hf.modeling_llava_vit import LlavaViTPreTrainedModel
from tests.models import as_packing, dense_model, random_pixels


LAYOUTS = ["dense", "packing"]
# The first and the last sample have equal lengths but lie apart, so the packing model has to reorder.
GRIDS = [(1, 4, 5), (2, 3, 4), (1, 5, 4)]


@dataclass
class Case:
    """A model and arguments for it."""

    layout: str
    model: LlavaViTPreTrainedModel
    inputs: dict[str, torch.Tensor] = field(repr=False)

    @property
    def samples(self) -> int:
        return 2 if self.layout == "dense" else len(GRIDS)

    @torch.no_grad()
    def features(self, model: torch.nn.Module | None = None) -> torch.Tensor:
        """`last_hidden_state` of the case's model, or of another one."""
        return (model or self.model)(**self.inputs).last_hidden_state


def make_case(layout: str, **config) -> Case:
    """Dense: two images. Packing: an image, a clip, and an image again."""
    dense = dense_model(**config)
    if layout == "dense":
        return Case(layout, dense, {"pixel_values": random_pixels(2, 3, 16, 20)})
    clips = [random_pixels(t, 3, 4 * h, 4 * w, seed=index) for index, (t, h, w) in enumerate(GRIDS)]
    inputs = {
        "pixel_values": torch.cat([patchify(clip, 4).flatten(0, 1) for clip in clips]),
        "grid_thw": torch.tensor(GRIDS),
        "patch_positions": grid_positions(GRIDS, [temporal_positions(t) for t, _, _ in GRIDS]),
    }
    return Case(layout, as_packing(dense), inputs)
