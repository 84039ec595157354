# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The packing model on a CUDA device: model FLOP utilisation, and time against transformers' Qwen3-VL vision tower.

Utilisation is the floating point operations that the model has to do, over the time they took and the rate that a
large matrix product of the same dtype reaches on this device in the same run. Operations of norms, activations and the
rotary embedding are not counted.
"""

import statistics
import time

import torch
from tqdm import tqdm
from transformers.utils import is_flash_attn_2_available

from llava_vit_hf import LlavaViTPackingConfig, LlavaViTPackingModel
from tests.benchmarks.forward_speed import bookkept, lengths_of, qwen3_vl_tower


LARGE = {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24, "intermediate_size": 4096}
# 4,096 tokens of images and clips; packs are made of several.
MIXED = [(1, 32, 32), (1, 24, 40), (1, 16, 16), (4, 16, 16), (2, 20, 20), (1, 4, 8)]
TOKENS = [16_384, 32_768, 65_536, 131_072]
ROUNDS = 10


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


def cuda_ratios(
    device: str = "cuda", tokens: list[int] = TOKENS, sizes: dict = LARGE, dtype: torch.dtype = torch.bfloat16
) -> list[dict]:
    """One entry per size of pack; empty, with the reason printed, where there is no CUDA device."""
    if device == "cuda" and not torch.cuda.is_available():
        print("cuda       left out: there is no CUDA device")
        return []
    rate = matmul_rate(dtype, device, 8192 if device == "cuda" else 512)
    model = LlavaViTPackingModel(LlavaViTPackingConfig(**sizes)).to(device, dtype).eval()
    fast = torch.compile(model, dynamic=True)
    results = []
    for total in tokens:
        grids = MIXED * (total // sum(lengths_of(MIXED)))
        inputs = bookkept(grids, dtype)
        inputs = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()
        }
        # Qwen3-VL attends within a frame: a clip as one tall image is the same work.
        tall = [(1, t * h, w) for t, h, w in grids]
        runs = {
            "packing": lambda inputs=inputs: model(**inputs),
            "packing compiled": lambda inputs=inputs: fast(**inputs),
        }
        for backend in ["sdpa", *["flash_attention_2"] * is_flash_attn_2_available()]:
            tower = qwen3_vl_tower(tall, inputs["pixel_values"], dtype, sizes, backend)
            runs |= {} if tower is None else {f"Qwen3-VL tower ({backend})": tower}
        seconds = {name: statistics.median(taken) for name, taken in _times(runs, f"{total} tokens").items()}
        peers = [taken for name, taken in seconds.items() if name.startswith("Qwen")]
        result = {
            "tokens": sum(lengths_of(grids)),
            "seconds": seconds,
            "utilisation": {
                name: operations(grids, sizes) / seconds[name] / rate for name in seconds if name.startswith("packing")
            },
            "matmul_tflops": rate / 1e12,
            "peer_over_packing": min(peers) / seconds["packing"] if peers else None,
            "device": torch.cuda.get_device_name() if device == "cuda" else device,
        }
        results.append(result)
        print(f"cuda       {'  '.join(cuda_table([result])[1])}", flush=True)
    return results


def cuda_table(results: list[dict]) -> list[list[str]]:
    """Rows of utilisation and ratios, header first; only the header where nothing was measured."""
    rows = [["tokens", "matmul, TFLOP/s", "utilisation", "compiled", "best Qwen3-VL tower / packing"]]
    for result in results:
        ratio = result["peer_over_packing"]
        used = [f"{100 * result['utilisation'][name]:.0f} %" for name in ("packing", "packing compiled")]
        peer = "" if ratio is None else f"{ratio:.2f}"
        rows.append([f"{result['tokens']:,}", f"{result['matmul_tflops']:.0f}", *used, peer])
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
