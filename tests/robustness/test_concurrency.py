# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Threads that share a model or a processor, and processes that share an output folder or a cache.

What holds: threads get the bits of a sequential run; of two processes that write one folder the second is refused; and
processes that share a filled cache of code all load. transformers fills that cache without a lock, so processes that
start together on an empty one may fail to load: loudly, and a new start heals it. One of them goes first, or each has
its own `HF_MODULES_CACHE`.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from conversion.checkpoints import model_folder_writer
from conversion.checkpoints.checkpoint import CheckpointError
from conversion.source.peaked_weights import peaked_state_dict
from examples import extract_features
from llava_vit_hf import LlavaViTImageProcessor, LlavaViTProcessor
from llava_vit_hf.attention_llava_vit import LlavaViTAttention
from tests import media
from tests.conversion.publishing.publishable import converted_folder
from tests.conversion.scripts import command, run_script
from tests.conversion.weights import tiny_config
from tests.examples import commands
from tests.llava_vit_hf.both_models import LAYOUTS, make_case
from tests.loopback_hub import LoopbackHub
from tests.warm_python import REAL


THREADS = 8
ROUNDS = 3


def outputs_of(model, inputs: dict) -> list[torch.Tensor]:
    """Every tensor of a forward, in order."""
    with torch.inference_mode():
        output = model(**inputs, output_hidden_states=True)
    tensors = [output.last_hidden_state, output.pooler_output, *output.hidden_states]
    for layer in output.attentions or ():
        tensors += [layer] if isinstance(layer, torch.Tensor) else layer
    return tensors


def check_threads(work, items: list) -> None:
    """`work(item)` in threads that start together gives the tensors of a sequential run, bit for bit."""
    expected = [work(item) for item in items]
    barrier = threading.Barrier(len(items))

    def together(item):
        barrier.wait(60)
        return [work(item) for _ in range(ROUNDS)]

    with ThreadPoolExecutor(len(items)) as pool:
        found = list(pool.map(together, items))
    for rounds, one in zip(found, expected, strict=True):
        for tensors in rounds:
            assert len(tensors) == len(one)
            assert all(torch.equal(a, b) for a, b in zip(tensors, one, strict=True))


def requests_for(case) -> list[dict]:
    """Eight different inputs of a case, every third one with attention weights; packs of other samples for packing."""
    requests = []
    for index in range(THREADS):
        inputs = {**case.inputs, "pixel_values": case.inputs["pixel_values"] * (1 + 0.1 * index)}
        if case.layout == "packing" and index % 2:
            last = case.inputs["grid_thw"][:2].prod(1).sum()
            rows = {name: inputs[name][:last] for name in ("pixel_values", "patch_positions")}
            inputs = {**rows, "grid_thw": case.inputs["grid_thw"][:2]}
        requests.append({**inputs, "output_attentions": index % 3 == 0})
    return requests


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_model_in_threads(layout, implementation):
    case = make_case(layout)
    case.model.set_attn_implementation(implementation)
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    check_threads(lambda inputs: outputs_of(case.model, inputs), requests_for(case))
    assert not any(module.training for module in case.model.modules())
    assert case.model.config._attn_implementation == implementation
    assert all(torch.equal(value, before[name]) for name, value in case.model.state_dict().items())


def test_state_on_a_layer_would_be_seen(monkeypatch):
    """A layer that keeps something on itself between two lines gets another thread's."""
    project = LlavaViTAttention.project

    def remember(self, hidden_states):
        self.projected = project(self, hidden_states)
        time.sleep(0.002)
        return self.projected

    monkeypatch.setattr(LlavaViTAttention, "project", remember)
    case = make_case("dense")
    with pytest.raises(AssertionError):
        check_threads(lambda inputs: outputs_of(case.model, inputs), requests_for(case))


@pytest.fixture(scope="module")
def media_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    media.image(61, 42).save(folder / "a.png")
    media.write_video(folder / "a.mp4", media.frames(12, 32, 48))
    return folder


def process(processor, request: dict) -> list[torch.Tensor]:
    batch = processor(**request, native_resolution=True)
    return [batch[name] for name in ("pixel_values", "grid_thw", "patch_positions", "cu_seqlens")]


def media_requests(folder: Path) -> list[dict]:
    """Images, videos and both, with other numbers of frames in each thread."""
    image, video = str(folder / "a.png"), str(folder / "a.mp4")
    return [
        {"images": [image] * (1 + index), **({"videos": [video], "num_frames": 2 + index} if index % 2 else {})}
        for index in range(THREADS)
    ]


