# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Draws a run: for each sample its input, its features and where they differ, as PNG files and one page."""

import dataclasses
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from conversion.common.files import write_atomically
from conversion.common.hub_revision import split_revision
from examples.extraction.comparisons import Report, compare_features, compare_runs
from examples.extraction.feature_pictures import (
    dim_dropped,
    heat_colours,
    on_grid,
    patch_errors,
    principal_components,
    strip,
    unpatchify,
)
from examples.extraction.feature_sets import FeatureSet, is_paired, load_index, load_pair, open_features
from examples.extraction.files import sha256_of_input
from examples.extraction.html_report import SamplePictures, render_page
from examples.extraction.limits import DEFAULT_LIMITS, FileLimits, SampleLimits
from examples.extraction.publishing import find_published


REPORT_FILE = "report.html"


@dataclass(frozen=True, kw_only=True)
class DrawingRequest:
    """What to draw.

    Attributes:
        features_dir: folder of the run.
        output_dir: of the pictures; None is `pictures/` in the run's folder.
        reference: another run to compare with: its folder, or a repo id with features in `verification/`.
        revision: of the reference, where it is a repo.
        processor: model folder or repo whose processor reads the inputs, and whose code is executed for that; None is
            the run's model, if it is a folder of this machine.
        processor_revision: of the processor, where it is in a repo.
        inputs_dir: where the inputs are, if they are no longer where the run found them.
        no_inputs: draw features only, for which neither inputs nor a model are needed.
        layer: of a run over many inputs.
        ids: the samples to draw; None is all.
        max_samples: no more than so many.
        sample_limits: of inputs. How many tokens they have was recorded.
        file_limits: of the run's and the reference's files.
    """

    features_dir: Path
    output_dir: Path | None = None
    reference: str | None = None
    revision: str | None = None
    processor: str | None = None
    processor_revision: str | None = None
    inputs_dir: Path | None = None
    no_inputs: bool = False
    layer: str = "-2"
    ids: list[str] | None = None
    max_samples: int = 24
    sample_limits: SampleLimits = SampleLimits()
    file_limits: FileLimits = DEFAULT_LIMITS


@dataclass(frozen=True)
class Drawing:
    """What was drawn.

    Attributes:
        page: the file to open.
        shown: samples on it.
        total: samples that were asked for.
        note: why inputs are missing from it, or nothing.
    """

    page: Path
    shown: int
    total: int
    note: str = ""


def draw_run(request: DrawingRequest) -> Drawing:
    """Draws a run.

    Raises:
        ValueError: if features are missing or damaged, or the run has no such sample or layer.
    """
    features = open_features(request.features_dir, request.file_limits)
    reference = None
    if request.reference is not None:
        reference = open_features(find_published(request.reference, request.revision), request.file_limits)
    samples = list(samples_of(features, request.layer, request.file_limits))
    if request.ids:
        unknown = set(request.ids) - {sample.name for sample in samples}
        if unknown:
            raise ValueError(f"--ids {', '.join(sorted(unknown))}: the run has no such sample.")
        samples = [sample for sample in samples if sample.name in request.ids]
    shown = samples[: request.max_samples]
    model = features.metadata["models"]["packing"]["path"]
    inputs, note = None, ""
    if not request.no_inputs:
        # Loading a processor runs its code: of what metadata.json names only a folder of this machine is trusted.
        if request.processor is not None or (os.path.isabs(model) and os.path.isdir(model)):
            inputs = Inputs(request.processor or model, request)
        else:
            note = f"no inputs are shown: the run's model {model} is not a folder here; pass --processor"
    folder = request.output_dir or request.features_dir / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    pages = []
    for place, sample in enumerate(tqdm(shown, unit="sample")):
        pages.append(draw(sample, features, reference, inputs))
        save_pictures(pages[-1], place, folder)
    page = render_page(
        f"Features of {_model_name(model)}",
        pages,
        compare(features, reference, request.file_limits),
        environment(features.metadata),
        len(samples) - len(shown),
    )
    write_atomically(folder / REPORT_FILE, lambda stream: stream.write(page.encode()))
    return Drawing(folder / REPORT_FILE, len(shown), len(samples), note)


def _model_name(path: str) -> str:
    """A repo id, or the end of a folder's path: `packing` alone would name many models."""
    return "/".join(Path(path).parts[-2:])


@dataclass(frozen=True)
class Sample:
    """A sample of a run: its features' label, that of what they are compared with, and what was recorded of it."""

    name: str
    label: str
    other_label: str
    record: dict


