# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What attention costs in compiled training of packs: its operator, forward and backward, against PyTorch's own.

    python tests/benchmarks/attention_backward.py [--tokens 2048,4096,8192]

One sample of so many tokens with 16 heads of 64 channels in float32, each run in a process of its own. Prints the peak
memory that it adds, and seconds (Linux).
"""

import argparse
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys, time, torch
from llava_vit_hf.segments_llava_vit import segment_attention
from tests.benchmarks.processor_speed import peak_memory
tokens = int(sys.argv[1])
query, key, value = (torch.randn(tokens, 16, 64, requires_grad=True) for _ in range(3))
open("/proc/self/clear_refs", "w").write("5")
before, started = peak_memory(), time.perf_counter()
if sys.argv[2] == "operator":
    output = segment_attention(query, key, value, torch.tensor([0, tokens], dtype=torch.int32))
else:
    states = (part.transpose(0, 1)[None] for part in (query, key, value))
    output = torch.nn.functional.scaled_dot_product_attention(*states)
output.square().sum().backward()
print((peak_memory() - before) / 1024, time.perf_counter() - started)
"""


def measured(tokens: int, what: str) -> tuple[float, float]:
    """Peak MiB that a forward and a backward add, and seconds; `what` is `"operator"` or `"eager"`."""
    command = [sys.executable, "-c", PROGRAM, str(tokens), what]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    added, seconds = map(float, output.split())
    return added, seconds


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="2048,4096,8192")
    options = parser.parse_args(arguments)
    print("| tokens | operator, MiB | eager, MiB | operator, s | eager, s |\n|---|---|---|---|---|")
    for tokens in map(int, options.tokens.split(",")):
        (ours, our_seconds), (theirs, their_seconds) = (measured(tokens, what) for what in ("operator", "eager"))
        print(f"| {tokens:,} | {ours:.0f} | {theirs:.0f} | {our_seconds:.2f} | {their_seconds:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
