# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Features of two images and two videos with the dense and the packing model, and how they agree."""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoModel, AutoProcessor

from conversion.common.files import write_atomically
from examples.extraction.comparisons import compare_features
from examples.extraction.decoding import pixels_digest
from examples.extraction.feature_sets import DENSE_FILE, METADATA_FILE, PACKING_FILE
from examples.extraction.files import exclusive, sha256_of_input, write_json
from examples.extraction.limits import SampleLimits, with_options
from examples.extraction.provenance import describe_device, describe_model, versions


FEATURE_LAYER = -2
INPUT_NAMES = ("image1", "image2", "video1", "video2")


def load_processors(options: argparse.Namespace) -> tuple:
    """The processors of the dense and of the packing model.

    Raises:
        ValueError: if a path names the other kind of model.
    """
    processors = []
    for argument, kind in (("hf_model_path", "dense"), ("packing_model_path", "packing")):
        path = getattr(options, argument)
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=True, revision=options.revision)
        found = "packing" if processor.image_processor.packing else "dense"
        if found != kind:
            raise ValueError(f"--{argument} {path}: this is a {found} model, expected the {kind} one.")
        processors.append(processor)
    return tuple(processors)


def extract(
    model_path: str, processor, inputs: dict[str, Path], options: argparse.Namespace
) -> tuple[dict[str, np.ndarray], dict, dict]:
    """Runs one model over all inputs, one at a time, at native resolution.

    Args:
        model_path: a dense or a packing model folder or repo.
        processor: its processor.
        inputs: name (`image...` or `video...`) to file.

    Returns:
        Features by name, what the processor reports of each input, and what the model is.

    Raises:
        ValueError: for an input that cannot be read, or is over a limit.
    """
    dtype = getattr(torch, options.dtype)
    loading = {"trust_remote_code": True, "revision": options.revision}
    model = AutoModel.from_pretrained(
        model_path, dtype=dtype, attn_implementation=options.attn_implementation, **loading
    )
    model = model.to(options.device or "cpu").eval()
    limits = SampleLimits(options.max_sample_tokens, options.max_image_pixels, options.max_frames)
    limits.apply_to_pillow()
    features, reports = {}, {}
    for name, path in tqdm(inputs.items(), desc=model.config.model_type, unit="input"):
        kind = "images" if name.startswith("image") else "videos"
        try:
            batch = processor(
                **{kind: [str(path.absolute())]},
                num_frames=options.num_frames,
                native_resolution=True,
                return_metadata=True,
                **limits.arguments(),
            )
        except ValueError as error:
            raise ValueError(with_options(str(error))) from error
        (report,) = batch.pop("metadata")
        reports[name] = {**report, "pixels_sha256": pixels_digest(batch["pixel_values"].numpy())}
        with torch.inference_mode():
            output = model(**batch.to(model.device), vision_feature_layer=FEATURE_LAYER)
        features[name] = output.hidden_states[0].float().cpu().numpy()
    return features, reports, describe_model(model, model_path, options.revision)


def describe_input(path: Path, report: dict) -> dict:
    """What a verifier needs to know to repeat the extraction from one file."""
    description = {"file": path.name, "sha256": sha256_of_input(path), **report}
    if path.is_file() and report.get("kind") == "image":
        with Image.open(path) as image:
            description.update(width=image.width, height=image.height, mode=image.mode, format=image.format)
    return description


def check_inputs(options: argparse.Namespace) -> dict[str, Path]:
    """The inputs by name.

    Raises:
        ValueError: if a file does not exist.
    """
    inputs = {name: getattr(options, name) for name in INPUT_NAMES}
    for name, path in inputs.items():
        if not path.exists():
            raise ValueError(f"--{name} {path}: no such file.")
    return inputs


def run(options: argparse.Namespace) -> int:
    """Extracts, writes and compares. Returns the exit code: 0 only if every input passed.

    Raises:
        ValueError: for an input that does not exist, models that do not go together, and a folder that another run is
            writing.
    """
    inputs = check_inputs(options)
    processors = load_processors(options)
    with exclusive(options.output_dir):
        return _extract_into(options.output_dir, inputs, *processors, options)


def _extract_into(
    folder: Path, inputs: dict[str, Path], dense_processor, packing_processor, options: argparse.Namespace
) -> int:
    dense, dense_reports, dense_model = extract(options.hf_model_path, dense_processor, inputs, options)
    packing, packing_reports, packing_model = extract(options.packing_model_path, packing_processor, inputs, options)
    metadata = {
        "feature": f"hidden_states[{FEATURE_LAYER}]",
        "num_frames": options.num_frames,
        "dtype": options.dtype,
        **describe_device(options.device or "cpu"),
        "versions": versions(),
        "models": {"dense": dense_model, "packing": packing_model},
        "inputs": {
            name: {"dense": describe_input(path, dense_reports[name]), "packing": packing_reports[name]}
            for name, path in inputs.items()
        },
    }
    write_atomically(folder / DENSE_FILE, lambda stream: np.savez(stream, **dense))
    write_atomically(folder / PACKING_FILE, lambda stream: np.savez(stream, **packing))
    write_json(folder / METADATA_FILE, metadata)
    report = compare_features(dense, packing, options.dtype, options.threshold)
    report.write(folder)
    print(report.text())
    return 0 if report.passed else 1
