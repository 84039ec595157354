# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The LLaVA-ViT encoder and its dense (non-packing) model.

Everything below the inputs (layers, norms, rotary embedding, pooling head) is shared with the packing model, which
differs in how samples come in and in the names of the attention projections.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .attention_llava_vit import LlavaViTAttention, LlavaViTPoolingAttention
from .configuration_llava_vit import LlavaViTConfig
from .grid_llava_vit import frame_positions, is_integer, patch_view
from .rotary_llava_vit import rotary_embedding
from .segments_llava_vit import CPU_ROWS, Segments


logger = logging.get_logger(__name__)


def build_norm(config: LlavaViTConfig) -> nn.Module:
    """The encoder's norm that `config.layer_norm_type` names."""
    norm = nn.RMSNorm if config.layer_norm_type == "rms_norm" else nn.LayerNorm
    return norm(config.hidden_size, eps=config.layer_norm_eps)


def check_inputs(model: nn.Module, pixel_values: torch.Tensor, **others: object) -> None:
    """Raises a ValueError unless all inputs are tensors, or `None`, with contents to compute with.

    Meta tensors have shapes alone: fine where the pixels and the whole model are such, and nowhere else.
    """
    if pixel_values.is_meta and not next(model.parameters()).is_meta:
        raise ValueError("pixel_values is on the meta device, which holds no numbers, and the model is not.")
    for name, value in others.items():
        if value is None:
            continue
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{name} must be a tensor, found {type(value).__name__}. Use the processor.")
        if value.is_meta and not pixel_values.is_meta:
            raise ValueError(f"{name} is on the meta device, which holds no numbers. Pass it on the CPU.")


class LlavaViTPatchProjection(nn.Conv2d):
    """Stores the weight of a strided convolution `(C, 3, P, P)` and applies it as a matrix product to flat patches.

    Both models project the same rows with the same product, which is what makes them equal bit for bit.
    """

    def __init__(self, config: LlavaViTConfig):
        super().__init__(config.num_channels, config.hidden_size, config.patch_size, config.patch_size, bias=False)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """`(..., 3 * P * P)` to `(..., C)`."""
        return nn.functional.linear(patches.to(self.weight.dtype), self.weight.flatten(1))


class LlavaViTMLP(nn.Module):
    def __init__(self, config: LlavaViTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class LlavaViTLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer."""

    attention_class = LlavaViTAttention

    def __init__(self, config: LlavaViTConfig):
        super().__init__()
        self.layer_norm1 = build_norm(config)
        self.self_attn = self.attention_class(config)
        self.layer_norm2 = build_norm(config)
        self.mlp = LlavaViTMLP(config)
        self.chunk_size = config.chunk_size_feed_forward

    def works_in_parts(self, hidden_states: torch.Tensor) -> bool:
        """Whether to take `CPU_ROWS` rows at a time: for inference on a CPU, unless a hook would see the parts."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or hidden_states.device.type != "cpu":
            return False
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_hf_hook")
        inner = (module for module in self.modules() if module is not self)
        return not any(getattr(module, hook, None) for module in inner for hook in hooks)

    def feed_forward(self, hidden_states: torch.Tensor, in_parts: bool) -> torch.Tensor:
        """The MLP, on `chunk_size_feed_forward` tokens at a time where that is set."""
        if self.chunk_size > 0:
            return torch.cat([self.mlp(chunk) for chunk in hidden_states.split(self.chunk_size, dim=-2)], dim=-2)
        rows = hidden_states.flatten(0, -2)
        if not in_parts or len(rows) <= CPU_ROWS:
            return self.mlp(hidden_states)
        return torch.cat([self.mlp(part) for part in rows.split(CPU_ROWS)]).view_as(hidden_states)

    def forward_part(
        self,
        hidden_states: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        segments: Segments,
        implementation: str,
        in_parts: bool,
    ) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
        """The layer on whole samples: all of them, or some."""
        attended, weights = self.self_attn(self.layer_norm1(hidden_states), rotary, segments, implementation)
        hidden_states = hidden_states + attended
        return hidden_states + self.feed_forward(self.layer_norm2(hidden_states), in_parts), weights

    def forward(
        self,
        hidden_states: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        segments: Segments,
        implementation: str,
    ) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
        in_parts = self.works_in_parts(hidden_states)
        # `eager` returns weights per run, and parts have runs of their own.
        if not in_parts or implementation == "eager" or len(segments.parts) < 2:
            return self.forward_part(hidden_states, rotary, segments, implementation, in_parts)
        output = torch.empty_like(hidden_states, memory_format=torch.contiguous_format)
        rows_in, rows_out = hidden_states.flatten(0, -2), output.flatten(0, -2)
        for rows, part in segments.parts:
            part_rotary = (rotary[0][rows], rotary[1][rows])
            rows_out[rows], _ = self.forward_part(rows_in[rows], part_rotary, part, implementation, in_parts)
        return output, None


class LlavaViTEncoder(nn.Module):
    def __init__(self, config: LlavaViTConfig, layer_class: type[LlavaViTLayer]):
        super().__init__()
        self.layers = nn.ModuleList([layer_class(config) for _ in range(config.num_hidden_layers)])

    def forward(
        self,
        hidden_states: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        segments: Segments,
        implementation: str,
        num_layers: int,
        kept: set[int],
        output_attentions: bool,
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor], list | None]:
        """Runs the first `num_layers` layers.

        Args:
            hidden_states: tokens in the order of `segments`.
            kept: which of the `layers + 1` hidden states to keep; 0 is the input of layer 0.

        Returns:
            The tokens, the kept hidden states by index in the caller's order of rows, and the weights per layer.
        """
        states, attentions = {}, [] if output_attentions else None
        for index in range(num_layers + 1):
            if index in kept:
                # What is handed out is what comes next reads, so that gradients can be retained on it.
                states[index] = segments.restore(hidden_states)
                hidden_states = segments.sort(states[index])
            if index < num_layers:
                hidden_states, weights = self.layers[index](hidden_states, rotary, segments, implementation)
                if output_attentions:
                    attentions.append(weights)
        return hidden_states, states, attentions


