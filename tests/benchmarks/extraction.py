# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Measures the extraction of many inputs: speed, memory over the run, processes, kills, memory by layer, and sources.

    python tests/benchmarks/extraction.py WORK_DIR [--images 2000 --videos 50 --kills 5] [--parts speed memory ...]

Prints one line of JSON per part. Needs Linux and psutil. WORK_DIR keeps the inputs and the model between calls.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from examples.extraction.feature_sets import load_index, open_features  # noqa: E402
from examples.extraction.sources import cut_into_shards  # noqa: E402
from llava_vit_hf import (  # noqa: E402
    LlavaViTImageProcessor,
    LlavaViTPackingConfig,
    LlavaViTPackingModel,
    LlavaViTProcessor,
)
from tests import media  # noqa: E402
from tests.examples.commands import contents  # noqa: E402


SMALL = {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 6, "intermediate_size": 1536}
LARGE = {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24, "intermediate_size": 4096}
TINY = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 128}
PARTS = ("packing", "speed", "processes", "kills", "layers", "sources")
BROKEN = 20
ONE_BY_ONE = """
import json, sys, time, torch
from transformers import AutoModel, AutoProcessor
folder, files = sys.argv[1], json.loads(open(sys.argv[2]).read())
model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
start, tokens = time.perf_counter(), 0
with torch.inference_mode():
    for file in files:
        inputs = processor(**({"videos": [file]} if file.endswith(".mp4") else {"images": [file]}))
        tokens += len(model(**inputs, vision_feature_layer=-2).hidden_states[0])
print(json.dumps([tokens, time.perf_counter() - start]))
"""
PACKS = """
import json, sys, time, torch
from transformers import AutoModel, AutoProcessor
from examples.extraction.packing_plan import plan_packs
folder, files = sys.argv[1], json.loads(open(sys.argv[2]).read())
model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
samples = [processor(images=[file]) for file in files if not file.endswith(".mp4")][:400]
lengths = [len(sample["pixel_values"]) for sample in samples]
found = {}
for budget in (1, 1024, 2048, 4096, 16384):
    start = time.process_time()
    for pack in plan_packs(lengths, budget):
        names = ("pixel_values", "grid_thw", "patch_positions")
        with torch.inference_mode():
            model(**{n: torch.cat([samples[i][n] for i in pack]) for n in names}, vision_feature_layer=-2)
    found[budget] = round(sum(lengths) / (time.process_time() - start))
print(json.dumps(found))
"""
LAYERS = """
import json, re, sys, torch
from transformers import AutoModel
folder, way, rows, columns = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:5])
status = lambda name: int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
pixels = torch.randn(rows * columns, 588, generator=torch.Generator().manual_seed(0))
grid = torch.tensor([[1, rows, columns]])
asked = {"layer": {"vision_feature_layer": -2}, "all": {"output_hidden_states": True}}[way]
with torch.inference_mode():
    model(pixels[:16], torch.tensor([[1, 4, 4]]), **asked)
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    states = model(pixels, grid, **asked).hidden_states
    state = states[0 if way == "layer" else -2]
torch.save(state[::97].clone(), sys.argv[5])
print(json.dumps([status("VmHWM") - before, before]))
"""
# Maps a dataset by the embedder, and hashes what comes out for each id.
MAPPED = """
import hashlib, json, sys, datasets, numpy as np
from examples.extraction.embedder import LlavaViTEmbedder
folder, model, output, cache, way = sys.argv[1:]
datasets.config.HF_DATASETS_CACHE = cache
embedder = LlavaViTEmbedder(model, layers=(-2, "pooler"), device="cpu")
data = datasets.load_dataset(folder, split="train", streaming=way == "stream")
for column, kind in (("image", datasets.Image), ("video", datasets.Video)):
    data = data.cast_column(column, kind(decode=False))
mapped = data.map(embedder, batched=True, batch_size=64, remove_columns=["image", "video"])
found = {}
for row in mapped if way == "stream" else mapped.with_format("numpy"):
    layers = [np.asarray(row[name], np.float32).tobytes() for name in ("layer_-2", "pooler")]
    found[row["name"]] = None if row["error"] else hashlib.sha256(b"".join(layers)).hexdigest()
open(output, "w").write(json.dumps(found))
"""


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def make_model(folder: Path, patch_size: int, shape: dict) -> Path:
    """A packing model with random weights."""
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        LlavaViTPackingModel(LlavaViTPackingConfig(**shape, patch_size=patch_size)).save_pretrained(folder)
        LlavaViTProcessor(LlavaViTImageProcessor(patch_size=patch_size, packing=True)).save_pretrained(folder)
    return folder


