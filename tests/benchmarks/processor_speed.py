# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Images per second and peak memory of the processor, against transformers' Qwen2-VL processor for the same output.

Both are asked for flat patches of 14 pixels, one frame each, without resizing; that they agree is checked first.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from tqdm import tqdm

from llava_vit_hf import LlavaViTImageProcessor
from tests import media


SIZES = [(448, 448), (1022, 770), (1918, 1078), (4032, 3024)]

# Prints how much resident memory the first call adds at its peak, in KiB.
PEAK = """
import ctypes, sys, torch
from tests.benchmarks.processor_speed import peak_memory, picture, processors
name, width, height = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
run, image = processors()[name], picture(width, height)
run(picture(28, 28))
ctypes.CDLL(None).malloc_trim(0)  # what is free but still resident would hide what is asked for
open("/proc/self/clear_refs", "w").write("5")
before = peak_memory()
run(image)
print(peak_memory() - before)
"""


def peak_memory() -> int:
    """Peak resident memory of this process in KiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def picture(width: int, height: int):
    return media.image(width - width % 14, height - height % 14)


def processors() -> dict:
    """Each takes a PIL image and returns flat patches `(tokens, 588)`."""
    ours = LlavaViTImageProcessor(packing=True, native_resolution=True)
    found = {"llava_vit_hf": lambda image: ours(image, return_tensors="pt")["pixel_values"]}
    # The slow class of transformers 4 is the one without torchvision of transformers 5.
    peer = getattr(transformers, "Qwen2VLImageProcessorPil", None)
    if peer is None and transformers.__version__ < "5":
        peer = transformers.Qwen2VLImageProcessor
    if peer is None:
        print("Qwen2-VL's processor is left out: this transformers has none that needs no torchvision")
        return found
    theirs = peer(patch_size=14, temporal_patch_size=1, merge_size=1, min_pixels=1, max_pixels=2**26)
    found["Qwen2-VL"] = lambda image: theirs(images=image, return_tensors="pt")["pixel_values"]
    return found


def processor_ratios(seconds: float) -> list[dict]:
    """One entry per size: seconds an image and, on Linux, peak MiB, by processor."""
    results, runs = [], processors()
    for width, height in SIZES:
        image = picture(width, height)
        patches = {name: run(image) for name, run in runs.items()}
        for name, found in patches.items():
            torch.testing.assert_close(found, patches["llava_vit_hf"], rtol=0, atol=2e-6, msg=f"{name} differs")
        times = {name: [] for name in runs}
        ends = time.perf_counter() + seconds / len(SIZES)
        with tqdm(desc=f"processor {width} x {height}", unit="round", leave=False) as bar:
            while len(times["llava_vit_hf"]) < 5 or time.perf_counter() < ends:
                for name, run in runs.items():
                    started = time.perf_counter()
                    run(image)
                    times[name].append(time.perf_counter() - started)
                bar.update()
        result = {
            "size": [*image.size],
            "seconds": {name: statistics.median(taken) for name, taken in times.items()},
            "peak_mib": {name: _peak(name, width, height) for name in runs} if sys.platform == "linux" else {},
            "output_mib": patches["llava_vit_hf"].nbytes / 2**20,
        }
        results.append(result)
        shown = "  ".join(
            f"{name} {1 / taken:.1f} images/s, {result['peak_mib'].get(name, np.nan):.0f} MiB"
            for name, taken in result["seconds"].items()
        )
        print(f"processor  {image.width} x {image.height}  output {result['output_mib']:.0f} MiB  {shown}", flush=True)
    return results


def processor_table(results: list[dict]) -> list[list[str]]:
    """Rows of images a second and peak memory, header first."""
    names = list(results[0]["seconds"])
    rows = [["image", "output, MiB", *(f"{name}, {unit}" for name in names for unit in ("images/s", "peak MiB"))]]
    for result in results:
        row = [f"{result['size'][0]} x {result['size'][1]}", f"{result['output_mib']:.0f}"]
        for name in names:
            row += [f"{1 / result['seconds'][name]:.1f}", f"{result['peak_mib'].get(name, np.nan):.0f}"]
        rows.append(row)
    return rows


def _peak(name: str, width: int, height: int) -> float:
    command = [sys.executable, "-c", PEAK, name, str(width), str(height)]
    root = Path(__file__).resolve().parents[2]
    output = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    return int(output.split()[-1]) / 1024
