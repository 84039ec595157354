# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""No data that is read runs code, and code that is shipped does nothing when it is imported but define classes."""

import ast
import io
import json
import os
import pickle
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoProcessor

from conversion.checkpoints.checkpoint import CheckpointError, read_checkpoint
from conversion.common.model_folder import PublishError, read_model_folder
from conversion.publishing.card_features import CardRecord
from conversion.publishing.model_card import render_card
from conversion.verification.report import read_report
from examples.extraction.feature_sets import load_features, load_index, load_metadata  # noqa: E402
from examples.extraction.inputs import collect_inputs  # noqa: E402
from examples.extraction.shards import load_tensor  # noqa: E402
from llava_vit_hf import LlavaViTImageProcessor, LlavaViTProcessor
from tests import media
from tests.conversion.publishing.publishable import verified_folder
from tests.conversion.weights import peaked_state_dict, tiny_config
from tests.examples.commands import ROOT
from tests.llava_vit_hf.test_imports import ALLOWED
from tests.models import TINY, as_packing, dense_model
from tests.warm_python import REAL


PACKAGE = ROOT / "llava_vit_hf"
RECORD = CardRecord("user/model", "main", "main")
# A line at the end of a shipped file, and what the audit must say of it.
PLANTED = {
    "socket": ("import socket; socket.create_connection(('127.0.0.1', 9))", "socket."),
    "download": ("import urllib.request; urllib.request.urlopen('http://127.0.0.1:9/')", "urllib.Request"),
    "write": ("open('written', 'w')", "open 'written' to write"),
    "folder": ("import os; os.mkdir('made')", "os.mkdir"),
    "remove": ("import os; os.remove('absent')", "os.remove"),
    "rename": ("import os; os.rename('absent', 'other')", "os.rename"),
    "environment": ("import os; os.environ['PLANTED'] = '1'", "os.putenv"),
    "subprocess": ("import subprocess; subprocess.run(['true'])", "subprocess.Popen"),
    "shell": ("import os; os.system('true')", "os.system"),
    "fork": ("import os; os.fork()", "os.fork"),
    "library": ("import ctypes; ctypes.CDLL(None)", "ctypes.dlopen"),
    "unpickling": ("import pickle; pickle.loads(b'cos\\ngetpid\\n(tR.')", "pickle.find_class"),
    "foreign module": ("import planted_module", "import planted_module"),
    "threads": ("torch.set_num_threads(3)", "changed: torch threads"),
    "dtype": ("torch.set_default_dtype(torch.float64)", "changed: torch default dtype"),
    "gradients": ("torch.set_grad_enabled(False)", "changed: torch grad mode"),
    "seed": ("torch.manual_seed(7)", "changed: torch random state"),
    "numpy seed": ("import numpy; numpy.random.seed(7)", "changed: numpy random state"),
    "operator": (
        "own = torch.library.Library('own', 'DEF'); own.define('f(Tensor x) -> Tensor')",
        "changed: torch op",
    ),
    "warnings": ("import warnings; warnings.simplefilter('ignore')", "changed: warnings filters"),
    "logging": ("import logging; logging.basicConfig(level=10)", "changed: logging"),
    "signal": ("import signal; signal.signal(signal.SIGUSR1, signal.SIG_IGN)", "changed: signal handlers"),
    "path": ("import sys; sys.path.append('planted')", "changed: module search path"),
    "pillow": ("import PIL.Image; PIL.Image.MAX_IMAGE_PIXELS = None", "changed: largest image of Pillow"),
}


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """What the audit says of the shipped files, loaded in each way, and of every planted one."""
    root = tmp_path_factory.mktemp("audit")
    cases = {"package": {"mode": "package", "folder": str(ROOT)}}
    dense = dense_model()
    for model, name in ((dense, "audited_dense"), (as_packing(dense), "audited_packing")):
        model.save_pretrained(root / name)
        processor = LlavaViTImageProcessor(patch_size=TINY["patch_size"], packing=model is not dense)
        LlavaViTProcessor(processor).save_pretrained(root / name)
        cases[name] = {"mode": "remote", "folder": str(root / name)}
    (root / "foreign").mkdir()
    (root / "foreign" / "planted_module.py").write_text("")
    for name, (line, _) in PLANTED.items():
        folder = root / f"planted_{name.replace(' ', '_')}"
        shutil.copytree(PACKAGE, folder / "llava_vit_hf", ignore=shutil.ignore_patterns("__pycache__"))
        with open(folder / "llava_vit_hf" / "grid_llava_vit.py", "a") as stream:
            stream.write(f"\n{line}\n")
        cases[name] = {"mode": "package", "folder": str(folder)}
    planted = root / "audited_planted"
    shutil.copytree(root / "audited_packing", planted)
    with open(planted / "grid_llava_vit.py", "a") as stream:
        stream.write("\nopen('written', 'w')\n")
    cases["remote planted"] = {"mode": "remote", "folder": str(planted)}
    environment = {**os.environ, "HF_MODULES_CACHE": str(root / "modules"), "HF_HUB_OFFLINE": "1"}
    environment |= {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": str(root / "foreign"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    names = {module: sorted(names) for module, names in ALLOWED.items()}
    (root / "empty").mkdir()
    done = subprocess.run(
        [REAL, str(Path(__file__).with_name("audited_import.py")), json.dumps([names, cases])],
        env=environment,
        cwd=root / "empty",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert list((root / "empty").iterdir()) == []
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["package", "audited_dense", "audited_packing"])
def test_shipped_code_only_defines_classes(findings, name):
    assert findings[name] == []


@pytest.mark.parametrize("name", PLANTED)
def test_the_audit_sees_what_is_planted(findings, name):
    assert any(found.startswith(PLANTED[name][1]) for found in findings[name]), findings[name]


def test_the_audit_sees_what_is_planted_in_remote_code(findings):
    assert findings["remote planted"] == ["open 'written' to write"]


# Modules whose use is code from data, or a way around this scan.
FORBIDDEN_MODULES = {"_pickle", "cPickle", "cloudpickle", "ctypes", "dill", "joblib", "marshal", "runpy", "shelve"}
FORBIDDEN_CALLS = {"__import__", "compile", "eval", "exec", "execfile"}
SHELLS = {"getoutput", "getstatusoutput", "popen", "system"}


def dangers(tree: ast.AST) -> list[str]:
    """`line: what` of everything in a file that could run code or a shell from data."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found += [(node, f"import {name}") for name in _imported(node) if name in FORBIDDEN_MODULES]
            if isinstance(node, ast.ImportFrom) and node.module in ("builtins", "os", "pickle", "subprocess"):
                unsafe = FORBIDDEN_CALLS | SHELLS | {"load", "loads", "Unpickler"}
                found += [(node, alias.name) for alias in node.names if alias.name in unsafe]
        elif isinstance(node, ast.Name) and node.id in FORBIDDEN_CALLS:
            found.append((node, node.id))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner, name = node.value.id, node.attr
            refused = owner == "pickle" and name not in ("UnpicklingError", "PickleError")
            refused |= owner == "yaml" and name not in ("YAMLError", "safe_load", "safe_dump")
            refused |= owner == "os" and (name in SHELLS or name.startswith(("exec", "spawn", "posix_spawn")))
            refused |= owner == "subprocess" and name in SHELLS
            refused |= owner in ("builtins", "__builtins__") and name in FORBIDDEN_CALLS
            found += [(node, f"{owner}.{name}")] * refused
        if isinstance(node, ast.Call):
            found += [(node, danger) for danger in _dangers_of_call(node)]
    return [f"{node.lineno}: {what}" for node, what in found]


def _imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    return [name.split(".")[0] for name in names]


def _dangers_of_call(node: ast.Call) -> list[str]:
    keywords = {word.arg: word.value for word in node.keywords}

    def says(name: str, value: bool) -> bool:
        return isinstance(keywords.get(name), ast.Constant) and keywords[name].value is value

    found = ["shell"] * ("shell" in keywords and not says("shell", False))
    function = ast.unparse(node.func)
    if function in ("torch.load", "load") and not says("weights_only", True):
        found += ["torch.load without weights_only=True"] * (function == "torch.load")
    if function in ("np.load", "numpy.load") and not says("allow_pickle", False):
        found.append(f"{function} without allow_pickle=False")
    return found + ["allow_pickle"] * ("allow_pickle" in keywords and not says("allow_pickle", False))


@pytest.mark.parametrize("room", ["llava_vit_hf", "conversion", "examples"])
def test_no_file_has_a_way_to_run_code_from_data(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert len(files) > 10
    found = {file.name: dangers(ast.parse(file.read_text(encoding="utf-8"))) for file in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    [
        *("eval('1')", "exec('')", "compile('', '', 'exec')", "__import__('os')", "run = eval", "builtins.exec('')"),
        *("import pickle\npickle.load(f)", "from pickle import loads", "pickle.Unpickler(f)", "import marshal"),
        *("import dill", "import shelve", "from joblib import load", "import ctypes"),
        *("subprocess.run('ls', shell=True)", "Popen(c, shell=flag)", "os.system('ls')", "os.popen('ls')"),
        *("os.execv('a', [])", "subprocess.getoutput('ls')", "from os import system"),
        *("yaml.load(f)", "yaml.unsafe_load(f)", "yaml.load(f, Loader=yaml.Loader)", "yaml.full_load(f)"),
        *("np.load(f, allow_pickle=True)", "np.load(f)", "numpy.load(f, allow_pickle=given)"),
        *("torch.load(f)", "torch.load(f, weights_only=False)", "torch.load(f, weights_only=given)"),
        "load_features(f, allow_pickle=True)",
    ],
)
def test_the_scan_sees(line):
    assert dangers(ast.parse(line))


@pytest.mark.parametrize(
    "line",
    [
        *("model.eval()", "re.compile('a')", "torch.compile(model)", "yaml.safe_load(f)", "json.load(f)"),
        *("torch.load(f, weights_only=True)", "np.load(f, allow_pickle=False)", "subprocess.run([a], shell=False)"),
        "import pickle\ntry:\n    f()\nexcept pickle.UnpicklingError:\n    pass",
    ],
)
def test_the_scan_lets_pass(line):
    assert dangers(ast.parse(line)) == []


class Payload:
    """Unpickling this makes a folder."""

    def __init__(self, canary: Path):
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)


@pytest.fixture
def canary(tmp_path):
    """A folder that a payload would make; it must not be there at the end."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


@pytest.fixture(scope="module")
def weights():
    return peaked_state_dict(tiny_config(num_hidden_layers=1))


def test_the_payload_fires_where_pickle_is_trusted(tmp_path, weights):
    for place, content in enumerate((pickle.dumps(Payload(tmp_path / "0")), _npy(tmp_path / "1"))):
        if place == 0:
            pickle.loads(content)
        else:
            np.load(io.BytesIO(content), allow_pickle=True)
    torch.save(weights | {"x": Payload(tmp_path / "2")}, tmp_path / "a.pt")
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert all((tmp_path / name).is_dir() for name in "012")


def _npy(canary: Path) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([Payload(canary)], dtype=object), allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
@pytest.mark.parametrize("form", ["zip", "legacy", "bare", "old protocol", "in a list"])
def test_checkpoint_files(tmp_path, weights, canary, suffix, form):
    path = tmp_path / f"evil{suffix}"
    payload = Payload(canary)
    if form in ("zip", "legacy"):
        torch.save({"model": weights, "x": payload}, path, _use_new_zipfile_serialization=form == "zip")
    else:
        content = [payload] if form == "in a list" else payload
        path.write_bytes(pickle.dumps(content, protocol=0 if form == "old protocol" else 2))
    with pytest.raises(CheckpointError, match="evil"):
        read_checkpoint(path)


@pytest.mark.parametrize("named", ["evil.bin", "evil.pt", "evil.safetensors", "evil.pkl", "../evil.bin"])
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_an_index_that_names_a_pickle(tmp_path, canary, weights, index, named):
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save(weights | {"x": Payload(canary)}, folder / named)
    (folder / index).write_text(json.dumps({"weight_map": dict.fromkeys(weights, named)}))
    with pytest.raises(CheckpointError, match="evil|outside"):
        read_checkpoint(folder)


def test_archives_of_features(tmp_path, canary):
    with zipfile.ZipFile(tmp_path / "object.npz", "w") as archive:
        archive.writestr("a.npy", _npy(canary))
    with zipfile.ZipFile(tmp_path / "member.npz", "w") as archive:
        archive.writestr("a.npy", pickle.dumps(Payload(canary)))
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Payload(canary)))
    (tmp_path / "array.npz").write_bytes(_npy(canary))
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps(Payload(canary)))
    for name in ("object.npz", "member.npz", "pickle.npz", "array.npz"):
        with pytest.raises(ValueError, match=name):
            load_features(tmp_path / name)
    for name in ("object.npz", "member.npz", "pickle.npz", "array.npz", "pickle.safetensors"):
        with pytest.raises(ValueError, match=name):
            load_tensor(tmp_path, {"shard": name, "keys": {"-2": "a"}}, "-2")


