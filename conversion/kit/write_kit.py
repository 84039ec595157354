# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Writes the conformance kit: checkpoints, inputs, right outputs, and what known faults put out.

Everything is computed by the oracle in float64 from exact weights and pixels; nothing in the kit hangs on the versions
of torch or transformers. `check.py`, the clients and the pages are copied as they are.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from conversion.checkpoints.checkpoint import read_checkpoint
from conversion.checkpoints.model_folder_writer import ConversionRequest, convert_folder, staging_folder
from conversion.checkpoints.source_config import Source
from conversion.common.files import sha256_of_file
from conversion.common.model_folder import CONFIG, PROCESSOR_CONFIGS, code_file_names, read_json
from conversion.kit.cases import CHECKPOINTS, kit_cases, kit_weights
from conversion.kit.check import rows_of
from conversion.source.encoder import SourceConfig, SourceEncoder
from conversion.verification.cases import Sample
from conversion.verification.oracle_faults import OracleFault, fault_combinations, run_oracle


KIT_FILE = "kit.json"
COPIED = ("README.md", "check.py", "clients/numpy_client.py", "clients/onnx_client.py", "clients/export_dense.py")
ENCODER_PAGE = Path(__file__).resolve().parents[2] / "docs" / "encoder.md"
# The largest case is left out of the faults' outputs, which would be half as large again with it.
WITHOUT_FAULTS = ("clip_64",)
# A fault's output that is this far from right, by relative error, is stored in float16.
LARGE_DIFFERENCE = 0.05
# Less is rounding of float64.
NO_DIFFERENCE = 1e-10
# Fields of configurations that not every version of transformers writes. Nothing in them is needed to load.
OF_VERSIONS = ("transformers_version", "torch_dtype", "dtype", "processor_class")


