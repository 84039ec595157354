# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Every limit at its edge: what has exactly that much is read, one more is an error that names the switch."""

import base64
import http.server
import io
import json
import re
import threading
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from conversion.checkpoints.checkpoint import CheckpointError, read_checkpoint
from conversion.verification.report import read_report
from examples import verify_features
from examples.extract_features import build_parser, parse_arguments, request_of
from examples.extraction import inputs as inputs_module
from examples.extraction.decoding import DecodeOptions, decode
from examples.extraction.feature_sets import load_features, load_index, load_metadata
from examples.extraction.inputs import Item, collect_inputs
from examples.extraction.limits import DEFAULT_LIMITS, HERE, FileLimits, LimitError, SampleLimits, read_npz
from llava_vit_hf import LlavaViTImageProcessor, LlavaViTProcessor, decoding_llava_vit
from llava_vit_hf.settings_llava_vit import LlavaViTSettings
from tests import media
from tests.conversion.weights import peaked_state_dict, tiny_config
from tests.examples.commands import EXAMPLES


DEFAULTS = {"max_tokens": 65536, "max_image_pixels": 178956970, "max_frames": 1000000}


@pytest.fixture(scope="module")
def packing():
    return LlavaViTProcessor(LlavaViTImageProcessor(packing=True))


@pytest.fixture(scope="module")
def dense():
    return LlavaViTProcessor(LlavaViTImageProcessor())


@pytest.fixture
def undecoded(monkeypatch):
    """Once called, the test fails if any image is decoded."""

    def forbid() -> None:
        monkeypatch.setattr(PIL.Image.Image, "convert", lambda *_: pytest.fail("decoded"))
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))

    return forbid