def make_inputs(folder: Path, images: int, videos: int) -> list[str]:
    """Images of 50 sizes from 64 to 310 pixels a side, and short videos."""
    done = folder / "done.json"
    if not done.exists():
        folder.mkdir(parents=True)
        files = []
        for index in range(images):
            width, height = 64 + 27 * (index % 10), 64 + 50 * (index // 10 % 5)
            files.append(str(folder / f"{index:05d}.jpg"))
            Image.fromarray(media.pattern(height, width, shift=index)).save(files[-1])
        for index in range(videos):
            files.append(str(folder / f"{index:05d}.mp4"))
            media.write_video(Path(files[-1]), np.roll(media.frames(12, 96, 128), index, axis=2))
        done.write_text(json.dumps(files))
    return json.loads(done.read_text())


def extraction(model: Path, inputs: Path, output: Path, processes: int = 1) -> list[str]:
    """The command of a run."""
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    arguments = ["--packing_model_path", model, "--inputs", inputs, "--output_dir", output, "--device", "cpu"]
    arguments += ["--shard_size", 64]
    return [*launch, str(ROOT / "examples" / "extract_features.py"), *map(str, arguments)]


def watch(command: list[str], **options) -> list[tuple[float, int]]:
    """Runs a command; the resident memory of all its processes, by time."""
    process = psutil.Popen(command, env=environment(), stdin=subprocess.DEVNULL, **options)
    usage = []
    while process.poll() is None:
        total = 0
        try:
            for part in [process, *process.children(recursive=True)]:
                total += part.memory_info().rss
        except psutil.NoSuchProcess:
            continue
        usage.append((time.time(), total))
        time.sleep(0.1)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage


def measure_speed(options: argparse.Namespace, model: Path, files: list[str]) -> dict:
    """Tokens per second of a run and of a plain loop, and the memory in each tenth of the run."""
    output = options.folder / "one_process"
    shutil.rmtree(output, ignore_errors=True)
    usage = watch(extraction(model, options.folder / "inputs", output))
    # From the first shard on: workers have started by then.
    start, end = ((output / name).stat().st_mtime for name in ("shards/00000.jsonl", "index.jsonl"))
    first = json.loads((output / "shards" / "00000.jsonl").read_text().splitlines()[0])
    counts = json.loads((output / "metadata.json").read_text())["counts"]
    records = [json.loads(line) for line in (output / "index.jsonl").read_text().splitlines()]
    tokens = sum(record["tokens"] for record in records if record["shard"] not in first["files"])
    listed = options.folder / "inputs" / "done.json"
    loop = subprocess.run(
        [sys.executable, "-c", ONE_BY_ONE, str(model), str(listed)], env=environment(), capture_output=True, check=True
    )
    loop_tokens, seconds = json.loads(loop.stdout.splitlines()[-1])
    tenths = [
        max(
            (memory for moment, memory in usage if place <= (moment - start) / (end - start) * 10 < place + 1),
            default=0,
        )
        for place in range(10)
    ]
    return {
        **counts,
        "times": json.loads((output / "metadata.json").read_text())["times"],
        "tokens_per_second": round(tokens / (end - start)),
        "one_by_one_tokens_per_second": round(loop_tokens / seconds),
        "ratio": round(tokens / (end - start) / (loop_tokens / seconds), 2),
        "peak_mib_by_tenth": [memory >> 20 for memory in tenths],
        "last_tenth_to_second": round(tenths[9] / tenths[1], 3),
    }


def measure_packing(options: argparse.Namespace, model: Path, files: list[str]) -> dict:
    """Tokens per second of processor time of the model alone, by the size of packs; 1 means one by one."""
    listed = options.folder / "inputs" / "done.json"
    command = [sys.executable, "-c", PACKS, str(model), str(listed)]
    variables = {**environment(), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=variables, capture_output=True, check=True)
    speeds = json.loads(result.stdout.splitlines()[-1])
    best = max(speeds.values())
    return {"tokens_per_processor_second": speeds, "best_ratio": round(best / speeds["1"], 2)}


def measure_processes(options: argparse.Namespace, model: Path, files: list[str]) -> dict:
    """Whether two processes leave the same bytes as one."""
    output = options.folder / "two_processes"
    shutil.rmtree(output, ignore_errors=True)
    subprocess.run(extraction(model, options.folder / "inputs", output, 2), env=environment(), check=True)
    return {"two_processes_equal_one": contents(options.folder / "one_process") == contents(output)}


def measure_kills(options: argparse.Namespace, model: Path, files: list[str]) -> dict:
    """Whether a run that is killed several times, at random moments, leaves the same bytes as one that is not."""
    output = options.folder / "killed"
    shutil.rmtree(output, ignore_errors=True)
    chance = random.Random(0)
    complete = []
    for kill in range(options.kills):
        process = subprocess.Popen(extraction(model, options.folder / "inputs", output), env=environment())
        goal = (kill + 1) * (len(files) // 64) // (options.kills + 1)
        while len(list(output.glob("shards/[!.]*.jsonl"))) < goal and process.poll() is None:
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        complete.append(len(list(output.glob("shards/[!.]*.jsonl"))))
    subprocess.run(extraction(model, options.folder / "inputs", output), env=environment(), check=True)
    return {
        "complete_shards_at_kills": complete,
        "killed_equals_whole": contents(options.folder / "one_process") == contents(output),
    }


def measure_layers(options: argparse.Namespace) -> dict:
    """Memory above the weights of both ways to ask for `hidden_states[-2]`, large variant, 2048 x 1365 pixels."""
    model = make_model(options.folder / "large", 14, LARGE)
    peaks, states = {}, []
    for way in ("layer", "all"):
        saved = options.folder / f"{way}.pt"
        command = [sys.executable, "-c", LAYERS, str(model), way, *map(str, options.grid), str(saved)]
        result = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=True)
        peaks[way] = json.loads(result.stdout.splitlines()[-1])[0]
        states.append(torch.load(saved))
    return {
        "vision_feature_layer_mib": peaks["layer"] >> 20,
        "output_hidden_states_mib": peaks["all"] >> 20,
        "ratio": round(peaks["layer"] / peaks["all"], 3),
        "bit_for_bit_equal": torch.equal(*states),
    }


def with_broken(inputs: Path, folder: Path) -> Path:
    """The files in a folder, with broken ones among them."""
    if not folder.exists():
        folder.mkdir()
        for path in [*inputs.glob("*.jpg"), *inputs.glob("*.mp4")]:
            os.link(path, folder / path.name)
        for index in range(BROKEN):
            (folder / f"{index * 97:05d}x{('.jpg', '.mp4')[index % 2]}").write_bytes(b"broken")
    return folder


def write_dataset(inputs: Path, folder: Path) -> None:
    """The files as `datasets` stores them."""
    import datasets

    def rows():
        for path in sorted(inputs.iterdir()):
            stored = {"bytes": path.read_bytes(), "path": path.name}
            is_image = path.suffix == ".jpg"
            yield {"name": path.name, "image": stored if is_image else None, "video": None if is_image else stored}

    features = {"name": datasets.Value("string"), "image": datasets.Image(), "video": datasets.Video(decode=False)}
    stored = datasets.Dataset.from_list(list(rows()), features=datasets.Features(features))
    folder.mkdir()
    stored.to_parquet(folder / "train-00000-of-00001.parquet")


def write_tars(inputs: Path, folder: Path) -> None:
    """The files as WebDataset has them, 500 to a tar. A key ends at a name's first dot."""
    folder.mkdir()
    for number, paths in enumerate(cut_into_shards(sorted(inputs.iterdir()), 500)):
        with tarfile.open(folder / f"shard-{number:03d}.tar", "w") as tar:
            for path in paths:
                tar.add(path, f"{path.stem}_{path.suffix[1:]}{path.suffix}")


def hashes_of(folder: Path) -> dict[str, str | None]:
    """A hash of each sample's features, and None for what gave none."""
    features, found = open_features(folder), {}
    for record in load_index(folder):
        layers = [features.load(f"{record['id']} {layer}").tobytes() for layer in ("-2", "pooler")]
        found[record["id"]] = hashlib.sha256(b"".join(layers)).hexdigest()
    lines = (folder / "failures.jsonl").read_text().splitlines()
    return found | {json.loads(line)["id"]: None for line in lines}


def run_ray(command: list[str], output: Path, shards: int) -> int:
    """Runs a job, and kills one of its actors by its pid once so many shards are complete. Returns the pid."""
    process = psutil.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(output.glob("shards/[!.]*.jsonl"))) < shards:
        if process.poll() is not None:
            raise subprocess.CalledProcessError(process.returncode, command)
        time.sleep(0.02)
    victim = next(child for child in process.children(recursive=True) if "MapWorker" in " ".join(child.cmdline()))
    victim.kill()
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, command)
    return victim.pid


