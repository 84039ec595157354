# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""A tower in front of a language model: images, a clip and canvases in one batch, against the oracle one by one."""

import json
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, Qwen2Config, Qwen2ForCausalLM

from conversion import convert_vlm_tower_to_hf
from conversion.checkpoints.checkpoint import read_checkpoint
from conversion.source.encoder import SourceEncoder
from conversion.source.small_vlm import PREFIX, small_tower, write_vlm
from conversion.verification.cases import frame_numbers, normalize, rings
from conversion.verification.oracle_weights import oracle_weights
from examples import codec_assets
from examples.extraction.codec_assets import model_inputs, read_assets
from tests.models import check_same_but_for_rounding, relative_error, sharpen


PATCH, MERGE, WIDTH = 14, 2, 48
CONFIG = small_tower(attention_window=4, merger_output_size=WIDTH)
VISION_TOKEN, TEXT = 1, torch.tensor([5, 6, 7, 8])
FRAMES = 10
# Blocks of a canvas's grid of 2 x 3 that are padding.
PADDED = (4, 5)


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return write_vlm(tmp_path_factory.mktemp("in_use") / "vlm", CONFIG, dtype=torch.float32)


@pytest.fixture(scope="module")
def tower(vlm):
    output = vlm.parent / "tower"
    arguments = [str(vlm), "--output_dir", str(output), "--with_merger", "--skip_verification"]
    assert convert_vlm_tower_to_hf.main(arguments) == 0
    return output


