# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Our parsers of files that strangers can have written, each as a function of bytes, and valid files to begin with."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import safetensors.torch
import torch

from conversion.checkpoints.checkpoint import read_checkpoint
from conversion.checkpoints.hub_configs import fitting_variant
from conversion.checkpoints.model_folder_writer import build_processor, stored_processor
from conversion.checkpoints.source_config import dropped_config_fields, infer_source_config, model_config
from conversion.common.model_folder import content_name, read_model_folder, verdict_on
from conversion.publishing.card_features import CardRecord
from conversion.publishing.model_card import render_card
from conversion.source.peaked_weights import peaked_state_dict
from conversion.verification.report import compare_reports, failures, markdown_report, read_report, summary_line
from llava_vit_hf import LlavaViTImageProcessor, LlavaViTModel, LlavaViTPackingConfig, LlavaViTProcessor
from tests import media
from tests.conversion.publishing.publishable import report_of, write_report
from tests.conversion.weights import tiny_config
from tests.examples import commands  # noqa: F401  the examples import each other by bare names
from tests.fuzz import mutators
from tests.models import TINY, dense_model


Parse = Callable[[bytes], None]
RECORD = CardRecord("user/name", "pin", "model")
SMALL = {**TINY, "num_hidden_layers": 1, "intermediate_size": 32}


@dataclass(frozen=True)
class Target:
    """One parser.

    Attributes:
        make: given an empty folder, the valid files to start from, and the parser of such a file. The parser raises an
            AssertionError where it accepts what it should not.
        mutate: what knows the format.
        names: an error names one of these.
        native: read by a library without Python code, so coverage says nothing.
    """

    make: Callable[[Path], tuple[list[bytes], Parse]]
    mutate: mutators.Mutate
    names: tuple[str, ...] = field(default=())
    native: bool = False


def _weights(layers: int = 1) -> dict[str, torch.Tensor]:
    return peaked_state_dict(tiny_config(num_hidden_layers=layers, intermediate_size=16))


def _read_all(path: Path) -> None:
    checkpoint = read_checkpoint(path)
    total = sum(spec.nbytes for spec in checkpoint.specs.values())
    for name, tensor in checkpoint.items():
        spec = checkpoint.specs[name]
        assert tuple(tensor.shape) == spec.shape and tensor.dtype == spec.dtype, f"{name} is not as announced"
    assert total == checkpoint.nbytes
    infer_source_config(checkpoint, num_attention_heads=None if checkpoint.config else 2)


def checkpoint_pickle(folder: Path) -> tuple[list[bytes], Parse]:
    def saved(content, **options) -> bytes:
        stream = io.BytesIO()
        torch.save(content, stream, **options)
        return stream.getvalue()

    weights = _weights()
    path = folder / "backbone.pt"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        _read_all(path)

    old = saved({"state_dict": weights}, _use_new_zipfile_serialization=False)
    return [saved(weights), saved({"model": weights}), old], parse


def checkpoint_safetensors(folder: Path) -> tuple[list[bytes], Parse]:
    path = folder / "model.safetensors"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        _read_all(path)

    dense = LlavaViTModel(dense_model(**SMALL).config).state_dict()
    return [safetensors.torch.save(weights) for weights in (_weights(), dense)], parse


def checkpoint_index(folder: Path) -> tuple[list[bytes], Parse]:
    weights = list(_weights().items())
    files = {"model-00001-of-00002.safetensors": weights[::2], "model-00002-of-00002.safetensors": weights[1::2]}
    for file, tensors in files.items():
        safetensors.torch.save_file(dict(tensors), folder / file)
    weight_map = {name: file for file, tensors in files.items() for name, _ in tensors}
    path = folder / "model.safetensors.index.json"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        _read_all(folder)

    return [json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode()], parse


def checkpoint_config(folder: Path) -> tuple[list[bytes], Parse]:
    """`config.json` beside weights, up to the configuration of a converted model."""
    model = dense_model(**SMALL)
    model.save_pretrained(folder)
    path = folder / "config.json"
    seed = path.read_bytes()

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        checkpoint = read_checkpoint(folder)
        config = model_config(infer_source_config(checkpoint), "packing", checkpoint.config, torch.float32)
        assert config.hidden_size == SMALL["hidden_size"] and config.num_hidden_layers == 1
        dropped_config_fields(checkpoint.config, "packing")
        fitting_variant(checkpoint.config)

    return [seed], parse


