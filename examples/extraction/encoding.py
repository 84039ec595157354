# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""From what the processor made of files to features: the packing model, filled to a budget of tokens."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from transformers import AutoConfig, AutoModel, AutoProcessor

from examples.extraction.decoding import Decoded
from examples.extraction.packing_plan import pack_inputs, plan_packs
from examples.extraction.provenance import LocatedModel
from examples.extraction.stage_times import StageTimes


Key = TypeVar("Key")
# Large packs keep an accelerator busy; on a CPU they only leave its cache.
PACK_TOKENS = {"cpu": 2048, "accelerator": 16384}
# Samples wait for each other until they fill this many packs.
PACKS_PER_WINDOW = 4


def check_layer_names(layers: Sequence[int | str]) -> None:
    """Refuses what names no layers, whatever the model.

    Raises:
        ValueError: for none, for text that is not `"pooler"`, and for a layer that is named twice.
    """
    if isinstance(layers, str | int):
        raise ValueError(f"layers={layers!r}: expected a sequence, such as (-2,) or (-2, 'pooler').")
    text = ",".join(map(str, layers))
    if not layers or not all(isinstance(layer, int) or layer == "pooler" for layer in layers):
        raise ValueError(f"--layers {text}: expected integers and pooler, separated by commas.")
    if len(set(layers)) != len(layers):
        raise ValueError(f"--layers {text}: a layer is named twice.")


def check_layers(layers: Sequence[int | str], config) -> None:
    """Compares the layers with a model's configuration, before its weights are read.

    Raises:
        ValueError: for a hidden state or a pooling head that the model has not.
    """
    count = config.num_hidden_layers + 1
    for layer in layers:
        if layer != "pooler" and not -count <= layer < count:
            raise ValueError(
                f"--layers {layer}: the model has {count} hidden states; expected {-count} to {count - 1}, or pooler."
            )
    if "pooler" in layers and not config.use_head:
        raise ValueError("--layers pooler: the model has no pooling head (use_head is false in its config.json).")


def default_pack_tokens(device: torch.device) -> int:
    """Tokens of a pack where nobody chose."""
    return PACK_TOKENS["cpu" if device.type == "cpu" else "accelerator"]


def load_packing_model(
    located: LocatedModel, layers: Sequence[int | str], dtype: str, attn_implementation: str, device: torch.device
):
    """The model in evaluation on its device, and its processor.

    Raises:
        ValueError: for a dense model, or layers that the model has not.
        OSError: if it cannot be read.
    """
    processor = AutoProcessor.from_pretrained(located.name, **located.loading)
    if "grid_thw" not in processor.model_input_names:
        raise ValueError(
            f"--packing_model_path {located.name}: this is a dense model; inputs of many sizes need a "
            "packing one. conversion/convert_vit_preview_v0_hf_to_packing.py makes it from the dense folder."
        )
    check_layers(layers, AutoConfig.from_pretrained(located.name, **located.loading))
    model = AutoModel.from_pretrained(
        located.name,
        dtype=getattr(torch, dtype),
        attn_implementation=attn_implementation,
        **located.loading,
    )
    return model.to(device).eval(), processor


class Encoder:
    """The packing model and what is asked of it.

    Args:
        layers: as the model's `vision_feature_layer`.
        pack_tokens: most tokens that share a forward pass; a longer sample has one of its own.
        save_dtype: of the features that come out.
        times: in which the seconds of the model are noted.

    Attributes:
        window_tokens: tokens of the samples that wait for each other; so many are worth having ready.
    """

    def __init__(
        self,
        model,
        layers: list[int | str],
        pack_tokens: int,
        save_dtype: torch.dtype,
        times: StageTimes | None = None,
    ):
        self._model, self._layers, self._times = model, layers, times or StageTimes(readers=0)
        self._pack_tokens, self._save_dtype = pack_tokens, save_dtype
        self.window_tokens = PACKS_PER_WINDOW * pack_tokens

    def encode(self, samples: Iterable[tuple[Key, Decoded]]) -> Iterator[tuple[Key, Decoded, dict[str, torch.Tensor]]]:
        """Features of every sample by layer, on the CPU: `(t, h, w, C)`, or `(K, C)` of chosen patches, and
        `(C,)` for the pooler. Which samples share a pack depends on nothing but the samples and their order.

        Args:
            samples: each with a key, such as its `Item`, which comes back with its features. They are taken as they
                are needed.

        Raises:
            RuntimeError: if a pack does not fit in memory.
        """
        window, tokens = [], 0
        for sample in samples:
            window.append(sample)
            tokens += len(sample[1].pixel_values)
            if tokens >= self.window_tokens:
                yield from self._encode_window(window)
                window, tokens = [], 0
        yield from self._encode_window(window)

    def _encode_window(self, window: list) -> Iterator:
        for pack in plan_packs([len(decoded.pixel_values) for _, decoded in window], self._pack_tokens):
            samples = [window[index] for index in pack]
            with self._times.timed("model"):
                features = self._forward([decoded for _, decoded in samples])
            for place, (key, decoded) in enumerate(samples):
                yield key, decoded, {layer: values[place] for layer, values in features.items()}

    @torch.inference_mode()
    def _forward(self, samples: list[Decoded]) -> dict[str, list[torch.Tensor]]:
        batch = pack_inputs(samples)
        # The lengths are read from the host's copies, so these stay there.
        on_device = {name: batch[name].to(self._model.device) for name in ("pixel_values", "patch_positions")}
        try:
            output = self._model(**{**batch, **on_device}, vision_feature_layer=self._layers)
        except torch.OutOfMemoryError as error:
            tokens = len(batch["pixel_values"])
            raise RuntimeError(f"a pack of {tokens} tokens does not fit in memory. Lower --pack_tokens.") from error
        states = iter(output.hidden_states or ())
        features = {}
        for layer in self._layers:
            if layer == "pooler":
                features[layer] = list(self._to_host(output.pooler_output))
            else:
                parts = self._to_host(next(states)).split(batch["cu_seqlens"].diff().tolist())
                features[str(layer)] = [_laid_out(*pair) for pair in zip(parts, samples, strict=True)]
        return features

    def _to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to("cpu", self._save_dtype)


def unusable(features: dict[str, torch.Tensor], dtype: str) -> str | None:
    """Why features that were computed in `dtype` are no features; None where they are."""
    if all(bool(torch.isfinite(values).all()) for values in features.values()):
        return None
    return f"features of dtype {dtype} hold NaN or infinity; try float32"


def _laid_out(tokens: torch.Tensor, sample: Decoded) -> torch.Tensor:
    """`(t, h, w, C)`; where only some patches were kept they stay `(K, C)`."""
    return tokens if "kept_patches" in sample.report else tokens.reshape(*sample.grid_thw, -1)
