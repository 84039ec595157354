# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Forward time of the packing model against the same matrix products and attention calls alone, and against peers.

Each contender has a process of its own, as a user's model has, in turns with the floor: in one process what the others
leave in the heap decides about up to 8 % here.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from llava_vit_hf import LlavaViTConfig, LlavaViTModel, LlavaViTPackingConfig, LlavaViTPackingModel
from llava_vit_hf.grid_llava_vit import cumulative_lengths, grid_positions


SIZES = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
# Read by torch.compile's back end: weights become constants, laid out once for the CPU's matrix products.
FREEZING = {"TORCHINDUCTOR_FREEZING": "1"}
# Even sides, which Qwen3-VL's merging of 2 x 2 patches needs. Small images have 64 to 196 patches.
SMALL_IMAGES = [(1, 8 + 2 * (index % 4), 8 + 2 * (index // 4 % 4)) for index in range(256)]
WORKLOADS = {
    "pack": [(1, 32, 32), (1, 28, 28), (1, 24, 32), (1, 8, 62)],
    "few": SMALL_IMAGES[:40],
    "small": SMALL_IMAGES,
    "hd": [(1, 76, 136)],
}
# The larger ones take minutes with as many layers.
LAYERS = {"pack": 4, "few": 3, "small": 2, "hd": 2}
DESCRIPTIONS = {
    "pack": "four samples",
    "few": "40 small images",
    "small": "256 small images",
    "hd": "one 1080p image",
}

PAIR = """
import json, sys
from tests.benchmarks.forward_speed import pair
print(json.dumps(pair(*sys.argv[1:4], float(sys.argv[4]))))
"""


def lengths_of(grids: list[tuple[int, int, int]]) -> list[int]:
    return [t * h * w for t, h, w in grids]


def bookkept(grids, dtype: torch.dtype) -> dict:
    """Inputs of the packing model as the processor gives them, with random pixels."""
    lengths = lengths_of(grids)
    return {
        "pixel_values": torch.randn(sum(lengths), 588, dtype=dtype),
        "grid_thw": torch.tensor(grids),
        "patch_positions": grid_positions(grids),
        "cu_seqlens": cumulative_lengths(lengths),
        "max_seqlen": max(lengths),
    }


def floor(grids, dtype: torch.dtype, sizes: dict) -> Callable:
    """The packing model's matrix products and attention calls, with nothing between them."""
    model = LlavaViTPackingModel(LlavaViTPackingConfig(**sizes)).to(dtype)
    rows, channels = sum(lengths_of(grids)), sizes["hidden_size"]
    heads = (sizes["num_attention_heads"], channels // sizes["num_attention_heads"])
    patches = torch.randn(rows, model.patch_embed.proj.weight[0].numel(), dtype=dtype)
    hidden, inner = (torch.randn(rows, size, dtype=dtype) for size in (channels, sizes["intermediate_size"]))
    patch_weight = model.patch_embed.proj.weight.flatten(1)
    memory_weight = model.head.attention.in_proj_weight[channels:]

    def run():
        F.linear(patches, patch_weight)
        for layer in model.encoder.layers:
            query, key, value = layer.self_attn.qkv(hidden).view(rows, 3, *heads).unbind(1)
            start = 0
            for length in lengths_of(grids):
                part = slice(start, start + length)
                states = (x[part].transpose(0, 1)[None] for x in (query, key, value))
                F.scaled_dot_product_attention(*states)
                start += length
            layer.self_attn.proj(hidden)
            layer.mlp.fc1(hidden)
            layer.mlp.fc2(inner)
        F.linear(hidden, memory_weight)

    return run


def packing(grids, dtype: torch.dtype, sizes: dict, compiled: bool = False) -> Callable:
    model = LlavaViTPackingModel(LlavaViTPackingConfig(**sizes)).to(dtype).eval()
    inputs = bookkept(grids, dtype)
    run = torch.compile(model) if compiled else model
    return lambda: run(**inputs)


def packing_compiled(grids, dtype: torch.dtype, sizes: dict) -> Callable:
    return packing(grids, dtype, sizes, compiled=True)


def dense_one_by_one(grids, dtype: torch.dtype, sizes: dict) -> Callable:
    dense = LlavaViTModel(LlavaViTConfig(**sizes)).to(dtype).eval()
    images = [torch.randn(1, 3, 14 * h, 14 * w, dtype=dtype) for _, h, w in grids]
    return lambda: [dense(image) for image in images]


def qwen3_vl(grids, dtype: torch.dtype, sizes: dict) -> Callable | None:
    return qwen3_vl_tower(grids, bookkept(grids, dtype)["pixel_values"], dtype, sizes)


def qwen3_vl_tower(
    grids, patches: torch.Tensor, dtype: torch.dtype, sizes: dict, implementation: str = "sdpa"
) -> Callable | None:
    """transformers' Qwen3-VL vision tower at the same sizes and on the device of `patches`, where it is installed."""
    try:
        from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
        from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel
    except ImportError as error:
        print(f"Qwen3-VL is left out: {error}", file=sys.stderr)
        return None
    config = Qwen3VLVisionConfig(
        depth=sizes["num_hidden_layers"],
        hidden_size=sizes["hidden_size"],
        num_heads=sizes["num_attention_heads"],
        intermediate_size=sizes["intermediate_size"],
        hidden_act="gelu",
        patch_size=14,
        temporal_patch_size=1,
        out_hidden_size=sizes["hidden_size"],
        deepstack_visual_indexes=[],
    )
    tower = Qwen3VLVisionModel._from_config(config, attn_implementation=implementation)
    tower = tower.to(patches.device, dtype).eval()
    grid = torch.tensor(grids, device=patches.device)
    return lambda: tower(patches, grid_thw=grid)


CONTENDERS = {
    "packing": packing,
    "packing compiled": packing_compiled,
    "packing compiled, frozen": packing_compiled,
    "dense one by one": dense_one_by_one,
    "Qwen3-VL tower": qwen3_vl,
}


def pair(workload: str, dtype: str, contender: str, seconds: float) -> list[tuple[float, float]] | None:
    """Seconds of the floor and of a contender in every round: three rounds, and more as long as `seconds` allow;
    `None` where the contender is not installed."""
    torch.manual_seed(0)
    setting = (WORKLOADS[workload], getattr(torch, dtype), {**SIZES, "num_hidden_layers": LAYERS[workload]})
    run, reference = CONTENDERS[contender](*setting), floor(*setting)
    if run is None:
        return None
    rounds = []
    with torch.inference_mode():
        run()  # compiles
        ends = time.perf_counter() + seconds
        while len(rounds) < 3 or time.perf_counter() < ends:
            rounds.append((_timed(reference), _timed(run)))
    return rounds


def _timed(run: Callable) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _in_its_own_process(workload: str, dtype: str, contender: str, seconds: float) -> list | None:
    command = [sys.executable, "-c", PAIR, workload, dtype, contender, str(seconds)]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, **(FREEZING if contender.endswith("frozen") else {})}
    output = subprocess.run(command, cwd=root, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def forward_ratios(workloads: list[str], dtypes: list[str], compiled: bool, seconds: float) -> list[dict]:
    """One entry per workload and dtype: the floor's median seconds, and of every contender the median over the rounds
    of its time over that of the floor in the same round, since the machine's speed drifts."""
    settings, results = [(workload, dtype) for workload in workloads for dtype in dtypes], []
    for workload, dtype in tqdm(settings, desc="forward", leave=False):
        # Many samples one by one take minutes, and a single one is the packing model's pack.
        left_out = set() if workload == "pack" else {"dense one by one"}
        left_out |= set() if compiled else {name for name in CONTENDERS if "compiled" in name}
        names = [name for name in CONTENDERS if name not in left_out]
        found = {name: _in_its_own_process(workload, dtype, name, seconds / len(names)) for name in names}
        found = {name: rounds for name, rounds in found.items() if rounds}
        result = {
            "workload": workload,
            "dtype": dtype,
            "floor_seconds": statistics.median(pair[0] for rounds in found.values() for pair in rounds),
            "rounds": {name: len(rounds) for name, rounds in found.items()},
            "ratios": {name: statistics.median(b / a for a, b in rounds) for name, rounds in found.items()},
        }
        results.append(result)
        shown = "  ".join(f"{name} {ratio:.2f}" for name, ratio in result["ratios"].items())
        print(f"forward    {workload:<6} {dtype:<9} {shown}", flush=True)
    return results


def forward_table(results: list[dict]) -> list[list[str]]:
    """Rows of ratios to the floor, header first."""
    names = list(dict.fromkeys(name for result in results for name in result["ratios"]))
    rows = [["workload", "dtype", "floor, s", *names]]
    for result in results:
        ratios = (f"{result['ratios'][name]:.2f}" if name in result["ratios"] else "" for name in names)
        tokens = sum(lengths_of(WORKLOADS[result["workload"]]))
        layers = LAYERS[result["workload"]]
        workload = f"{DESCRIPTIONS[result['workload']]} ({tokens:,} tokens, {layers} layers)"
        rows.append([workload, result["dtype"], f"{result['floor_seconds']:.2f}", *ratios])
    return rows
