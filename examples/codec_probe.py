# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Do patches that the codec marks help, against whole frames at an equal number of tokens?

    python examples/codec_probe.py --packing_model_path demo_output/packing

Clips made from a seed show a small textured object that crosses a busy ground in one of eight directions at one of two
speeds, which are the 16 classes. The picture is a torus and the start is drawn evenly, so that a frame alone looks the
same in every class. Each clip is an H.264 file of 16 frames of 4 x 4 patches, of which a model gets 64 tokens:

    frames  4 whole frames, evenly sampled
    codec   as many patches of all frames, by scores="codec": the first frame whole, then what moves
    random  the same by random scores, which tells what the scores do from what more frames do

A small packing encoder and an attentive probe are trained from scratch on each, for equally many steps. Of the folder
only the code, the processor and the unchanged settings are taken, not the weights. The code is executed
(`trust_remote_code`): use a folder you made, or a repo you trust, at a pinned commit.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev

import av
import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import AutoConfig, AutoModel, AutoProcessor


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.common.arguments import ArgumentParser  # noqa: E402
from conversion.common.hub_revision import split_revision  # noqa: E402
from examples.extraction.files import read_json, write_json  # noqa: E402


# In pixels, but for the frames.
SIDE, OBJECT, CELL, PATCH = 64, 16, 4, 16
FRAMES, WHOLE_FRAMES = 16, 4
GRID = (FRAMES, SIDE // PATCH, SIDE // PATCH)
TOP_K = WHOLE_FRAMES * GRID[1] * GRID[2]
# The least of each channel, and what it stays below: grey, and warm colours.
GROUND, COLOUR = ([64], [192]), ([160, 0, 0], [256, 256, 96])
# Pixels a frame, down and right.
MOTIONS = [
    (speed * down, speed * right)
    for speed in (1, 2)
    for down, right in ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))
]
SELECTIONS = ("frames", "codec", "random")
# Weights are drawn as large as trained ones are: with the default they stay near zero for most of so short a training.
ENCODER = {
    **{"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 128},
    **{"patch_size": PATCH, "use_head": False, "initializer_range": 64**-0.5},
}
BATCH, LEARNING_RATE = 32, 2e-3


def draw_clip(motion: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """`(FRAMES, SIDE, SIDE, 3)` uint8: a coloured object, moved by `(down, right)` pixels a frame over grey noise."""

    def texture(side: int, low: Sequence[int], high: Sequence[int]) -> np.ndarray:
        cells = random.integers(low, high, (side // CELL, side // CELL, len(low)), dtype=np.uint8)
        return cells.repeat(CELL, 0).repeat(CELL, 1)

    clip = np.broadcast_to(texture(SIDE, *GROUND), (FRAMES, SIDE, SIDE, 3)).copy()
    start, look = random.integers(0, SIDE, 2), texture(OBJECT, *COLOUR)
    for index, frame in enumerate(clip):
        rows, columns = ((start[axis] + index * motion[axis] + np.arange(OBJECT)) % SIDE for axis in (0, 1))
        frame[np.ix_(rows, columns)] = look
    return clip


def write_clip(path: Path, clip: np.ndarray) -> None:
    """Encodes a clip as H.264, on one thread so that every machine writes the same."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"threads": "1"})
        stream.height, stream.width, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for frame in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())


def selection_arguments(selection: str, random: np.random.Generator) -> dict:
    """What the processor is asked for, of one clip."""
    if selection == "frames":
        return {"num_frames": WHOLE_FRAMES}
    if selection == "codec":
        return {"num_frames": FRAMES, "scores": "codec", "top_k": TOP_K}
    scores = random.random(GRID)
    scores[0] = 1  # the first frame whole, as with the codec
    return {"num_frames": FRAMES, "scores": [scores], "top_k": TOP_K}


def make_samples(processor, clips: int, folder: Path) -> tuple[dict[str, dict], torch.Tensor]:
    """Inputs of clips by selection, and their classes `(clips,)`, of each equally many. `folder` gets a file.

    Inputs are `pixel_values` `(clips, K, 3 * PATCH * PATCH)` and `patch_positions` `(clips, K, 3)`.
    """
    random = np.random.default_rng(0)
    labels = random.permutation(np.arange(clips) % len(MOTIONS))
    found = {selection: [] for selection in SELECTIONS}
    file = folder / "clip.mp4"
    for label in tqdm(labels, desc="clips"):
        write_clip(file, draw_clip(MOTIONS[label], random))
        for selection, samples in found.items():
            asked = selection_arguments(selection, random)
            samples.append(processor(videos=[str(file)], patch_size=PATCH, native_resolution=True, **asked))
    names = ("pixel_values", "patch_positions")
    inputs = {
        selection: {name: torch.stack([sample[name] for sample in samples]) for name in names}
        for selection, samples in found.items()
    }
    return inputs, torch.from_numpy(labels)


class MotionClassifier(nn.Module):
    """The encoder and an attentive probe: one learned query attends to all tokens, then a linear classifier.

    Args:
        encoder: a packing model.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        size, heads = encoder.config.hidden_size, encoder.config.num_attention_heads
        self.encoder = encoder
        self.query = nn.Parameter(torch.randn(1, 1, size))
        self.attention = nn.MultiheadAttention(size, heads, batch_first=True)
        self.classifier = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, len(MOTIONS)))

    def forward(self, pixel_values: torch.Tensor, patch_positions: torch.Tensor) -> torch.Tensor:
        """Logits `(B, classes)` of `pixel_values` `(B, K, D)` and `patch_positions` `(B, K, 3)`."""
        batch, length, _ = pixel_values.shape
        tokens = self.encoder(
            pixel_values=pixel_values.flatten(0, 1),
            patch_positions=patch_positions.flatten(0, 1),
            grid_thw=torch.tensor([GRID] * batch),
            cu_seqlens=torch.arange(0, (batch + 1) * length, length, dtype=torch.int32),
            max_seqlen=length,
        ).last_hidden_state.unflatten(0, (batch, length))
        pooled, _ = self.attention(self.query.expand(batch, -1, -1), tokens, tokens, need_weights=False)
        return self.classifier(pooled[:, 0])


def turned(inputs: dict, labels: torch.Tensor, turn: int) -> tuple[dict, torch.Tensor]:
    """A batch in one of the eight ways to mirror and turn a square, with the classes that it then has.

    Args:
        turn: 0 to 7; its bits mirror rows, mirror columns and exchange the two.
    """
    pixels = inputs["pixel_values"].unflatten(-1, (3, PATCH, PATCH))
    positions, motions = inputs["patch_positions"].clone(), np.array(MOTIONS)
    for axis, last in ((0, GRID[1] - 1), (1, GRID[2] - 1)):
        if turn >> axis & 1:
            pixels = pixels.flip(axis - 2)
            positions[..., axis + 1] = last - positions[..., axis + 1]
            motions[:, axis] *= -1
    if turn >> 2:
        pixels, positions, motions = pixels.transpose(-1, -2), positions[..., [0, 2, 1]], motions[:, ::-1]
    classes = torch.tensor([MOTIONS.index(tuple(motion)) for motion in motions.tolist()])
    return {"pixel_values": pixels.flatten(-3), "patch_positions": positions}, classes[labels]


def batches(inputs: dict, labels: torch.Tensor, order: torch.Tensor) -> Iterator[tuple[dict, torch.Tensor]]:
    """The samples at `order`, a batch at a time."""
    for chosen in order.split(BATCH):
        yield {name: value[chosen] for name, value in inputs.items()}, labels[chosen]


def train(
    model: MotionClassifier, inputs: dict, labels: torch.Tensor, epochs: int, generator: torch.Generator
) -> None:
    """Trains encoder and probe together; every batch is mirrored and turned at random."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    steps = epochs * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    model.train()
    for _ in tqdm(range(epochs), desc="epochs", leave=False):
        for batch, classes in batches(inputs, labels, torch.randperm(len(labels), generator=generator)):
            batch, classes = turned(batch, classes, int(torch.randint(8, (), generator=generator)))
            loss = nn.functional.cross_entropy(model(**batch), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.inference_mode()
def accuracy(model: MotionClassifier, inputs: dict, labels: torch.Tensor) -> float:
    """The part of the samples whose class is found."""
    model.eval()
    right = [
        (model(**batch).argmax(-1) == classes).sum()
        for batch, classes in batches(inputs, labels, torch.arange(len(labels)))
    ]
    return float(sum(right) / len(labels))


def probe(config, inputs: dict, labels: torch.Tensor, train_clips: int, epochs: int, seed: int) -> float:
    """The accuracy on the clips that were not trained on; the split, the weights and the batches are the seed's.

    Args:
        config: of the encoder.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    model = MotionClassifier(AutoModel.from_config(config, trust_remote_code=True))
    parts = [
        ({name: value[part] for name, value in inputs.items()}, labels[part])
        for part in order.tensor_split([train_clips])
    ]
    train(model, *parts[0], epochs, generator)
    return accuracy(model, *parts[1])


def run(source: dict, settings: dict, seeds: int, file: Path | None) -> dict[str, dict]:
    """By selection its `tokens` of a clip and the `accuracy` by seed.

    Args:
        source: arguments of `from_pretrained`.
        settings: `train_clips`, `test_clips` and `epochs`.
        file: gets the results after every training; trainings that it already holds are not done again.

    Raises:
        ValueError: if the file is from other settings.
    """
    results = {name: {"accuracy": []} for name in SELECTIONS}
    if file is not None and file.exists():
        held = read_json(file)
        if (found := held.get("settings")) != settings:
            raise ValueError(f"--json {file} is of a run with {found}, not {settings}: give another file.")
        results = held["results"]
    todo = [(seed, name) for seed in range(seeds) for name in SELECTIONS if seed >= len(results[name]["accuracy"])]
    if not todo:
        return results
    processor = AutoProcessor.from_pretrained(**source)
    config = AutoConfig.from_pretrained(**source, **ENCODER)
    with tempfile.TemporaryDirectory() as folder:
        samples, labels = make_samples(processor, settings["train_clips"] + settings["test_clips"], Path(folder))
    for seed, name in tqdm(todo, desc="trainings"):
        found = probe(config, samples[name], labels, settings["train_clips"], settings["epochs"], seed)
        results[name]["tokens"] = samples[name]["pixel_values"].shape[1]
        results[name]["accuracy"].append(found)
        if file is not None:
            write_json(file, {"settings": settings, "chance": 1 / len(MOTIONS), "results": results})
    return results


def table(results: dict[str, dict]) -> str:
    """The results as Markdown."""
    lines = ["| selection | tokens | accuracy | by seed |", "|---|---|---|---|"]
    for name, found in results.items():
        values = found["accuracy"]
        by_seed = ", ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {name} | {found['tokens']} | {mean(values):.3f} ± {stdev(values):.3f} | {by_seed} |")
    return "\n".join([*lines, f"| chance | | {1 / len(MOTIONS):.3f} | |"])


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--packing_model_path", required=True, help="packing model folder or repo, for its code")
    parser.add_argument("--revision", help="commit of the model repo, when it is on the Hub")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each selection, at least 2 (default 5)")
    parser.add_argument("--train_clips", type=int, default=1024, help="default 1024")
    parser.add_argument("--test_clips", type=int, default=256, help="default 256")
    parser.add_argument("--epochs", type=int, default=12, help="over the training clips (default 12)")
    parser.add_argument(
        "--json", type=Path, help="also write the results to this file; the same command goes on from it"
    )
    options = parser.parse_args(arguments)
    for name, least in {"seeds": 2, "train_clips": 1, "test_clips": 1, "epochs": 1}.items():
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, found {getattr(options, name)}")
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"--json {options.json}: there is no folder {options.json.parent}")
    settings = {name: getattr(options, name) for name in ("train_clips", "test_clips", "epochs")}
    try:
        path, revision = split_revision("--packing_model_path", options.packing_model_path, options.revision)
        source = {"pretrained_model_name_or_path": path, "revision": revision, "trust_remote_code": True}
        results = run(source, settings, options.seeds, options.json)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