class Inputs:
    """Shows inputs as the model saw them, cropped to whole patches.

    Args:
        model_path: folder or repo of the processor.
    """

    def __init__(self, model_path: str, request: DrawingRequest):
        from transformers import AutoProcessor

        name, revision = split_revision("--processor", model_path, request.processor_revision)
        self._processor = AutoProcessor.from_pretrained(name, trust_remote_code=True, revision=revision)
        self._folder, self._limits = request.inputs_dir, request.sample_limits
        self._limits.apply_to_pillow()

    def frames(self, record: dict, native_resolution: bool | None) -> np.ndarray:
        """`(t, height, width, 3)` uint8.

        Raises:
            ValueError: if the file is not there, is another one now, or gives another grid.
        """
        path = self._find(record)
        if sha256_of_input(path) != record["sha256"]:
            raise ValueError(f"{path} is not the file that the features came from")
        kind = {"images": [str(path)]}
        if record["kind"] == "video":
            kind = {"videos": [str(path)], "num_frames": len(record["frame_indices"])}
        raw = {"packing": True, "do_rescale": False, "do_normalize": False, "native_resolution": native_resolution}
        limits = dataclasses.replace(self._limits, max_sample_tokens=math.prod(record["grid_thw"]))
        batch = self._processor(**kind, **raw, **limits.arguments(), return_tensors="np")
        if batch["grid_thw"][0].tolist() != list(record["grid_thw"]):
            raise ValueError(f"{path} gives another grid than the run had")
        return unpatchify(batch["pixel_values"], batch["grid_thw"][0].tolist())

    def _find(self, record: dict) -> Path:
        recorded = Path(record.get("source") or record.get("path") or record.get("file", ""))
        candidates = [recorded] + ([self._folder / recorded.name] if self._folder else [])
        for path in candidates:
            if path.name and path.exists():
                return path
        raise ValueError(f"the input {recorded} is not here; --inputs_dir says where to look")


def samples_of(features: FeatureSet, layer: str, limits: FileLimits) -> Iterator[Sample]:
    """The samples of a run."""
    if is_paired(features.folder):
        for name, models in features.metadata["inputs"].items():
            record = {**models["dense"], **models["packing"]}
            yield Sample(name, f"{name} packing", f"{name} dense", record)
        return
    if layer not in features.metadata["layers"]:
        raise ValueError(f"--layer {layer}: the run has {', '.join(features.metadata['layers'])}.")
    for record in load_index(features.folder, limits):
        yield Sample(record["id"], f"{record['id']} {layer}", f"{record['id']} {layer}", record)


def compare(features: FeatureSet, reference: FeatureSet | None, limits: FileLimits) -> Report | None:
    """With the reference; without one the two models of a run, if it has two."""
    if reference is not None:
        return compare_runs(features, reference)
    if not is_paired(features.folder):
        return None
    return compare_features(*load_pair(features.folder, limits), features.dtype)


def draw(sample: Sample, features: FeatureSet, reference: FeatureSet | None, inputs: Inputs | None) -> SamplePictures:
    """All pictures of one sample."""
    grid = list(sample.record["grid_thw"])
    tokens = features.load(sample.label)
    paired = is_paired(features.folder)
    facts = f"{sample.record['kind']}, {grid[0]} x {grid[1]} x {grid[2]} patches"
    if sample.record["kind"] == "video":
        facts += f", frames {', '.join(map(str, sample.record['frame_indices']))}, read by {sample.record['decoder']}"
    kept = sample.record.get("kept_patches")
    if kept is not None:
        facts += f"; {len(kept)} patches kept by {sample.record.get('codec_score')} ({sample.record.get('codec_way')})"
    drawn = SamplePictures(sample.name, facts, is_strip=grid[0] > 1)
    if inputs is not None:
        try:
            frames = inputs.frames(sample.record, True if paired else None)
            caption = "input" if kept is None else "input, dropped patches dimmed"
            drawn.pictures[caption] = strip(dim_dropped(frames, grid, kept), patches=False)
        except (ValueError, OSError) as error:
            drawn.note = f"No input: {error}."
    mapped = tokens.reshape(-1, tokens.shape[-1])
    colours = on_grid(principal_components(mapped), grid, kept)
    drawn.pictures["principal components"] = strip(colours, patches=True)
    other, label = reference, sample.label
    if reference is None and paired:
        other, label = features, sample.other_label
    if other is not None and label in other.labels:
        expected = other.load(label)
        if expected.size == tokens.size:
            errors = patch_errors(mapped, expected.reshape(mapped.shape))
            caption = f"difference, largest {errors.max():.1e}" if errors.any() else "difference: bit for bit equal"
            drawn.pictures[caption] = strip(on_grid(heat_colours(errors), grid, kept), patches=True)
        else:
            drawn.note += f" No difference: shape {tokens.shape} here, {expected.shape} there."
    return drawn


def environment(metadata: dict) -> dict:
    """What the page says of where and how the features were made."""
    facts = {"feature": metadata.get("feature"), "dtype": metadata["dtype"]}
    facts["device"] = f"{metadata.get('device')} ({metadata.get('device_name')})"
    facts.update(metadata.get("versions", {}))
    for name, model in metadata.get("models", {}).items():
        facts[f"{name} model"] = f"{_model_name(model['path'])}, {model['config'].get('model_type')}"
        for file, digest in model["weights_sha256"].items():
            facts[f"{name} {file}"] = f"sha256 {digest}"
    return facts


def save_pictures(drawn: SamplePictures, place: int, folder: Path) -> None:
    """Writes one PNG per picture: `000_name.input.png` and so on."""
    stem = f"{place:03d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', drawn.name)}"
    for caption, picture in drawn.pictures.items():
        kind = re.split(r"[,:]", caption)[0].replace(" ", "_")
        write_atomically(folder / f"{stem}.{kind}.png", lambda stream, picture=picture: picture.save(stream, "PNG"))