def checkpoint_processor(folder: Path) -> tuple[list[bytes], Parse]:
    """`preprocessor_config.json` beside weights, up to the processor of a converted model."""
    model = dense_model(**SMALL)
    model.save_pretrained(folder)
    LlavaViTImageProcessor(patch_size=4).save_pretrained(folder)
    path = folder / "preprocessor_config.json"
    checkpoint = read_checkpoint(folder)
    image = media.pattern(16, 24)

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        stored = stored_processor(checkpoint)
        processor = build_processor(model.config, "packing", stored)
        pixels = processor(images=[image], native_resolution=True)["pixel_values"]
        assert pixels.shape == (24, 48), f"found pixels {tuple(pixels.shape)}"

    return [path.read_bytes()], parse


def model_config_json(folder: Path) -> tuple[list[bytes], Parse]:
    """A `config.json`'s fields of ours, as `from_pretrained` hands them to the configuration."""
    fields = {name: value for name, value in vars(LlavaViTPackingConfig(**SMALL)).items() if name in FIELDS}

    def parse(data: bytes) -> None:
        content = _json_object(data)
        config = LlavaViTPackingConfig(**{name: value for name, value in content.items() if name in FIELDS})
        assert config.hidden_size % config.num_attention_heads == 0
        again = LlavaViTPackingConfig(**{name: getattr(config, name) for name in FIELDS})
        assert again.to_dict() == config.to_dict(), "does not survive a round trip"

    return [json.dumps(fields).encode()], parse


FIELDS = tuple(LlavaViTModel.config_class.__init__.__annotations__)


def _json_object(data: bytes) -> dict:
    """What transformers' reader makes of it; what it refuses is not ours."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def preprocessor_config_json(folder: Path) -> tuple[list[bytes], Parse]:
    """A `preprocessor_config.json`'s fields of ours, as `from_pretrained` hands them on, and a call."""
    names = LlavaViTImageProcessor.settings_names
    seeds = [LlavaViTImageProcessor(patch_size=4, packing=packing, size=32, crop_size=32) for packing in (True, False)]
    image = media.pattern(40, 48)

    def parse(data: bytes) -> None:
        content = {name: value for name, value in _json_object(data).items() if name in names}
        inputs = LlavaViTProcessor(LlavaViTImageProcessor.from_dict(content))(images=[image])
        assert inputs["pixel_values"].ndim in (2, 4) and inputs["pixel_values"].numel() > 0

    return [json.dumps({name: getattr(seed, name) for name in names}).encode() for seed in seeds], parse


def verification_report(folder: Path) -> tuple[list[bytes], Parse]:
    """`verification.json` as verify_model.py reads it: its text, and comparing a new one with it."""
    report = _real_report()
    path = folder / "verification.json"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        found = read_report(folder)
        markdown_report(found)
        summary_line(found)
        failures(found)
        differences = compare_reports(report, found)
        if found["verdict"] != report["verdict"]:
            assert differences, "another verdict goes unnoticed"

    return [json.dumps(report).encode()], parse


def _real_report() -> dict:
    numbers = {"min_cosine": 1.0, "mean_cosine": 1.0, "max_abs": 0.0, "relative_error": 1e-7}
    case = {"name": "image", "dtype": "float32", "result": "PASS", "reasons": [], "first_diverging": None}
    control = {"name": "swap", "description": "axes swapped", "weights": "converted", "case": "image"}
    margin = {"nearest_fault": "swap", "fault": 0.1, "model": 1e-7, "weights": "converted"}
    bounds = {"min_cosine": 0.99, "relative_error": 1e-4, "max_abs": None}
    oracle = {**bounds, "times_own_rounding": 8.0, "tightest_relative_error": 1e-6}
    config = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    config |= {"patch_size": 4, "layer_norm_type": "layer_norm", "dtype": "float32"}
    return {
        "schema_version": 1,
        "verdict": "PASS",
        "created": "2026-11-24T00:00:00+00:00",
        "seconds": 1.5,
        "taken_on_trust": "The number of heads.",
        "notes": ["A note."],
        "model": {"layout": "dense", "config": config, "files": {"config.json": "a" * 64}},
        "source": {"location": "backbone.pt", "sha256": {"backbone.pt": "b" * 64}},
        "environment": {"torch": "2.13.0"},
        "inputs": {"image": {"description": "an image", "grids": [[1, 2, 2]], "sha256": "c" * 64}},
        "bounds": {"float32": bounds, "float64": oracle},
        "cases": [{**case, "arrays": {"last_hidden_state": numbers, "hidden_states": [numbers, numbers]}}],
        "controls": [{**control, "metrics": numbers, "detected": True}],
        "margins": {"structural": margin},
    }


