# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""How time and memory of the packing model grow with the number of samples of a pack, and with the size of one.

Growth is given as the exponent `b` of `cost = a * tokens ** b`, fitted on the larger half of the sizes. Each point is
measured in a process of its own, because a process keeps the memory it once had.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm


SIZES = {"hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 1024}
SAMPLES = [4, 8, 16, 32, 64]  # of 16 x 32 patches each
SIDES = [16, 32, 64, 96, 128, 192]  # of one square sample, in patches

POINT = """
import json, sys, time, torch
from llava_vit_hf import LlavaViTPackingConfig, LlavaViTPackingModel
from tests.benchmarks.cost_growth import SIZES
from tests.benchmarks.processor_speed import peak_memory
grids = json.loads(sys.argv[1])
torch.manual_seed(0)
model = LlavaViTPackingModel(LlavaViTPackingConfig(**SIZES)).eval()
rows = sum(t * h * w for t, h, w in grids)
patches, grid = torch.randn(rows, 588), torch.tensor(grids)
seconds = []
with torch.inference_mode():
    model(patches[:64], torch.tensor([[1, 8, 8]]))
    before = peak_memory()
    for _ in range(5):
        started = time.perf_counter()
        model(patches, grid)
        seconds.append(time.perf_counter() - started)
print(json.dumps({"tokens": rows, "seconds": min(seconds), "peak_mib": (peak_memory() - before) / 1024}))
"""


def growth() -> dict[str, list[dict]]:
    """Points `{tokens, seconds, peak_mib}` by what grows."""
    settings = {
        "samples": [[[1, 16, 32]] * count for count in SAMPLES],
        "one sample": [[[1, side, side]] for side in SIDES],
    }
    points = {
        name: [_point(grids) for grids in tqdm(packs, desc=name, leave=False)] for name, packs in settings.items()
    }
    for row in growth_table(points)[1:]:
        print(f"growth     {'  '.join(row)}", flush=True)
    return points


def growth_table(points: dict[str, list[dict]]) -> list[list[str]]:
    """Rows of exponents, header first."""
    rows = [["what grows", "tokens", "time ~ tokens^", "memory ~ tokens^"]]
    for name, found in points.items():
        exponents = (f"{exponent(found, cost):.2f}" for cost in ("seconds", "peak_mib"))
        rows.append([name, f"{found[0]['tokens']:,} to {found[-1]['tokens']:,}", *exponents])
    return rows


def exponent(points: list[dict], cost: str) -> float:
    """The exponent of growth by least squares in logarithms, over the larger half of the sizes."""
    part = points[len(points) // 2 :]
    sizes, costs = ([math.log(point[key]) for point in part] for key in ("tokens", cost))
    size, mean = sum(sizes) / len(sizes), sum(costs) / len(costs)
    top = sum((x - size) * (y - mean) for x, y in zip(sizes, costs, strict=True))
    return top / sum((x - size) ** 2 for x in sizes)


def _point(grids: list) -> dict:
    command = [sys.executable, "-c", POINT, json.dumps(grids)]
    root = Path(__file__).resolve().parents[2]
    return json.loads(subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout)
