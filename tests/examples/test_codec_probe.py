# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The probe of codec-selected patches: only the motion tells a clip's class, and the selections compare fairly."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from examples import codec_probe
from examples.codec_probe import FRAMES, GRID, MOTIONS, PATCH, SELECTIONS, SIDE, TOP_K
from tests.examples.commands import on_one_thread


SMALL = ["--seeds", "2", "--train_clips", "8", "--test_clips", "8", "--epochs", "1"]


@pytest.fixture(scope="module")
def processor(models):
    return AutoProcessor.from_pretrained(models / "tiny_packing")


def coloured(clip: np.ndarray) -> np.ndarray:
    """Where the object is, `(..., H, W)`: the ground is grey."""
    return clip[..., 0] != clip[..., 2]


def test_only_the_motion_differs():
    """One draw in every class: the first frame is the same, and the object is moved around the torus."""
    clips = [codec_probe.draw_clip(motion, np.random.default_rng(0)) for motion in MOTIONS]
    assert len(set(MOTIONS)) == 16
    for motion, clip in zip(MOTIONS, clips, strict=True):
        assert np.array_equal(clip[0], clips[0][0])
        for index, frame in enumerate(clip):
            shift = [index * step for step in motion]
            assert np.array_equal(coloured(frame), np.roll(coloured(clip[0]), shift, (0, 1)))