def published_report(folder: Path) -> tuple[list[bytes], Parse]:
    """`verification.json` as push_to_hub.py reads it: whether it proves the folder, and the model card."""
    _publishable(folder)
    path = folder / "verification.json"
    seed = path.read_bytes()
    hashes = json.loads(seed)["model"]["files"]

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        found = read_model_folder(folder)
        if found.unverified is None:
            assert found.report["model"]["files"] == hashes and found.report["verdict"] == "PASS"
        render_card(found, CardRecord("user/name", content_name(found), content_name(found)))

    return [seed], parse


def _publishable(folder: Path) -> None:
    dense = dense_model(**SMALL)
    dense.save_pretrained(folder)
    LlavaViTProcessor(LlavaViTImageProcessor(patch_size=4)).save_pretrained(folder)
    write_report(folder, report_of(folder))


def published_config(folder: Path) -> tuple[list[bytes], Parse]:
    """`config.json` as push_to_hub.py reads it, with the code that it names."""
    _publishable(folder)
    path = folder / "config.json"
    seed = path.read_bytes()

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        found = read_model_folder(folder)
        assert (found.unverified is None) == (data == seed), "a changed folder counts as verified"
        assert all("/" not in name for name in found.files), "files outside the folder"
        render_card(found, CardRecord("user/name", content_name(found), content_name(found)))

    return [seed], parse


def model_card(folder: Path) -> tuple[list[bytes], Parse]:
    """A README.md that is there already."""
    _publishable(folder)
    found = read_model_folder(folder)
    path = folder / "README.md"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        existing = read_model_folder(folder).readme
        card = render_card(found, RECORD, existing=existing)
        assert card.count("<!-- llava_vit_hf: generated up to here -->") == 1
        assert render_card(found, RECORD, existing=card) == card, "a second time changes the card"

    first = render_card(found, RECORD)
    prose = "---\ntags:\n- a\nlicense: mit\n---\n\n# Title\n\nProse.\n"
    return [first.encode(), prose.encode(), b"# Title\r\n\r\nProse.\r\n"], parse


def _manifest(folder: Path, suffix: str) -> Parse:
    from examples.extraction.inputs import collect_inputs, inputs_digest

    path = folder / f"manifest{suffix}"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        items = collect_inputs([str(path)])
        assert all(type(item.id) is str and item.num_frames >= 1 for item in items)
        assert len({item.id for item in items}) == len(items), "two items of one id"
        assert all(item.kind in (None, "image", "video") for item in items)
        inputs_digest(items)

    return parse


ROWS = (
    {"path": "a.jpg", "id": "first", "kind": "image"},
    {"path": "b/c.mp4", "num_frames": 4, "kind": "video"},
    {"path": "d.png", "id": 7},
)


def manifest_jsonl(folder: Path) -> tuple[list[bytes], Parse]:
    return ["\n".join(json.dumps(row) for row in ROWS).encode()], _manifest(folder, ".jsonl")


def manifest_csv(folder: Path) -> tuple[list[bytes], Parse]:
    return [b"path,id,num_frames,kind\na.jpg,first,,image\nb/c.mp4,,4,video\n"], _manifest(folder, ".csv")


def manifest_parquet(folder: Path) -> tuple[list[bytes], Parse]:
    import pyarrow
    import pyarrow.parquet

    stream = io.BytesIO()
    columns = {"path": ["a.jpg", "b.mp4"], "num_frames": [None, 4], "id": ["x", "y"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), stream)
    return [stream.getvalue()], _manifest(folder, ".parquet")


def _array_archive() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.ones((1, 4, 8), np.float32), b=np.zeros((4, 8), np.float32))
    return stream.getvalue()


def features_npz(folder: Path) -> tuple[list[bytes], Parse]:
    from examples.extraction.comparisons import compare_features
    from examples.extraction.feature_sets import load_features

    path = folder / "features_packing.npz"
    seed = _array_archive()
    path.write_bytes(seed)
    dense = load_features(path)

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        found = load_features(path)
        report = compare_features(dense, found, "float32")
        report.text()
        if report.passed:
            assert found.keys() == dense.keys() and all(np.isfinite(array).all() for array in found.values())

    return [seed], parse


