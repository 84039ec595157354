# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The LLaVA-ViT encoder and its dense (non-packing) model.

Everything below the inputs (layers, norms, rotary embedding, pooling head) is shared with the packing model, which
differs in how samples come in and in the names of the attention projections.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .attention_llava_vit import LlavaViTAttention, LlavaViTPoolingAttention, rotary_embedding
from .configuration_llava_vit import LlavaViTConfig
from .grid_llava_vit import check_integers, frame_positions, patch_view
from .inputs_llava_vit import check_images, check_visible_indices, refuse_unexpected, warn_of_plain_times
from .segments_llava_vit import Segments, attention_kernel


logger = logging.get_logger(__name__)
# Rows that an MLP takes at a time for inference on a CPU. Larger intermediate states leave the caches, and from 32 MiB
# on glibc maps and clears new memory for each; with fewer rows it weighs more that every matrix product lays out its
# weights anew.
CPU_ROWS = 2048
# Of more rows so many are projected at a time in float32, since what lies between is what memory is needed for. In
# half precision twice as many need no more of it, and laying out weights anew weighs more where products are faster.
PROJECTED_ROWS = 1024


def build_norm(config: LlavaViTConfig) -> nn.Module:
    """The encoder's norm that `config.layer_norm_type` names."""
    norm = nn.RMSNorm if config.layer_norm_type == "rms_norm" else nn.LayerNorm
    return norm(config.hidden_size, eps=config.layer_norm_eps)


