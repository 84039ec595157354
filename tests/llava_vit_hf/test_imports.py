# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The shipped files import only what both transformers majors promise, and do nothing while they are imported."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import llava_vit_hf


FOLDER = Path(llava_vit_hf.__file__).parent
FILES = sorted(FOLDER.glob("*.py"))

# Every name that a file may take from transformers. Checked with 4.57, 5.0, 5.10 and 5.23: extend it only after that.
ALLOWED = {
    "transformers": {"AutoConfig", "AutoModel", "AutoProcessor"},
    "transformers.activations": {"ACT2FN"},
    "transformers.configuration_utils": {"PretrainedConfig"},
    "transformers.image_processing_utils": {"BaseImageProcessor", "BatchFeature"},
    "transformers.image_transforms": {
        *("center_crop", "get_resize_output_image_size", "normalize", "rescale", "resize"),
    },
    "transformers.image_utils": {
        *("OPENAI_CLIP_MEAN", "OPENAI_CLIP_STD", "ChannelDimension", "PILImageResampling"),
        "infer_channel_dimension_format",
    },
    "transformers.modeling_layers": {"GradientCheckpointingLayer"},
    "transformers.modeling_outputs": {"BaseModelOutputWithPooling"},
    "transformers.modeling_utils": {"ALL_ATTENTION_FUNCTIONS", "PreTrainedModel"},
    "transformers.models.auto.image_processing_auto": {"AutoImageProcessor"},
    "transformers.processing_utils": {"ProcessorMixin"},
    "transformers.utils": {"logging"},
    "transformers.video_utils": {"load_video"},
}
# Packages that a shipped file may need at its top level: those that transformers or the requirements bring.
PACKAGES = {"torch", "numpy", "PIL", "transformers", "av"}


def imports_of(tree: ast.AST) -> list[tuple[str, str | None]]:
    """`(module, name)` of every absolute import anywhere in a file."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found += [(node.module, alias.name) for alias in node.names]
    return found


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def test_imports_from_transformers_are_those_of_the_list():
    used: dict[str, set[str]] = {}
    for file in FILES:
        for module, name in imports_of(parse(file)):
            if module.split(".")[0] == "transformers":
                assert name is not None, f"{file.name}: import names from {module}, not the module"
                used.setdefault(module, set()).add(name)
    assert used == ALLOWED


@pytest.mark.parametrize("module", ALLOWED)
def test_the_list_exists_in_this_version(module):
    imported = importlib.import_module(module)
    assert {name for name in ALLOWED[module] if not hasattr(imported, name)} == set()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_top_level_packages(file):
    tree = parse(file)
    top_level = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    packages = {module.split(".")[0] for module, _ in imports_of(ast.Module(top_level, []))}
    assert packages <= PACKAGES | set(sys.stdlib_module_names)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            # The loader of remote code finds `from .name import` in one flat folder, and nothing else.
            assert node.level == 1 and node.module and "." not in node.module, ast.unparse(node)
            assert (FOLDER / f"{node.module}.py").is_file()


@pytest.mark.parametrize("file", [file for file in FILES if file.name != "__init__.py"], ids=lambda file: file.name)
def test_nothing_but_definitions_at_import(file):
    definitions = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for node in parse(file).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert docstring or isinstance(node, definitions), f"line {node.lineno}: {ast.unparse(node)[:80]}"


def test_allowed_calls_at_import():
    """What assignments and decorators call while a file is imported: nothing that reads, writes or connects."""
    harmless = {"get_logger", "dataclass", "field", "lru_cache", "SimpleNamespace", "compile", "frozenset", "tuple"}
    # Registers an operator for compilers.
    harmless.add("segment_attention_operator")
    for file in FILES:
        if file.name == "__init__.py":
            continue
        for node in parse(file).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                for call in (child for child in ast.walk(node.value) if isinstance(child, ast.Call)):
                    function = call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id
                    assert function in harmless, f"{file.name}, line {call.lineno}: {ast.unparse(call)[:80]}"


AUDIT = """
import sys
import torch, numpy, PIL.Image, PIL.ImageOps, av, transformers
for module, names in json_allowed.items():
    __import__(module, fromlist=names)
opened = []
def watch(event, arguments):
    if event in ("socket.connect", "subprocess.Popen", "os.mkdir", "os.remove", "os.rename"):
        opened.append((event, str(arguments)))
    elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        opened.append((event, str(arguments)))
sys.addaudithook(watch)
sys.dont_write_bytecode = True
import llava_vit_hf
assert opened == [], opened
"""


def test_import_neither_writes_nor_connects():
    code = f"json_allowed = {json.dumps({module: sorted(names) for module, names in ALLOWED.items()})}\n{AUDIT}"
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_flash_attention_torchvision_or_timm():
    for file in FILES:
        for module, _ in imports_of(parse(file)):
            assert module.split(".")[0] not in {"flash_attn", "torchvision", "timm", "cv2"}, file.name
