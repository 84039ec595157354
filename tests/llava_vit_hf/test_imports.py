# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The shipped files import only what both transformers majors promise, and define things when they are imported.

What their import does to a process is watched by `tests/security/test_no_code_from_data.py`.
"""

import ast
import importlib
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
    "transformers.processing_utils": {"MultiModalData", "ProcessorMixin"},
    "transformers.utils": {"logging"},
    "transformers.video_utils": {"load_video"},
}
# What else a shipped file may import, at the top or in a function: no flash-attn, no torchvision, no timm.
PACKAGES = {
    *("torch", "numpy", "PIL", "transformers"),
    *(
        "base64",
        "bisect",
        "collections",
        "concurrent",
        "dataclasses",
        "fractions",
        "functools",
        "hashlib",
        "importlib",
        "io",
        "itertools",
        "math",
        "numbers",
        "operator",
    ),
    *("os", "pathlib", "re", "struct", "tempfile", "typing", "urllib"),
}
# Calls in the body of a shipped module: a logger, constants, and the registration of one operator with PyTorch.
CALLED_AT_IMPORT = {"logging.get_logger", "LlavaViTSettings", "segment_attention_operator"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "open", "os.system", "os.popen", "torch.load"}


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
    return ast.parse(file.read_text(encoding="utf-8"))


def offences(tree: ast.Module) -> list[str]:
    """What a shipped module must not do: other statements than definitions and constants, other calls and imports."""
    found = sorted({module for module, _ in imports_of(tree) if module.split(".")[0] not in PACKAGES})
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef | ast.FunctionDef):
            continue
        constant = isinstance(getattr(node, "value", None), ast.Constant)
        if not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and not constant:
            found.append(ast.unparse(node))
        called = {ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
        found += sorted(called - CALLED_AT_IMPORT)
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return found + sorted(called & FORBIDDEN_CALLS)


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
def test_relative_imports_are_of_one_flat_folder(file):
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.ImportFrom) and node.level:
            # The loader of remote code finds `from .name import` in one flat folder, and nothing else.
            assert node.level == 1 and node.module and "." not in node.module, ast.unparse(node)
            assert (FOLDER / f"{node.module}.py").is_file()


@pytest.mark.parametrize("file", [file for file in FILES if file.name != "__init__.py"], ids=lambda file: file.name)
def test_shipped_code_only_defines_things_when_imported(file):
    assert offences(parse(file)) == []


@pytest.mark.parametrize(
    "source",
    [
        *("print('hello')", "X = fetch()", "for i in range(3):\n    pass", "def f():\n    exec('x')"),
        *("import timm", "def f():\n    from flash_attn import flash_attn_func", "import torchvision.ops"),
    ],
)
def test_code_that_does_more_would_be_seen(source):
    assert offences(ast.parse(source))
