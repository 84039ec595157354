# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Extraction by Ray's actors: the folder of one process, also where an actor is killed or the job is stopped."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples import extract_with_ray
from tests.examples.commands import EXAMPLES, contents, environment, run
from tests.warm_python import REAL


ACTOR = "ray::MapWorker(MapBatches(ShardExtractor))"


def start(arguments: list, folder: Path, log: Path) -> subprocess.Popen:
    command = [REAL, str(EXAMPLES / "extract_with_ray.py"), *map(str, arguments), "--output_dir", str(folder)]
    with open(log, "wb") as stream:
        return subprocess.Popen(
            command, env=environment(), stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT
        )


def actors_of(process: subprocess.Popen) -> list:
    """The actors of a job's own Ray, below its process."""
    psutil = pytest.importorskip("psutil")
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if child.is_running() and child.cmdline()[:1] and ACTOR in child.cmdline()[0]]


def wait_for_shard(process: subprocess.Popen, folder: Path, log: Path) -> None:
    deadline = time.monotonic() + 180
    while not list(folder.glob("shards/[!.]*.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.01)


@pytest.mark.long
@pytest.mark.once
def test_an_actor_that_is_killed_costs_nothing(many_arguments, many_features, tmp_path):
    pytest.importorskip("ray.data", reason="needs Ray (pip install 'ray[data]')")
    arguments = [*many_arguments, "--device", "cpu", "--min_actors", 2, "--max_actors", 2, "--workers", 1]
    process = start(arguments, tmp_path / "f", tmp_path / "log")
    try:
        wait_for_shard(process, tmp_path / "f", tmp_path / "log")
        victim = actors_of(process)[0]
        victim.send_signal(signal.SIGKILL)
        assert len(list((tmp_path / "f").glob("shards/[!.]*.jsonl"))) < 9, "nothing was left to do"
        assert process.wait(timeout=240) == 0, (tmp_path / "log").read_text()[-3000:]
    finally:
        process.kill()
    log = (tmp_path / "log").read_text()
    assert "features of 66 samples" in log and "0 failures" in log
    assert contents(tmp_path / "f") == contents(many_features)
    # Started again, there is nothing to do; a shard that is gone is made anew, and no other.
    (tmp_path / "f" / "shards" / "00004.jsonl").unlink()
    kept = (tmp_path / "f" / "shards" / "00003.safetensors").stat().st_mtime_ns
    done = run("extract_with_ray.py", *arguments, "--output_dir", tmp_path / "f")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "f") == contents(many_features)
    assert (tmp_path / "f" / "shards" / "00003.safetensors").stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--inputs", "a", "--max_actors", "0"], "--max_actors must be at least --min_actors=1"),
        (["--inputs", "a", "--min_actors", "0"], "--min_actors must be at least 1"),
        (["--inputs", "a", "--num_gpus", "-1"], "--num_gpus must not be negative"),
        (["--inputs", "a", "--layers", "last"], "--layers last: expected"),
        ([], "one of --inputs, --dataset, --webdataset says what to read, found none"),
    ],
)
def test_wrong_options_are_refused_before_ray_starts(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(extract_with_ray, "import_ray", lambda: pytest.fail("Ray was asked for"))
    assert extract_with_ray.main(["--packing_model_path", "nowhere", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_ray_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert extract_with_ray.main(["--packing_model_path", "nowhere", "--inputs", "a"]) == 2
    assert "pip install 'ray[data]'" in capsys.readouterr().err