def test_one_processor_in_threads(media_files):
    processor = LlavaViTProcessor(LlavaViTImageProcessor(patch_size=4, packing=True))
    before = processor.image_processor.to_dict()
    check_threads(lambda request: process(processor, request), media_requests(media_files))
    assert processor.image_processor.to_dict() == before


def test_state_on_the_processor_would_be_seen(media_files, monkeypatch):
    settings = LlavaViTImageProcessor.settings

    def remember(self, *arguments, **options):
        self.current = settings(self, *arguments, **options)
        time.sleep(0.02)
        return self.current

    monkeypatch.setattr(LlavaViTImageProcessor, "settings", remember)
    processor = LlavaViTProcessor(LlavaViTImageProcessor(patch_size=4, packing=True))
    with pytest.raises(AssertionError):
        check_threads(lambda request: process(processor, request), media_requests(media_files))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    path = tmp_path_factory.mktemp("backbone") / "backbone.pt"
    torch.save(peaked_state_dict(tiny_config(patch_size=14)), path)
    return path


def start(command: list[str]) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "stdin": subprocess.DEVNULL}
    variables = commands.environment(HF_HUB_OFFLINE="1", PYTHONPATH="")
    return subprocess.Popen([REAL, *command[1:]], env=variables, start_new_session=True, **pipes)


def wait_for(process: subprocess.Popen, condition, seconds: float = 120) -> None:
    """Until `condition()`, while the process is at work."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate(timeout=60)
        time.sleep(0.002)


def conversion(backbone: Path, output: Path, *arguments) -> tuple:
    heads = ("--num_attention_heads", 2)
    return ("convert_llava_vit_to_hf.py", "auto", backbone, *heads, "--output_dir", output, *arguments)


@pytest.mark.long
@pytest.mark.once
def test_two_conversions_into_one_folder(backbone, tmp_path):
    """The second is refused while the first is at work, `--overwrite` or not; the first ends well."""
    output = tmp_path / "out"
    first = start(command(*conversion(backbone, output, "--time_budget", 0.05)))
    wait_for(first, lambda: list(tmp_path.glob(".out.partial-*")))
    os.killpg(first.pid, signal.SIGSTOP)
    try:
        found = {path.name for path in tmp_path.rglob("*")}
        second = run_script(*conversion(backbone, output, "--overwrite", "--skip_verification"))
        assert {path.name for path in tmp_path.rglob("*")} == found
    finally:
        os.killpg(first.pid, signal.SIGCONT)
    assert second.returncode == 2
    assert f"error: {output} is being written by another process. Wait for it." in second.stderr.splitlines()
    _, errors = first.communicate(timeout=240)
    assert first.returncode == 0, errors
    assert json.loads((output / "verification.json").read_text())["verdict"] == "PASS"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.long
@pytest.mark.once
def test_a_conversion_after_a_killed_one(backbone, tmp_path):
    output = tmp_path / "out"
    killed = start(command(*conversion(backbone, output, "--time_budget", 0.05)))
    wait_for(killed, lambda: list(tmp_path.glob(".out.partial-*/config.json")))
    killed.kill()
    killed.communicate(timeout=60)
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == [".out.lock", ".out.partial"]
    with model_folder_writer.staging_folder(output) as folder:
        (folder / "config.json").write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("moment", ["before the lock", "after the lock"])
def test_what_appeared_meanwhile_is_not_replaced(tmp_path, monkeypatch, moment):
    """A conversion that found its folder free does not replace one that was finished before it was its turn."""
    output, exclusive = tmp_path / "out", model_folder_writer.exclusive

    def appear():
        output.mkdir()
        (output / "mine").write_text("mine")

    if moment == "before the lock":
        monkeypatch.setattr(model_folder_writer, "exclusive", lambda *paths: (appear(), exclusive(*paths))[1])
    begun = False
    with pytest.raises(CheckpointError, match="out exists.*--overwrite"), model_folder_writer.staging_folder(output):
        begun = True
        appear()
    assert begun == (moment == "after the lock")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (output / "mine").read_text() == "mine"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A packing model, ten images of several sizes, and their features from one undisturbed run."""
    base = tmp_path_factory.mktemp("folders")
    converted_folder(base / "packing", "packing")
    (base / "images").mkdir()
    for index in range(10):
        media.image(24 + 8 * (index % 4), 32).save(base / "images" / f"{index}.png")
    assert extract_features.main(extraction(base, base / "features")) == 0
    return base


def extraction(base: Path, output: Path) -> list[str]:
    arguments = ["--packing_model_path", base / "packing", "--inputs", base / "images", "--output_dir", output]
    return [*map(str, arguments), "--shard_size", "2", "--device", "cpu", "--workers", "1"]


