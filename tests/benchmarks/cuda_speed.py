# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The large variant on a CUDA device: patches a second, and the share of the device's matrix product rate.

The share is the floating point operations that the model has to do, over the time they took and the rate that a large
matrix product of the same dtype reaches on this device in the same run. Operations of norms, activations and the
rotary embedding are not counted. Beside the packing model in eager, compiled and as a CUDA graph on buckets of tokens
stand the dense model on a batch of the same images, and transformers' Qwen3-VL vision tower.
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from tqdm import tqdm
from transformers.utils import is_flash_attn_2_available

from llava_vit_hf import LlavaViTConfig, LlavaViTModel, LlavaViTPackingConfig, LlavaViTPackingModel
from tests.benchmarks.cuda_graphs import BucketGraph
from tests.benchmarks.forward_speed import bookkept, lengths_of, qwen3_vl_tower


LARGE = {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24, "intermediate_size": 4096}
# 4,096 tokens each, of which packs are made: images and clips of many sizes, and images of 448 pixels, which the dense
# model takes as a batch.
WORKLOADS = {
    "mixed": [(1, 32, 32), (1, 24, 40), (1, 16, 16), (4, 16, 16), (2, 20, 20), (1, 4, 8)],
    "448 x 448": [(1, 32, 32)] * 4,
}
TOKENS = [16_384, 32_768, 65_536, 131_072]
ROUNDS = 10
# What a bucket has beyond a pack: a sample that fills it up.
SPARE = 512


def operations(grids: list[tuple[int, int, int]], sizes: dict) -> float:
    """Multiplications and additions of one forward: projections, MLPs, attention, patch embedding, pooling head."""
    channels, inner, lengths = sizes["hidden_size"], sizes["intermediate_size"], lengths_of(grids)
    tokens, squares = sum(lengths), sum(length**2 for length in lengths)
    layer = tokens * (4 * channels**2 + 2 * channels * inner) + 2 * channels * squares
    embedding, memory = tokens * 588 * channels, tokens * 2 * channels**2
    return 2.0 * (sizes["num_hidden_layers"] * layer + embedding + memory)


def matmul_rate(dtype: torch.dtype, device: str, side: int = 8192) -> float:
    """Operations per second of a square matrix product on random numbers."""
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * side**3 / statistics.median(_times({"": lambda: left @ right}, "matrix product")[""])


def waits(run: Callable, device: str) -> str | None:
    """What in it waits for the device; `None` if nothing does, or the device is a CPU.

    Raises:
        RuntimeError: if it fails for another reason.
    """
    if device == "cpu":
        return None
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.inference_mode():
            run()
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def contenders(
    grids: list[tuple[int, int, int]], models: dict, sizes: dict, dtype: torch.dtype, device: str
) -> dict[str, Callable[[], Callable | None]]:
    """What makes each of those that are measured on a pack of these grids, by name."""
    inputs = bookkept(grids, dtype)
    inputs = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    lengths = lengths_of(grids)
    # Qwen3-VL attends within a frame: a clip as one tall image is the same work.
    tall = [(1, t * h, w) for t, h, w in grids]

    def graph() -> Callable:
        bucket = BucketGraph(models["packing"], sum(lengths) + SPARE, len(lengths) + 1, max(*lengths, SPARE))
        return lambda: bucket(inputs["pixel_values"], inputs["patch_positions"], lengths)

    def tower(backend: str) -> Callable | None:
        return qwen3_vl_tower(tall, inputs["pixel_values"], dtype, sizes, backend)

    made = {
        "packing": lambda: lambda: models["packing"](**inputs),
        "packing compiled": lambda: lambda: models["packing compiled"](**inputs),
        "packing, CUDA graph": graph,
    }
    if len(set(grids)) == 1:
        frames, height, width = grids[0]
        pixels = torch.randn(len(grids), 3, frames, 14 * height, 14 * width, dtype=dtype, device=device)
        made["dense"] = lambda: lambda: models["dense"](pixels)
        made["dense compiled"] = lambda: lambda: models["dense compiled"](pixels)
    backends = ["sdpa", *["flash_attention_2"] * is_flash_attn_2_available()]
    return made | {f"Qwen3-VL tower ({backend})": partial(tower, backend) for backend in backends}


