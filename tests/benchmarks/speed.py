# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Forward time of the packing model as a ratio to the same matrix products and attention calls alone.

    python tests/benchmarks/speed.py [--output_dir DIR] [--repeats 11] [--workloads pack,small,hd] [--dtypes float32]

Everything is measured in one run, turn by turn, because machines are noisy: read the ratios, not the times. Peers are
optional: transformers' Qwen3-VL vision tower at the same sizes, and the dense model one sample at a time. Writes
speed.json, and speed.png where matplotlib is installed.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
from torch.nn import functional as F
from tqdm import tqdm


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from llava_vit_hf import (  # noqa: E402
    LlavaViTConfig,
    LlavaViTModel,
    LlavaViTPackingConfig,
    LlavaViTPackingModel,
)
from llava_vit_hf.grid_llava_vit import cumulative_lengths, grid_positions  # noqa: E402


SIZES = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 4, "intermediate_size": 3072}
# Even sides, which Qwen3-VL's merging of 2 x 2 patches needs.
WORKLOADS = {
    "pack": [(1, 32, 32), (1, 28, 28), (1, 24, 32), (1, 8, 62)],
    "small": [(1, 8 + 2 * (index % 4), 8 + 2 * (index // 4 % 4)) for index in range(256)],
    "hd": [(1, 76, 136)],
}


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


def measure(runs: dict, repeats: int, label: str) -> dict[str, float]:
    """Median seconds of each, taken turn by turn after two rounds to warm up."""
    times = {name: [] for name in runs}
    with torch.inference_mode():
        for index in tqdm(range(repeats + 2), desc=label, leave=False):
            for name, run in runs.items():
                started = time.perf_counter()
                run()
                if index >= 2:
                    times[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in times.items()}


def draw(results: list[dict], path: Path) -> None:
    try:
        from matplotlib import pyplot
    except ImportError:
        print("no picture: matplotlib is not installed")
        return
    names = [name for name in results[0]["seconds"] if name != "floor"]
    figure, axes = pyplot.subplots(1, len(results), figsize=(3.2 * len(results), 3.5), sharey=True, squeeze=False)
    for axis, result in zip(axes[0], results, strict=True):
        ratios = [result["seconds"].get(name, 0) / result["seconds"]["floor"] for name in names]
        axis.bar(range(len(names)), ratios)
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axis.set_title(f"{result['workload']}, {result['dtype']}")
    axes[0][0].set_ylabel("time / floor")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks"))
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--no_compile", action="store_true")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    results = []
    for workload in options.workloads.split(","):
        for dtype in options.dtypes.split(","):
            torch._dynamo.reset()
            runs = contenders(WORKLOADS[workload], getattr(torch, dtype), not options.no_compile)
            seconds = measure(runs, options.repeats, f"{workload} {dtype}")
            results.append({"workload": workload, "dtype": dtype, "seconds": seconds})
            ratios = "  ".join(f"{name} {value / seconds['floor']:.3f}" for name, value in seconds.items())
            print(f"{workload:<6} {dtype:<9} {1000 * seconds['floor']:8.1f} ms  {ratios}", flush=True)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    report = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "sizes": SIZES,
        "results": results,
    }
    (options.output_dir / "speed.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    draw(results, options.output_dir / "speed.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