def features_metadata(folder: Path) -> tuple[list[bytes], Parse]:
    """`metadata.json` of four files' features, up to comparing two runs and publishing."""
    from examples.extraction.comparisons import compare_runs
    from examples.extraction.feature_sets import open_features
    from examples.extraction.publishing import publish

    for name in ("features_hf.npz", "features_packing.npz"):
        (folder / name).write_bytes(_array_archive())
    (folder / "report.json").write_text('{"passed": true}')
    facts = {
        "sha256": "a" * 64,
        "frame_indices": [0],
        "pixels_sha256": "b" * 64,
        "file": "a.jpg",
        "source": "/x/a.jpg",
    }
    hashes = {"weights_sha256": {"model.safetensors": "d"}, "code_sha256": {"modeling_llava_vit.py": "e"}}
    models = {"dense": {"processor_sha256": "c", **hashes, "path": "/x"}}
    inputs = {"a": {"dense": facts, "packing": facts}}
    metadata = {"dtype": "float32", "num_frames": 8, "inputs": inputs, "models": models}
    path = folder / "metadata.json"
    path.write_text(json.dumps(metadata))
    mine = open_features(folder)
    published = folder.with_name("published")

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        report = compare_runs(mine, open_features(folder))
        report.text()
        publish(folder, str(published))

    return [json.dumps(metadata).encode()], parse


def _sharded(folder: Path) -> dict:
    """A run over two inputs, as bulk extraction leaves it. Returns a record of its index."""
    from examples.extraction.shards import ShardWriter, merge_shards

    writer = ShardWriter(folder, 0, "safetensors")
    record = {"path": "a.jpg", "sha256": "a" * 64, "tokens": 4, "grid_thw": [1, 2, 2], "frame_indices": None}
    for index in range(2):
        writer.add(index, {**record, "id": f"item{index}", "pixels_sha256": "b"}, {"-2": torch.ones(1, 2, 2, 8)})
    writer.finish()
    merge_shards(folder, 1)
    (folder / "metadata.json").write_text(json.dumps({"dtype": "float32", "models": {}}))
    return record


def features_index(folder: Path) -> tuple[list[bytes], Parse]:
    """`index.jsonl` of a run over many inputs, up to comparing two runs."""
    from examples.extraction.comparisons import compare_runs
    from examples.extraction.feature_sets import open_features

    _sharded(folder)
    path = folder / "index.jsonl"
    seed = path.read_bytes()
    mine = open_features(folder)
    array = np.ones((1, 2, 2, 8), np.float32)
    ones = SimpleNamespace(**{**vars(mine), "dtype": "float32", "load": lambda label: array})

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        compare_runs(ones, open_features(folder)).text()

    return [seed], parse


def features_shard(folder: Path) -> tuple[list[bytes], Parse]:
    """A shard's tensors, as safetensors and as `.npz`."""
    from examples.extraction.feature_sets import open_features

    _sharded(folder)
    path = folder / "shards" / "00000.safetensors"
    archive = io.BytesIO()
    np.savez(archive, **{"00000000.-2": np.ones((1, 2, 2, 8), np.float32), "00000001.-2": np.zeros((1, 1, 1, 8))})
    index = folder / "index.jsonl"
    texts = {suffix: index.read_text().replace("safetensors", suffix) for suffix in ("safetensors", "npz")}

    def parse(data: bytes) -> None:
        suffix = "npz" if data[:2] == b"PK" else "safetensors"
        path.with_suffix(f".{suffix}").write_bytes(data)
        index.write_text(texts[suffix])
        features = open_features(folder)
        assert all(isinstance(features.load(label), np.ndarray) for label in features.labels)

    return [path.read_bytes(), archive.getvalue()], parse


def features_shard_records(folder: Path) -> tuple[list[bytes], Parse]:
    """A shard's `.jsonl`, by which a run continues and its index is made."""
    from examples.extraction.shards import is_complete, merge_shards

    _sharded(folder)
    path = folder / "shards" / "00000.jsonl"
    seed = path.read_bytes()

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        if is_complete(folder, 0):
            counts = merge_shards(folder, 1)
            assert counts["tokens"] >= 0

    return [seed], parse