CODE = (
    "__import__('os').mkdir({0!r})",
    "$(mkdir {0})",
    "; mkdir {0}",
    "| mkdir {0}",
    "`mkdir {0}`",
    "!!python/object/apply:os.mkdir [{0!r}]",
    "{{{{cycler.__init__.__globals__.os.mkdir({0!r})}}}}",
)


def _texts(canary: Path) -> list[str]:
    return [line.format(str(canary)) for line in CODE]


def test_manifests_and_json_with_code(tmp_path, canary):
    for place, text in enumerate(_texts(canary)):
        for name, content in (
            ("list.jsonl", json.dumps({"path": text, "id": text, "kind": "image"})),
            ("bare.jsonl", text),
            ("list.csv", f'path,id\n"{text}","{text}"\n'),
        ):
            path = tmp_path / f"{place}{name}"
            path.write_text(content)
            if name == "bare.jsonl":
                with pytest.raises(ValueError, match="not JSON"):
                    collect_inputs([str(path)])
            else:
                (item,) = collect_inputs([str(path)])
                assert item.id == text and item.path == str(tmp_path / text)
        for name, read in (
            ("metadata.json", load_metadata),
            ("index.jsonl", load_index),
            ("verification.json", read_report),
        ):
            for content in (text, json.dumps(text)):
                (tmp_path / name).write_text(content)
                with pytest.raises(ValueError, match=name):
                    read(tmp_path)


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir", "!!python/name:os.sep"]
)
def test_a_card_with_yaml_tags(tmp_path, canary, tag):
    folder = read_model_folder(verified_folder(tmp_path / "model"))
    existing = f"---\nlicense: {tag} [{str(canary)!r}]\n---\nProse.\n"
    if "name" in tag:
        existing = f"---\nlicense: {tag} ''\n---\nProse.\n"
    with pytest.raises(PublishError, match="metadata that cannot be read"):
        render_card(folder, RECORD, existing=existing)


