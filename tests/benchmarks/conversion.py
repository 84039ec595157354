# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What converting the large variant costs, without verification, against the size of its checkpoint and a plain copy.

    python tests/benchmarks/conversion.py [--repeats 5] [--folder WHERE]

Prints peak resident memory beyond the imports, divided by the checkpoint's size, and wall time divided by that of a
copy of the file: the best of all repeats, and all. Needs about 4 GB of disk.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from conversion.checkpoints.hub_configs import read_architecture  # noqa: E402
from conversion.source.encoder import SourceConfig  # noqa: E402
from conversion.source.peaked_weights import peaked_state_dict  # noqa: E402


VARIANT = "llava_vit_large_ln"
MEMORY_BOUND, TIME_BOUND = 1.3, 3.0

# Prints the peak resident memory in KiB before and after, and the seconds between, imports left out.
PROGRAM = """
import sys, time
from pathlib import Path
from conversion.checkpoints.model_folder_writer import ConversionRequest, convert_folder
def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1])
before, started = peak(), time.perf_counter()
convert_folder(ConversionRequest(sys.argv[1], sys.argv[3], Path(sys.argv[2]), model_name=sys.argv[4]))
print(before, peak(), time.perf_counter() - started)
"""

# A copy as a user's `cp` would do it in user space: read and write, no shared extents.
COPY = """
import sys, time
started = time.perf_counter()
with open(sys.argv[1], "rb") as source, open(sys.argv[2], "wb") as target:
    while block := source.read(2**24):
        target.write(block)
print(time.perf_counter() - started)
"""


def run(program: str, *arguments) -> list[float]:
    output = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return [float(number) for number in output.stdout.split()]


def measure(checkpoint: Path, folder: Path, layout: str) -> tuple[float, float]:
    """Peak memory over size, and time over a copy's, once."""
    os.sync()
    (copying,) = run(COPY, checkpoint, folder / "copy")
    (folder / "copy").unlink()
    os.sync()
    before, after, converting = run(PROGRAM, checkpoint, folder / "out", layout, VARIANT)
    for path in (folder / "out").iterdir():
        path.unlink()
    (folder / "out").rmdir()
    print(
        f"  copy {copying:.2f} s, convert {converting:.2f} s, imports {before / 1024:.0f} MiB, "
        f"peak {after / 1024:.0f} MiB",
        flush=True,
    )
    return (after - before) * 1024 / checkpoint.stat().st_size, converting / copying


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    options = parser.parse_args()
    passed = True
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        checkpoint = Path(scratch) / "backbone.pt"
        torch.save(peaked_state_dict(SourceConfig(**read_architecture(VARIANT))), checkpoint)
        print(f"{VARIANT}: {checkpoint.stat().st_size / 1e6:.0f} MB, float32, {time.strftime('%Y-%m-%d')}")
        for layout in ("dense", "packing"):
            memory, seconds = zip(
                *(measure(checkpoint, Path(scratch), layout) for _ in range(options.repeats)), strict=True
            )
            for name, ratios, bound in (("memory", memory, MEMORY_BOUND), ("time", seconds, TIME_BOUND)):
                listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
                verdict = "ok" if min(ratios) <= bound else "TOO MUCH"
                passed = passed and min(ratios) <= bound
                print(f"{layout} {name} ratio: best {min(ratios):.2f} (bound {bound}, {verdict}); all {listed}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
