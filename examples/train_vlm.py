# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""LLaVA-ViT in a vision language model: a worked example that trains on images and videos in one batch.

    python examples/train_vlm.py --packing_model_path PACKING --image 1.jpg --video 1.mp4 --steps 3

puts the packing model behind a projector in front of a small, randomly initialised Qwen2 of transformers. Each sample
is `<vision tokens> <text>`; the vision tower takes all images and videos of the batch as one pack, without padding,
and only the text is a target. With `--dense_model_path DENSE` the tower is the dense model, used like CLIP's in LLaVA:
`hidden_states[select_layer]` of images of one size.

The texts are bytes, so no tokenizer is needed; put a real language model and its tokenizer in their place. The code of
the model folder is executed (`trust_remote_code`): use folders you made, or repos you trust, at a pinned --revision.
"""

import sys
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor, Qwen2Config


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.common.arguments import ArgumentParser  # noqa: E402
from conversion.common.hub_revision import split_revision  # noqa: E402


IGNORED = -100
SELECT_LAYER = -2


class DenseTower(nn.Module):
    """The dense model as a CLIP-style vision tower: one hidden state of `(B, 3, H, W)` images.

    There is no class token, so `select_feature="patch"` of LLaVA takes all tokens.

    Args:
        model: a `LlavaViTModel`.
        select_layer: index into `hidden_states`, as LLaVA's `vision_feature_layer`; -2 is the second to last.
    """

    def __init__(self, model: nn.Module, select_layer: int = SELECT_LAYER):
        super().__init__()
        self.model, self.select_layer = model, select_layer

    def forward(self, pixel_values: torch.Tensor, patch_positions: torch.Tensor | None = None) -> list[torch.Tensor]:
        """One `(tokens, C)` per image, or per clip of `(B, 3, T, H, W)`."""
        output = self.model(pixel_values, patch_positions=patch_positions, vision_feature_layer=self.select_layer)
        return list(output.hidden_states[0])


class PackingTower(nn.Module):
    """The packing model as a vision tower for images and clips of any sizes.

    Args:
        model: a `LlavaViTPackingModel`.
        select_layer: as for `DenseTower`. Nothing after that layer is computed.
    """

    def __init__(self, model: nn.Module, select_layer: int = SELECT_LAYER):
        super().__init__()
        self.model, self.select_layer = model, select_layer

    def forward(self, cu_seqlens: torch.Tensor, **inputs) -> list[torch.Tensor]:
        """The processor's output to one `(tokens, C)` per sample, images first, then clips."""
        output = self.model(**inputs, cu_seqlens=cu_seqlens, vision_feature_layer=self.select_layer)
        return list(output.hidden_states[0].split(cu_seqlens.diff().tolist()))


class VisionLanguageModel(nn.Module):
    """A vision tower, a two-layer projector as in LLaVA-1.5, and a causal language model.

    Args:
        tower: gives one `(tokens, vision_size)` per sample.
        vision_size: channels of the tower's tokens.
        language_model: a causal language model of transformers.
    """

    def __init__(self, tower: nn.Module, vision_size: int, language_model: nn.Module):
        super().__init__()
        size = language_model.config.hidden_size
        self.tower = tower
        self.projector = nn.Sequential(nn.Linear(vision_size, size), nn.GELU(), nn.Linear(size, size))
        self.language_model = language_model

    def forward(self, vision_inputs: dict[str, torch.Tensor], texts: list[torch.Tensor]) -> torch.Tensor:
        """The mean loss of the texts' tokens.

        Args:
            vision_inputs: what the processor made of the samples' images and videos.
            texts: token ids `(length,)` of every sample, in the order of the samples.
        """
        features = self.tower(**vision_inputs)
        if len(features) != len(texts):
            raise ValueError(f"texts: found {len(texts)} for {len(features)} images and videos; expected one each.")
        sequences, labels = [], []
        for vision, text in zip(features, texts, strict=True):
            sequences.append(torch.cat([self.projector(vision), self.language_model.get_input_embeddings()(text)]))
            labels.append(torch.cat([text.new_full((len(vision),), IGNORED), text]))
        mask = [torch.ones(len(label), dtype=torch.long, device=label.device) for label in labels]
        return self.language_model(
            inputs_embeds=nn.utils.rnn.pad_sequence(sequences, batch_first=True),
            attention_mask=nn.utils.rnn.pad_sequence(mask, batch_first=True),
            labels=nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        ).loss


def tiny_language_model(vocab_size: int = 256) -> nn.Module:
    """A randomly initialised Qwen2 of two layers, to be replaced by a real one."""
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=65536,
        bos_token_id=None,
        eos_token_id=None,
    )
    return AutoModelForCausalLM.from_config(config)


def as_tokens(text: str) -> torch.Tensor:
    """The bytes of a text as token ids `(length,)`."""
    return torch.tensor(list(text.encode()))


def train(model: VisionLanguageModel, vision_inputs: dict, texts: list[torch.Tensor], steps: int) -> list[float]:
    """Trains the tower, the projector and the language model together; the loss before each step."""
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.AdamW(trained, lr=1e-3), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(vision_inputs, texts)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(__doc__)
    folder = parser.add_mutually_exclusive_group(required=True)
    folder.add_argument("--packing_model_path", help="packing model folder or repo")
    folder.add_argument("--dense_model_path", help="dense model folder or repo; images only")
    parser.add_argument("--image", type=Path, action="append", default=[], help="repeatable")
    parser.add_argument("--video", type=Path, action="append", default=[], help="repeatable")
    parser.add_argument("--num_frames", type=int, default=8)
    parser.add_argument("--select_layer", type=int, default=SELECT_LAYER, help="hidden state to use (default -2)")
    parser.add_argument("--freeze_tower", action="store_true", help="train the projector and the language model only")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--revision", help="commit of the model repo, when it is on the Hub")
    options = parser.parse_args(arguments)
    if not options.image and not options.video:
        parser.error("pass at least one --image or --video")
    if options.dense_model_path and options.video:
        parser.error("--video needs --packing_model_path: one batch holds images and videos")

    torch.manual_seed(0)
    option = "packing_model_path" if options.packing_model_path else "dense_model_path"
    path, revision = split_revision(f"--{option}", getattr(options, option), options.revision)
    source = {"trust_remote_code": True, "revision": revision}
    vision = AutoModel.from_pretrained(path, dtype=torch.float32, **source)
    processor = AutoProcessor.from_pretrained(path, **source)
    tower = (PackingTower if options.packing_model_path else DenseTower)(vision, options.select_layer)
    tower.requires_grad_(not options.freeze_tower)
    model = VisionLanguageModel(tower, vision.config.hidden_size, tiny_language_model())
    inputs = processor(images=options.image or None, videos=options.video or None, num_frames=options.num_frames)
    texts = [as_tokens(f"This is {file.stem}.") for file in (*options.image, *options.video)]
    for step, loss in enumerate(train(model, dict(inputs), texts, options.steps)):
        print(f"step {step}: loss {loss:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
