# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The LLaVA-ViT packing model: images and clips of any size in one sequence of tokens, without padding."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention_llava_vit import LlavaViTPackingAttention
from .configuration_llava_vit import LlavaViTPackingConfig
from .grid_llava_vit import check_grid, grid_positions, is_integer
from .modeling_llava_vit import (
    LlavaViTLayer,
    LlavaViTPatchProjection,
    LlavaViTPreTrainedModel,
    check_inputs,
)
from .rotary_llava_vit import rotary_embedding  # noqa: F401  transformers 4 ships only what is imported here
from .segments_llava_vit import Segments, needs_only_boundaries, on_device


class LlavaViTPackingLayer(LlavaViTLayer):
    attention_class = LlavaViTPackingAttention


class LlavaViTPackingEmbeddings(nn.Module):
    def __init__(self, config: LlavaViTPackingConfig):
        super().__init__()
        self.proj = LlavaViTPatchProjection(config)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """`(tokens, 3 * P * P)` to `(tokens, C)`."""
        return self.proj(patches)


class LlavaViTPackingModel(LlavaViTPreTrainedModel):
    """LLaVA-ViT over a pack of samples of any sizes.

    Attention spans a sample and nothing else: all frames of one clip are one segment of `t * h * w` tokens (not one
    segment per frame, as in Qwen-VL). The contract of `hidden_states` is that of [`LlavaViTModel`].
    """

    config_class = LlavaViTPackingConfig
    _no_split_modules = ["LlavaViTPackingLayer"]
    layer_class = LlavaViTPackingLayer

    def __init__(self, config: LlavaViTPackingConfig):
        super().__init__(config)
        self.patch_embed = LlavaViTPackingEmbeddings(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.patch_embed.proj

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        grid_thw: torch.Tensor | None = None,
        patch_positions: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        vision_feature_layer: int | str | Sequence[int | str] | None = None,
        hidden_states: torch.Tensor | None = None,
    ) -> BaseModelOutputWithPooling | tuple:
        """
        Args:
            pixel_values: `(total_tokens, 3 * P * P)` flat patches, each in channel, row, column order; the patches of
                a sample in `(t, h, w)` order.
            grid_thw: `(samples, 3)` integer, patches along time, height and width. May stay on the CPU.
            patch_positions: `(total_tokens, 3)` integer `(t, h, w)` of every row; `grid_thw` then only gives the
                lengths. Without it the frames of a clip are at `t = 0 ... T - 1`.
            cu_seqlens: `(samples + 1,)` int32, boundaries of the samples among the rows. Samples that keep only some
                of their patches say so here, and then need `patch_positions`.
            max_seqlen: tokens of the longest sample. With `cu_seqlens`, `max_seqlen` and `patch_positions` from the
                processor there is no device synchronisation, with a flash implementation or with `sdpa` on CUDA in
                half precision; other settings read the lengths from CPU copies of `cu_seqlens` or `grid_thw` where
                there is one.
            output_attentions: also return `attentions`, per layer a tuple of one `(heads, tokens, tokens)` a sample.
            output_hidden_states: also return `hidden_states`, each `(total_tokens, C)`.
            return_dict: `False` for a plain tuple.
            vision_feature_layer: see [`LlavaViTModel`].
            hidden_states: another name of `pixel_values`, for callers of earlier code.

        Returns:
            `last_hidden_state` `(total_tokens, C)`, `pooler_output` `(samples, C)`, `hidden_states`, `attentions`.

        Raises:
            ValueError: for inputs that do not fit together; the message names the argument.
        """
        if (pixel_values is None) == (hidden_states is None):
            raise ValueError("Pass the flat patches as pixel_values (or, once, by their earlier name hidden_states).")
        pixel_values = self._check_patches(hidden_states if pixel_values is None else pixel_values)
        check_inputs(self, pixel_values, grid_thw=grid_thw, patch_positions=patch_positions, cu_seqlens=cu_seqlens)
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        implementation = self._attention_implementation(output_attentions)

        rows, device = pixel_values.shape[0], pixel_values.device
        lengths = sample_lengths(rows, grid_thw, cu_seqlens, patch_positions)
        if patch_positions is None:
            patch_positions = grid_positions(grid_thw)
        else:
            check_positions(patch_positions, rows)
        embeddings = self.patch_embed(pixel_values)
        only_boundaries = needs_only_boundaries(
            implementation, embeddings, self.config.attention_dropout if self.training else 0.0
        )
        if only_boundaries and cu_seqlens is not None and max_seqlen is not None:
            segments = Segments(on_device(cu_seqlens.to(torch.int32), device), int(max_seqlen))
        else:
            lengths = cu_seqlens.diff().tolist() if lengths is None else lengths
            segments = Segments.from_lengths(lengths, device, only_boundaries)

        last_hidden_state, pooled, states, attentions = self._encode(
            embeddings,
            on_device(patch_positions, device),
            segments,
            implementation,
            output_attentions,
            output_hidden_states,
            vision_feature_layer,
        )
        output = BaseModelOutputWithPooling(
            last_hidden_state=last_hidden_state,
            pooler_output=pooled,
            hidden_states=states,
            attentions=tuple(weights_per_sample(runs, segments) for runs in attentions) if output_attentions else None,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def _check_patches(self, patches: torch.Tensor) -> torch.Tensor:
        size = self.config.num_channels * self.config.patch_size**2
        if not isinstance(patches, torch.Tensor) or not patches.is_floating_point():
            found = getattr(patches, "dtype", type(patches).__name__)
            raise ValueError(f"pixel_values must be a floating point tensor, found {found}. Use the processor.")
        if patches.ndim != 2 or patches.shape[1] != size or patches.shape[0] == 0:
            raise ValueError(
                f"pixel_values must be flat patches of shape (total_tokens, {size}), found {tuple(patches.shape)}. "
                "The processor of this repo makes them; whole images (B, 3, H, W) are for the dense model."
            )
        return patches


def sample_lengths(
    rows: int,
    grid_thw: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    patch_positions: torch.Tensor | None,
) -> list[int] | None:
    """Tokens of each sample, checked as far as that needs no device synchronisation.

    Args:
        rows: rows of `pixel_values`.

    Returns:
        One length per sample, or `None` if only an accelerator knows them.

    Raises:
        ValueError: if the arguments contradict each other or the rows.
    """
    if grid_thw is None and (cu_seqlens is None or patch_positions is None):
        raise ValueError("grid_thw is missing: pass it, or both cu_seqlens and patch_positions.")
    lengths = None
    if grid_thw is not None and (grid_thw.ndim != 2 or grid_thw.shape[1] != 3):
        raise ValueError(f"grid_thw must have shape (samples, 3), found {tuple(grid_thw.shape)}.")
    if cu_seqlens is not None:
        if cu_seqlens.is_meta:
            raise ValueError("cu_seqlens is on the meta device, which holds no numbers. Pass it on the CPU.")
        if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2 or not is_integer(cu_seqlens):
            raise ValueError(
                f"cu_seqlens must be an int32 tensor of shape (samples + 1,), found {cu_seqlens.dtype} "
                f"{tuple(cu_seqlens.shape)}."
            )
        if grid_thw is not None and cu_seqlens.shape[0] != grid_thw.shape[0] + 1:
            raise ValueError(
                f"cu_seqlens has {cu_seqlens.shape[0]} boundaries for the {grid_thw.shape[0]} samples of grid_thw; "
                f"expected {grid_thw.shape[0] + 1}."
            )
        if cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling():
            lengths = cu_seqlens.diff().tolist()
            if cu_seqlens[0] != 0 or cu_seqlens[-1] != rows or min(lengths) < 1:
                raise ValueError(
                    f"cu_seqlens must rise from 0 to the {rows} rows of pixel_values, with at least one row a sample, "
                    f"found {_shorten(cu_seqlens.tolist())}."
                )
    # Reading a grid on an accelerator waits for it, and a compiler cannot: only where nothing else tells.
    unread = torch.compiler.is_compiling() or (grid_thw is not None and grid_thw.device.type != "cpu")
    if grid_thw is None or (unread and cu_seqlens is not None and patch_positions is not None):
        return lengths
    grid_lengths = [t * h * w for t, h, w in check_grid(grid_thw)]
    total = sum(grid_lengths)
    if cu_seqlens is None and total != rows:
        raise ValueError(
            f"grid_thw adds up to {total} tokens, but pixel_values has {rows} rows. Samples that keep only some of "
            "their patches need cu_seqlens and patch_positions."
        )
    if cu_seqlens is not None and patch_positions is None and (lengths or cu_seqlens.diff().tolist()) != grid_lengths:
        raise ValueError(
            "cu_seqlens does not add up to grid_thw, so the samples keep only some of their patches: pass "
            "patch_positions to say which."
        )
    if lengths is not None and any(kept > full for kept, full in zip(lengths, grid_lengths, strict=True)):
        raise ValueError(
            f"cu_seqlens gives the samples {_shorten(lengths)} tokens, more than the {_shorten(grid_lengths)} of "
            "grid_thw."
        )
    return lengths or (grid_lengths if total == rows else None)


def check_positions(patch_positions: torch.Tensor, rows: int) -> None:
    """Raises a ValueError unless `patch_positions` is an integer tensor of shape `(rows, 3)`."""
    if tuple(patch_positions.shape) != (rows, 3) or not is_integer(patch_positions):
        raise ValueError(
            f"patch_positions must be an integer tensor of shape ({rows}, 3), one (t, h, w) per row of pixel_values, "
            f"found {patch_positions.dtype} {tuple(patch_positions.shape)}."
        )


def weights_per_sample(runs: list[torch.Tensor], segments: Segments) -> tuple[torch.Tensor, ...]:
    """Attention weights `(count, heads, tokens, tokens)` per run to `(heads, tokens, tokens)` per sample."""
    samples = [weights for run in runs for weights in run.unbind(0)]
    if segments.sample_order is not None:
        samples = [samples[index] for index in segments.sample_order.argsort().tolist()]
    return tuple(samples)


def _shorten(values: list[int]) -> str:
    return str(values) if len(values) <= 8 else f"[{', '.join(map(str, values[:8]))}, ... {len(values)} in all]"
