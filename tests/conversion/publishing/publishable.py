# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Tiny converted folders with a verification report written by hand, ready to be published."""

import hashlib
import json
import subprocess
from pathlib import Path

import torch

from conversion.checkpoints.model_folder_writer import ConversionRequest, convert_folder
from conversion.common.metrics import compare
from conversion.common.model_folder import model_file_names, processor_sha256
from conversion.source.peaked_weights import peaked_state_dict
from tests.conversion.weights import tiny_config
from tests.loopback_hub import LoopbackHub
from tests.warm_python import REAL


ROOT = Path(__file__).resolve().parents[3]


def converted_folder(folder: Path, layout: str = "dense", seed: int = 0, **request) -> Path:
    """A model folder of two layers, converted from peaked random weights."""
    checkpoint = folder.with_name(f"{folder.name}.pt")
    torch.save(peaked_state_dict(tiny_config(), seed), checkpoint)
    convert_folder(ConversionRequest(str(checkpoint), layout, folder, num_attention_heads=2, **request))
    return folder


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def file_hashes(folder: Path) -> dict[str, str]:
    return {name: sha256_of((folder / name).read_bytes()) for name in model_file_names(folder)}


def report_of(folder: Path, verdict: str = "PASS") -> dict:
    """A report on the files of `folder` as they are, with the fields of a real one."""
    metrics = compare(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.000001]])).to_dict()
    wrong = compare(torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 2.0]])).to_dict()
    config = json.loads((folder / "config.json").read_text())
    case = {
        "name": "image_448",
        "description": "one image",
        "dtype": "float32",
        "result": verdict if verdict == "FAIL" else "PASS",
        "arrays": {"last_hidden_state": metrics, "pooler_output": metrics, "hidden_states": [metrics, wrong, metrics]},
        "first_diverging": None,
        "reasons": [],
        "seconds": 0.1,
    }
    control = {
        "name": "height_width_swapped",
        "description": "positions (t, w, h) for (t, h, w)",
        "case": "image_448",
        "kind": "structural",
        "detected": True,
        "weights": "converted",
        "metrics": wrong,
        "reasons": ["min cosine"],
    }
    return {
        "schema_version": 1,
        "verdict": verdict,
        "created": "2026-11-23T12:00:00+00:00",
        "model": {"layout": "dense", "config": config, "files": file_hashes(folder)},
        "source": {"location": "backbone.pt", "layout": "source", "sha256": {"backbone.pt": "a" * 64}, "config": {}},
        "environment": {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0", "threads": 1},
        "inputs": {"image_448": {"description": "one | image", "grids": [[1, 32, 32]], "sha256": "b" * 64}},
        "bounds": {"float32": {"min_cosine": 0.99999999, "relative_error": 1e-5, "max_abs": None}},
        "cases": [case],
        "controls": [control],
        "margins": {
            "structural": {
                "nearest_fault": control["name"],
                "fault": wrong["relative_error"],
                "model": metrics["relative_error"],
                "weights": "converted",
            }
        },
        "taken_on_trust": "2 attention heads.",
        "notes": ["The weights hide nothing."],
        "seconds": 1.0,
    }


def write_report(folder: Path, report: dict | None = None) -> Path:
    report = report_of(folder) if report is None else report
    (folder / "verification.json").write_text(json.dumps(report))
    (folder / "VERIFICATION.md").write_text(f"# Verification: {report['verdict']}\n")
    return folder


def verified_folder(folder: Path, layout: str = "dense", seed: int = 0, **request) -> Path:
    """A converted folder with a report that says PASS."""
    return write_report(converted_folder(folder, layout, seed, **request))


PUBLISH_FEATURES = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from conversion.common.model_folder import PublishError
from conversion.publishing.publish_features import publish_features
try:
    print(publish_features(Path(sys.argv[1]), sys.argv[2], create_pr="pr" in sys.argv[3:]))
except PublishError as error:
    sys.exit(f"refused: {{error}}")
"""


def push_features(hub: LoopbackHub, run: Path, repo_id: str, *options: str, token: str | None, code: int = 0) -> str:
    """What publishing a run's features wrote; a token must be in none of it."""
    command = [REAL, "-c", PUBLISH_FEATURES.format(root=str(ROOT)), str(run), repo_id, *options]
    environment = hub.client_environment(run.parent / "cache", token)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
    assert token is None or token not in done.stdout + done.stderr
    return done.stdout + done.stderr


def features_folder(folder: Path, **models: Path) -> Path:
    """A run over four inputs with the folders `dense=` and `packing=`, as `extract_features.py` leaves it."""
    folder.mkdir()
    inputs = {}
    for name in ("image1", "image2", "video1", "video2"):
        path = folder.with_name(f"{name}.bin")
        path.write_bytes(name.encode())
        facts = {"file": path.name, "sha256": sha256_of(path.read_bytes()), "source": str(path)}
        inputs[name] = {"dense": facts, "packing": facts}
    metadata = {
        "feature": "hidden_states[-2]",
        "num_frames": 8,
        "dtype": "float32",
        "inputs": inputs,
        "models": {layout: model_facts(path) for layout, path in models.items()},
    }
    (folder / "metadata.json").write_text(json.dumps(metadata))
    (folder / "report.json").write_text('{"passed": true}')
    for name in ("features_hf.npz", "features_packing.npz"):
        (folder / name).write_bytes(name.encode())
    return folder


def model_facts(folder: Path) -> dict:
    """What a run records of a model."""
    hashes = file_hashes(folder)
    return {
        "path": str(folder),
        "weights_sha256": {name: value for name, value in hashes.items() if name.endswith(".safetensors")},
        "code_sha256": {name: value for name, value in hashes.items() if name.endswith(".py")},
        "processor_sha256": processor_sha256(json.loads((folder / "preprocessor_config.json").read_text())),
    }