class TestProcessor:
    def test_defaults_are_arguments_that_are_saved(self, tmp_path):
        assert {name: getattr(LlavaViTSettings(), name) for name in DEFAULTS} == DEFAULTS
        # Of Pillow as it is installed, whatever another test set it to.
        assert DEFAULTS["max_image_pixels"] == int(1024 * 1024 * 1024 // 4 // 3 * 2)
        for name in DEFAULTS:
            assert f"{name}:" in LlavaViTSettings.__doc__
        LlavaViTImageProcessor(max_image_pixels=7, max_frames=8, max_tokens=9).save_pretrained(tmp_path)
        stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
        assert [stored[name] for name in DEFAULTS] == [9, 7, 8]
        loaded = LlavaViTImageProcessor.from_pretrained(tmp_path, max_frames=5)
        assert (loaded.max_image_pixels, loaded.max_frames, loaded.max_tokens) == (7, 5, 9)

    def test_a_folder_saved_without_them_has_the_defaults(self, tmp_path):
        LlavaViTImageProcessor().save_pretrained(tmp_path)
        path = tmp_path / "preprocessor_config.json"
        stored = json.loads(path.read_text())
        path.write_text(json.dumps({name: value for name, value in stored.items() if name not in DEFAULTS}))
        loaded = LlavaViTImageProcessor.from_pretrained(tmp_path)
        assert {name: getattr(loaded, name) for name in DEFAULTS} == DEFAULTS

    @pytest.mark.parametrize("name", DEFAULTS)
    @pytest.mark.parametrize("value", [0, -1, 1.5, "many", True])
    def test_impossible_values(self, name, value):
        with pytest.raises(ValueError, match=f"{name} must be an integer"):
            LlavaViTImageProcessor(**{name: value})

    def test_tokens(self, packing, dense, undecoded, tmp_path):
        media.image(42, 28).save(tmp_path / "a.png")
        undecoded()
        with pytest.raises(ValueError, match=r"a\.png.*are 6 tokens, more than max_tokens=5. Raise max_tokens"):
            packing(images=tmp_path / "a.png", max_tokens=5)
        with pytest.raises(ValueError, match=r"a\.png.*are 1024 tokens, more than max_tokens=1023"):
            dense(images=tmp_path / "a.png", max_tokens=1023)

    def test_tokens_at_the_limit(self, packing, dense):
        assert len(packing(images=media.image(42, 28), max_tokens=6)["pixel_values"]) == 6
        assert dense(images=media.image(42, 28), max_tokens=1024)["pixel_values"].shape[-1] == 448

    def test_pixels(self, packing, dense, undecoded, tmp_path):
        media.image(61, 42).save(tmp_path / "a.png")
        undecoded()
        message = r"a\.png.*61x42 .* are 2562 pixels, more than max_image_pixels=2561. Raise max_image_pixels"
        for processor in (packing, dense):
            with pytest.raises(ValueError, match=message):
                processor(images=tmp_path / "a.png", max_image_pixels=2561)
            with pytest.raises(ValueError, match=r"a\.png.*2562 pixels"):
                processor(videos=[str(tmp_path / "a.png")] * 2, max_image_pixels=2561)
        with pytest.raises(ValueError, match="2562 pixels, more than max_image_pixels=2561"):
            packing(images=PIL.Image.open(tmp_path / "a.png"), max_image_pixels=2561)

    def test_pixels_at_the_limit(self, packing, tmp_path):
        media.image(61, 42).save(tmp_path / "a.png")
        assert packing(images=tmp_path / "a.png", max_image_pixels=2562)["grid_thw"].tolist() == [[1, 3, 4]]
        assert packing(videos=[str(tmp_path / "a.png")], max_image_pixels=2562, num_frames=1)

    def test_resizing_does_not_make_a_bomb(self, dense, undecoded, tmp_path):
        """Two pixels high, resized to 448, a strip of 20,000 would be of two thousand million pixels."""
        media.image(20000, 2).save(tmp_path / "strip.png")
        undecoded()
        with pytest.raises(ValueError, match=r"strip\.png.*resized: 4480000x448 .*max_image_pixels=178956970"):
            dense(images=tmp_path / "strip.png")

    def test_images_inside_urls(self, packing, undecoded):
        stream = io.BytesIO()
        media.image(61, 42).save(stream, "PNG")
        undecoded()
        url = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
        with pytest.raises(ValueError, match="2562 pixels, more than max_image_pixels=2561") as caught:
            packing(images=url, max_image_pixels=2561)
        assert len(str(caught.value)) < 400

    def test_downloads(self, packing, tmp_path, monkeypatch):
        media.image(61, 42).save(tmp_path / "a.png")
        (tmp_path / "endless.png").write_bytes(bytes(2**20 + 8 * 2562 + 1))
        monkeypatch.chdir(tmp_path)
        with http.server.HTTPServer(("127.0.0.1", 0), Quiet) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            root = f"http://127.0.0.1:{server.server_port}"
            expected = packing(images=tmp_path / "a.png")["pixel_values"]
            assert torch.equal(packing(images=f"{root}/a.png", max_image_pixels=2562)["pixel_values"], expected)
            with pytest.raises(ValueError, match=r"a\.png.*2562 pixels, more than max_image_pixels=2561"):
                packing(images=f"{root}/a.png", max_image_pixels=2561)
            with pytest.raises(ValueError, match="endless.png is larger than 1069072 bytes.*max_image_pixels=2562"):
                packing(images=f"{root}/endless.png", max_image_pixels=2562)
            with pytest.raises(ValueError, match="absent.png cannot be fetched.*404"):
                packing(images=f"{root}/absent.png")
            server.shutdown()

    def test_frames_of_files(self, packing, tmp_path):
        path = media.write_video(tmp_path / "a.mp4", media.frames(20, 28, 42))
        for backend in ("pyav", None):
            assert packing(videos=path, max_frames=20, video_backend=backend)["grid_thw"].tolist() == [[8, 2, 3]]
            with pytest.raises(ValueError, match=r"a\.mp4.*at least 20 frames, more than max_frames=19. Raise max_fr"):
                packing(videos=path, max_frames=19, video_backend=backend)

    def test_frames_of_folders_and_lists(self, packing, tmp_path):
        for index in range(4):
            media.image(28, 28).save(tmp_path / f"{index}.png")
        for video in (tmp_path, media.frames(4, 28, 28), list(media.frames(4, 28, 28))):
            assert packing(videos=[video], max_frames=4, num_frames="all")["grid_thw"].tolist() == [[4, 2, 2]]
            with pytest.raises(ValueError, match=": 4 frames, more than max_frames=3"):
                packing(videos=[video], max_frames=3, num_frames=2)

    def test_frames_asked_for(self, packing):
        """`num_frames` of a manifest comes from others: a huge one would fill the memory before anything is read."""
        with pytest.raises(ValueError, match="num_frames: 1000001 frames, more than max_frames=1000000"):
            packing(videos=media.frames(2, 28, 28), num_frames=1_000_001)

    def test_frame_sizes(self, packing, dense, tmp_path, monkeypatch):
        path = media.write_video(tmp_path / "a.mp4", media.frames(20, 28, 42))
        assert packing(videos=path, max_image_pixels=28 * 42)
        monkeypatch.setattr(decoding_llava_vit, "_read_pyav", lambda *_: pytest.fail("decoded"))
        for processor, backend in ((packing, "pyav"), (packing, None), (dense, "pyav")):
            with pytest.raises(ValueError, match=r"a\.mp4.*42x28 .*1176 pixels, more than max_image_pixels=1175"):
                processor(videos=path, max_image_pixels=1175, video_backend=backend)

    def test_frames_that_grow(self, packing, tmp_path):
        """A stream whose size changes says the first size only; the decoder itself refuses what comes later."""
        small, large = (media.frames(6, *size) for size in ((48, 64), (480, 640)))
        parts = [
            media.write_video(tmp_path / f"{index}.h264", video, container_format="h264").read_bytes()
            for index, video in enumerate((small, large))
        ]
        (tmp_path / "grows.h264").write_bytes(b"".join(parts))
        with pytest.raises(ValueError, match=r"grows\.h264.*640x480.*307200 pixels, more than max_image_pixels=5000"):
            packing(videos=tmp_path / "grows.h264", max_image_pixels=5000)
        with pytest.raises(ValueError, match=r"grows\.h264.*one size, found .* 64x48 and 640x480"):
            packing(videos=tmp_path / "grows.h264")

    def test_clips_are_refused_by_their_resized_tokens_before_decoding(self, dense, tmp_path, monkeypatch):
        path = media.write_video(tmp_path / "a.mp4", media.frames(20, 28, 42))
        monkeypatch.setattr(decoding_llava_vit, "_decodable_frames", lambda *_: pytest.fail("decoded"))
        with pytest.raises(ValueError, match=r"a\.mp4.*20480 tokens, more than max_tokens=20000"):
            dense(videos=path, num_frames="all", max_tokens=20000, video_backend="pyav")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def logerror_text(self, *_):
        pass


def limits(**given: int) -> FileLimits:
    return FileLimits(**given)


class TestFiles:
    def test_defaults_are_options_of_the_commands_that_read_such_files(self, tmp_path, capsys):
        assert vars(DEFAULT_LIMITS) == {
            "max_archive_bytes": 4 * 2**30,
            "max_json_bytes": 64 * 2**20,
            "max_manifest_bytes": 2**30,
            "max_line_bytes": 16 * 2**20,
        }
        guides = [(EXAMPLES / name).read_text(encoding="utf-8") for name in ("README.md", "README_zh.md")]
        options = {option for action in build_parser()._actions for option in action.option_strings}
        for name in (*vars(DEFAULT_LIMITS), *vars(SampleLimits())):
            assert all(f"`--{name}`" in guide for guide in guides), name
        assert {f"--{name}" for name in ("max_manifest_bytes", "max_line_bytes", *vars(SampleLimits()))} <= options
        (tmp_path / "metadata.json").write_text('{"dtype": "float32"}')
        arguments = ["--features_dir", str(tmp_path)]
        assert verify_features.main([*arguments, "--max_json_bytes", "19"]) == 2
        assert (
            "metadata.json: 20 bytes, more than max_json_bytes=19. Raise --max_json_bytes" in capsys.readouterr().err
        )
        assert verify_features.main([*arguments, "--max_archive_bytes", "0"]) == 2
        assert "--max_archive_bytes must be at least 1" in capsys.readouterr().err
        with pytest.raises(ValueError, match="--max_frames must be at least 1"):
            request_of(parse_arguments(["--packing_model_path", ".", "--inputs", ".", "--max_frames", "0"]))

    def test_json(self, tmp_path):
        path = tmp_path / "metadata.json"
        path.write_text('{"dtype": "float32"}')
        assert load_metadata(tmp_path, limits(max_json_bytes=20))
        with pytest.raises(ValueError, match=r"metadata\.json: 20 bytes, more than max_json_bytes=19"):
            load_metadata(tmp_path, limits(max_json_bytes=19))
        path.write_text("[" * 100_000)
        with pytest.raises(ValueError, match=r"metadata\.json is not JSON"):
            load_metadata(tmp_path)

    @pytest.mark.parametrize("name", ["list.jsonl", "list.csv"])
    def test_manifests(self, tmp_path, name):
        row = '{"path": "é.png"}\n' if name.endswith("jsonl") else "é.png\n"
        text = row * 3 if name.endswith("jsonl") else "path\n" + row * 3
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        size, line = len(text.encode()), len(row.encode())
        entries = [str(path)]
        assert len(collect_inputs(entries, limits=limits(max_manifest_bytes=size, max_line_bytes=line))) == 1
        with pytest.raises(LimitError, match=rf"{name}: {size} bytes, more than max_manifest_bytes={size - 1}. Raise"):
            collect_inputs(entries, limits=limits(max_manifest_bytes=size - 1))
        with pytest.raises(LimitError, match=rf"{name}, row \d: {line} bytes, more than max_line_bytes={line - 1}"):
            collect_inputs(entries, limits=limits(max_line_bytes=line - 1))

    def test_damaged_manifests(self, tmp_path):
        for name, content, message in (
            ("deep.jsonl", b"[" * 100_000, r"deep\.jsonl, row 1: not JSON"),
            ("field.csv", b"path\n" + b"a" * 200_000, r"field\.csv, row 1: not CSV .*field limit"),
            ("latin.csv", b"path\n\xe9.png\n", r"latin\.csv: not UTF-8"),
            ("bad.parquet", b"PAR1 and then nothing", r"bad\.parquet"),
        ):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=message):
                collect_inputs([str(tmp_path / name)])

    def test_parquet_is_measured_expanded(self, tmp_path):
        import pyarrow.parquet

        path = tmp_path / "list.parquet"
        table = pyarrow.table({"path": [f"{index:064d}.png" for index in range(500)]})
        pyarrow.parquet.write_table(table, path, compression="zstd")
        metadata = pyarrow.parquet.read_metadata(path)
        expanded = metadata.row_group(0).total_byte_size
        assert expanded > path.stat().st_size
        assert len(collect_inputs([str(path)], limits=limits(max_manifest_bytes=expanded))) == 500
        with pytest.raises(LimitError, match=rf"expanded: {expanded} bytes, more than max_manifest_bytes"):
            collect_inputs([str(path)], limits=limits(max_manifest_bytes=expanded - 1))
        # A value is stored once, but comes out in every row: few rows at once.
        largest = metadata.row_group(0).column(0).total_uncompressed_size
        assert inputs_module._rows_at_once(path, metadata, limits(max_manifest_bytes=3 * largest)) == 3

    def test_index(self, tmp_path):
        record = {
            "id": "a",
            "shard": "shards/00000.npz",
            "keys": {"-2": "0.-2"},
            "kind": "image",
            "grid_thw": [1, 2, 2],
        }
        line = json.dumps({**record, "index": 0, "sha256": "0" * 64, "tokens": 4}) + "\n"
        (tmp_path / "index.jsonl").write_text(line * 2)
        size = len(line)
        assert len(load_index(tmp_path, limits(max_manifest_bytes=2 * size, max_line_bytes=size))) == 2
        with pytest.raises(LimitError, match=rf"index\.jsonl: {2 * size} bytes, more than max_manifest_bytes"):
            load_index(tmp_path, limits(max_manifest_bytes=2 * size - 1))
        with pytest.raises(
            LimitError, match=rf"index\.jsonl, row 1: {size} bytes, more than max_line_bytes={size - 1}"
        ):
            load_index(tmp_path, limits(max_line_bytes=size - 1))

    def test_a_zip_bomb_is_refused_before_it_expands(self, tmp_path, monkeypatch):
        path = tmp_path / "bomb.npz"
        np.savez_compressed(path, a=np.zeros(10**6, np.float32))
        with zipfile.ZipFile(path) as archive:
            expanded = sum(member.file_size for member in archive.infolist())
        assert path.stat().st_size < 10_000 < expanded
        assert load_features(path, limits(max_archive_bytes=expanded))["a"].shape == (10**6,)
        monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("expanded"))
        with pytest.raises(LimitError, match=rf"bomb\.npz, expanded: {expanded} bytes, more than max_archive_bytes"):
            load_features(path, limits(max_archive_bytes=expanded - 1))
        with pytest.raises(LimitError, match=r"bomb\.npz: \d+ bytes, more than max_archive_bytes=100"):
            read_npz(path, limits(max_archive_bytes=100))

    @pytest.mark.parametrize("shape", [(10**15,), (2**62, 8), (3,), (-1,)])
    def test_an_array_header_cannot_ask_for_memory(self, tmp_path, shape):
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("a.npy", stream.getvalue() + bytes(16))
        with pytest.raises(ValueError, match=r"a\.npz, a\.npy: its header says shape"):
            load_features(tmp_path / "a.npz")

    def test_configurations_beside_weights_and_reports(self, tmp_path):
        with pytest.raises(CheckpointError, match="no model folder"):
            read_checkpoint(tmp_path, max_json_bytes=1)
        weights = peaked_state_dict(tiny_config(num_hidden_layers=1))
        torch.save(weights, tmp_path / "pytorch_model.bin")
        (tmp_path / "config.json").write_text("{}")
        assert read_checkpoint(tmp_path, max_json_bytes=2).config == {}
        with pytest.raises(CheckpointError, match=r"config\.json: 2 bytes, more than max_json_bytes=1"):
            read_checkpoint(tmp_path, max_json_bytes=1)
        (tmp_path / "verification.json").write_text('{"schema_version": 1}')
        with pytest.raises(ValueError, match="has no field verdict"):
            read_report(tmp_path, max_json_bytes=21)
        with pytest.raises(ValueError, match=r"verification\.json: 21 bytes, more than max_json_bytes=20"):
            read_report(tmp_path, max_json_bytes=20)

    def test_checkpoints_that_expand(self, tmp_path):
        weights = peaked_state_dict(tiny_config(num_hidden_layers=1))
        name = max(weights, key=lambda name: weights[name].nbytes)
        torch.save(weights | {name: weights[name][:1, :1].expand(10**6, 10**6)}, tmp_path / "expanded.pt")
        with pytest.raises(CheckpointError, match=r"expanded\.pt: its tensors add up to \d+ bytes, but the file has"):
            read_checkpoint(tmp_path / "expanded.pt")
        torch.save({"padding": bytes(10**6), **weights}, tmp_path / "plain.pt")
        with zipfile.ZipFile(tmp_path / "plain.pt") as old, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as new:
            for member in old.infolist():
                new.writestr(member.filename, old.read(member), zipfile.ZIP_DEFLATED)
        with pytest.raises(CheckpointError, match=r"bomb\.pt expands from \d+ to \d+ bytes"):
            read_checkpoint(tmp_path / "bomb.pt")