def prepared(made: dict[str, Callable]) -> tuple[dict[str, Callable], dict[str, str]]:
    """Makes each contender and runs it once, which compiles it: those that run, and what those say that do not."""
    runs, failed = {}, {}
    for name, make in made.items():
        try:
            with torch.inference_mode():
                run = make()
                if run is not None:
                    run()
                    runs[name] = run
        except RuntimeError as error:
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            print(f"cuda       {name}: {failed[name]}", file=sys.stderr)
    return runs, failed


def cuda_ratios(
    device: str = "cuda",
    tokens: list[int] = TOKENS,
    sizes: dict = LARGE,
    dtype: torch.dtype = torch.bfloat16,
    ends: float = float("inf"),
) -> list[dict]:
    """One entry per workload and size of pack; empty, with the reason printed, where there is no CUDA device.

    Args:
        ends: when to stop, by `time.monotonic()`; what is left out then is printed.
    """
    if device == "cuda" and not torch.cuda.is_available():
        print("cuda       left out: there is no CUDA device")
        return []
    rate = matmul_rate(dtype, device, 8192 if device == "cuda" else 512)
    torch.manual_seed(0)
    packing = LlavaViTPackingModel(LlavaViTPackingConfig(**sizes)).to(device, dtype).eval()
    dense = LlavaViTModel(LlavaViTConfig(**sizes)).to(device, dtype).eval()
    models = {"packing": packing, "dense": dense}
    models |= {f"{name} compiled": torch.compile(model, dynamic=True) for name, model in models.items()}
    results = []
    for total in tokens:
        for workload, unit in WORKLOADS.items():
            if time.monotonic() > ends:
                print(f"cuda       left out, as time is over: {workload}, {total:,} tokens", file=sys.stderr)
                continue
            grids = unit * (total // sum(lengths_of(unit)))
            runs, failed = prepared(contenders(grids, models, sizes, dtype, device))
            seconds = {name: statistics.median(taken) for name, taken in _times(runs, f"{total} {workload}").items()}
            count = sum(lengths_of(grids))
            peers = [taken for name, taken in seconds.items() if name.startswith("Qwen")]
            result = {
                "workload": workload,
                "tokens": count,
                "seconds": seconds,
                "patches_per_second": {name: count / taken for name, taken in seconds.items()},
                "utilisation": {name: operations(grids, sizes) / taken / rate for name, taken in seconds.items()},
                "matmul_tflops": rate / 1e12,
                "peer_over_packing": min(peers) / seconds["packing"] if peers and "packing" in seconds else None,
                "failed": failed,
                "waits": {name: found for name, run in runs.items() if (found := waits(run, device)) is not None},
                "device": torch.cuda.get_device_name() if device == "cuda" else device,
            }
            results.append(result)
            print(f"cuda       {'  '.join(cuda_table([result])[1])}", flush=True)
    return results


def cuda_table(results: list[dict]) -> list[list[str]]:
    """Rows of thousands of patches a second with their share of the matrix product rate, header first; only the
    header's first columns where nothing was measured."""
    names = list(dict.fromkeys(name for result in results for name in result["seconds"]))
    rows = [["workload", "tokens", "matmul, TFLOP/s", *names]]
    for result in results:
        cells = [
            f"{result['patches_per_second'][name] / 1e3:,.0f} k/s, {100 * result['utilisation'][name]:.0f} %"
            if name in result["seconds"]
            else ""
            for name in names
        ]
        rows.append([result["workload"], f"{result['tokens']:,}", f"{result['matmul_tflops']:.0f}", *cells])
    return rows


def _times(runs: dict, label: str) -> dict[str, list[float]]:
    """Seconds of each in every round, taken turn by turn, the device waited for before and after."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    times = {name: [] for name in runs}
    with torch.inference_mode():
        for turn in tqdm(range(ROUNDS + 2), desc=label, leave=False):
            for name, run in runs.items():
                wait()
                started = time.perf_counter()
                run()
                wait()
                if turn > 1:
                    times[name].append(time.perf_counter() - started)
    return times
