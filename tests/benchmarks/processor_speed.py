# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Images per second and peak memory of the processor, against transformers' Qwen2-VL processor for the same output.

Both are asked for flat patches of 14 pixels, one frame each: of a picture as it is, of one resized to a quarter of its
patches, and of a list. That they agree is checked first. Where torchvision is installed its class is measured too.
"""

import functools
import importlib.util
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

from llava_vit_hf import LlavaViTImageProcessor
from tests import media


SIZES = [(448, 448), (1022, 770), (1918, 1078), (4032, 3024)]
# Pictures in a call, and whether they are resized.
CALLS = [*((size, 1, resized) for resized in (False, True) for size in SIZES), (SIZES[0], 32, False)]
# Of values in float32; resizing differs by a value or two of 255.
TOLERANCES = {False: 2e-6, True: 3 / 255 / 0.26}

# Prints how much resident memory the first call adds at its peak, in KiB.
PEAK = """
import ctypes, sys, torch
from tests.benchmarks.processor_speed import peak_memory, picture, processors
name, width, height = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
run, image = processors()[name], picture(width, height)
run([picture(28, 28)])
ctypes.CDLL(None).malloc_trim(0)  # what is free but still resident would hide what is asked for
open("/proc/self/clear_refs", "w").write("5")
before = peak_memory()
run([image])
print(peak_memory() - before)
"""


def peak_memory() -> int:
    """Peak resident memory of this process in KiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def picture(width: int, height: int):
    return media.image(width - width % 14, height - height % 14)


def processors() -> dict:
    """Each takes PIL images, and how many patches each may have at most, and returns flat patches `(tokens, 588)`."""
    ours = LlavaViTImageProcessor(packing=True, native_resolution=True)
    found = {"llava_vit_hf": lambda images, patches=None: ours(images, max_patches=patches)["pixel_values"]}
    # The slow class of transformers 4 is the one without torchvision of transformers 5.
    five = transformers.__version__ >= "5"
    peers = {"Qwen2-VL": "Qwen2VLImageProcessorPil" if five else "Qwen2VLImageProcessor"}
    if importlib.util.find_spec("torchvision"):
        peers["Qwen2-VL, torchvision"] = "Qwen2VLImageProcessor" if five else "Qwen2VLImageProcessorFast"
    for name, peer in peers.items():
        if not hasattr(transformers, peer):
            print(f"{name}'s processor is left out: this transformers has no {peer}")
            continue
        theirs = getattr(transformers, peer)(patch_size=14, temporal_patch_size=1, merge_size=1)
        found[name] = functools.partial(_patches_of, theirs)
    return found


def _patches_of(peer, images: list, patches: int | None = None) -> torch.Tensor:
    size = {"shortest_edge": 1, "longest_edge": 2**26 if patches is None else patches * 14**2}
    return peer(images=images, size=size, return_tensors="pt")["pixel_values"]


def processor_ratios(seconds: float) -> list[dict]:
    """One entry per call: by processor, seconds a picture and, on Linux for one that is not resized, peak MiB."""
    results, runs = [], processors()
    for (width, height), count, resized in CALLS:
        image = picture(width, height)
        call = {"images": [image] * count}
        if resized:
            call["patches"] = round(image.width * image.height / 14**2 / 4)
        outputs = {name: run(**call) for name, run in runs.items()}
        for name, found in outputs.items():
            differences = (found - outputs["llava_vit_hf"]).abs().max().item()
            assert differences <= TOLERANCES[resized], f"{name} differs by {differences}"
        times = {name: [] for name in runs}
        ends = time.perf_counter() + seconds / len(CALLS)
        label = f"{image.width} x {image.height}" + " to a quarter" * resized + f", {count} of them" * (count > 1)
        with tqdm(desc=f"processor {label}", unit="round", leave=False) as bar:
            while len(times["llava_vit_hf"]) < 5 or time.perf_counter() < ends:
                for name, run in runs.items():
                    started = time.perf_counter()
                    run(**call)
                    times[name].append((time.perf_counter() - started) / count)
                bar.update()
        measured = sys.platform == "linux" and count == 1 and not resized
        results.append(
            {
                "image": label,
                "size": [*image.size],
                "count": count,
                "resized": resized,
                "seconds": {name: statistics.median(taken) for name, taken in times.items()},
                "peak_mib": {name: _peak(name, width, height) for name in runs} if measured else {},
                "output_mib": outputs["llava_vit_hf"].nbytes / 2**20,
            }
        )
        shown = "  ".join(f"{name} {1 / taken:.1f}" for name, taken in results[-1]["seconds"].items())
        print(f"processor  {label}, images/s  {shown}", flush=True)
    return results


def processor_table(results: list[dict]) -> list[list[str]]:
    """Rows of images a second and peak memory, header first."""
    names = list(results[0]["seconds"])
    rows = [["image", "output, MiB", *(f"{name}, {unit}" for name in names for unit in ("images/s", "peak MiB"))]]
    for result in results:
        row = [result["image"], f"{result['output_mib']:.0f}"]
        for name in names:
            peak = result["peak_mib"].get(name)
            row += [f"{1 / result['seconds'][name]:.1f}", "" if peak is None else f"{peak:.0f}"]
        rows.append(row)
    return rows


def _peak(name: str, width: int, height: int) -> float:
    command = [sys.executable, "-c", PEAK, name, str(width), str(height)]
    root = Path(__file__).resolve().parents[2]
    output = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    return int(output.split()[-1]) / 1024