def test_a_card_with_code_in_its_prose(tmp_path, canary):
    folder = read_model_folder(verified_folder(tmp_path / "model"))
    prose = "\n".join(_texts(canary))
    assert prose in render_card(folder, RECORD, existing=f"---\nlicense: mit\n---\n{prose}\n")


def test_postscript_is_not_run(tmp_path, canary, monkeypatch):
    """Pillow draws EPS by starting Ghostscript on it."""
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: canary.mkdir())
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: canary.mkdir())
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n(x) run\n%%EOF\n")
    with pytest.raises(ValueError, match=r"a\.png is PostScript, which is not run"):
        LlavaViTImageProcessor()(path)


@pytest.mark.parametrize(
    "name, text",
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n"),
        ("list.mp4", "ffconcat version 1.0\nfile other.mp4\n"),
    ],
)
def test_playlists_do_not_open_other_files(tmp_path, name, text):
    media.write_video(tmp_path / "other.mp4", media.frames(4, 28, 28))
    (tmp_path / name).write_text(text)
    processor = LlavaViTProcessor(LlavaViTImageProcessor(packing=True))
    with pytest.raises(ValueError, match="playlist"):
        processor(videos=tmp_path / name)


def test_processor_configurations_name_no_code_without_trust(tmp_path, canary):
    """A processor's configuration from elsewhere: code beside it runs only where the user trusts it."""
    LlavaViTImageProcessor().save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    stored |= {"auto_map": {"AutoImageProcessor": "evil.Evil", "AutoProcessor": "evil.Evil"}}
    stored |= {"image_processor_type": "Evil", "processor_class": "Evil"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stored))
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(canary)!r})\nclass Evil: pass\n")
    for auto in (AutoImageProcessor, AutoProcessor):
        with pytest.raises((ValueError, OSError, ImportError)):
            auto.from_pretrained(tmp_path, trust_remote_code=False)
