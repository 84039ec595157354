# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""A converted folder as its users load it: through the Auto classes, with the code that lies in the folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoProcessor

from conversion.source.encoder import SourceEncoder
from conversion.verification.cases import (
    BATCH,
    CONTEXT_FRAMES,
    Case,
    Sample,
    rows_in_blocks,
    unpack_patches,
)


@dataclass
class SampleOutput:
    """What a model made of one sample: pixels `(3, T, H, W)`, tokens `(N, C)`, a vector `(C,)`, and what a
    merger makes of the tokens."""

    pixels: torch.Tensor
    hidden_states: list[torch.Tensor]
    last_hidden_state: torch.Tensor
    pooler_output: torch.Tensor | None
    merged_hidden_state: torch.Tensor | None = None

    def arrays(self) -> dict[str, torch.Tensor]:
        """Everything that is compared, in the order in which it is computed."""
        arrays = {"pixel_values": self.pixels}
        arrays |= {f"hidden_states[{index}]": states for index, states in enumerate(self.hidden_states)}
        arrays["last_hidden_state"] = self.last_hidden_state
        if self.pooler_output is not None:
            arrays["pooler_output"] = self.pooler_output
        if self.merged_hidden_state is not None:
            arrays["merged_hidden_state"] = self.merged_hidden_state
        return arrays


