# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Speed, memory and growth, as ratios: forward, processor, cost of larger packs, and the forward on a CUDA device.

    python tests/benchmarks/speed.py [--output_dir DIR] [--parts forward,processor,growth,cuda] [--seconds 60]

Everything is measured in one run, turn by turn, because machines are noisy: read the ratios (medians of the rounds),
not the times, and leave the machine alone meanwhile. The floor is the same matrix products and attention calls with
nothing between them. Peers are optional: transformers' Qwen3-VL vision tower and Qwen2-VL processor, and the dense
model one sample at a time. Prints tables; writes speed.json, and speed.png where matplotlib is installed.
"""

import argparse
import json
import platform
import sys
from pathlib import Path

import torch
import transformers


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.cost_growth import growth, growth_table  # noqa: E402
from tests.benchmarks.cuda_speed import cuda_ratios, cuda_table  # noqa: E402
from tests.benchmarks.forward_speed import LAYERS, SIZES, WORKLOADS, forward_ratios, forward_table  # noqa: E402
from tests.benchmarks.processor_speed import processor_ratios, processor_table  # noqa: E402


TABLES = {"forward": forward_table, "processor": processor_table, "growth": growth_table, "cuda": cuda_table}
PARTS = tuple(TABLES)


def markdown(rows: list[list[str]]) -> str:
    """A table of rows, header first."""
    header, *rest = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([header, "|" + "---|" * len(rows[0]), *rest])


def draw(report: dict, path: Path) -> None:
    """Bars of the ratios above, growth below."""
    try:
        from matplotlib import pyplot
    except ImportError:
        print("no picture: matplotlib is not installed")
        return
    panels = [lambda axis, result=result: _draw_forward(axis, result) for result in report.get("forward", [])]
    if "processor" in report:
        panels.append(lambda axis: _draw_processor(axis, report["processor"]))
    for name, points in report.get("growth", {}).items():
        for cost in ("seconds", "peak_mib"):
            panels.append(lambda axis, args=(name, points, cost): _draw_growth(axis, *args))
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(3.6 * columns, 3.4 * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, panel in zip(axes.flat, panels, strict=False):
        panel(axis)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _draw_forward(axis, result: dict) -> None:
    names = list(result["ratios"])
    bars = axis.bar(range(len(names)), [result["ratios"][name] for name in names])
    axis.bar_label(bars, fmt="%.2f", fontsize=8)
    axis.margins(y=0.12)  # room for the labels
    axis.axhline(1.0, color="black", linewidth=0.8)
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=7)
    axis.set_title(f"forward, {result['workload']}, {result['dtype']}", fontsize=9)
    axis.set_ylabel("time / floor", fontsize=8)


def _draw_processor(axis, results: list[dict]) -> None:
    results = [result for result in results if result["count"] == 1 and not result["resized"]]
    for name in results[0]["seconds"]:
        pixels = [result["size"][0] * result["size"][1] / 1e6 for result in results]
        axis.loglog(pixels, [1 / result["seconds"][name] for result in results], marker="o", label=name)
    axis.set_xlabel("megapixels", fontsize=8)
    axis.set_ylabel("images / s", fontsize=8)
    axis.set_title("processor", fontsize=9)
    axis.legend(fontsize=7)


def _draw_growth(axis, name: str, points: list[dict], cost: str) -> None:
    tokens = [point["tokens"] for point in points]
    axis.loglog(tokens, [point[cost] for point in points], marker="o", label="measured")
    scale = points[-1][cost] / tokens[-1]
    axis.loglog(tokens, [scale * count for count in tokens], linestyle="--", label="linear")
    if name == "one sample" and cost == "seconds":
        scale = points[-1][cost] / tokens[-1] ** 2
        axis.loglog(tokens, [scale * count**2 for count in tokens], linestyle=":", label="quadratic")
    for ticks in (axis.xaxis, axis.yaxis):
        ticks.set_minor_formatter("")
    axis.set_xlabel("tokens", fontsize=8)
    axis.set_ylabel("seconds" if cost == "seconds" else "peak memory, MiB", fontsize=8)
    axis.set_title(f"growth, {name}", fontsize=9)
    axis.legend(fontsize=7)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks"))
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--seconds", type=float, default=60, help="per setting; at least three rounds each are taken")
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--no_compile", action="store_true")
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts: unknown {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    report = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "sizes": {**SIZES, "num_hidden_layers": LAYERS},
    }
    if "forward" in parts:
        workloads, dtypes = options.workloads.split(","), options.dtypes.split(",")
        report["forward"] = forward_ratios(workloads, dtypes, not options.no_compile, options.seconds)
    if "processor" in parts:
        report["processor"] = processor_ratios(options.seconds)
    if "growth" in parts:
        report["growth"] = growth()
    if "cuda" in parts:
        report["cuda"] = cuda_ratios()
    for part, table in TABLES.items():
        if report.get(part):
            print(f"\n{markdown(table(report[part]))}", flush=True)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "speed.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    draw(report, options.output_dir / "speed.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