def measure_sources(options: argparse.Namespace) -> dict:
    """Whether all sources give the same features, byte for byte for each id, and record the same broken files."""
    folder = options.folder
    model = make_model(folder / "tiny", 16, TINY)
    make_inputs(folder / "inputs", options.images, options.videos)
    inputs = with_broken(folder / "inputs", folder / "with_broken")
    shutil.rmtree(folder / "sources", ignore_errors=True)
    (folder / "sources").mkdir()
    places = {name: folder / "sources" / name for name in ("files", "dataset", "tars", "ray", "data", "shards")}
    write_dataset(inputs, places["data"])
    write_tars(inputs, places["shards"])
    tars = len(list(places["shards"].iterdir()))
    given = {
        "files": ["--inputs", inputs],
        "dataset": ["--dataset", places["data"], "--split", "train", "--id_column", "name"],
        "tars": ["--webdataset", places["shards"] / f"shard-{{000..{tars - 1:03d}}}.tar"],
        "ray": ["--inputs", inputs, "--min_actors", 2, "--max_actors", 2, "--workers", 1],
    }
    hashes, seconds, killed = {}, {}, None
    for name, arguments in given.items():
        script = ROOT / "examples" / ("extract_with_ray.py" if name == "ray" else "extract_features.py")
        command = [sys.executable, script, "--packing_model_path", model, "--layers", "-2,pooler", "--shard_size", 64]
        command = [str(part) for part in [*command, "--device", "cpu", "--output_dir", places[name], *arguments]]
        start = time.perf_counter()
        if name == "ray":
            killed = run_ray(command, places[name], max(1, len(list(inputs.iterdir())) // 64 // 5))
        else:
            subprocess.run(command, env=environment(), check=True, stderr=subprocess.DEVNULL)
        seconds[name] = round(time.perf_counter() - start, 1)
        hashes[name] = hashes_of(places[name])
    hashes["tars"] = {key.replace("_", "."): value for key, value in hashes["tars"].items()}
    for way in ("map", "stream"):
        output = folder / "sources" / f"{way}.json"
        arguments = [places["data"], model, output, folder / "sources" / "cache", way]
        start = time.perf_counter()
        variables = {**environment(), "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", MAPPED, *map(str, arguments)], env=variables, check=True)
        seconds[way] = round(time.perf_counter() - start, 1)
        hashes[way] = json.loads(output.read_text())
    failures = {name: sum(value is None for value in found.values()) for name, found in hashes.items()}
    return {
        "samples": len(hashes["files"]) - failures["files"],
        "failures": failures,
        "killed_actor": killed,
        "all_equal_files": {name: found == hashes["files"] for name, found in hashes.items()},
        "seconds": seconds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="WORK_DIR")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--videos", type=int, default=50)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--grid", type=int, nargs=2, default=(97, 146), help="rows and columns of patches for layers")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    measures = {
        "packing": measure_packing,
        "speed": measure_speed,
        "processes": measure_processes,
        "kills": measure_kills,
    }
    for part in options.parts:
        if part in ("layers", "sources"):
            found = {"layers": measure_layers, "sources": measure_sources}[part](options)
        else:
            model = make_model(options.folder / "small", 16, SMALL)
            files = make_inputs(options.folder / "inputs", options.images, options.videos)
            found = measures[part](options, model, files)
        print(json.dumps({"part": part, **found}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