def processor_hash(folder: Path) -> tuple[list[bytes], Parse]:
    """`preprocessor_config.json` as a run's provenance records it."""
    from examples.extraction.provenance import _processor_hash

    LlavaViTImageProcessor(patch_size=4).save_pretrained(folder)
    path = folder / "preprocessor_config.json"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        assert len(_processor_hash(folder)) == 64

    return [path.read_bytes()], parse


def image_file(folder: Path) -> tuple[list[bytes], Parse]:
    """An image of any format; the pixels are Pillow's part, everything around it ours."""
    path = folder / "image.png"
    processor = LlavaViTProcessor(LlavaViTImageProcessor(patch_size=4, packing=True, max_tokens=4096))
    seeds = []
    for kind, mode in (("PNG", "RGBA"), ("JPEG", "RGB"), ("GIF", "P"), ("TIFF", "L"), ("BMP", "1"), ("WEBP", "RGB")):
        stream = io.BytesIO()
        media.image(9, 13, mode).save(stream, format=kind)
        seeds.append(stream.getvalue())

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        inputs = processor(images=[path])
        assert len(inputs["pixel_values"]) == inputs["grid_thw"].prod() and inputs["pixel_values"].isfinite().all()

    return seeds, parse


def report_verdict(folder: Path) -> tuple[list[bytes], Parse]:
    """Nothing but what `verdict_on` was proven on counts as verified."""
    hashes = {"config.json": "a" * 64, "model.safetensors": "b" * 64}
    report = {"schema_version": 1, "verdict": "PASS", "model": {"files": hashes}}

    def parse(data: bytes) -> None:
        found = _json_object(data)
        reason, _ = verdict_on(hashes, found)
        if reason is None:
            assert found["model"]["files"] == hashes and found["verdict"] == "PASS"

    return [json.dumps(report).encode()], parse


def planted_defect(folder: Path) -> tuple[list[bytes], Parse]:
    """Not ours: a parser with a defect, which the fuzzer must find."""
    from tests.fuzz.planted import parse

    return [b'{"kind": "picture", "size": {"width": 4, "height": 3}}'], parse


JSON = mutators.json_value
TARGETS = {
    "checkpoint_pickle": Target(checkpoint_pickle, mutators.zip_members, ("backbone.pt", "weights")),
    "checkpoint_safetensors": Target(checkpoint_safetensors, mutators.safetensors_header, ("model.safetensors",)),
    "checkpoint_index": Target(checkpoint_index, JSON, ("checkpoint_index",)),
    "checkpoint_config": Target(checkpoint_config, JSON, ("config.json", "must be", "checkpoint_config")),
    "checkpoint_processor": Target(checkpoint_processor, JSON),
    "model_config_json": Target(model_config_json, JSON, FIELDS),
    "preprocessor_config_json": Target(preprocessor_config_json, JSON, LlavaViTImageProcessor.settings_names),
    "verification_report": Target(verification_report, JSON, ("verification.json",)),
    "published_report": Target(published_report, JSON, ("verification.json",)),
    "published_config": Target(published_config, JSON, ("config.json", "published_config")),
    "report_verdict": Target(report_verdict, JSON),
    "model_card": Target(model_card, mutators.flip, ("README.md",)),
    "manifest_jsonl": Target(manifest_jsonl, mutators.json_lines, ("manifest.jsonl", "--inputs")),
    "manifest_csv": Target(manifest_csv, mutators.csv_cells, ("manifest.csv", "--inputs")),
    "manifest_parquet": Target(manifest_parquet, mutators.flip, ("manifest.parquet", "--inputs"), native=True),
    "features_npz": Target(features_npz, mutators.zip_members, ("features_packing.npz",)),
    "features_metadata": Target(features_metadata, JSON, ("metadata.json",)),
    "features_index": Target(features_index, mutators.json_lines, ("index.jsonl", "shards/")),
    "features_shard": Target(features_shard, mutators.safetensors_header, ("00000.",)),
    "features_shard_records": Target(features_shard_records, mutators.json_lines, ("00000.jsonl",)),
    "processor_hash": Target(processor_hash, JSON, ("preprocessor_config.json",)),
    "image_file": Target(image_file, mutators.flip, ("image.png",)),
}
PLANTED = {"planted_defect": Target(planted_defect, JSON)}
