# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The embedder gives the features of the bulk extraction, byte for byte, through datasets, streams and Ray."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from examples.extraction.embedder import LlavaViTEmbedder
from examples.extraction.encoding import Encoder
from examples.extraction.feature_sets import FeatureSet, open_features
from tests import media
from tests.examples.commands import ROOT, environment, on_one_thread, read_lines


LAYERS = (-2, -1, "pooler")
# As `many_arguments` has them.
SHARD, PACK = 8, 600
BROKEN = b"no image, and no video"
READ_BY_WORKERS = """
import json, sys
from examples.extraction.embedder import LlavaViTEmbedder
embedder = LlavaViTEmbedder(sys.argv[1], device="cpu", workers=1, decode_timeout=2)
print(json.dumps(embedder({"video": sys.argv[2:]})["error"]))
"""


@pytest.fixture(autouse=True)
def one_thread():
    with on_one_thread():
        yield


@pytest.fixture(scope="module")
def settings(models) -> dict:
    return {"packing_model_path": str(models / "tiny_packing"), "layers": LAYERS, "pack_tokens": PACK, "device": "cpu"}


@pytest.fixture(scope="module")
def embedder(settings) -> LlavaViTEmbedder:
    return LlavaViTEmbedder(**settings)


@pytest.fixture(scope="module", params=[0, 2], ids=["here", "workers"])
def either(request, settings) -> LlavaViTEmbedder:
    """One that reads by itself, and one that has processes for it."""
    return LlavaViTEmbedder(**settings, workers=request.param)


@pytest.fixture(scope="module")
def expected(many_features) -> FeatureSet:
    return open_features(many_features)


@pytest.fixture(scope="module")
def columns(many_features) -> dict[str, list]:
    """The many files as bytes, in the order of the run."""
    records = read_lines(many_features / "index.jsonl")
    stored = [{"bytes": Path(record["path"]).read_bytes(), "path": None} for record in records]
    return {
        "id": [record["id"] for record in records],
        **{
            kind: [value if record["kind"] == kind else None for record, value in zip(records, stored, strict=True)]
            for kind in ("image", "video")
        },
    }


def check_rows(rows: list[dict], expected: FeatureSet) -> None:
    """Every sample of the run is there once, with its bytes."""
    records = {record["id"]: record for record in read_lines(expected.folder / "index.jsonl")}
    assert sorted(row["id"] for row in rows) == sorted(records)
    for row in rows:
        record = records[row["id"]]
        assert (row["error"], row["kind"], list(row["grid"])) == ("", record["kind"], record["grid_thw"])
        for layer in (-2, -1):
            tokens = np.asarray(row[f"layer_{layer}"], np.float32)
            assert tokens.tobytes() == expected.load(f"{row['id']} {layer}").tobytes()
            assert tokens.shape == (record["tokens"], 64)
        assert np.asarray(row["pooler"], np.float32).tobytes() == expected.load(f"{row['id']} pooler").tobytes()


def batches(columns: dict[str, list], size: int = SHARD) -> list[dict[str, list]]:
    rows = len(columns["id"])
    return [{name: values[start : start + size] for name, values in columns.items()} for start in range(0, rows, size)]


def rows_of(batch: dict) -> list[dict]:
    return [{name: values[row] for name, values in batch.items()} for row in range(len(batch["error"]))]


def test_batches_are_shards(either, columns, expected):
    outputs = [either(batch) for batch in batches(columns)]
    assert [name for output in outputs for name in output["id"]] == columns["id"]
    assert "image" not in outputs[0] and outputs[0]["pooler"].shape == (SHARD, 64)
    check_rows([row for output in outputs for row in rows_of(output)], expected)


def test_the_comparison_of_bytes_can_fail(settings, columns, expected):
    """Another layer under the name of the one that was asked for."""
    other = LlavaViTEmbedder(**{**settings, "layers": (-3, -1, "pooler")})
    rows = [row for batch in batches(columns) for row in rows_of(other(batch))]
    with pytest.raises(AssertionError):
        check_rows([{**row, "layer_-2": row["layer_-3"]} for row in rows], expected)


