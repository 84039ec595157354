# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The LLaVA-ViT packing model: images and clips of any size in one sequence of tokens, without padding."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention_llava_vit import LlavaViTPackingAttention
from .configuration_llava_vit import LlavaViTPackingConfig
from .grid_llava_vit import check_grid, check_integers, cumulative_lengths, grid_positions, window_lengths
from .inputs_llava_vit import check_blocks, check_patches, refuse_unexpected, sample_lengths, warn_of_plain_times
from .modeling_llava_vit import LlavaViTLayer, LlavaViTPatchProjection, LlavaViTPreTrainedModel
from .segments_llava_vit import Segments, needs_lengths, on_device, refuse_onnx, runs_of


class LlavaViTPackingLayer(LlavaViTLayer):
    attention_class = LlavaViTPackingAttention


class LlavaViTPackingEmbeddings(nn.Module):
    def __init__(self, config: LlavaViTPackingConfig):
        super().__init__()
        self.proj = LlavaViTPatchProjection(config)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """`(tokens, 3 * P * P)` to `(tokens, C)`."""
        return self.proj(patches)


@dataclass
class LlavaViTPackingOutput(BaseModelOutputWithPooling):
    """The output of [`LlavaViTPackingModel`].

    Args:
        merged_hidden_state: `(total_tokens / merge_size ** 2, merger_output_size)`, a token of each block of patches,
            as a language model takes them; `None` without a merger.
    """

    merged_hidden_state: torch.FloatTensor | None = None