def write_kit(folder: Path, overwrite: bool = False) -> None:
    """Makes the kit's folder, complete or not at all.

    Raises:
        CheckpointError: if the folder exists and may not be overwritten.
        OSError: if writing fails.
    """
    with staging_folder(folder, overwrite) as kit:
        faults = fault_combinations()
        with tqdm(total=len(CHECKPOINTS) * (len(faults) + 1), unit="fault", desc="kit") as bar:
            for name, config in CHECKPOINTS.items():
                write_checkpoint(kit / name, config, faults, bar.update)
        for name in COPIED:
            (kit / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(Path(__file__).with_name("check.py").parent / name, kit / name)
        shutil.copyfile(ENCODER_PAGE, kit / ENCODER_PAGE.name)
        (kit / KIT_FILE).write_text(json.dumps(describe_kit(kit, faults), indent=1) + "\n", encoding="utf-8")


def describe_kit(kit: Path, faults: dict[str, tuple[OracleFault, ...]]) -> dict:
    """What `kit.json` says: checkpoints, cases, faults by name, and SHA-256 of every other file."""
    files = sorted(path for path in kit.rglob("*") if path.is_file())
    cases = kit_cases(patch_size=1)
    return {
        "checkpoints": {name: asdict(config) for name, config in CHECKPOINTS.items()},
        "cases": {name: description for name, (description, _) in cases.items()},
        "cases_with_faults": [name for name in cases if name not in WITHOUT_FAULTS],
        "faults": {name: " and ".join(fault.description for fault in parts) for name, parts in faults.items()},
        "sha256": {path.relative_to(kit).as_posix(): sha256_of_file(path) for path in files},
    }


def write_checkpoint(
    folder: Path, config: SourceConfig, faults: dict[str, tuple[OracleFault, ...]], done: Callable[[], object]
) -> None:
    """Writes one checkpoint in its three layouts, the inputs, and the outputs.

    Args:
        done: called after the right outputs and after those of each fault.
    """
    folder.mkdir()
    weights, backbone = kit_weights(config), folder / "backbone.safetensors"
    save_file(weights, backbone)
    (folder / CONFIG).write_text(json.dumps(asdict(config), indent=1) + "\n", encoding="utf-8")
    for layout in ("dense", "packing"):
        source = Source(read_checkpoint(backbone), config)
        convert_folder(ConversionRequest(str(backbone), layout, folder / layout), source=source)
        leave_out_processor(folder / layout)
        for path in (folder / layout).glob("*.json"):
            remove_versions(path)
    cases = {name: samples for name, (_, samples) in kit_cases(config.patch_size).items()}
    inputs = {f"{case}/{name}": array for case in cases for name, array in case_inputs(cases[case], config.patch_size)}
    save_file(inputs, folder / "inputs.safetensors")
    encoder = SourceEncoder.from_state_dict(config, weights, torch.float64)
    right = {case: run_oracle(encoder, samples) for case, samples in cases.items()}
    expected = {f"{case}/{name}": array.float() for case in cases for name, array in right[case].items()}
    save_file(expected, folder / "expected.safetensors")
    done()
    outputs = {}
    for fault, parts in faults.items():
        for case in (case for case in cases if case not in WITHOUT_FAULTS):
            for name, array in wrong_rows(run_oracle(encoder, cases[case], parts), right[case]):
                outputs[f"{fault}/{case}/{name}"] = array
        done()
    save_file(outputs, folder / "faults.safetensors")


def leave_out_processor(folder: Path) -> None:
    """Removes from a model folder what only its processor needs: the kit's inputs are patches already."""
    for name in PROCESSOR_CONFIGS:
        (folder / name).unlink()
    wanted = code_file_names(folder, CONFIG, read_json(folder / CONFIG)["auto_map"])
    for path in folder.glob("*.py"):
        if path.name not in wanted:
            path.unlink()


def remove_versions(path: Path) -> None:
    """Rewrites a configuration without what the version of transformers decides."""
    config = {name: value for name, value in read_json(path).items() if name not in OF_VERSIONS and value is not None}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def case_inputs(samples: tuple[Sample, ...], patch_size: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and array of what goes into a case; `README.md` describes them."""
    patches, positions = [], []
    for number, sample in enumerate(samples):
        yield f"pixels.{number}", torch.from_numpy(sample.frames.copy())
        if sample.kept is not None:
            yield f"visible_indices.{number}", torch.from_numpy(sample.kept)
        patches.append(flat_patches(sample, patch_size))
        positions.append(sample.positions(patch_size))
    yield "patches", torch.cat(patches)
    yield "positions", torch.cat(positions)
    yield "grid_thw", torch.tensor([sample.grid(patch_size) for sample in samples])
    yield "cu_seqlens", torch.tensor([0, *np.cumsum([len(part) for part in positions])], dtype=torch.int32)


def flat_patches(sample: Sample, patch_size: int) -> torch.Tensor:
    """Normalized patches `(N, 3 * P * P)` of a sample, channel, row, column each; the kept ones only."""
    frames, rows, columns = sample.grid(patch_size)
    pixels = sample.pixels()[:, :, : rows * patch_size, : columns * patch_size]
    blocks = pixels.view(3, frames, rows, patch_size, columns, patch_size)
    # (3, t, h, P, w, P) -> (t, h, w, 3, P, P)
    patches = blocks.permute(1, 2, 4, 0, 3, 5).reshape(frames * rows * columns, -1)
    return patches if sample.kept is None else patches[torch.from_numpy(sample.kept)]


def wrong_rows(outputs: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The arrays, each hidden state by itself, that a fault changes; in float16 where float16 tells them apart."""
    for name in right:
        for (row, wrong), (_, expected) in zip(rows_of(name, outputs[name]), rows_of(name, right[name]), strict=True):
            difference = ((wrong - expected).norm() / expected.norm()).item()
            if difference > NO_DIFFERENCE:
                yield row, wrong.half() if difference > LARGE_DIFFERENCE else wrong.float()


def differences(one: Path, other: Path) -> list[str]:
    """How two kits differ: files, and in safetensors the arrays, by how much. Empty if all bytes are the same."""
    names = sorted({path.relative_to(kit).as_posix() for kit in (one, other) for path in kit.rglob("*.*")})
    lines = []
    for name in names:
        paths = (one / name, other / name)
        if not all(path.is_file() for path in paths):
            lines.append(f"{name} is only in {next(kit for kit in (one, other) if (kit / name).exists())}")
        elif sha256_of_file(paths[0]) == sha256_of_file(paths[1]):
            continue
        elif not name.endswith(".safetensors"):
            lines.append(f"{name} differs")
        else:
            lines += [f"{name}: {line}" for line in _array_differences(*(load_file(path) for path in paths))]
    return lines


def _array_differences(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> Iterator[str]:
    for name in sorted(one.keys() | other.keys()):
        if name not in one or name not in other or one[name].shape != other[name].shape:
            yield f"{name} is not in both with one shape"
        elif not torch.equal(one[name], other[name]):
            apart = (one[name].double() - other[name].double()).abs()
            yield f"{name}: {int((apart > 0).sum())} of {apart.numel()} values differ, by {apart.max():.1e} at most"
