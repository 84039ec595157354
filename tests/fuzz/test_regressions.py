# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What fuzzing found: files that made a parser fail in another way than with an error of ours."""

import json

import numpy as np
import pytest
import torch

from llava_vit_hf import LlavaViTImageProcessor, LlavaViTProcessor
from tests.fuzz.outcomes import Tally
from tests.fuzz.parsers import TARGETS
from tests.fuzz.public_api import ENTRIES


DEEP = b'{"a": ' + b"[" * 20000 + b"]" * 20000 + b"}"


def _edit(**fields):
    """A JSON file with fields replaced; `...` takes one away, and `a__b` is `b` in `a`, of a list the first."""

    def build(data: bytes) -> bytes:
        first, *rest = data.split(b"\n") if data.count(b"\n{") else [data]
        content = json.loads(first)
        for name, value in fields.items():
            *outer, last = name.split("__")
            place = content
            for part in outer:
                place = place[part][0] if isinstance(place[part], list) else place[part]
            if value is ...:
                del place[last]
            else:
                place[last] = value
        return b"\n".join([json.dumps(content).encode(), *rest])

    return build


def _bytes(data: bytes):
    return lambda seed: data


def _cut(size: int):
    return lambda seed: seed[:size]


REPORT_FIELDS = (
    "verdict created seconds taken_on_trust notes model source inputs bounds cases controls margins".split()
)
CASES = {
    **{f"deep_json/{name}": (name, _bytes(DEEP)) for name in ("checkpoint_processor", "verification_report")},
    **{f"deep_json/{name}": (name, _bytes(DEEP)) for name in ("published_report", "features_index", "manifest_jsonl")},
    **{f"deep_json/{name}": (name, _bytes(DEEP)) for name in ("features_shard_records", "processor_hash")},
    **{f"report/no_{name}": ("verification_report", _edit(**{name: ...})) for name in REPORT_FIELDS},
    "report/detected": ("verification_report", _edit(controls__detected=...)),
    "report/number": ("verification_report", _edit(bounds__float32__min_cosine="x")),
    "report/name": ("verification_report", _edit(cases__name=[])),
    "report/sizes": ("verification_report", _edit(model__config={})),
    "report/half_a_bound": ("verification_report", _edit(bounds__float64__times_own_rounding=...)),
    "card/source": ("published_report", _edit(source=[1])),
    "card/notes": ("published_report", _edit(notes=[3])),
    "card/inputs": ("published_report", _edit(inputs__image_448=7)),
    "card/cases": ("published_report", _edit(cases=True)),
    "card/not_text": ("model_card", _bytes(b"# \xb2 title")),
    "published/model_type": ("published_config", _edit(model_type=[])),
    "published/auto_map": ("published_config", _edit(auto_map={"AutoModel": 0.5})),
    "published/auto_map_entry": ("published_config", _edit(auto_map={"AutoModel": [1]})),
    "published/no_norm": ("published_config", _edit(layer_norm_type=...)),
    "published/no_heads": ("published_config", _edit(num_attention_heads=0)),
    "published/theta": ("published_config", _edit(rope_theta="x")),
    "index/long_name": ("checkpoint_index", _edit(weight_map={"a": "x" * 5000})),
    "config/model_type": ("checkpoint_config", _edit(model_type=[])),
    "config/heads": ("checkpoint_config", _edit(num_attention_heads=[])),
    "config/dropout": ("model_config_json", _edit(attention_dropout=[])),
    "config/activation": ("model_config_json", _edit(hidden_act=[])),
    "config/initializer": ("model_config_json", _edit(initializer_range=-1)),
    "config/theta": ("model_config_json", _edit(rope_theta=10**30)),
    "config/head": ("model_config_json", _edit(use_head=None)),
    "config/huge": ("model_config_json", _edit(image_size=10**30)),
    "processor/std": ("preprocessor_config_json", _edit(image_std=[1.0, 1.0])),
    "processor/std_of_zero": ("preprocessor_config_json", _edit(image_std=0)),
    "processor/mean": ("preprocessor_config_json", _edit(image_mean=["\x00"] * 3)),
    "processor/factor": ("preprocessor_config_json", _edit(rescale_factor="x")),
    "processor/filter": ("preprocessor_config_json", _edit(resample=[])),
    "processor/unknown_filter": ("preprocessor_config_json", _edit(resample=10**30)),
    "processor/size": ("preprocessor_config_json", _edit(size=[1])),
    "processor/switch": ("preprocessor_config_json", _edit(do_resize="x")),
    "index_jsonl/no_id": ("features_index", _edit(id=...)),
    "index_jsonl/no_keys": ("features_index", _edit(keys=...)),
    "index_jsonl/key": ("features_index", _edit(keys={"-2": "/etc/passwd"})),
    "index_jsonl/outside": ("features_index", _edit(shard="../../secret.npz")),
    "index_jsonl/shard": ("features_index", _edit(shard=[])),
    "index_jsonl/no_object": ("features_index", _bytes(b"7\n")),
    "metadata/inputs": ("features_metadata", _edit(inputs=[])),
    "metadata/facts": ("features_metadata", _edit(inputs={"a": {"dense": 0.5}})),
    "metadata/models": ("features_metadata", _edit(models={"dense": True})),
    "shard/empty": ("features_shard", _bytes(b"")),
    "shard/no_archive": ("features_shard", _bytes(b"PK\x03\x04")),
    "records/empty": ("features_shard_records", _bytes(b"")),
    "records/long_name": ("features_shard_records", _edit(files={"x" * 5000: 1})),
    "records/outside": ("features_shard_records", _edit(files={"../secret": 1})),
    "records/header": ("features_shard_records", _bytes(b"null\n")),
    "records/no_json": ("features_shard_records", _bytes(b"{\n")),
    "records/not_text": ("features_shard_records", _bytes(b"\xff\n")),
    "processor_hash/list": ("processor_hash", _bytes(b"[]")),
    "processor_hash/not_text": ("processor_hash", _bytes(b"\xff")),
    "parquet/damaged": ("manifest_parquet", lambda seed: seed[:-60] + bytes(52) + seed[-8:]),
    "npz/header": ("features_npz", lambda seed: seed.replace(b"{'descr'", b"{['des'x", 1)),
}


