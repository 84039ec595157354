# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The packing model as a CUDA graph: packs of any sizes through buffers of one size.

A CUDA graph repeats the same kernels on the same memory, so a pack is copied into a bucket of so many tokens and
samples, and other samples fill what it leaves. No sample sees another, so the pack's own outputs stay as they are.
"""

import torch

from llava_vit_hf import LlavaViTPackingModel
from llava_vit_hf.grid_llava_vit import cumulative_lengths


class BucketGraph:
    """A model's forward on packs that fit a bucket. On other devices than CUDA the buffers go through a plain forward.

    Args:
        model: in half precision, on its device, with `sdpa`.
        tokens: of the bucket.
        samples: of the bucket, those that fill it up included.
        longest: tokens of the longest sample.
    """

    def __init__(self, model: LlavaViTPackingModel, tokens: int, samples: int, longest: int):
        self.model, self.tokens, self.samples, self.longest = model, tokens, samples, longest
        weight, device = model.get_input_embeddings().weight, model.device
        self.pixel_values = torch.zeros(tokens, weight[0].numel(), dtype=weight.dtype, device=device)
        self.patch_positions = torch.zeros(tokens, 3, dtype=torch.int64, device=device)
        self.cu_seqlens = cumulative_lengths(self.filled([])).to(device)
        self.graph = self.output = None
        if device.type == "cuda":
            self._capture()

    def _capture(self) -> None:
        # What kernels need once is made before the capture, on a stream of its own as PyTorch asks for.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.inference_mode():
            for _ in range(2):
                self._forward()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph), torch.inference_mode():
            self.output = self._forward()

    def _forward(self):
        return self.model(
            pixel_values=self.pixel_values,
            patch_positions=self.patch_positions,
            cu_seqlens=self.cu_seqlens,
            max_seqlen=self.longest,
        )

    def filled(self, lengths: list[int]) -> list[int]:
        """Lengths of all samples of the bucket: those given, and as equal ones as can be for the rest.

        Raises:
            ValueError: if they do not fit, or leave a sample no token or more than the longest one's.
        """
        rows, samples = self.tokens - sum(lengths), self.samples - len(lengths)
        fits = samples <= rows <= samples * self.longest and max(lengths, default=0) <= self.longest
        if not fits or samples < 0:
            raise ValueError(
                f"a pack of {len(lengths)} samples, {sum(lengths)} tokens and at most {max(lengths, default=0)} a "
                f"sample, does not fit a bucket of {self.samples}, {self.tokens} and {self.longest}: take another."
            )
        return [*lengths, *(rows // samples + (index < rows % samples) for index in range(samples))]

    def __call__(
        self, pixel_values: torch.Tensor, patch_positions: torch.Tensor, lengths: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`last_hidden_state` `(rows, C)` and `pooler_output` `(samples, C)` of a pack; the next call overwrites them.

        Args:
            pixel_values: `(rows, 3 * P * P)` on the model's device, as `patch_positions` `(rows, 3)`.
            lengths: rows of each sample.
        """
        rows = len(pixel_values)
        boundaries = cumulative_lengths(self.filled(lengths))
        if self.graph is not None:
            boundaries = boundaries.pin_memory()
        self.pixel_values[:rows].copy_(pixel_values)
        self.patch_positions[:rows].copy_(patch_positions)
        self.cu_seqlens.copy_(boundaries, non_blocking=True)
        if self.graph is None:
            self.output = self._forward()
        else:
            self.graph.replay()
        return self.output.last_hidden_state[:rows], self.output.pooler_output[: len(lengths)]