@pytest.fixture(scope="module")
def model(tower):
    return AutoModel.from_pretrained(tower, trust_remote_code=True, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor(tower):
    return AutoProcessor.from_pretrained(tower, trust_remote_code=True)


@pytest.fixture(scope="module")
def language_model():
    sizes = {"hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 64}
    config = Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=2)
    return sharpen(Qwen2ForCausalLM(config))


def blocks_of(array: np.ndarray) -> np.ndarray:
    """`(h, w, ...)` to `(blocks, m, m, ...)`, by plain loops."""
    rows, columns = (range(0, side, MERGE) for side in array.shape[:2])
    return np.stack([array[top : top + MERGE, left : left + MERGE] for top in rows for left in columns])


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    """Two canvases of 4 x 6 patches in the later layout, the second one with two blocks of padding."""
    folder = tmp_path_factory.mktemp("assets")
    random, places = np.random.default_rng(0), []
    for number in range(2):
        Image.fromarray(rings(4 * PATCH, 6 * PATCH, 1.0 + number)).save(folder / f"canvas_{number:03}.png")
        frames = np.sort(random.integers(0, 300, 6))
        corners = np.stack([frames, *random.integers(0, 8, (2, 6)) * MERGE], axis=1)
        within = np.array([(0, h, w) for h in range(MERGE) for w in range(MERGE)])
        blocks = corners[:, None] + within
        if number == 1:
            blocks[list(PADDED)] = -1
        places.append(blocks.reshape(-1, 3))
    np.save(folder / "src_patch_position.npy", np.concatenate(places).astype(np.int32))
    (folder / "meta.json").write_text(json.dumps({"fps": 30.0, "canvas_files": ["canvas_000.png", "canvas_001.png"]}))
    return folder


def media() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Two images, and frames of a clip with their numbers."""
    images = [rings(65, 93, 0.3), rings(130, 58, 2.2)]
    return images, np.stack([rings(60, 88, 0.4 * index) for index in range(FRAMES)]), frame_numbers(FRAMES)


def batch(processor, assets) -> dict:
    images, frames, numbers = media()
    metadata = {"frames_indices": numbers, "total_num_frames": int(numbers[-1]) + 1}
    seen = processor(images=images, videos=[frames], video_metadata=[metadata])
    return processor.collate([seen, model_inputs(read_assets(assets), packing=True, processor=processor)])


@torch.no_grad()
def expected_tokens(vlm, assets) -> list[torch.Tensor]:
    """What the oracle's tower and merger make of each sample alone."""
    oracle = SourceEncoder.from_state_dict(CONFIG, oracle_weights(read_checkpoint(vlm, prefix=PREFIX)))

    def tokens(frames: np.ndarray, positions: np.ndarray) -> torch.Tensor:
        rows, columns = (side // PATCH // MERGE * MERGE for side in frames.shape[1:3])
        pixels = normalize(frames[:, : rows * PATCH, : columns * PATCH]).permute(3, 0, 1, 2)
        places = torch.from_numpy(positions[:, :rows, :columns].reshape(-1, 3).astype(np.int64))
        return oracle(pixels[None], positions=places)["merged"][0]

    def plain(frames: np.ndarray, times: np.ndarray) -> np.ndarray:
        t, h, w = np.indices((len(frames), *(side // PATCH for side in frames.shape[1:3])))
        return np.stack([times[t], h, w], axis=-1)

    images, frames, numbers = media()
    found = [tokens(image[None], plain(image[None], np.zeros(1, int))) for image in images]
    found.append(tokens(frames, plain(frames, numbers)))
    places = np.load(assets / "src_patch_position.npy").reshape(2, 6, MERGE, MERGE, 3)
    for number, blocks in enumerate(places):
        picture = np.asarray(Image.open(assets / f"canvas_{number:03}.png"))
        patches = picture.reshape(4, PATCH, 6, PATCH, 3).swapaxes(1, 2)
        used = [index for index in range(6) if number == 0 or index not in PADDED]
        # The blocks side by side, as a strip.
        strip = np.concatenate(blocks_of(patches)[used], axis=1)
        pixels = strip.swapaxes(1, 2).reshape(1, MERGE * PATCH, -1, 3)
        found.append(tokens(pixels, np.concatenate(blocks[used], axis=1)[None]))
    return found


@torch.no_grad()
def logits(language_model, samples: list[torch.Tensor]) -> torch.Tensor:
    """Of a sequence with the tokens of all samples in it, a text after each: placeholders are written over."""
    ids = torch.cat([torch.cat([torch.full((len(tokens),), VISION_TOKEN), TEXT]) for tokens in samples])[None]
    embedded = language_model.get_input_embeddings()(ids)
    mask = (ids == VISION_TOKEN)[..., None].expand_as(embedded)
    embedded = embedded.masked_scatter(mask, torch.cat(samples))
    return language_model(inputs_embeds=embedded).logits[0]


def tokens_of(model, inputs) -> list[torch.Tensor]:
    with torch.no_grad():
        merged = model(**inputs).merged_hidden_state
    return list(merged.split((inputs["grid_thw"].prod(-1) // MERGE**2).tolist()))


def test_images_a_clip_and_canvases_in_one_batch(vlm, model, processor, language_model, assets):
    inputs = batch(processor, assets)
    assert inputs["grid_thw"].tolist() == [[1, 4, 6], [1, 8, 4], [10, 4, 6], [1, 4, 6], [1, 2, 8]]
    found, expected = tokens_of(model, inputs), expected_tokens(vlm, assets)
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours, theirs) < 2e-5
    right = logits(language_model, expected)
    assert relative_error(logits(language_model, found), right) < 2e-5
    # Negative controls: rows row by row, times of no frames, no windows.
    rows, no_times = raster_rows(inputs), inputs["patch_positions"] * torch.tensor([0, 1, 1])
    wrong = [{**inputs, "pixel_values": inputs["pixel_values"][rows]}, {**inputs, "patch_positions": no_times}]
    wrong = [tokens_of(model, changed) for changed in wrong]
    with patch.object(model.config, "attention_window", None):
        wrong.append(tokens_of(model, inputs))
    for tokens in wrong:
        assert relative_error(logits(language_model, tokens), right) > 1e-2


def raster_rows(inputs) -> torch.Tensor:
    starts = inputs["cu_seqlens"].tolist()
    order = []
    for grid, start in zip(inputs["grid_thw"].tolist(), starts[:-1], strict=True):
        t, h, w = grid
        rows = np.arange(t * h * w).reshape(t, h, w)
        blocked = np.concatenate([blocks_of(frame).reshape(-1) for frame in rows])
        order.append(start + torch.from_numpy(np.argsort(blocked)))
    return torch.cat(order)


def test_each_sample_of_a_batch_is_what_it_is_alone(model, processor, assets):
    inputs = batch(processor, assets)
    together, starts = tokens_of(model, inputs), inputs["cu_seqlens"].tolist()
    for index, tokens in enumerate(together):
        rows = slice(starts[index], starts[index + 1])
        alone = {name: inputs[name][rows] for name in ("pixel_values", "patch_positions")}
        (found,) = tokens_of(model, {**alone, "grid_thw": inputs["grid_thw"][index : index + 1]})
        check_same_but_for_rounding(found, tokens)


def test_canvases_by_the_command(tower, assets, tmp_path, capsys):
    arguments = ["read", str(assets), "--processor", str(tower), "--output", str(tmp_path / "inputs.npz")]
    assert codec_assets.main(arguments) == 0
    with np.load(tmp_path / "inputs.npz") as arrays:
        assert arrays["grid_thw"].tolist() == [[1, 4, 6], [1, 2, 8]] and arrays["cu_seqlens"].tolist() == [0, 24, 40]
        assert arrays["patch_positions"].min() >= 0
    assert "grid_thw: (2, 3)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda places: places.__setitem__(25, -1), "canvas 1: block 0 of 2 x 2 patches is partly padding"),
        (lambda places: places.fill(-1), "nothing but padding"),
    ],
)
def test_canvases_that_no_blocks_fit(assets, processor, tmp_path, change, message):
    for path in assets.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    places = np.load(tmp_path / "src_patch_position.npy")
    change(places)
    np.save(tmp_path / "src_patch_position.npy", places)
    with pytest.raises(ValueError, match=message):
        model_inputs(read_assets(tmp_path), packing=True, processor=processor)


def test_positions_of_padding_are_refused(model, processor, assets):
    inputs = batch(processor, assets)
    inputs["patch_positions"][-1] = -1
    with pytest.raises(ValueError, match="-1, which marks the padding of canvases"):
        model(**inputs)