class LlavaViTPoolingHead(nn.Module):
    """Attention pooling: a learned probe attends to the tokens of a sample, then an MLP with a residual."""

    def __init__(self, config: LlavaViTConfig):
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.attention = LlavaViTPoolingAttention(config)
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.head_norm_eps)
        self.mlp = LlavaViTMLP(config)

    def forward(self, hidden_states: torch.Tensor, segments: Segments, implementation: str) -> torch.Tensor:
        """Tokens `(tokens, C)` to one vector per segment, `(samples, C)`."""
        pooled = self.attention(self.probe, hidden_states, segments, implementation)
        return pooled + self.mlp(self.norm(pooled))


class LlavaViTPreTrainedModel(PreTrainedModel):
    """What both models share: weights, loading, and the encoder from embedded patches to outputs."""

    config_class = LlavaViTConfig
    base_model_prefix = "llava_vit"
    main_input_name = "pixel_values"
    input_modalities = ("image", "video")
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlavaViTLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True
    _supports_attention_backend = True
    layer_class = LlavaViTLayer

    def __init__(self, config: LlavaViTConfig):
        super().__init__(config)
        self.layernorm_pre = build_norm(config)
        self.encoder = LlavaViTEncoder(config, self.layer_class)
        self.layernorm_post = build_norm(config)
        self.head = LlavaViTPoolingHead(config) if config.use_head else None

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            nn.init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm):
                nn.init.zeros_(module.bias)
        elif isinstance(module, LlavaViTPoolingAttention):
            nn.init.normal_(module.in_proj_weight, std=std)
            nn.init.zeros_(module.in_proj_bias)
        elif isinstance(module, LlavaViTPoolingHead):
            nn.init.normal_(module.probe, std=std)

    def _hidden_state_indices(self, vision_feature_layer: int | str | Sequence[int | str]) -> list[int | str]:
        """Non-negative indices into `hidden_states`; `"pooler"` stays."""
        count = self.config.num_hidden_layers + 1
        # What is neither one nor several is refused as the single entry that it is.
        several = isinstance(vision_feature_layer, Sequence) and not isinstance(vision_feature_layer, str)
        entries = list(vision_feature_layer) if several else [vision_feature_layer]
        for entry in entries:
            if entry != "pooler" and not (isinstance(entry, int) and -count <= entry < count):
                raise ValueError(
                    f"vision_feature_layer: {entry!r} is not one of this model's hidden states; expected an integer "
                    f'from {-count} to {count - 1}, or "pooler".'
                )
        if not entries:
            raise ValueError("vision_feature_layer is empty; name at least one hidden state, such as -2.")
        return [entry if entry == "pooler" else entry % count for entry in entries]

    def _attention_implementation(self, output_attentions: bool) -> str:
        implementation = self.config._attn_implementation
        if output_attentions and implementation != "eager":
            logger.warning_once(
                f"attn_implementation {implementation!r} gives no attention weights, so this forward uses 'eager', "
                "as output_attentions=True asks for them."
            )
            return "eager"
        return implementation

    def _encode(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        segments: Segments,
        implementation: str,
        output_attentions: bool,
        output_hidden_states: bool,
        vision_feature_layer: int | str | Sequence[int | str] | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, tuple | None, list | None]:
        """From embedded patches to the four outputs, everything in the caller's order of rows.

        Args:
            embeddings: `(tokens, C)` or `(batch, tokens, C)`.
            positions: `(rows, 3)`, `(t, h, w)` of every row of `embeddings.flatten(0, -2)`.

        Returns:
            Tokens after `layernorm_post`, one pooled vector per sample, hidden states, weights per layer and run.
            The first two are `None` where `vision_feature_layer` makes them needless.
        """
        layers = self.config.num_hidden_layers
        wanted = list(range(layers + 1)) if output_hidden_states else []
        complete = True
        if vision_feature_layer is not None:
            wanted = self._hidden_state_indices(vision_feature_layer)
            complete = "pooler" in wanted
            wanted = [index for index in wanted if index != "pooler"]
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        precise = torch.promote_types(embeddings.dtype, torch.float32)
        rotary = rotary_embedding(segments.sort(positions), head_dim, self.config.rope_theta, precise)
        hidden_states, states, attentions = self.encoder(
            self.layernorm_pre(segments.sort(embeddings)),
            rotary,
            segments,
            implementation,
            layers if complete else max(wanted),
            set(wanted),
            output_attentions,
        )
        kept = tuple(states[index] for index in wanted) if wanted else None
        if not complete:
            return None, None, kept, attentions
        hidden_states = self.layernorm_post(hidden_states)
        pooled = None
        if self.head is not None:
            pooled = segments.restore_samples(self.head(hidden_states.flatten(0, -2), segments, implementation))
        return segments.restore(hidden_states), pooled, kept, attentions