@pytest.mark.long
@pytest.mark.once
def test_two_extractions_into_one_folder(folders, tmp_path, capsys):
    """The second is refused while the first is at work, `--overwrite` or not; the features are those of one run."""
    output = tmp_path / "features"
    script = [sys.executable, str(commands.EXAMPLES / "extract_features.py")]
    first = start([*script, *extraction(folders, output)])
    wait_for(first, lambda: (output / "metadata.json").exists())
    first.send_signal(signal.SIGSTOP)
    try:
        found = commands.contents(output)
        assert extract_features.main([*extraction(folders, output), "--overwrite"]) == 2
        assert commands.contents(output) == found
    finally:
        first.send_signal(signal.SIGCONT)
    wanted = f"error: --output_dir {output} is being written by another run. Wait for it, or give another folder."
    assert capsys.readouterr().err.strip().splitlines()[-1] == wanted
    _, errors = first.communicate(timeout=240)
    assert first.returncode == 0, errors
    assert commands.contents(output) == commands.contents(folders / "features")


LOADERS = """
import hashlib, json, multiprocessing, sys, time
sys.modules["llava_vit_hf"] = None
import torch, transformers.models.auto.image_processing_auto
from transformers import AutoModel, AutoProcessor
source, count = sys.argv[1], int(sys.argv[2])
image = torch.arange(3 * 24 * 32).reshape(3, 24, 32).remainder(251).byte()

def load(barrier, answers):
    try:
        barrier.wait()
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
        model = AutoModel.from_pretrained(source, trust_remote_code=True).eval()
        with torch.inference_mode():
            features = model(**processor(images=[image], native_resolution=True)).last_hidden_state
        answers.put(hashlib.sha256(features.numpy().tobytes()).hexdigest())
    except Exception as error:
        answers.put(f"{type(error).__name__}: {error}")

context = multiprocessing.get_context("fork")
barrier, answers = context.Barrier(count), context.Queue()
processes = [context.Process(target=load, args=(barrier, answers)) for _ in range(count)]
for process in processes:
    process.start()
print(json.dumps([answers.get(timeout=120) for _ in processes]))
"""


def load_in_processes(source, count: int, environment: dict[str, str], cwd: Path) -> list[str]:
    """Loads a model in `count` processes that start together: a digest of its features each, or the error."""
    arguments = [sys.executable, "-c", LOADERS, str(source), str(count)]
    done = subprocess.run(arguments, env=environment, cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def loading_environment(cache: Path) -> dict[str, str]:
    return commands.environment(HF_HOME=str(cache), HF_MODULES_CACHE=str(cache / "modules"), HF_HUB_OFFLINE="1")


@pytest.mark.long
def test_processes_share_a_filled_cache(folders, tmp_path):
    """One goes first, as the example scripts do it; then any number load at once."""
    environment = loading_environment(tmp_path / "cache")
    (first,) = load_in_processes(folders / "packing", 1, environment, tmp_path)
    assert len(first) == 64
    assert load_in_processes(folders / "packing", THREADS, environment, tmp_path) == [first] * THREADS


@pytest.mark.slow
def test_processes_share_an_empty_cache(folders, tmp_path):
    """transformers copies the code file by file without a lock. Who reads a file that is being copied fails to load
    and says so; nobody gets other features, and the cache is good afterwards."""
    environment = loading_environment(tmp_path / "cache")
    answers = load_in_processes(folders / "packing", THREADS, environment, tmp_path)
    digests = {answer for answer in answers if len(answer) == 64}
    errors = {answer.split(":")[0] for answer in answers if len(answer) != 64}
    assert len(digests) == 1 and errors <= {"AttributeError", "ImportError", "ModuleNotFoundError"}, answers
    assert load_in_processes(folders / "packing", THREADS, environment, tmp_path) == [*digests] * THREADS


@pytest.mark.slow
def test_processes_share_a_cache_of_a_repo(folders, tmp_path):
    """The same from a Hub, files downloaded into the shared cache too."""
    with LoopbackHub() as hub:
        hub.add_token("hf_writer", "user")
        environment = hub.client_environment(tmp_path / "publisher", "hf_writer")
        upload = "import sys; from huggingface_hub import HfApi; api = HfApi(); api.create_repo('user/packing'); "
        upload += "api.upload_folder(repo_id='user/packing', folder_path=sys.argv[1])"
        subprocess.run([sys.executable, "-c", upload, str(folders / "packing")], env=environment, check=True)
        environment = {**hub.client_environment(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        (first,) = load_in_processes("user/packing", 1, environment, tmp_path)
        assert load_in_processes("user/packing", 4, environment, tmp_path) == [first] * 4
    assert load_in_processes(folders / "packing", 1, loading_environment(tmp_path / "local"), tmp_path) == [first]
