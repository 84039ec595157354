# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Draws the features of a run: PNG files, and one page, report.html, that opens anywhere.

    python examples/visualize_features.py --features_dir features
    python examples/visualize_features.py --features_dir features --reference user/model --revision COMMIT

Of each sample: the input as the model saw it, its features' first three principal components as colours (a video as a
strip of frames), and where they differ: the dense model's from the packing model's, or yours from the reference's.
"""

import argparse
import dataclasses
import math
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.common.arguments import ArgumentParser  # noqa: E402
from conversion.common.files import write_atomically  # noqa: E402
from examples.extraction.comparisons import Report, compare_features, compare_runs  # noqa: E402
from examples.extraction.feature_pictures import heat_colours, patch_errors, principal_components, strip, unpatchify  # noqa: E402
from examples.extraction.feature_sets import (  # noqa: E402
    FeatureSet,
    is_paired,
    load_index,
    load_pair,
    open_features,
)
from examples.extraction.files import sha256_of_input  # noqa: E402
from examples.extraction.html_report import SamplePictures, render_page  # noqa: E402
from examples.extraction.limits import (  # noqa: E402
    DEFAULT_LIMITS,
    FileLimits,
    SampleLimits,
    add_limit_arguments,
    limits_of,
)
from examples.extraction.publishing import find_published  # noqa: E402


REPORT_FILE = "report.html"


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
        folder: where to look for files that are not where the run found them.
        limits: of pixels and frames; of tokens a sample may have what was recorded.
    """

    def __init__(self, model_path: str, revision: str | None, folder: Path | None, limits: SampleLimits):
        from transformers import AutoProcessor

        self._processor = AutoProcessor.from_pretrained(model_path, trust_remote_code=True, revision=revision)
        self._folder, self._limits = folder, limits

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


def samples_of(features: FeatureSet, layer: str, limits: FileLimits = DEFAULT_LIMITS) -> Iterator[Sample]:
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


def compare(features: FeatureSet, reference: FeatureSet | None, limits: FileLimits = DEFAULT_LIMITS) -> Report | None:
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
    drawn = SamplePictures(sample.name, facts, is_strip=grid[0] > 1)
    if inputs is not None:
        try:
            drawn.pictures["input"] = strip(inputs.frames(sample.record, True if paired else None), patches=False)
        except (ValueError, OSError) as error:
            drawn.note = f"No input: {error}."
    mapped = tokens.reshape(*grid, -1)
    drawn.pictures["principal components"] = strip(principal_components(mapped), patches=True)
    other, label = reference, sample.label
    if reference is None and paired:
        other, label = features, sample.other_label
    if other is not None and label in other.labels:
        expected = other.load(label)
        if expected.size == tokens.size:
            errors = patch_errors(mapped, expected.reshape(mapped.shape))
            caption = f"difference, largest {errors.max():.1e}" if errors.any() else "difference: bit for bit equal"
            drawn.pictures[caption] = strip(heat_colours(errors), patches=True)
        else:
            drawn.note += f" No difference: shape {tokens.shape} here, {expected.shape} there."
    return drawn


def environment(metadata: dict) -> dict:
    """What the page says of where and how the features were made."""
    facts = {"feature": metadata.get("feature"), "dtype": metadata["dtype"]}
    facts["device"] = f"{metadata.get('device')} ({metadata.get('device_name')})"
    facts.update(metadata.get("versions", {}))
    for name, model in metadata.get("models", {}).items():
        facts[f"{name} model"] = f"{Path(model['path']).name}, {model['config'].get('model_type')}"
        for file, digest in model["weights_sha256"].items():
            facts[f"{name} {file}"] = f"sha256 {digest}"
    return facts


def save_pictures(drawn: SamplePictures, place: int, folder: Path) -> None:
    """Writes one PNG per picture: `000_name.input.png` and so on."""
    stem = f"{place:03d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', drawn.name)}"
    for caption, picture in drawn.pictures.items():
        kind = re.split(r"[,:]", caption)[0].replace(" ", "_")
        write_atomically(folder / f"{stem}.{kind}.png", lambda stream, picture=picture: picture.save(stream, "PNG"))


def run(options: argparse.Namespace) -> None:
    """Draws everything.

    Raises:
        ValueError: if features are missing or damaged.
    """
    limits = limits_of(options)
    features = open_features(options.features_dir, limits)
    reference = None
    if options.reference is not None:
        reference = open_features(find_published(options.reference, options.revision), limits)
    samples = list(samples_of(features, options.layer, limits))
    if options.ids:
        unknown = set(options.ids) - {sample.name for sample in samples}
        if unknown:
            raise ValueError(f"--ids {', '.join(sorted(unknown))}: the run has no such sample.")
        samples = [sample for sample in samples if sample.name in options.ids]
    shown = samples[: options.max_samples]
    model = features.metadata["models"]["packing"]
    inputs = None if options.no_inputs else _inputs(model["path"], options)
    folder = options.output_dir or options.features_dir / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    pages = []
    for place, sample in enumerate(tqdm(shown, unit="sample")):
        pages.append(draw(sample, features, reference, inputs))
        save_pictures(pages[-1], place, folder)
    title = f"Features of {Path(model['path']).name}"
    page = render_page(
        title, pages, compare(features, reference, limits), environment(features.metadata), len(samples) - len(shown)
    )
    write_atomically(folder / REPORT_FILE, lambda stream: stream.write(page.encode()))
    print(f"{folder / REPORT_FILE}: {len(shown)} of {len(samples)} samples")


def _inputs(recorded: str, options: argparse.Namespace) -> Inputs | None:
    # Loading a processor runs its code: of what metadata.json names only a folder of this machine is trusted.
    if options.processor is None and not (os.path.isabs(recorded) and os.path.isdir(recorded)):
        print(
            f"no inputs are shown: the run's model {recorded} is not a folder here; pass --processor", file=sys.stderr
        )
        return None
    limits = SampleLimits(max_image_pixels=options.max_image_pixels, max_frames=options.max_frames)
    limits.apply_to_pillow()
    return Inputs(options.processor or recorded, options.processor_revision, options.inputs_dir, limits)


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--features_dir", type=Path, required=True, help="folder that extract_features.py wrote")
    parser.add_argument("--output_dir", type=Path, help="of the pictures (default: pictures/ in the features' folder)")
    parser.add_argument("--reference", help="another run: its folder, or a repo id with features in verification/")
    parser.add_argument("--revision", help="commit of the reference, when it is a repo")
    parser.add_argument("--processor", help="model folder or repo whose processor reads the inputs (its code is run)")
    parser.add_argument("--processor_revision", help="commit of --processor, when it is a repo")
    parser.add_argument("--inputs_dir", type=Path, help="where the inputs are, if they were moved")
    parser.add_argument("--no_inputs", action="store_true", help="draw features only; needs neither inputs nor model")
    parser.add_argument("--layer", default="-2", help="of a run over many inputs (default -2)")
    parser.add_argument("--ids", nargs="+", help="only these samples")
    parser.add_argument("--max_samples", type=int, default=24, help="draw so many (default 24)")
    parser.add_argument("--max_image_pixels", type=int, help="of inputs (default: the processor's, 178956970)")
    parser.add_argument("--max_frames", type=int, help="of input videos (default: the processor's, 1000000)")
    add_limit_arguments(parser)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "--layer" in arguments[:-1]:
        # argparse takes a value that starts with a minus sign for an option, unless it is attached.
        place = arguments.index("--layer")
        arguments[place : place + 2] = [f"--layer={arguments[place + 1]}"]
    try:
        run(parser.parse_args(arguments))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
