# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The tower out of a VLM of 16 GB whose language model is a hole in its files: what is read, and how much memory."""

import json
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conversion.source.peaked_weights import peaked_state_dict
from conversion.source.small_vlm import PREFIX, small_tower, tower_name, vlm_config
from tests.conversion.scripts import ROOT


pytestmark = pytest.mark.slow

SIZES = {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24, "intermediate_size": 4096}
SHARDS, SHARD_BYTES = 4, 4 * 2**30
MEASURE = """
import resource, sys
from conversion import convert_vlm_tower_to_hf
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
code = convert_vlm_tower_to_hf.main(sys.argv[1:])
print("KIB", before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


def write_sparse_vlm(folder: Path) -> int:
    """Four shards of 4 GB, of which the last two hold the tower, each tensor after a hole; returns its bytes."""
    folder.mkdir()
    config = small_tower(**SIZES, attention_window=4, merger_output_size=2560)
    tower = {PREFIX + tower_name(name): tensor.bfloat16() for name, tensor in peaked_state_dict(config).items()}
    places = {name: SHARDS - 2 + index % 2 for index, name in enumerate(tower)}
    weight_map = {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        own = [name for name in tower if places[name] == shard]
        hole = (SHARD_BYTES - sum(tower[name].nbytes for name in own)) // (len(own) + 1) // 4096 * 4096
        header, end = {}, 0
        for index in range(len(own) + 1):
            header[f"model.layers.{index}.shard_{shard}.weight"] = {
                "dtype": "BF16",
                "shape": [hole // 2],
                "data_offsets": [end, end + hole],
            }
            end += hole
            if index < len(own):
                tensor = tower[own[index]]
                header[own[index]] = {
                    "dtype": "BF16",
                    "shape": list(tensor.shape),
                    "data_offsets": [end, end + tensor.nbytes],
                }
                end += tensor.nbytes
        weight_map |= dict.fromkeys(header, file)
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        with open(folder / file, "wb") as stream:
            stream.write(struct.pack("<Q", len(encoded)) + encoded)
            for name in own:
                stream.seek(8 + len(encoded) + header[name]["data_offsets"][0])
                stream.write(memoryview(tower[name].contiguous().reshape(-1).view(torch.uint8).numpy()))
            stream.truncate(8 + len(encoded) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(vlm_config(config)))
    return sum(tensor.nbytes for tensor in tower.values())


def cached_bytes(path: Path) -> int:
    """Bytes of a file that are in the page cache, by `fincore` of util-linux."""
    told = subprocess.run(
        ["fincore", "--bytes", "--noheadings", "--output", "RES", path], capture_output=True, text=True
    )
    return int(told.stdout or 0)


def test_only_the_tower_is_read(tmp_path, capsys):
    nbytes = write_sparse_vlm(tmp_path / "vlm")
    files = sorted((tmp_path / "vlm").glob("*.safetensors"))
    assert sum(path.stat().st_size for path in files) > 15.9 * 2**30
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "vlm", "--output_dir", tmp_path / "tower", "--with_merger"]
        + ["--skip_verification"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    before, after = (int(word) * 1024 for word in done.stdout.split("KIB")[1].split())
    cached = sum(map(cached_bytes, files))
    with capsys.disabled():
        print(
            f"\na tower of {nbytes / 1e6:.0f} MB out of {len(files)} files of 4 GiB: {seconds:.1f} s, memory "
            f"{before / 1e6:.0f} -> {after / 1e6:.0f} MB ({(after - before) / nbytes:.2f} of the tower), cached "
            f"{cached / 1e6:.0f} MB"
        )
    assert after - before < 1.3 * nbytes
    # Where the system tells it, no more than the tower, which was cached as it was written, and headers.
    assert cached < 1.05 * nbytes
