# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Features of two images and two videos with the dense and the packing model, and how they agree."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoModel, AutoProcessor

from conversion.common.files import write_atomically
from examples.extraction.comparisons import Report, compare_features
from examples.extraction.decoding import pixels_digest
from examples.extraction.feature_sets import DENSE_FILE, METADATA_FILE, PACKING_FILE
from examples.extraction.files import exclusive, sha256_of_input, write_json
from examples.extraction.limits import with_options
from examples.extraction.provenance import (
    LocatedModel,
    check_model_name,
    describe_device,
    describe_model,
    locate_model,
    versions,
)
from examples.extraction.requests import PairedRequest


FEATURE_LAYER = -2


def extract_pair(request: PairedRequest) -> Report:
    """Extracts the features of four files with both models, writes them, and compares them.

    Returns:
        The comparison. Only if it passed do the two models agree on every input.

    Raises:
        ValueError: for a file or model that does not exist, an input that cannot be read or is over a limit, models
            that do not go together, and a folder that another run is writing.
        OSError: if a model cannot be had.
    """
    for option, (name, _) in {
        "hf_model_path": request.dense_model,
        "packing_model_path": request.packing_model,
    }.items():
        check_model_name(option, name)
    for name, path in request.files.items():
        if not path.exists():
            raise ValueError(f"--{name} {path}: no such file.")
    dense_model = locate_model("hf_model_path", *request.dense_model)
    packing_model = locate_model("packing_model_path", *request.packing_model)
    dense_processor = _load_processor(dense_model, "hf_model_path", "dense")
    packing_processor = _load_processor(packing_model, "packing_model_path", "packing")
    with exclusive(request.output_dir):
        dense = _run_model(dense_model, dense_processor, request)
        packing = _run_model(packing_model, packing_processor, request)
        return _write(dense, packing, request)


def _load_processor(located: LocatedModel, option: str, kind: str):
    processor = AutoProcessor.from_pretrained(located.name, **located.loading)
    found = "packing" if processor.image_processor.packing else "dense"
    if found != kind:
        raise ValueError(f"--{option} {located.name}: this is a {found} model, expected the {kind} one.")
    return processor


@dataclass(frozen=True)
class _Extracted:
    """Of one model: features and the processor's reports by input, and what the model is."""

    features: dict[str, np.ndarray]
    reports: dict[str, dict]
    model: dict


def _run_model(located: LocatedModel, processor, request: PairedRequest) -> _Extracted:
    """Runs one model over all inputs, one at a time, at native resolution."""
    model = AutoModel.from_pretrained(
        located.name,
        dtype=getattr(torch, request.dtype),
        attn_implementation=request.attn_implementation,
        **located.loading,
    )
    model = model.to(request.device or "cpu").eval()
    request.sample_limits.apply_to_pillow()
    features, reports = {}, {}
    for name, path in tqdm(request.files.items(), desc=model.config.model_type, unit="input"):
        kind = "images" if name.startswith("image") else "videos"
        try:
            batch = processor(
                **{kind: [str(path.absolute())]},
                num_frames=request.num_frames,
                native_resolution=True,
                return_metadata=True,
                **(request.selection if kind == "videos" else {}),
                **request.sample_limits.arguments(),
            )
        except ValueError as error:
            raise ValueError(with_options(str(error))) from error
        (report,) = batch.pop("metadata")
        reports[name] = {**report, "pixels_sha256": pixels_digest(batch["pixel_values"].numpy())}
        with torch.inference_mode():
            output = model(**batch.to(model.device), vision_feature_layer=FEATURE_LAYER)
        features[name] = output.hidden_states[0].float().cpu().numpy()
    return _Extracted(features, reports, describe_model(model, located))


def describe_input(path: Path, report: dict) -> dict:
    """What a verifier needs to know to repeat the extraction from one file."""
    description = {"file": path.name, "sha256": sha256_of_input(path), **report}
    if path.is_file() and report.get("kind") == "image":
        with Image.open(path) as image:
            description.update(width=image.width, height=image.height, mode=image.mode, format=image.format)
    return description


def _write(dense: _Extracted, packing: _Extracted, request: PairedRequest) -> Report:
    folder = request.output_dir
    metadata = {
        "feature": f"hidden_states[{FEATURE_LAYER}]",
        "num_frames": request.num_frames,
        **request.selection,
        "dtype": request.dtype,
        **describe_device(request.device or "cpu"),
        "versions": versions(),
        "models": {"dense": dense.model, "packing": packing.model},
        "inputs": {
            name: {"dense": describe_input(path, dense.reports[name]), "packing": packing.reports[name]}
            for name, path in request.files.items()
        },
    }
    write_atomically(folder / DENSE_FILE, lambda stream: np.savez(stream, **dense.features))
    write_atomically(folder / PACKING_FILE, lambda stream: np.savez(stream, **packing.features))
    write_json(folder / METADATA_FILE, metadata)
    report = compare_features(dense.features, packing.features, request.dtype, request.threshold)
    report.write(folder)
    return report