def test_a_column_may_hold_its_values_in_any_form(either, many_files, four_files):
    path = many_files / "images" / "07.png"
    content, picture = path.read_bytes(), PIL.Image.open(path)
    array = np.asarray(picture)
    forms = [str(path), path, content, bytearray(content), picture, array, torch.from_numpy(array.copy())]
    forms += [array.tolist(), {"bytes": content, "path": "07.png"}, {"bytes": None, "path": str(path)}]
    found = either({"image": forms})
    assert found["error"] == [""] * len(forms)
    alone = either({"image": [path]})
    for row in range(len(forms)):
        assert np.array_equal(found["grid"][row], alone["grid"][0])
        np.testing.assert_allclose(found["layer_-2"][row], alone["layer_-2"][0], atol=1e-4)
    path = four_files / "1.mp4"
    forms = [str(path), path.read_bytes(), {"bytes": path.read_bytes(), "path": "1.mp4"}]
    frames = media.frames(12, 34, 50)
    forms += [list(frames), frames, [PIL.Image.fromarray(frame) for frame in frames], [png(frame) for frame in frames]]
    forms += [[{"bytes": png(frame), "path": None} for frame in frames], frames.tolist()]
    found = either({"video": forms})
    assert found["error"] == [""] * len(forms) and found["kind"] == ["video"] * len(forms)
    for group in (range(3), range(3, len(forms))):
        for row in group:
            np.testing.assert_allclose(found["layer_-2"][row], found["layer_-2"][group[0]], atol=1e-4)
    assert np.abs(found["layer_-2"][0] - found["layer_-2"][3]).max() > 0.01