class LlavaViTEmbeddings(nn.Module):
    """Flat patches of images and clips, projected."""

    def __init__(self, config: LlavaViTConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.patch_embedding = LlavaViTPatchProjection(config)

    def forward(
        self, pixel_values: torch.Tensor, visible_indices: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeds all patches, or only the visible ones.

        Args:
            pixel_values: `(B, 3, T, H, W)`.
            visible_indices: `(B, K)`, or `None` for all `N`.

        Returns:
            Embeddings `(B, K, C)` and positions `(B, K, 3)` on the grid of the clip.
        """
        patches = patch_view(pixel_values.transpose(1, 2), self.patch_size)  # (B, T, h, w, 3, P, P)
        batch, frames, rows, columns = patches.shape[:4]
        positions = frame_positions(torch.arange(frames, device=patches.device), rows, columns)
        if visible_indices is None:
            patches = patches.reshape(batch, frames * rows * columns, -1)
            return self.patch_embedding(patches), positions.expand(batch, -1, -1)
        visible = positions[visible_indices]
        samples = torch.arange(batch, device=patches.device)[:, None]
        patches = patches[(samples, *visible.unbind(-1))].flatten(2)
        return self.patch_embedding(patches), visible


class LlavaViTModel(LlavaViTPreTrainedModel):
    """LLaVA-ViT over batches of images or clips of one size.

    `hidden_states` has `num_hidden_layers + 1` entries: entry 0 is the input of the first layer (after
    `layernorm_pre`), the last one the last layer's output before `layernorm_post`. `last_hidden_state` is after it.
    """

    def __init__(self, config: LlavaViTConfig):
        super().__init__(config)
        self.embeddings = LlavaViTEmbeddings(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embedding

    def forward(
        self,
        pixel_values: torch.Tensor,
        visible_indices: torch.Tensor | None = None,
        patch_positions: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        vision_feature_layer: int | str | Sequence[int | str] | None = None,
        **unexpected: object,
    ) -> BaseModelOutputWithPooling | tuple:
        """
        Args:
            pixel_values: `(B, 3, H, W)` images or `(B, 3, T, H, W)` clips. Edges that fill no patch are dropped.
            visible_indices: `(B, K)` integer; only these tokens, counted in `(t, h, w)` order, are embedded.
            patch_positions: `(B, K, 3)` integer `(t, h, w)` of the tokens, in place of the grid's. Without it the
                frames of a clip are at `t = 0 ... T - 1`.
            output_attentions: also return `attentions`, per layer `(B, heads, K, K)`.
            output_hidden_states: also return `hidden_states`, each `(B, K, C)`.
            return_dict: `False` for a plain tuple.
            unexpected: nothing; inputs of the packing model are refused by name.
            vision_feature_layer: one index or several into `hidden_states`, as in transformers' LLaVA. Only these
                are kept, in the order given, and nothing after the deepest is computed: `last_hidden_state` and
                `pooler_output` are `None`, unless `"pooler"` is among them.

        Returns:
            `last_hidden_state` `(B, K, C)`, `pooler_output` `(B, C)`, `hidden_states`, `attentions`.

        Raises:
            TypeError: for arguments of other models, such as the packing model's `grid_thw`.
            ValueError: for shapes, dtypes or indices that do not fit; the message names the argument.
        """
        if unexpected:
            raise TypeError(
                f"LlavaViTModel.forward() takes no {', '.join(sorted(unexpected))}. grid_thw, cu_seqlens and "
                "max_seqlen are inputs of the packing model: use this folder's processor, or load a packing folder."
            )
        pixel_values = self._check_pixel_values(pixel_values)
        check_inputs(self, pixel_values, visible_indices=visible_indices, patch_positions=patch_positions)
        if visible_indices is not None:
            visible_indices = self._check_visible_indices(visible_indices, pixel_values)
        embeddings, positions = self.embeddings(pixel_values, visible_indices)
        batch, tokens, _ = embeddings.shape
        if patch_positions is not None:
            if tuple(patch_positions.shape) != (batch, tokens, 3) or not is_integer(patch_positions):
                raise ValueError(
                    f"patch_positions must be an integer tensor of shape ({batch}, {tokens}, 3), one (t, h, w) per "
                    f"token that is kept, found {patch_positions.dtype} {tuple(patch_positions.shape)}."
                )
            positions = patch_positions.to(embeddings.device)
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        last_hidden_state, pooled, hidden_states, attentions = self._encode(
            embeddings,
            positions.reshape(-1, 3),
            Segments.uniform(batch, tokens, embeddings.device),
            self._attention_implementation(output_attentions),
            output_attentions,
            output_hidden_states,
            vision_feature_layer,
        )
        output = BaseModelOutputWithPooling(
            last_hidden_state=last_hidden_state,
            pooler_output=pooled,
            hidden_states=hidden_states,
            # A batch is a single run of equal lengths.
            attentions=tuple(runs[0] for runs in attentions) if output_attentions else None,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def _check_pixel_values(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(B, 3, T, H, W)`, or a ValueError."""
        channels, patch_size = self.config.num_channels, self.config.patch_size
        if not isinstance(pixel_values, torch.Tensor) or not pixel_values.is_floating_point():
            found = getattr(pixel_values, "dtype", type(pixel_values).__name__)
            raise ValueError(f"pixel_values must be a floating point tensor, found {found}. Use the processor.")
        if pixel_values.ndim not in (4, 5) or pixel_values.shape[1] != channels or 0 in pixel_values.shape:
            raise ValueError(
                f"pixel_values must have shape (B, {channels}, H, W) or (B, {channels}, T, H, W), found "
                f"{tuple(pixel_values.shape)}. Flat patches of shape (tokens, {channels * patch_size**2}) are for "
                "the packing model."
            )
        return pixel_values.unsqueeze(2) if pixel_values.ndim == 4 else pixel_values

    def _check_visible_indices(self, visible_indices: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """The indices on the device of the pixels, or a ValueError. Those on an accelerator are not read."""
        batch, _, frames, height, width = pixel_values.shape
        tokens = frames * (height // self.config.patch_size) * (width // self.config.patch_size)
        if visible_indices.ndim != 2 or visible_indices.shape[0] != batch or visible_indices.shape[1] == 0:
            raise ValueError(f"visible_indices must have shape ({batch}, K), found {tuple(visible_indices.shape)}.")
        if visible_indices.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"visible_indices must be int64 or int32, found {visible_indices.dtype}.")
        if visible_indices.device.type == "cpu":
            low, high = visible_indices.aminmax()
            if low < 0 or high >= tokens:
                raise ValueError(
                    f"visible_indices must be from 0 to {tokens - 1} for pixel_values of shape "
                    f"{tuple(pixel_values.shape)}, found {int(low)} to {int(high)}."
                )
        return visible_indices.to(pixel_values.device)
