# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The worked example of a vision language model, with both models as its tower."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llava_vit_hf import LlavaViTImageProcessor, LlavaViTModel, LlavaViTProcessor
from tests import media
from tests.models import as_packing, dense_model


FILE = Path(__file__).resolve().parents[2] / "examples" / "train_vlm.py"


@pytest.fixture(scope="module")
def example():
    sys.path.append(str(FILE.parent))  # as running the script does
    spec = importlib.util.spec_from_file_location("train_vlm", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def dense():
    return dense_model(patch_size=14)


def processor(packing: bool) -> LlavaViTProcessor:
    return LlavaViTProcessor(LlavaViTImageProcessor(packing=packing, size=42, crop_size=42))


def build(example, tower, size: int = 64):
    torch.manual_seed(0)
    return example.VisionLanguageModel(tower, size, example.tiny_language_model())


@pytest.fixture
def batch():
    """Two images of different sizes and a clip, in one pack, with a text for each."""
    inputs = processor(True)(images=[media.image(45, 30), media.image(28, 56)], videos=media.frames(9), num_frames=2)
    return dict(inputs), [torch.tensor(list(text.encode())) for text in ("a", "two words", "a clip")]


class TestPacking:
    def test_images_and_a_video_train_in_one_batch(self, example, dense, batch):
        model = build(example, example.PackingTower(as_packing(dense)))
        tower = model.tower.model
        # The second-to-last state is wanted, so the last layer, the last norm and the head are not used.
        unused = ("head.", "layernorm_post.", "encoder.layers.2.")
        before = {name: value.clone() for name, value in model.state_dict().items()}
        first, *_, last = example.train(model, *batch, steps=4)
        assert 4 < first < 7 and last < first
        for name, parameter in tower.named_parameters():
            changed = not torch.equal(parameter, before[f"tower.model.{name}"])
            assert changed == (not name.startswith(unused)), name

    def test_each_sample_sees_its_own_picture(self, example, dense, batch):
        model = build(example, example.PackingTower(as_packing(dense))).eval()
        inputs, texts = batch
        calls = []
        model.language_model.register_forward_pre_hook(
            lambda _, __, arguments: calls.append(arguments), with_kwargs=True
        )
        with torch.no_grad():
            model(inputs, texts)
            changed = {**inputs, "pixel_values": inputs["pixel_values"].clone()}
            changed["pixel_values"][:6] += 1
            model(changed, texts)
        first, second = (call["inputs_embeds"] for call in calls)
        assert [torch.equal(*pair) for pair in zip(first, second, strict=True)] == [False, True, True]
        lengths = inputs["cu_seqlens"].diff().tolist()
        assert lengths == [6, 8, 32]
        for sample, (length, text) in enumerate(zip(lengths, texts, strict=True)):
            labels = calls[0]["labels"][sample]
            assert labels[length : length + len(text)].tolist() == text.tolist()
            assert (labels != example.IGNORED).sum() == len(text)
            assert calls[0]["attention_mask"][sample].sum() == length + len(text)

    def test_frozen_tower(self, example, dense, batch):
        model = build(example, example.PackingTower(as_packing(dense)))
        model.tower.requires_grad_(False)
        example.train(model, *batch, steps=1)
        assert all(parameter.grad is None for parameter in model.tower.parameters())
        assert all(parameter.grad is not None for parameter in model.projector.parameters())

    def test_a_text_for_every_picture(self, example, dense, batch):
        model = build(example, example.PackingTower(as_packing(dense)))
        with pytest.raises(ValueError, match="texts: found 2 for 3 images and videos"):
            model(batch[0], batch[1][:2])


class TestDense:
    """As in LLaVA: `CLIPVisionModel(...)(pixel_values, output_hidden_states=True).hidden_states[select_layer]`."""

    @pytest.mark.parametrize("select_layer", [-2, -1, 0, 1])
    def test_select_layer(self, example, dense, select_layer):
        pixels = processor(False)(images=[media.image(60, 50), media.image(50, 60)])["pixel_values"]
        with torch.no_grad():
            features = torch.stack(example.DenseTower(dense, select_layer)(pixels))
            expected = dense(pixels, output_hidden_states=True).hidden_states[select_layer]
        assert features.shape == (2, 9, 64) and torch.equal(features, expected)

    def test_in_llava_of_transformers(self):
        dense = dense_model(patch_size=14, image_size=42)
        sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = LlavaConfig(
            vision_config=dense.config,
            text_config=LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=100),
            image_token_index=99,
            # There is no class token to leave out.
            vision_feature_select_strategy="full",
            vision_feature_layer=-2,
        )
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config)
        tower = model.model.vision_tower
        assert type(tower) is LlavaViTModel
        tower.load_state_dict(dense.state_dict())
        pixels = processor(False)(images=[media.image(60, 50), media.image(50, 60)])["pixel_values"]
        seen = []
        model.model.multi_modal_projector.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
        ids = torch.tensor([[99] * 9 + [1, 2], [99] * 9 + [3, 4]])
        output = model(input_ids=ids, pixel_values=pixels, labels=ids.where(ids != 99, -100))
        expected = dense(pixels, output_hidden_states=True).hidden_states[-2]
        torch.testing.assert_close(seen[0].reshape(expected.shape), expected, rtol=0, atol=1e-5)
        output.loss.backward()
        assert tower.get_input_embeddings().weight.grad.abs().max() > 0

    def test_towers_agree(self, example, dense):
        images = [media.image(45, 44), media.image(44, 45)]
        packed = dict(processor(True)(images=images, native_resolution=False))
        pixels = processor(False)(images=images)["pixel_values"]
        with torch.no_grad():
            first = example.PackingTower(as_packing(dense))(**packed)
            second = example.DenseTower(dense)(pixels)
        for one, other in zip(first, second, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4)

    def test_trains(self, example, dense):
        model = build(example, example.DenseTower(dense))
        inputs = dict(processor(False)(images=[media.image(60, 50), media.image(50, 60)]))
        losses = example.train(model, inputs, [torch.tensor([1, 2, 3]), torch.tensor([4])], steps=3)
        assert losses[-1] < losses[0]


class TestCommand:
    @pytest.fixture
    def folders(self, dense, tmp_path):
        for name, model in (("dense", dense), ("packing", as_packing(dense))):
            model.save_pretrained(tmp_path / name)
            processor(name == "packing").save_pretrained(tmp_path / name)
        media.image(45, 44).save(tmp_path / "cat.png")
        media.write_video(tmp_path / "clip.mp4", media.frames(9))
        return tmp_path

    def test_packing(self, example, folders, capsys):
        arguments = ["--image", str(folders / "cat.png"), "--video", str(folders / "clip.mp4"), "--num_frames", "2"]
        assert example.main(["--packing_model_path", str(folders / "packing"), *arguments, "--steps", "2"]) == 0
        assert capsys.readouterr().out.count("loss") == 2

    def test_dense(self, example, folders, capsys):
        arguments = ["--dense_model_path", str(folders / "dense"), "--image", str(folders / "cat.png")]
        assert example.main([*arguments, "--steps", "1", "--freeze_tower"]) == 0
        with pytest.raises(SystemExit):
            example.main([*arguments, "--video", str(folders / "clip.mp4")])
        assert "one batch holds images and videos" in capsys.readouterr().err