def png(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def test_bad_rows_say_why_and_cost_nothing_else(either, columns, tmp_path):
    good = batches(columns)[0]
    bad = [BROKEN, {"bytes": None, "path": None}, None, str(tmp_path / "none.png"), "http://127.0.0.1:9/a.png", 7]
    images = [value for pair in zip(bad, good["image"], strict=False) for value in pair] + good["image"][len(bad) :]
    found, alone = either({"image": images}), either(good)
    wrong = [row for row, error in enumerate(found["error"]) if error]
    assert wrong == list(range(0, 2 * len(bad), 2))
    messages = [found["error"][row] for row in wrong]
    for message, part in zip(
        messages, ("cannot be read as an image", "expected bytes or path", "found 0 values", "no file", "no file", ""),
        strict=True,
    ):  # fmt: skip
        assert part in message
    right = [row for row in range(len(images)) if row not in wrong]
    for name in ("layer_-2", "layer_-1", "pooler"):
        assert [found[name][row].tobytes() for row in right] == [value.tobytes() for value in alone[name]]
    for row in wrong:
        assert found["layer_-2"][row].shape == (0, 64) and np.isnan(found["pooler"][row]).all()
        assert found["grid"][row].tolist() == [0, 0, 0]
    both = either({"image": [good["image"][0]["bytes"]], "video": [BROKEN]})
    assert "found 2 values" in both["error"][0]
    (error,) = either({"video": [{"bytes": BROKEN, "path": "clip.mp4"}]})["error"]
    assert "clip.mp4" in error and "tmp" not in error


def test_no_good_row_and_no_row(either):
    found = either({"id": [1], "image": [BROKEN]})
    assert found["id"] == [1] and found["error"][0] and found["pooler"].dtype == np.float32
    assert either({"image": []})["pooler"].shape == (0, 64)


def test_a_picture_that_is_opened_and_damaged_is_a_bad_row(either, many_files):
    """Pillow reads it when it is needed, which for another process is when it is sent."""
    content = (many_files / "images" / "07.png").read_bytes()
    found = either({"image": [PIL.Image.open(io.BytesIO(content[: len(content) // 2])), content]})
    assert "truncated" in found["error"][0] and found["error"][1] == ""


@pytest.mark.long
@pytest.mark.once
def test_a_row_that_hangs_or_crashes_is_lost_alone(settings, hanging_videos):
    videos, variables = hanging_videos
    variables["PYTHONPATH"] += os.pathsep + str(ROOT)
    arguments = [settings["packing_model_path"], *(str(path) for path in sorted(videos.iterdir()))]
    result = subprocess.run(
        [sys.executable, "-c", READ_BY_WORKERS, *arguments], env=variables, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    whole, crash, hang, last = json.loads(result.stdout.splitlines()[-1])
    assert whole == last == "" and "ended with exit code" in crash and "longer than 2 seconds" in hang


def test_a_batch_that_fails_leaves_no_rows_for_the_next(settings, columns, monkeypatch):
    embedder = LlavaViTEmbedder(**{**settings, "pack_tokens": 1}, workers=2)
    first, second = batches(columns)[:2]

    def out_of_memory(self, samples):
        raise RuntimeError("does not fit in memory")

    with monkeypatch.context() as patched:
        patched.setattr(Encoder, "_forward", out_of_memory)
        with pytest.raises(RuntimeError, match="does not fit") as held:
            embedder(first)
    found = embedder(second)
    assert found["error"] == [""] * SHARD and held.value
    assert [len(value) for value in found["layer_-2"]] == [grid.prod() for grid in found["grid"]]


def test_frames_are_the_means_of_their_tokens(settings, embedder, four_files):
    batch = {"video": [four_files / "1.mp4", four_files / "2.mp4"]}
    tokens = embedder(batch)
    frames = LlavaViTEmbedder(**settings, form="frames")(batch)
    for row, (t, h, w) in enumerate(tokens["grid"]):
        # In float64: numpy adds up float32 along this axis one by one, which is wrong in the last digits.
        mean = tokens["layer_-2"][row].reshape(t, h * w, 64).mean(1, dtype=np.float64)
        assert frames["layer_-2"][row].shape == (t, 64)
        np.testing.assert_array_max_ulp(frames["layer_-2"][row], mean.astype(np.float32), maxulp=1)
        assert np.abs(mean[0] - mean[-1]).max() > 1e-3
    assert frames["pooler"].tobytes() == tokens["pooler"].tobytes()


def test_dtypes_of_features(settings, four_files):
    for dtype, save_dtype, saved in (("bfloat16", None, "float32"), ("float32", "float16", "float16")):
        found = LlavaViTEmbedder(**settings, dtype=dtype, save_dtype=save_dtype)({"image": [four_files / "1.jpg"]})
        assert found["layer_-2"][0].dtype == found["pooler"].dtype == np.dtype(saved)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"packing_model_path": "nowhere"}, "--packing_model_path nowhere: no such folder"),
        ({"layers": (9,)}, "--layers 9: the model has 4 hidden states"),
        ({"layers": ()}, "expected integers and pooler"),
        ({"layers": "pooler"}, "layers='pooler': expected a sequence"),
        ({"layers": -2}, "layers=-2: expected a sequence"),
        ({"form": "mean"}, "--form must be one of tokens, frames"),
        ({"dtype": "int8"}, "--dtype must be one of"),
        ({"save_dtype": "bfloat16"}, "--save_dtype must be one of float32, float16"),
        ({"pack_tokens": 0}, "--pack_tokens must be at least 1"),
        ({"num_frames": 0}, "--num_frames must be at least 1"),
        ({"workers": -1}, "found -1 and 60"),
        ({"decode_timeout": 0}, "found 0 and 0"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings, changed, message):
    with pytest.raises(ValueError, match=message):
        LlavaViTEmbedder(**{**settings, **changed})


def test_wrong_columns_are_refused_by_name(embedder, settings, models):
    with pytest.raises(ValueError, match="the columns id, img; expected image or video"):
        embedder({"id": [1], "img": [BROKEN]})
    for row in ("picture.jpg", BROKEN, {"bytes": BROKEN, "path": None}, PIL.Image.new("RGB", (8, 8))):
        with pytest.raises(TypeError, match="column 'image' is a .*; expected a value for each row"):
            embedder({"image": row})
    with pytest.raises(ValueError, match="found {'image': 1, 'video': 2}"):
        embedder({"image": [BROKEN], "video": [None, BROKEN]})
    with pytest.raises(ValueError, match="named as features are: error, grid"):
        embedder({"image": [BROKEN], "grid": [1], "error": [2]})
    named = LlavaViTEmbedder(**settings, image_column="img", keep_columns=("id",))
    found = named({"id": [1], "img": [BROKEN], "grid": [3]})
    assert found["id"] == [1] and found["grid"].shape == (1, 3)
    with pytest.raises(ValueError, match="keep_columns .'id'.: the batch has the columns img"):
        named({"img": [BROKEN]})
    with pytest.raises(ValueError, match="dense model"):
        LlavaViTEmbedder(str(models / "tiny_dense"))


def test_a_pickle_is_settings_and_hashes(embedder, settings, columns, models, tmp_path):
    content = pickle.dumps(embedder)
    assert len(content) < 10_000
    batch = batches(columns)[3]
    first, second = embedder(batch), pickle.loads(content)(batch)
    assert [value.tobytes() for value in first["layer_-2"]] == [value.tobytes() for value in second["layer_-2"]]
    copy = shutil.copytree(models / "tiny_packing", tmp_path / "model_of_a_pickle")
    content = pickle.dumps(LlavaViTEmbedder(**{**settings, "packing_model_path": str(copy)}))
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match="the model has changed"):
        pickle.loads(content)


@pytest.fixture
def dataset(columns, tmp_path, monkeypatch):
    """The many files as `datasets` stores them, undecoded, with a cache of its own."""
    datasets = pytest.importorskip("datasets", reason="needs datasets (pip install datasets)")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets.Dataset.from_dict(columns)


@pytest.mark.long
def test_datasets_map(embedder, dataset, expected, settings):
    mapped = dataset.map(embedder, batched=True, batch_size=SHARD, remove_columns=["image", "video"])
    assert mapped.column_names[0] == "id" and mapped.features["layer_-2"].feature.feature.dtype == "float32"
    check_rows(list(mapped.with_format("numpy")), expected)
    # What the cache is found by is the same for an embedder that is made again, and another for other layers.
    again = dataset.map(
        LlavaViTEmbedder(**settings), batched=True, batch_size=SHARD, remove_columns=["image", "video"]
    )
    assert again._fingerprint == mapped._fingerprint
    other = LlavaViTEmbedder(**{**settings, "layers": (-1,)})
    other = dataset.select(range(8)).map(other, batched=True, batch_size=SHARD)
    assert "layer_-2" not in other.column_names


@pytest.mark.long
def test_datasets_stream(embedder, dataset, expected):
    stream = dataset.to_iterable_dataset(num_shards=1)
    rows = list(stream.map(embedder, batched=True, batch_size=SHARD, remove_columns=["image", "video"]))
    assert [row["id"] for row in rows] == dataset["id"][:]
    check_rows(rows, expected)


@pytest.mark.long
def test_bad_rows_in_datasets(embedder, dataset):
    """Of a whole batch too, before any good one: a column's type must not hang on what comes first."""
    datasets = pytest.importorskip("datasets")
    bad = datasets.Dataset.from_dict(
        {
            "id": [f"bad {index}" for index in range(20)],
            "image": [{"bytes": BROKEN, "path": None}] * 20,
            "video": [None] * 20,
        },
        features=dataset.features,
    )
    both = datasets.concatenate_datasets([bad, dataset.select(range(4))])
    options = {"batched": True, "batch_size": SHARD, "remove_columns": ["image", "video"]}
    for rows in (
        list(both.map(embedder, writer_batch_size=SHARD, **options)),
        list(both.to_iterable_dataset().map(embedder, **options)),
    ):
        assert [bool(row["error"]) for row in rows] == [True] * 20 + [False] * 4
        assert [len(row["layer_-2"]) > 0 for row in rows] == [False] * 20 + [True] * 4


@pytest.fixture
def ray(monkeypatch):
    """A Ray of two cores on this machine, for one test."""
    pytest.importorskip("ray.data", reason="needs Ray (pip install 'ray[data]')")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    import ray

    ray.init(
        num_cpus=2,
        object_store_memory=200 * 2**20,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
    )
    try:
        yield ray
    finally:
        ray.shutdown()


@pytest.mark.long
@pytest.mark.once
def test_ray_map_batches(ray, columns, expected, settings):
    broken = {"id": "bad", "image": {"bytes": BROKEN, "path": None}, "video": None}
    rows = [{name: values[row] for name, values in columns.items()} for row in range(len(columns["id"]))]
    # A block for each batch, which batch_size=None keeps, as what shares a batch shares packs.
    parts = [rows[start : start + SHARD] for start in range(0, len(rows), SHARD)]
    import pyarrow

    schema = pyarrow.schema(
        {"id": pyarrow.string()}
        | {kind: pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}) for kind in ("image", "video")}
    )
    parts[-1] = [*parts[-1], broken]
    tables = [pyarrow.Table.from_pylist(part, schema=schema) for part in parts]
    dataset = ray.data.from_arrow(tables)
    mapped = dataset.map_batches(
        LlavaViTEmbedder,
        fn_constructor_kwargs=settings,
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=1,
    )
    found = mapped.take_all()
    assert {row["id"] for row in found if row["error"]} == {"bad"}
    check_rows([row for row in found if not row["error"]], expected)


def test_nothing_of_datasets_or_ray_is_imported():
    code = (
        "import sys, examples.extraction.embedder; print(sorted({'datasets', 'ray', 'webdataset'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