def test_objects_start_anywhere():
    random = np.random.default_rng(0)
    where = np.mean([coloured(codec_probe.draw_clip((0, 0), random)[0]) for _ in range(100)], axis=0)
    halves = [part.sum() / where.sum() for part in (where[: SIDE // 2], where[:, : SIDE // 2])]
    assert all(0.4 < half < 0.6 for half in halves)


@pytest.mark.parametrize("turn", range(8))
def test_turned_inputs_are_those_of_turned_clips(processor, turn):
    label = 3  # down and left, which all eight ways but two change
    clip = codec_probe.draw_clip(MOTIONS[label], np.random.default_rng(0))
    flipped = clip[:, :: -1 if turn & 1 else 1, :: -1 if turn & 2 else 1]
    expected = flipped.transpose(0, 2, 1, 3) if turn & 4 else flipped
    asked = {"num_frames": FRAMES, "patch_size": PATCH}
    given, wanted = (processor(videos=np.ascontiguousarray(video), **asked) for video in (clip, expected))
    inputs = {name: given[name][None] for name in ("pixel_values", "patch_positions")}
    found, labels = codec_probe.turned(inputs, torch.tensor([label]), turn)
    places = [tuple(place) for place in found["patch_positions"][0].tolist()]
    row_at = dict(zip(places, found["pixel_values"][0], strict=True))
    rows = torch.stack([row_at[tuple(place)] for place in wanted["patch_positions"].tolist()])
    assert torch.equal(rows, wanted["pixel_values"])
    # The class is how the object of the turned clip moves from one frame to the next.
    before, after = coloured(expected[:2])
    assert np.array_equal(np.roll(before, MOTIONS[labels.item()], (0, 1)), after)


@pytest.mark.long
def test_selections_have_equal_tokens_and_the_codec_finds_the_object(processor, tmp_path):
    samples, labels = codec_probe.make_samples(processor, 16, tmp_path)
    assert sorted(labels.tolist()) == list(range(16))
    found = {}
    for name, inputs in samples.items():
        assert inputs["pixel_values"].shape == (16, TOP_K, 3 * PATCH**2)
        frames = inputs["patch_positions"][..., 0]
        assert ((frames == 0).sum(1) == GRID[1] * GRID[2]).all()
        colours = inputs["pixel_values"].unflatten(-1, (3, -1)).mean(-1)
        found[name] = ((colours[..., 0] - colours[..., 2])[frames > 0] > 0.3).float().mean().item()
    assert samples["frames"]["patch_positions"][..., 0].unique().tolist() == [0, 21, 42, 63]
    assert found["codec"] > 2 * found["random"] and abs(found["random"] - found["frames"]) < 0.1


@pytest.mark.long
def test_it_runs_and_a_seed_gives_the_same_again(models, tmp_path, capsys):
    runs = []
    for name in ("1.json", "2.json"):
        arguments = ["--packing_model_path", str(models / "tiny_packing"), *SMALL, "--json", str(tmp_path / name)]
        with on_one_thread():
            assert codec_probe.main(arguments) == 0
        runs.append(json.loads((tmp_path / name).read_text()))
    assert runs[0] == runs[1]
    assert list(runs[0]["results"]) == list(SELECTIONS) and runs[0]["chance"] == 1 / 16
    for found in runs[0]["results"].values():
        assert found["tokens"] == TOP_K and len(found["accuracy"]) == 2
    first, second = capsys.readouterr().out.split("| selection | tokens | accuracy | by seed |")[1:]
    assert first == second and first.count("| 64 |") == 3 and "| chance | | 0.062 | |" in first


@pytest.mark.long
def test_training_learns_what_there_is_to_learn(models):
    """Classes that the pixels tell, and classes that nothing tells."""
    config = codec_probe.AutoConfig.from_pretrained(models / "tiny_packing", **codec_probe.ENCODER)
    labels = torch.arange(64) % 2
    pixels = torch.randn(64, 4, 3 * PATCH**2, generator=torch.Generator().manual_seed(0)) * 0.1
    pixels[labels == 1] += 1
    inputs = {"pixel_values": pixels, "patch_positions": torch.zeros(64, 4, 3, dtype=torch.long)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec_probe, "turned", lambda batch, classes, turn: (batch, classes))
        assert codec_probe.probe(config, inputs, labels, 48, 10, seed=0) == 1
        assert codec_probe.probe(config, inputs, labels.sort().values, 48, 10, seed=0) < 0.9


@pytest.mark.parametrize(
    "wrong, said", [(["--seeds", "1"], "--seeds must be at least 2, found 1"), (["--json", "none/x.json"], "--json")]
)
def test_wrong_options_are_refused_before_the_work(wrong, said, capsys):
    with pytest.raises(SystemExit):
        codec_probe.main(["--packing_model_path", "nowhere", *wrong])
    assert said in capsys.readouterr().err


def test_a_run_goes_on_from_its_file(tmp_path, capsys, monkeypatch):
    file = tmp_path / "results.json"
    settings = {"train_clips": 8, "test_clips": 8, "epochs": 1}
    results = {name: {"tokens": TOP_K, "accuracy": [0.25, 0.5]} for name in SELECTIONS}
    file.write_text(json.dumps({"settings": settings, "results": results}))
    command = ["--packing_model_path", "nowhere", *SMALL, "--json", str(file)]
    assert codec_probe.main(command) == 0  # all is there: nothing is loaded
    assert "| codec | 64 | 0.375 ± 0.177 | 0.250, 0.500 |" in capsys.readouterr().out
    results["random"]["accuracy"].pop()
    file.write_text(json.dumps({"settings": settings, "results": results}))
    for kind in ("AutoProcessor", "AutoConfig"):
        monkeypatch.setattr(getattr(codec_probe, kind), "from_pretrained", lambda *_, **__: None)
    samples = dict.fromkeys(SELECTIONS, {"pixel_values": torch.zeros(1, TOP_K, 1)})
    monkeypatch.setattr(codec_probe, "make_samples", lambda *_: (samples, None))
    trained = []
    monkeypatch.setattr(codec_probe, "probe", lambda *given: trained.append(given[-1]) or 0.75)
    assert codec_probe.main(command) == 0 and trained == [1]
    assert json.loads(file.read_text())["results"]["random"]["accuracy"] == [0.25, 0.75]
    assert codec_probe.main([*command, "--epochs", "2"]) == 2
    assert "results.json is of a run with" in capsys.readouterr().err
