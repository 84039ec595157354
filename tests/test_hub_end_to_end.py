# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""From a checkpoint to a stranger's features: convert, publish with `push_to_hub.py`, load from the loopback Hub.

Every consumer is a new process with a cache of its own, and cannot import the installed `llava_vit_hf`.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from conversion.common.model_folder import PublishError
from conversion.publishing.load_back import check_published
from conversion.verify_model import parse_arguments
from tests import media
from tests.conversion.publishing.publishable import converted_folder, sha256_of, verified_folder, write_report
from tests.loopback_hub import LoopbackHub


pytestmark = pytest.mark.long


ROOT = Path(__file__).resolve().parents[1]
TOKEN = "hf_writer"
REPOS = {"dense": "user/llava.vit-dense", "packing": "user/llava.vit-packing"}
ALONE = "import sys\nsys.modules['llava_vit_hf'] = None\n"
CONSUMER = """
import numpy as np, torch
from transformers import AutoModel, AutoProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor
source, output, *republish = sys.argv[1:]
processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
model = AutoModel.from_pretrained(source, trust_remote_code=True).eval()
rows, columns = np.mgrid[:21, :34]
image = np.stack([7 * rows + 3 * columns, 5 * rows * columns, 11 * columns], -1).astype(np.uint8)
features = {}
for name, samples in {"image": {"images": image}, "video": {"videos": np.stack([image, 255 - image])}}.items():
    inputs = processor(**samples, num_frames=2, native_resolution=True)
    with torch.inference_mode():
        outputs = model(**inputs, output_hidden_states=True)
    features[name], features[name + "_pooled"] = outputs.hidden_states[-2].numpy(), outputs.pooler_output.numpy()
np.savez(output, **features)
assert type(AutoImageProcessor.from_pretrained(source, trust_remote_code=True)).__name__ == "LlavaViTImageProcessor"
for repo_id in republish:
    model.push_to_hub(repo_id)
    processor.push_to_hub(repo_id)
"""


def run(environment, cwd, *command, code=0):
    cwd.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([*map(str, command)], env=environment, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def consume(environment, cwd, source, *republish, python=sys.executable):
    """Features that a stranger gets, by name."""
    output = cwd / "features.npz"
    run(environment, cwd, python, "-c", ALONE + CONSUMER, source, output, *republish)
    with np.load(output) as arrays:
        return dict(arrays)


def assert_same_bits(actual, expected):
    assert actual.keys() == expected.keys() and len(expected) == 4
    for name, array in expected.items():
        assert array.dtype == actual[name].dtype and array.tobytes() == actual[name].tobytes(), name


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as hub:
        hub.add_token(TOKEN, "user")
        yield hub


@pytest.fixture(scope="module", params=["dense", "packing"])
def published(request, hub, tmp_path_factory):
    """`(layout, folder, repo id, features of the folder)` of a model published with the script, load-back included."""
    layout = request.param
    base = tmp_path_factory.mktemp(layout)
    folder = verified_folder(base / "model", layout)
    environment = hub.client_environment(base / "publisher", TOKEN)
    out = run(environment, base, sys.executable, ROOT / "conversion/push_to_hub.py", folder, REPOS[layout])
    assert f"commit {hub.repo(REPOS[layout]).at().oid}, loaded back and equal" in out
    return layout, folder, REPOS[layout], consume(environment, base / "local", str(folder))


def test_stranger_gets_the_same_bits_then_offline_then_republishes(hub, published, tmp_path):
    layout, _, repo_id, expected = published
    online = hub.client_environment(tmp_path / "cache", TOKEN)
    again = f"user/again-{layout}"
    assert_same_bits(consume(online, tmp_path / "online", repo_id, again), expected)

    requests = len(hub.requests)
    offline = hub.client_environment(tmp_path / "cache", offline=True)
    assert_same_bits(consume(offline, tmp_path / "offline", repo_id), expected)
    assert len(hub.requests) == requests

    code = {name for name in hub.repo(repo_id).files() if name.endswith(".py")}
    assert {name for name in hub.repo(again).files() if name.endswith(".py")} == code
    empty = hub.client_environment(tmp_path / "empty")
    assert_same_bits(consume(empty, tmp_path / "republished", again), expected)


def test_other_transformers_major_gets_the_same_features(hub, published, tmp_path, other_python):
    _, _, repo_id, expected = published
    actual = consume(hub.client_environment(tmp_path / "cache"), tmp_path / "other", repo_id, python=other_python)
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, rtol=0, atol=1e-5 * np.abs(array).max(), err_msg=name)