class LlavaViTPatchProjection(nn.Module):
    """Stores the weight of a strided convolution `(C, 3, P, P)` and applies it as a matrix product to flat patches.

    Both models project the same rows with the same product, which is what makes them equal bit for bit.
    """

    def __init__(self, config: LlavaViTConfig):
        super().__init__()
        patch = (config.num_channels, config.patch_size, config.patch_size)
        self.weight = nn.Parameter(torch.empty(config.hidden_size, *patch))

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

    def forward(
        self, hidden_states: torch.Tensor, rotary: torch.Tensor, segments: Segments
    ) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
        """`(..., C)` to `(..., C)`, and with `eager` the attention weights of each run."""
        rows, most = hidden_states.flatten(0, -2), self.rows_at_a_time(hidden_states, self)
        if self.chunk_size == 0 and most is not None and len(rows) > most:
            at_once = min(PROJECTED_ROWS * 4 // rows.element_size(), most)
            output, weights = self.forward_in_parts(rows, rotary, segments, at_once)
            return output.view_as(hidden_states), weights
        attended, weights = self.self_attn(self.layer_norm1(hidden_states), rotary, segments)
        hidden_states = hidden_states + attended
        return hidden_states + self.feed_forward(self.layer_norm2(hidden_states)), weights

    def forward_in_parts(
        self, rows: torch.Tensor, rotary: torch.Tensor, segments: Segments, most: int
    ) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
        """As `forward` on rows `(tokens, C)`, all but the attention itself on `most` of them at a time."""
        states, weights = self.self_attn.attend_in_parts(rows, self.layer_norm1, rotary, segments, most)
        states = states.reshape(len(rows), -1)
        # What attention gave is read row by row, and written over, unless its rows are of another size or dtype.
        output = states if states.shape == rows.shape and states.dtype == rows.dtype else torch.empty_like(rows)
        for start in range(0, len(rows), most):
            part = slice(start, start + most)
            between = rows[part] + self.self_attn.project_output(states[part])
            torch.add(between, self.mlp(self.layer_norm2(between)), out=output[part])
        return output, weights

    def feed_forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The MLP, on some rows at a time where that saves memory or time."""
        rows, most = hidden_states.flatten(0, -2), self.rows_at_a_time(hidden_states, self.mlp)
        if most is None or len(rows) <= most:
            return self.mlp(hidden_states)
        return torch.cat([self.mlp(part) for part in rows.split(most)]).view_as(hidden_states)

    def rows_at_a_time(self, hidden_states: torch.Tensor, module: nn.Module) -> int | None:
        """`chunk_size_feed_forward`, or `CPU_ROWS` for inference on a CPU unless a hook in `module` would see it."""
        if self.chunk_size > 0:
            return self.chunk_size
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or hidden_states.device.type != "cpu":
            return None
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_hf_hook")
        hooked = any(getattr(one, hook, None) for one in module.modules() if one is not self for hook in hooks)
        return None if hooked else CPU_ROWS


class LlavaViTEncoder(nn.Module):
    def __init__(self, config: LlavaViTConfig, layer_class: type[LlavaViTLayer]):
        super().__init__()
        self.layers = nn.ModuleList([layer_class(config) for _ in range(config.num_hidden_layers)])

    def forward(
        self,
        first: list[torch.Tensor],
        rotary: torch.Tensor,
        segments: Segments,
        num_layers: int,
        kept: set[int],
        output_attentions: bool,
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor], list[list[torch.Tensor]]]:
        """Runs the first `num_layers` layers.

        Args:
            first: the input of layer 0, alone in a list, which is emptied.
            kept: which of the `layers + 1` hidden states to keep; 0 is the input of layer 0.

        Returns:
            The tokens, the kept hidden states by index, and with `output_attentions` the weights per layer and run.
        """
        hidden_states = first.pop()
        states, attentions = {}, []
        for index in range(num_layers + 1):
            if index in kept:
                states[index] = hidden_states
            if index < num_layers:
                hidden_states, weights = self.layers[index](hidden_states, rotary, segments)
                attentions += [weights] if output_attentions else []
        return hidden_states, states, attentions


class LlavaViTPoolingHead(nn.Module):
    """Attention pooling: a learned probe attends to the tokens of a sample, then an MLP with a residual."""

    def __init__(self, config: LlavaViTConfig):
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.attention = LlavaViTPoolingAttention(config)
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.head_norm_eps)
        self.mlp = LlavaViTMLP(config)

    def forward(self, hidden_states: torch.Tensor, segments: Segments) -> torch.Tensor:
        """Tokens `(tokens, C)` to one vector per segment, `(samples, C)`."""
        pooled = self.attention(self.probe, hidden_states, segments)
        return pooled + self.mlp(self.norm(pooled))


class LlavaViTPreTrainedModel(PreTrainedModel):
    """What both models share: weights, loading, and the encoder from embedded patches to outputs."""

    config_class = LlavaViTConfig
    base_model_prefix = "llava_vit"
    main_input_name = "pixel_values"
    input_modalities = ("image", "video")
    supports_gradient_checkpointing = True
    # There is no loss here. Trainer would take `**unexpected` for the place of its arguments.
    accepts_loss_kwargs = False
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
        self.layernorm_post = build_norm(config) if config.use_post_norm else nn.Identity()
        self.head = LlavaViTPoolingHead(config) if config.use_head else None

    # transformers' name of gradient checkpointing from 5.24 on, for those before.
    if not hasattr(PreTrainedModel, "activation_checkpointing_enable"):

        def activation_checkpointing_enable(self, activation_checkpointing_kwargs: dict | None = None) -> None:
            """Works layers out again in the backward, for less memory; not reentrant unless the arguments say so."""
            self.gradient_checkpointing_enable(activation_checkpointing_kwargs or {"use_reentrant": False})

        def activation_checkpointing_disable(self) -> None:
            """Undoes `activation_checkpointing_enable`."""
            self.gradient_checkpointing_disable()

        @property
        def is_activation_checkpointing(self) -> bool:
            """Whether layers are worked out again in the backward."""
            return self.is_gradient_checkpointing

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, LlavaViTPatchProjection)):
            nn.init.normal_(module.weight, std=std)
            if getattr(module, "bias", None) is not None:
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

    def _attention_kernel(self, states: torch.Tensor, output_attentions: bool, batch: bool = False) -> Callable:
        """How this forward attends, see `attention_kernel`."""
        implementation = self.config._attn_implementation
        if output_attentions and implementation != "eager":
            logger.warning_once(
                f"attn_implementation {implementation!r} gives no attention weights, so this forward uses 'eager', "
                "as output_attentions=True asks for them."
            )
            implementation = "eager"
        dropout = self.config.attention_dropout if self.training else 0.0
        # Compiled one by one (`layer.compile()`), layers would be compiled anew for every number of runs.
        compiled = any(layer._compiled_call_impl is not None for layer in self.encoder.layers)
        return attention_kernel(implementation, states, dropout, batch, compiled)

    def _asked(self, vision_feature_layer: object = None, **asked: bool | None) -> dict[str, bool]:
        """Which outputs to return: the arguments, and the config's values where they are `None`."""
        if vision_feature_layer is not None and asked["output_hidden_states"]:
            raise ValueError(
                "output_hidden_states=True returns all hidden states, and "
                f"vision_feature_layer={vision_feature_layer!r} only those it names: pass one of the two."
            )
        return {name: getattr(self.config, name) if value is None else value for name, value in asked.items()}

    def _first_state(self, embeddings: torch.Tensor) -> list[torch.Tensor]:
        """`hidden_states[0]` of embedded patches, in a list that the encoder empties: what is called with a tensor
        itself holds it to the end, and this one is as large as what a layer needs."""
        return [self.layernorm_pre(embeddings)]

    def _encode(
        self,
        first: list[torch.Tensor],
        positions: torch.Tensor,
        segments: Segments,
        vision_feature_layer: int | str | Sequence[int | str] | None,
        output_attentions: bool,
        output_hidden_states: bool,
        return_dict: bool,
        samples: Segments | None = None,
    ) -> BaseModelOutputWithPooling | tuple:
        """From the input of the first layer `(..., C)`, in a list, at `(t, h, w)` positions `(rows, 3)` to the output.

        Args:
            segments: what attends to itself.
            samples: what is pooled, where that is something else.
        """
        layers = self.config.num_hidden_layers
        wanted = list(range(layers + 1)) if output_hidden_states else []
        if vision_feature_layer is not None:
            wanted = self._hidden_state_indices(vision_feature_layer)
        complete = vision_feature_layer is None or "pooler" in wanted
        wanted = [index for index in wanted if index != "pooler"]
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        precise = torch.promote_types(first[0].dtype, torch.float32)
        hidden_states, states, attentions = self.encoder(
            first,
            rotary_embedding(positions, head_dim, self.config.rope_theta, precise),
            segments,
            layers if complete else max(wanted),
            set(wanted),
            output_attentions,
        )
        kept = tuple(states[index] for index in wanted) if wanted else None
        last_hidden_state = pooled = None
        if complete:
            last_hidden_state = self.layernorm_post(hidden_states)
            if self.head is not None:
                pooled = self.head(last_hidden_state.flatten(0, -2), segments if samples is None else samples)
        output = self._output(
            last_hidden_state=last_hidden_state,
            pooler_output=pooled,
            hidden_states=kept,
            attentions=tuple(map(self._attention_weights, attentions)) if output_attentions else None,
        )
        return output if return_dict else output.to_tuple()

    def _output(self, **fields) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(**fields)

    def _attention_weights(self, runs: list[torch.Tensor]) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """A layer's weights, of each run, as the model returns them: a batch is a single run."""
        return runs[0]

    def _features(self, pixel_values: torch.Tensor, return_dict: bool | None, **inputs) -> BaseModelOutputWithPooling:
        """The model's output with features per sample in place of `pooler_output`."""
        output = self(pixel_values, return_dict=True, **inputs)
        states = output.last_hidden_state
        if inputs.get("vision_feature_layer") is not None:
            states = torch.cat(output.hidden_states, dim=-1)
        output.pooler_output = self._per_sample(states, **inputs)
        return output if self._asked(return_dict=return_dict)["return_dict"] else output.to_tuple()

    def _per_sample(self, states: torch.Tensor, **inputs) -> tuple[torch.Tensor, ...]:
        """Features as the model returns them to one `(tokens, C)` per sample: a batch has one row each."""
        return states.unbind(0)

    def get_image_features(
        self, pixel_values: torch.Tensor, return_dict: bool | None = None, **kwargs
    ) -> BaseModelOutputWithPooling | tuple:
        """Features of images, in the form in which transformers 5 hands them to language models and engines.

        Args:
            pixel_values: as in `forward`.
            return_dict: `False` for a plain tuple.
            kwargs: what else `forward` takes. With `vision_feature_layer` the features are those of that hidden state,
                or of several one beside the other.

        Returns:
            The output of `forward`, with one `(tokens, C)` per sample in place of `pooler_output`.
        """
        return self._features(pixel_values, return_dict, **kwargs)

    def get_video_features(
        self,
        pixel_values_videos: torch.Tensor | None = None,
        return_dict: bool | None = None,
        pixel_values: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling | tuple:
        """As `get_image_features`, of clips; `pixel_values`, the processor's name for them, will do as well."""
        return self._features(
            pixel_values if pixel_values_videos is None else pixel_values_videos, return_dict, **kwargs
        )


class LlavaViTEmbeddings(nn.Module):
    """Flat patches of images and clips, projected."""

    def __init__(self, config: LlavaViTConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.patch_embedding = LlavaViTPatchProjection(config)

    def forward(
        self, pixel_values: torch.Tensor, visible_indices: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Clips `(B, 3, T, H, W)` to embeddings `(B, K, C)`, at the grid's positions `(B, K, 3)`."""
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
            visible_indices: `(B, K)` integer; only these tokens, counted in `(t, h, w)` order, are embedded. With
                `rope_temporal_size` in the config, one for every patch and no `patch_positions`, as in the released
                OneVision-Encoder: all are embedded, and the indices are their places in a grid of so many frames.
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
        refuse_unexpected(
            self,
            unexpected,
            "grid_thw, cu_seqlens and max_seqlen are inputs of the packing model: use this folder's processor, or "
            "load a packing folder.",
        )
        asked = self._asked(
            vision_feature_layer,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
        )
        check_images(self, pixel_values, visible_indices=visible_indices, patch_positions=patch_positions)
        pixel_values = pixel_values.unsqueeze(2) if pixel_values.ndim == 4 else pixel_values
        if visible_indices is not None:
            context = self.config.rope_temporal_size if patch_positions is None else None
            places = check_visible_indices(visible_indices, pixel_values, self.config.patch_size, context)
            visible_indices = visible_indices.to(pixel_values.device)
            if places:
                patch_positions = self._places(visible_indices, *pixel_values.shape[-2:])
                visible_indices = None
        embeddings, positions = self.embeddings(pixel_values, visible_indices)
        batch, tokens, _ = embeddings.shape
        if patch_positions is not None:
            check_integers("patch_positions", patch_positions, batch, tokens, 3)
            positions = patch_positions.to(embeddings.device)
        else:
            warn_of_plain_times([pixel_values.shape[2]])
        boundaries = torch.arange(batch + 1, dtype=torch.int32, device=embeddings.device) * tokens
        kernel = self._attention_kernel(embeddings, asked["output_attentions"], batch=True)
        segments = Segments(boundaries, tokens, kernel, runs=((batch, tokens),))
        first = self._first_state(embeddings)
        del embeddings
        return self._encode(first, positions.reshape(-1, 3), segments, vision_feature_layer, **asked)

    def _places(self, indices: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """`(t, h, w)` of indices `(B, K)` into a grid of frames of so many pixels: `(B, K, 3)`."""
        rows, columns = height // self.config.patch_size, width // self.config.patch_size
        frame, place = indices // (rows * columns), indices % (rows * columns)
        return torch.stack([frame, place // columns, place % columns], dim=-1)