class LlavaViTMerger(nn.Module):
    """What a VLM puts between its tower and its language model: blocks of patches to tokens, by a norm and an MLP."""

    def __init__(self, config: LlavaViTPackingConfig):
        super().__init__()
        self.width = config.hidden_size * config.merge_size**2
        self.ln_q = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(self.width, self.width), nn.GELU(), nn.Linear(self.width, config.merger_output_size)
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(tokens, C)` in block order to `(tokens / merge_size ** 2, merger_output_size)`."""
        return self.mlp(self.ln_q(hidden_states).view(-1, self.width))


class LlavaViTPackingModel(LlavaViTPreTrainedModel):
    """LLaVA-ViT over a pack of samples of any sizes.

    Attention spans a sample and nothing else: all frames of one clip are one segment of `t * h * w` tokens (not one
    segment per frame, as in Qwen-VL), unless the config has an `attention_window`. The contract of `hidden_states` is
    that of [`LlavaViTModel`].
    """

    config_class = LlavaViTPackingConfig
    _no_split_modules = ["LlavaViTPackingLayer"]
    layer_class = LlavaViTPackingLayer

    def __init__(self, config: LlavaViTPackingConfig):
        super().__init__(config)
        self.patch_embed = LlavaViTPackingEmbeddings(config)
        self.merger = LlavaViTMerger(config) if config.merger_output_size is not None else None
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args, **kwargs) -> "LlavaViTPackingModel":
        """As transformers' own, without its tensor parallelism.

        Raises:
            ValueError: for a `tp_plan`.
        """
        plan = kwargs.get("tp_plan") or getattr(kwargs.get("distributed_config"), "tp_plan", None)
        if plan is not None:
            raise ValueError(
                f"tp_plan={plan!r}: this model projects queries, keys and values at once, which cannot be split by "
                "heads. Load a dense folder with it (a conversion makes one of this), or leave tp_plan out."
            )
        return super().from_pretrained(*args, **kwargs)

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
        image_grid_thw: torch.Tensor | None = None,
        **unexpected: object,
    ) -> BaseModelOutputWithPooling | tuple:
        """
        Args:
            pixel_values: `(total_tokens, 3 * P * P)` flat patches, each in channel, row, column order; the patches of
                a sample in `(t, h, w)` order.
            grid_thw: `(samples, 3)` integer, patches along time, height and width. May stay on the CPU.
            patch_positions: `(total_tokens, 3)` integer `(t, h, w)` of every row; `grid_thw` then only gives the
                lengths. Without it the frames of a clip are at `t = 0 ... T - 1`, and with `merge_size` it is needed.
            cu_seqlens: `(samples + 1,)` int32, boundaries of the samples among the rows. Samples that keep only some
                of their patches say so here, and then need `patch_positions`.
            max_seqlen: tokens of the longest sample. With `cu_seqlens`, `max_seqlen` and `patch_positions` from the
                processor there is no device synchronisation, with a flash implementation or with `sdpa` on CUDA in
                half precision; other settings read the lengths from CPU copies of `cu_seqlens` or `grid_thw` where
                there is one.
            output_attentions: also return `attentions`, per layer a tuple of one `(heads, tokens, tokens)` a sample
                or window.
            output_hidden_states: also return `hidden_states`, each `(total_tokens, C)`.
            return_dict: `False` for a plain tuple.
            vision_feature_layer: see [`LlavaViTModel`].
            hidden_states: another name of `pixel_values`, for callers of earlier code.
            image_grid_thw: another name of `grid_thw`, for callers of transformers' VLMs.
            unexpected: nothing; inputs of the dense model are refused by name.

        Returns:
            `last_hidden_state` `(total_tokens, C)`, `pooler_output` `(samples, C)`, `hidden_states`, `attentions`, and
            `merged_hidden_state` with a merger. Rows are in the order of `pixel_values`.

        Raises:
            TypeError: for arguments of other models, such as the dense model's `visible_indices`.
            ValueError: for inputs that do not fit together, and when exported to ONNX; the message names the argument.
        """
        refuse_unexpected(
            self,
            unexpected,
            "visible_indices is an input of the dense model: use this folder's processor, or load a dense folder.",
        )
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            refuse_onnx()
        if (pixel_values is None) == (hidden_states is None):
            raise ValueError("Pass the flat patches as pixel_values (or, once, by their earlier name hidden_states).")
        if grid_thw is not None and image_grid_thw is not None:
            raise ValueError("grid_thw and image_grid_thw are two names for one thing: pass one of them.")
        grid_thw = image_grid_thw if grid_thw is None else grid_thw
        asked = self._asked(
            vision_feature_layer,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
        )
        pixel_values = hidden_states if pixel_values is None else pixel_values
        others = {"grid_thw": grid_thw, "patch_positions": patch_positions, "cu_seqlens": cu_seqlens}
        check_patches(self, pixel_values, **others)
        rows, device = pixel_values.shape[0], pixel_values.device
        lengths = sample_lengths(rows, max_seqlen=max_seqlen, **others)
        check_blocks(self.config, rows, **others)
        if patch_positions is None:
            patch_positions = grid_positions(grid_thw)
            warn_of_plain_times(frames for frames, _, _ in check_grid(grid_thw))
        else:
            check_integers("patch_positions", patch_positions, rows, 3)
        embeddings = self.patch_embed(pixel_values)
        kernel = self._attention_kernel(embeddings, asked["output_attentions"])
        by_run = needs_lengths(kernel)
        # Lengths are read from the device only where attention needs them.
        if by_run or cu_seqlens is None or max_seqlen is None:
            lengths = cu_seqlens.diff().tolist() if lengths is None else lengths
            cu_seqlens, max_seqlen = cumulative_lengths(lengths), max(lengths)
        boundaries = on_device(cu_seqlens.to(torch.int32), device)
        segments = samples = Segments(boundaries, int(max_seqlen), kernel, runs=runs_of(lengths) if by_run else ())
        if self.config.attention_window is not None:
            spans = window_lengths(check_grid(grid_thw), self.config.attention_window)
            boundaries = on_device(cumulative_lengths(spans), device)
            segments = Segments(boundaries, max(spans), kernel, runs=runs_of(spans) if by_run else ())
        positions = on_device(patch_positions, device)
        first = self._first_state(embeddings)
        del embeddings
        return self._encode(first, positions, segments, vision_feature_layer, **asked, samples=samples)

    def _output(self, last_hidden_state: torch.Tensor | None, **fields) -> LlavaViTPackingOutput:
        merged = None
        if self.merger is not None and last_hidden_state is not None:
            merged = self.merger(last_hidden_state)
        return LlavaViTPackingOutput(last_hidden_state=last_hidden_state, **fields, merged_hidden_state=merged)

    def _attention_weights(self, runs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Weights `(count, heads, tokens, tokens)` per run to `(heads, tokens, tokens)` per sample."""
        return tuple(weights for run in runs for weights in run.unbind(0))

    def _per_sample(
        self,
        states: torch.Tensor,
        grid_thw: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
        **inputs,
    ) -> tuple[torch.Tensor, ...]:
        if cu_seqlens is not None:
            return states.split(cu_seqlens.diff().tolist())
        return states.split((image_grid_thw if grid_thw is None else grid_thw).prod(-1).tolist())

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        image_grid_thw: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling | tuple:
        """As that of [`LlavaViTModel`]; `image_grid_thw` is `grid_thw`, which will do as well."""
        return self._features(pixel_values, return_dict, image_grid_thw=image_grid_thw, **kwargs)

    def get_video_features(
        self,
        pixel_values_videos: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling | tuple:
        """As that of [`LlavaViTModel`]; `video_grid_thw` is `grid_thw`, which will do as well."""
        return super().get_video_features(pixel_values_videos, return_dict, image_grid_thw=video_grid_thw, **kwargs)
