# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures of features show what they say, and the page needs nothing but itself."""

import html.parser
import json
import shutil

import numpy as np
import PIL.Image
import pytest

from examples import visualize_features
from examples.extraction.feature_pictures import heat_colours, patch_errors, principal_components, strip, unpatchify
from tests import media


def draw(*arguments) -> int:
    return visualize_features.main([str(argument) for argument in arguments])


class Page(html.parser.HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.alternatives, self.tags, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]
        self.alternatives += [attributes["alt"]] if "alt" in attributes else []

    def handle_data(self, data):
        self.text += data


def test_the_page_of_four_files(four_features, tmp_path):
    assert draw("--features_dir", four_features, "--output_dir", tmp_path) == 0
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert len(page.links) == 12 and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "http" not in text.replace("data:", "") and "script" not in page.tags
    assert page.text.count("PASS") == 5 and "bit for bit equal" in page.text
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    assert "transformers" in page.text and "sha256" in page.text
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures[:3] == ["000_image1.difference.png", "000_image1.input.png", "000_image1.principal_components.png"]
    assert len(pictures) == 12
    sizes = {PIL.Image.open(path).size for path in tmp_path.glob("002_video1.*.png")}
    assert len(sizes) == 1 and sizes.pop()[0] > 8 * 300


def test_inputs_are_shown_as_the_model_saw_them(four_features, four_files, tmp_path):
    assert draw("--features_dir", four_features, "--output_dir", tmp_path, "--ids", "image1") == 0
    shown = np.asarray(PIL.Image.open(tmp_path / "000_image1.input.png").convert("RGB"))
    cropped = PIL.Image.open(four_files / "1.jpg").convert("RGB").crop((0, 0, 60, 40))
    expected = np.asarray(cropped.resize(shown.shape[1::-1], PIL.Image.Resampling.LANCZOS))
    assert np.array_equal(shown, expected)


def test_a_reference_and_an_input_that_is_gone(many_features, models, tmp_path):
    other = shutil.copytree(many_features, tmp_path / "other")
    arguments = ["--features_dir", many_features, "--reference", other, "--output_dir", tmp_path / "p"]
    assert draw(*arguments, "--ids", "00.png", "3.mp4", "--layer", "-1") == 0
    page = Page((tmp_path / "p" / "report.html").read_text())
    assert len(page.links) == 6 and "198 of 198" in page.text
    (other / "lost.png").unlink(missing_ok=True)
    index = (other / "index.jsonl").read_text().replace("/images/", "/nowhere/")
    (other / "index.jsonl").write_text(index)
    assert draw("--features_dir", other, "--output_dir", tmp_path / "q", "--ids", "00.png") == 0
    page = Page((tmp_path / "q" / "report.html").read_text())
    assert len(page.links) == 1 and "--inputs_dir says where to look" in page.text


def test_code_that_only_metadata_names_is_not_run(four_features, tmp_path, capsys):
    """A downloaded run may name any repo as its model; nothing of it may be fetched and executed."""
    copy = shutil.copytree(four_features, tmp_path / "copy")
    metadata = (copy / "metadata.json").read_text()
    folder = json.loads(metadata)["models"]["packing"]["path"]
    (copy / "metadata.json").write_text(metadata.replace(folder, "stranger/model"))
    assert draw("--features_dir", copy, "--output_dir", tmp_path / "p") == 0
    assert "stranger/model is not a folder here" in capsys.readouterr().err
    assert len(Page((tmp_path / "p" / "report.html").read_text()).links) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--ids", "none"], "no such sample"), (["--layer", "-7"], "--layer -7: the run has -2, -1, pooler")],
)
def test_what_is_not_there_is_named(many_features, tmp_path, capsys, arguments, message):
    assert draw("--features_dir", many_features, "--output_dir", tmp_path, "--no_inputs", *arguments) == 2
    assert message in capsys.readouterr().err


def test_principal_components_separate_what_differs():
    features = np.random.default_rng(0).normal(size=(2, 6, 8, 16)) * 0.01
    features[:, :, 4:] += 3 * np.arange(16) / 16
    colours = principal_components(features).astype(int)
    assert colours.shape == (2, 6, 8, 3)
    assert abs(colours[:, :, :4, 0].mean() - colours[:, :, 4:, 0].mean()) > 200
    assert np.array_equal(colours, principal_components(features.copy()))
    assert principal_components(np.ones((1, 2, 2, 2))).shape == (1, 2, 2, 3)


def test_heat_shows_where_and_how_much():
    expected = np.random.default_rng(0).normal(size=(1, 3, 4, 8))
    actual = expected.copy()
    actual[0, 1, 2] *= 1.5
    errors = patch_errors(actual, expected)
    assert np.argwhere(errors).tolist() == [[0, 1, 2]] and errors.max() == pytest.approx(0.5)
    brightness = heat_colours(np.array([0, 1e-7, 1e-4, 1e-2, 1.0, 50.0])).sum(axis=-1).astype(int)
    assert (np.diff(brightness)[:4] > 0).all() and brightness[-1] == brightness[-2]


def test_strips_and_patches():
    frames = np.stack([media.pattern(8, 12, shift) for shift in range(20)])
    patches = frames.reshape(20, 2, 4, 3, 4, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 48)
    assert np.array_equal(unpatchify(patches, [20, 2, 3]), frames)
    picture = strip(frames, patches=False)
    assert picture.mode == "RGBA" and picture.height == 213 and picture.width == 16 * 320 + 15 * 6
    assert strip(frames[:1], patches=True).size == (640, 427)