@pytest.mark.parametrize("case", CASES)
def test_found_by_fuzzing(case, tmp_path):
    name, build = CASES[case]
    folder = tmp_path / name
    folder.mkdir()
    seeds, parse = TARGETS[name].make(folder)
    data, tally = build(seeds[0]), Tally(case)
    finding = tally.watch(lambda: parse(data), names=TARGETS[name].names)
    assert finding is None
    assert tally.refused == 1, "this damaged file is accepted"


ARGUMENTS = {
    "norm_of_array": ("configuration", {"packing": False, "fields": {"layer_norm_type": np.ones(3)}}),
    "theta": ("configuration", {"packing": True, "fields": {"rope_theta": 10**30}}),
    "chunk": ("configuration", {"packing": True, "fields": {"chunk_size_feed_forward": 2**63}}),
    "grid_of_none": ("split_features", {"grid_thw": None, "features": torch.zeros(1, 2)}),
    "features": ("split_features", {"grid_thw": [[1, 1, 1]], "features": ()}),
    "keep": ("selection", {"grids": [(1, 1, 2)] * 2, "keep": [{}, None], "scores": None, "top_k": None}),
    "scores": ("selection", {"grids": [(1, 1, 2)], "keep": None, "scores": np.float32(1) * np.ones(()), "top_k": 1}),
    "frames": ("grid_helpers", {"name": "temporal_positions", "a": 2.5, "b": 64, "c": 0}),
    "pack_in_dense": ("dense_forward", {"call": {"pixel_values": torch.zeros(1, 48), "grid_thw": torch.ones(1, 3)}}),
    "indices": ("dense_forward", {"call": {"pixel_values": torch.zeros(1, 3, 4, 4), "visible_indices": [0]}}),
    "pixels_on_meta": ("dense_forward", {"call": {"pixel_values": torch.zeros(1, 3, 4, 4, device="meta")}}),
    "layer": ("dense_forward", {"call": {"pixel_values": torch.zeros(1, 3, 4, 4), "vision_feature_layer": 1.5}}),
    "grid": ("packing_forward", {"call": {"pixel_values": torch.zeros(1, 48), "grid_thw": 1}}),
    "grid_on_meta": (
        "packing_forward",
        {"call": {"pixel_values": torch.zeros(1, 48), "grid_thw": torch.ones(1, 3, device="meta").long()}},
    ),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_found_by_fuzzing(case):
    name, drawn = ARGUMENTS[case]
    tally = Tally(case)
    assert tally.watch(lambda: ENTRIES[name].call(**drawn), names=ENTRIES[name].names) is None
    assert tally.refused == 1, "this is accepted"


@pytest.mark.parametrize("layout", [{"images": [np.full((8, 8), 1.5, np.float32)], "do_rescale": False}])
def test_floats_that_cannot_be_resized(layout):
    processor = LlavaViTProcessor(LlavaViTImageProcessor(patch_size=4, size=8, crop_size=8))
    with pytest.raises(ValueError, match="images or videos: an array of float32 .* native_resolution=True"):
        processor(**layout)
    processor(**layout, native_resolution=True)