def test_code_blocks_of_the_card_run(hub, published, tmp_path):
    layout, _, repo_id, _ = published
    card = ModelCard(hub.repo(repo_id).files()["README.md"].read().decode())
    blocks = re.findall(r"^```python\n(.*?)^```", card.text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == {"dense": 4, "packing": 3}[layout]
    media.image(40, 30).save(tmp_path / "image.jpg")
    media.write_video(tmp_path / "video.mp4", media.frames(10, 32, 48))
    checks = {
        "dense": "print(features and len(features[0][0]), pooled.shape)",
        "packing": "print(list(of_image.shape), list(of_video.shape), pooled.shape)",
    }
    script = ALONE + "\n".join(blocks) + checks[layout]
    environment = hub.client_environment(tmp_path / "cache")
    (last,) = run(environment, tmp_path, sys.executable, "-c", script).strip().splitlines()[-1:]
    assert (
        last
        == {
            "dense": "64 torch.Size([1, 64])",
            "packing": "[1, 7, 10, 64] [8, 8, 12, 64] torch.Size([1, 64])",
        }[layout]
    )


def test_command_to_repeat_the_check_exists(hub, published):
    _, _, repo_id, _ = published
    text = hub.repo(repo_id).files()["README.md"].read().decode()
    (commands,) = re.findall(r"^```sh\n(.*?)\n```", text, re.DOTALL | re.MULTILINE)
    download, verify = commands.splitlines()
    assert download.startswith(f"hf download {repo_id} --revision verified-")
    assert verify.startswith("python conversion/verify_model.py ")
    assert parse_arguments(verify.split()[2:]).folder.name == download.split()[-1] == repo_id.split("/")[1]


def push(hub, tmp_path, folder, repo_id):
    environment = hub.client_environment(tmp_path / "publisher", TOKEN)
    command = [sys.executable, str(ROOT / "conversion/push_to_hub.py"), str(folder), repo_id]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr


def test_hub_that_serves_other_bytes_fails_the_check(hub, tmp_path):
    repo_id = "user/tampered"

    repo = hub.create_repo(repo_id)

    def tamper(_):
        repo.at().files["grid_llava_vit.py"] = repo.storage.regular(b"# other code\n")

    hub.faults.add("HEAD", f"/{repo_id}/resolve/.*/grid_llava_vit.py", callback=tamper)
    code, words = push(hub, tmp_path, verified_folder(tmp_path / "model"), repo_id)
    head = hub.repo(repo_id).log()[0].oid
    assert code == 1 and f"{repo_id} is at commit {head}" in words and "no tag was set" in words
    assert f"grid_llava_vit.py of {repo_id}: sha256 is {sha256_of(b'# other code' + bytes([10]))}" in words
    assert not any(ref.startswith("refs/tags/") for ref in hub.repo(repo_id).refs)


def test_download_that_is_cut_is_repeated(hub, tmp_path):
    repo_id = "user/cut"
    fault = hub.faults.add("GET", f"/{repo_id}/resolve/.*/model.safetensors", cut_after_bytes=100_000)
    code, words = push(hub, tmp_path, verified_folder(tmp_path / "model"), repo_id)
    assert (code, fault.times) == (0, 0), words


def test_one_bit_of_difference_fails_the_check(monkeypatch):
    expected = {"image": np.ones((2, 3), np.float32)}
    other = np.nextafter(expected["image"], np.float32(2))
    for found, message in (({"image": other}, "image differ"), ({}, "image differ"), (expected, None)):
        monkeypatch.setattr("conversion.publishing.load_back._features", lambda *arguments, found=found: found)
        if message is None:
            check_published("user/x", "0" * 40, {}, expected)
        else:
            with pytest.raises(PublishError, match=message):
                check_published("user/x", "0" * 40, {}, expected)


def test_folder_that_cannot_be_loaded_is_not_published(hub, tmp_path):
    folder = converted_folder(tmp_path / "model")
    code = folder / "modeling_llava_vit.py"
    code.write_text(code.read_text() + "\nraise RuntimeError('broken on purpose')\n")
    code, words = push(hub, tmp_path, write_report(folder), "user/broken")
    assert code == 1 and "could not be loaded" in words and "broken on purpose" in words
    assert ("models", "user/broken") not in hub.repos
