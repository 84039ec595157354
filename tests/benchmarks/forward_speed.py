# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Forward time of the packing model against the same matrix products and attention calls alone, and against peers."""

import statistics
import time

import torch
from torch.nn import functional as F
from tqdm import tqdm

from llava_vit_hf import LlavaViTConfig, LlavaViTModel, LlavaViTPackingConfig, LlavaViTPackingModel
from llava_vit_hf.grid_llava_vit import cumulative_lengths, grid_positions


SIZES = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 4, "intermediate_size": 3072}
# Even sides, which Qwen3-VL's merging of 2 x 2 patches needs.
WORKLOADS = {
    "pack": [(1, 32, 32), (1, 28, 28), (1, 24, 32), (1, 8, 62)],
    "small": [(1, 8 + 2 * (index % 4), 8 + 2 * (index // 4 % 4)) for index in range(256)],
    "hd": [(1, 76, 136)],
}
DESCRIPTIONS = {"pack": "four samples", "small": "256 small images", "hd": "one 1080p image"}


def lengths_of(grids: list[tuple[int, int, int]]) -> list[int]:
    return [t * h * w for t, h, w in grids]


def floor(model: LlavaViTPackingModel, grids, dtype: torch.dtype):
    """The model's matrix products and attention calls, with nothing between them."""
    rows, channels = sum(lengths_of(grids)), SIZES["hidden_size"]
    heads = (SIZES["num_attention_heads"], channels // SIZES["num_attention_heads"])
    patches = torch.randn(rows, model.patch_embed.proj.weight[0].numel(), dtype=dtype)
    hidden, inner = (torch.randn(rows, size, dtype=dtype) for size in (channels, SIZES["intermediate_size"]))
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


def contenders(grids, dtype: torch.dtype, compiled: bool) -> dict:
    """What is measured, by name; each takes no argument."""
    model = LlavaViTPackingModel(LlavaViTPackingConfig(**SIZES)).to(dtype).eval()
    rows, lengths = sum(lengths_of(grids)), lengths_of(grids)
    inputs = {
        "pixel_values": torch.randn(rows, 588, dtype=dtype),
        "grid_thw": torch.tensor(grids),
        "patch_positions": grid_positions(grids),
        "cu_seqlens": cumulative_lengths(lengths),
        "max_seqlen": max(lengths),
    }
    runs = {"floor": floor(model, grids, dtype), "packing": lambda: model(**inputs)}
    if compiled:
        fast = torch.compile(model)
        runs["packing compiled"] = lambda: fast(**inputs)
    dense = LlavaViTModel(LlavaViTConfig(**SIZES)).to(dtype).eval()
    images = [torch.randn(1, 3, 14 * h, 14 * w, dtype=dtype) for _, h, w in grids]
    runs["dense one by one"] = lambda: [dense(image) for image in images]
    runs |= qwen3_vl(grids, inputs["pixel_values"], dtype)
    return runs


def qwen3_vl(grids, patches: torch.Tensor, dtype: torch.dtype) -> dict:
    """transformers' Qwen3-VL vision tower at the same sizes, where it is installed."""
    try:
        from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
        from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel
    except ImportError as error:
        print(f"Qwen3-VL is left out: {error}")
        return {}
    config = Qwen3VLVisionConfig(
        depth=SIZES["num_hidden_layers"],
        hidden_size=SIZES["hidden_size"],
        num_heads=SIZES["num_attention_heads"],
        intermediate_size=SIZES["intermediate_size"],
        hidden_act="gelu",
        patch_size=14,
        temporal_patch_size=1,
        out_hidden_size=SIZES["hidden_size"],
        deepstack_visual_indexes=[],
    )
    tower = Qwen3VLVisionModel._from_config(config, attn_implementation="sdpa").to(dtype).eval()
    grid = torch.tensor(grids)
    return {"Qwen3-VL tower": lambda: tower(patches, grid_thw=grid)}


# Contenders that take less run once untimed before they are timed: what ran before them leaves the heap in a state of
# its own, and the first run pays for it, up to 8 % here.
SETTLED_SECONDS = 3


def measure(runs: dict, seconds: float, label: str) -> dict[str, list[float]]:
    """Seconds of each in every round, taken turn by turn: three rounds, and more as long as `seconds` allow."""
    times = {name: [] for name in runs}
    with torch.inference_mode(), tqdm(desc=label, unit="round", leave=False) as bar:
        for run in runs.values():
            run()  # compiles
        settle = {name for name, run in runs.items() if _timed(run) < SETTLED_SECONDS}
        ends = time.perf_counter() + seconds
        while bar.n < 3 or time.perf_counter() < ends:
            for name, run in runs.items():
                if name in settle:
                    run()
                times[name].append(_timed(run))
            bar.update()
    return times


def _timed(run) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def ratios_to(reference: str, times: dict[str, list[float]]) -> dict[str, float]:
    """Median over the rounds of each time over that of `reference` in the same round: what slows the whole machine
    for a while slows both."""
    return {
        name: statistics.median(one / other for one, other in zip(taken, times[reference], strict=True))
        for name, taken in times.items()
    }


def forward_ratios(workloads: list[str], dtypes: list[str], compiled: bool, seconds: float) -> list[dict]:
    """One entry per workload and dtype, with the median seconds of every contender and its ratio to the floor."""
    results = []
    for workload in workloads:
        for dtype in dtypes:
            torch.manual_seed(0)
            torch._dynamo.reset()
            runs = contenders(WORKLOADS[workload], getattr(torch, dtype), compiled)
            if workload != "pack":
                del runs["dense one by one"]  # takes minutes and says what the first workload says
            times = measure(runs, seconds, f"{workload} {dtype}")
            result = {
                "workload": workload,
                "dtype": dtype,
                "rounds": len(times["floor"]),
                "seconds": {name: statistics.median(taken) for name, taken in times.items()},
                "ratios": ratios_to("floor", times),
            }
            results.append(result)
            shown = "  ".join(f"{name} {ratio:.2f}" for name, ratio in result["ratios"].items() if name != "floor")
            print(f"forward    {workload:<6} {dtype:<9} {shown}", flush=True)
    return results


def forward_table(results: list[dict]) -> list[list[str]]:
    """Rows of ratios to the floor, header first."""
    names = list(dict.fromkeys(name for result in results for name in result["ratios"] if name != "floor"))
    rows = [["workload", "dtype", "floor, ms", *names]]
    for result in results:
        ratios = (f"{result['ratios'][name]:.2f}" if name in result["ratios"] else "" for name in names)
        tokens = sum(lengths_of(WORKLOADS[result["workload"]]))
        workload = f"{DESCRIPTIONS[result['workload']]} ({tokens:,} tokens)"
        rows.append([workload, result["dtype"], f"{1000 * result['seconds']['floor']:.0f}", *ratios])
    return rows