class ModelUnderTest:
    """A model and its processor from a folder.

    Args:
        folder: the model folder; its code is executed.
        dtype: what the weights are loaded as.
        device: where the model and its inputs are put.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, attn_implementation: str, device: str = "cpu"):
        self.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        self.model = AutoModel.from_pretrained(
            folder, trust_remote_code=True, dtype=dtype, attn_implementation=attn_implementation
        )
        self.model.eval().requires_grad_(False).to(device)
        self.call = self.model
        self.patch_size = self.model.config.patch_size
        self.merge_size = getattr(self.model.config, "merge_size", 1)
        self.is_packing = self.model.config.model_type == "llava_vit_packing"

    def compile(self) -> None:
        """Runs the model compiled from now on. What is planted in `model` is seen, and compiled anew."""
        self.call = torch.compile(self.model, dynamic=True)

    @torch.no_grad()
    def run(
        self, case: Case, edit_positions: Callable[[torch.Tensor], torch.Tensor] | None = None, leak: bool = False
    ) -> list[SampleOutput]:
        """Runs all samples of a case: a packing model in one pack, a dense one one by one but for the batch.

        Args:
            edit_positions: plants a fault in the positions `(N, 3)`.
            leak: plants a fault: all samples, which must be images of one size, attend to each other.
        """
        if self.is_packing:
            return self._run_pack(case.samples, edit_positions, leak)
        if leak:
            return self._run_leaking_batch(case.samples)
        if case.name == BATCH:
            return self._run_batch(case.samples, edit_positions)
        return [self._run_one(sample, edit_positions) for sample in case.samples]

    def processed(self, samples: tuple[Sample, ...]) -> dict:
        """What the processor makes of samples at native resolution."""
        images = [sample.frames[0] for sample in samples if not sample.is_clip]
        videos = [sample.frames for sample in samples if sample.is_clip]
        numbers = [sample.numbers for sample in samples if sample.is_clip and sample.numbers is not None]
        given = {"num_frames": "all"}
        if numbers:
            given = {
                "video_metadata": [{"frames_indices": some, "total_num_frames": some[-1] + 1} for some in numbers]
            }
        return dict(self.processor(images=images or None, videos=videos or None, native_resolution=True, **given))

    def _forward(self, **inputs) -> dict:
        pixels = inputs.pop("pixel_values").to(self.model.device, self.model.dtype)
        moved = {
            name: value.to(self.model.device) for name, value in inputs.items() if isinstance(value, torch.Tensor)
        }
        return self.call(pixels, output_hidden_states=True, **{**inputs, **moved})

    def _run_one(self, sample: Sample, edit_positions) -> SampleOutput:
        inputs = self.processed((sample,))
        pixels = inputs["pixel_values"]
        clip = pixels[0] if pixels.ndim == 5 else pixels[0][:, None]
        if edit_positions is not None:
            inputs["patch_positions"] = edit_positions(sample.positions(self.patch_size))[None]
        if sample.kept is not None:
            inputs = self._padded(sample, clip) if sample.padded else self._kept(sample, inputs)
        output = self._forward(**inputs)
        return _sample_output(self._cropped(clip, sample), output, slice(None), 0, batched=True)

    def _run_batch(self, samples: tuple[Sample, ...], edit_positions) -> list[SampleOutput]:
        inputs = self.processed(samples)
        if edit_positions is not None:
            inputs["patch_positions"] = torch.stack(
                [edit_positions(sample.positions(self.patch_size)) for sample in samples]
            )
        output = self._forward(**inputs)
        return [
            SampleOutput(
                pixels=self._cropped(inputs["pixel_values"][index][:, None], sample),
                hidden_states=[states[index] for states in output.hidden_states],
                last_hidden_state=output.last_hidden_state[index],
                pooler_output=None if output.pooler_output is None else output.pooler_output[index],
            )
            for index, sample in enumerate(samples)
        ]

    def _padded(self, sample: Sample, clip: torch.Tensor) -> dict:
        """The clip in its 64-frame context, and which of the context's patches are kept."""
        padded = torch.zeros(1, 3, CONTEXT_FRAMES, *clip.shape[-2:], dtype=clip.dtype)
        padded[0][:, sample.times] = clip
        return {"pixel_values": padded, "visible_indices": context_indices(sample, self.patch_size)[None]}

    def _kept(self, sample: Sample, inputs: dict) -> dict:
        """The sampled frames, which of their patches are kept, and where the processor says that those are."""
        kept = torch.from_numpy(sample.kept)[None]
        return inputs | {"visible_indices": kept, "patch_positions": inputs["patch_positions"][:, kept[0]]}

    def _run_leaking_batch(self, samples: tuple[Sample, ...]) -> list[SampleOutput]:
        pixels = torch.cat([self.processed((sample,))["pixel_values"] for sample in samples])
        positions = torch.cat([sample.positions(self.patch_size) for sample in samples])
        output = self._forward(pixel_values=pixels.transpose(0, 1)[None], patch_positions=positions[None])
        return self._split(samples, pixels.unsqueeze(2), output, batched=True, pooled_per_sample=False)

    def _run_pack(self, samples: tuple[Sample, ...], edit_positions, leak: bool) -> list[SampleOutput]:
        inputs = self.processed(samples)
        if edit_positions is not None:
            inputs["patch_positions"] = edit_positions(inputs["patch_positions"])
        grids = [sample.grid(self.patch_size) for sample in samples]
        full = torch.tensor([0, *np.cumsum([np.prod(grid) for grid in grids])])
        # Where each patch of the samples' grids is among the rows.
        rows = [
            start + np.argsort(rows_in_blocks(grid, self.merge_size))
            for start, grid in zip(full[:-1], grids, strict=True)
        ]
        clips = [
            unpack_patches(inputs["pixel_values"][places], grid, self.patch_size)
            for places, grid in zip(rows, grids, strict=True)
        ]
        if any(sample.kept is not None for sample in samples):
            inputs = _keep(inputs, samples, full)
        if leak:
            total = int(full[-1])
            merged = torch.tensor([[len(samples), *grids[0][1:]]])
            inputs |= {"grid_thw": merged, "cu_seqlens": torch.tensor([0, total]), "max_seqlen": total}
        output = self._forward(**inputs)
        outputs = self._split(samples, clips, output, batched=False, pooled_per_sample=not leak)
        if self.merge_size > 1:
            for one, places, start in zip(outputs, rows, full[:-1], strict=True):
                one.hidden_states = [states[places - start] for states in one.hidden_states]
                one.last_hidden_state = one.last_hidden_state[places - start]
        return outputs

    def _split(self, samples, clips, output, batched: bool, pooled_per_sample: bool) -> list[SampleOutput]:
        outputs, start = [], 0
        for index, (sample, clip) in enumerate(zip(samples, clips, strict=True)):
            rows = slice(start, start + len(sample.positions(self.patch_size)))
            pooled = index if pooled_per_sample else 0
            outputs.append(_sample_output(self._cropped(clip, sample), output, rows, pooled, batched))
            merged = getattr(output, "merged_hidden_state", None)
            if merged is not None:
                area = self.merge_size**2
                outputs[-1].merged_hidden_state = merged[rows.start // area : rows.stop // area]
            start = rows.stop
        return outputs

    def _cropped(self, clip: torch.Tensor, sample: Sample) -> torch.Tensor:
        _, rows, columns = sample.grid(self.patch_size)
        return clip[..., : rows * self.patch_size, : columns * self.patch_size]


@contextmanager
def first_layers(model: ModelUnderTest, oracle: SourceEncoder, count: int) -> Iterator[None]:
    """Runs a model and the oracle with their first `count` layers only; norm and head follow on those."""
    config, transformer = model.model.config, oracle.transformer
    depth, layers = config.num_hidden_layers, transformer.layers
    config.num_hidden_layers, transformer.layers = count, layers[:count]
    try:
        yield
    finally:
        config.num_hidden_layers, transformer.layers = depth, layers


def context_indices(sample: Sample, patch_size: int) -> torch.Tensor:
    """Where the kept patches of a clip are in its padded 64-frame context: `(N,)`."""
    _, rows, columns = sample.grid(patch_size)
    positions = sample.positions(patch_size)
    return (positions[:, 0] * rows + positions[:, 1]) * columns + positions[:, 2]


def _keep(inputs: dict, samples: tuple[Sample, ...], boundaries: torch.Tensor) -> dict:
    """The pack with only the kept patches of its samples."""
    rows = [
        start + (torch.arange(end - start) if sample.kept is None else torch.from_numpy(sample.kept))
        for sample, start, end in zip(samples, boundaries[:-1], boundaries[1:], strict=True)
    ]
    lengths = [len(kept) for kept in rows]
    rows = torch.cat(rows)
    return {
        "pixel_values": inputs["pixel_values"][rows],
        "grid_thw": inputs["grid_thw"],
        "patch_positions": inputs["patch_positions"][rows],
        "cu_seqlens": torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        "max_seqlen": max(lengths),
    }


def _sample_output(pixels, output, rows: slice, sample: int, batched: bool) -> SampleOutput:
    def tokens(states: torch.Tensor) -> torch.Tensor:
        return (states[0] if batched else states)[rows]

    pooled = output.pooler_output
    return SampleOutput(
        pixels=pixels,
        hidden_states=[tokens(states) for states in output.hidden_states],
        last_hidden_state=tokens(output.last_hidden_state),
        pooler_output=None if pooled is None else pooled[sample],
    )


def oracle_outputs(oracle, case: Case, patch_size: int):
    """What the oracle makes of each sample of a case, one after another."""
    for sample in case.samples:
        weight = oracle.conv1.weight
        _, rows, columns = sample.grid(patch_size)
        pixels = sample.pixels()[..., : rows * patch_size, : columns * patch_size]
        if sample.kept is None:
            output = oracle(pixels[None].to(weight), positions=sample.positions(patch_size))
        else:
            context = torch.zeros(3, CONTEXT_FRAMES, *pixels.shape[-2:])
            context[:, sample.times] = pixels
            indices = context_indices(sample, patch_size)
            output = oracle(context.to(weight), visible_indices=indices)
        yield SampleOutput(
            pixels=pixels,
            hidden_states=[states[0] for states in output["hidden_states"]],
            last_hidden_state=output["last_hidden_state"][0],
            pooler_output=None if output["pooled"] is None else output["pooled"][0],
            merged_hidden_state=None if output["merged"] is None else output["merged"][0],
        )