class TestAdvice:
    """The processor's words come through as they are; what they name is on the command line, or is said to be not."""

    @staticmethod
    def check_options_of(message: str) -> None:
        known = {option for action in build_parser()._actions for option in action.option_strings}
        advised = set(re.findall(r"\b(?:max_\w+|min_patches|native_resolution)\b", message))
        # The first has another name there; the others would resize.
        renamed = {"max_tokens", "max_patches", "min_patches", "native_resolution"}
        assert {f"--{name}" for name in advised - renamed} <= known
        assert message.endswith(HERE) == bool(advised & renamed) and message.count(HERE) <= 1
        assert "--max_sample_tokens" in HERE and "--max_sample_tokens" in known

    def test_the_help_says_what_max_tokens_is(self, capsys):
        with pytest.raises(SystemExit):
            parse_arguments(["--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert "patches; the processor's max_tokens" in text and "--max_tokens is its old name" in text

    @pytest.mark.parametrize(
        "given, switch",
        [
            ({"max_sample_tokens": 5}, "more than max_tokens=5. Raise max_tokens"),
            ({"max_image_pixels": 1175}, "more than max_image_pixels=1175. Raise max_image_pixels"),
            ({"max_frames": 7}, "more than max_frames=7. Raise max_frames"),
        ],
    )
    def test_limits(self, packing, tmp_path, given, switch):
        from examples.extraction.decoding import error_text

        image = tmp_path / "a.png"
        media.image(42, 28).save(image)
        video = media.write_video(tmp_path / "a.mp4", media.frames(8, 28, 42))
        for path, kind in ((image, "image"), (video, "video")):
            if kind == "image" and "max_frames" in given:
                continue
            with pytest.raises(ValueError) as caught:
                decode(packing, Item(0, "a", str(path), kind, 8), DecodeOptions(".", limits=SampleLimits(**given)))
            message = error_text(caught.value)
            assert str(caught.value) in message and switch in message
            self.check_options_of(message)

    def test_small_pictures(self, packing, tmp_path):
        from examples.extraction.decoding import error_text

        media.image(5, 5).save(tmp_path / "a.png")
        with pytest.raises(ValueError) as caught:
            decode(packing, Item(0, "a", str(tmp_path / "a.png"), "image", 8), DecodeOptions("."))
        message = error_text(caught.value)
        assert "smaller than one patch of 14x14. Enlarge it" in message
        self.check_options_of(message)

    def test_a_higher_limit_counts_for_pillow_too(self, packing, tmp_path, monkeypatch):
        media.image(60, 60).save(tmp_path / "a.png")
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
        asked = SampleLimits(max_image_pixels=3600)
        item = Item(0, "a", str(tmp_path / "a.png"), "image", 8)
        with pytest.raises(ValueError, match="too large to be opened safely"):
            decode(packing, item, DecodeOptions(".", limits=asked))
        asked.apply_to_pillow()
        assert decode(packing, item, DecodeOptions(".", limits=asked)).grid_thw == [1, 4, 4]


def test_the_readme_names_them():
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in DEFAULTS)
