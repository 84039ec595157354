# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Every block of `docs/using.md` runs, in one process as on the page, and does what the page says.

The size of the demo's model is most of the time here, and no matter of the page: a smaller one is in its place. What
`torch.compile` makes is tested in `tests/llava_vit_hf/test_compile.py`; here it only captures the model.
"""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

from conversion import make_demo_inputs
from llava_vit_hf import LlavaViTImageProcessor, LlavaViTProcessor
from tests.models import as_packing, dense_model
from tests.test_documents import blocks, code_blocks, numbers, said_to_print, text_of


PAGE, CHINESE_PAGE = "docs/using.md", "docs/using_zh.md"
BLOCKS = blocks(PAGE, "python")
BEFORE = """import functools, torch
torch.compile = functools.partial(torch.compile, backend="aot_eager")
"""
# What must hold after the block that has these words.
AFTER = {
    "split_features(output": """
assert output.pooler_output.shape == (3, 64) and output.last_hidden_state is not None
assert features[0].flatten(0, 2).equal(output.hidden_states[0][: 23 * 35])
""",
    "similarity =": """
assert 0 < similarity < 0.999
torch.testing.assert_close(pooled, output.pooler_output[:2], rtol=0, atol=1e-4)
""",
    "return_metadata": """
assert frames.shape == (8, 64) and frames[3].allclose(clip[3].mean((0, 1))) and not frames[3].allclose(frames[4])
assert len(metadata["timestamps"]) == 8
""",
    "np.savez": """
assert np.array_equal(np.load("demo_output/features.npz")["video1"], features[2].numpy())
""",
    "from datasets": """
import datasets
row = datasets.load_from_disk("demo_output/rows").with_format("numpy")[1]
assert row["file"] == files[1] and row["grid_thw"].tolist() == [1, 34, 19]
assert np.array_equal(row["features"], features[1].flatten(0, 2).numpy())
assert np.array_equal(row["pooled"], pooled[1].numpy())
""",
    "DataLoader(": """
assert vectors.equal(pooled.repeat(2, 1))
""",
    "torch.compile": """
torch.testing.assert_close(fast, pooled, rtol=0, atol=2e-4)
""",
    "onnx.export": """
assert exported.shape == (1, 64) and abs(exported - pooled[1:].numpy()).max() < 2e-4
assert abs(exported - pooled[:1].numpy()).max() > 1e-2
""",
    "Trainer(": """
assert trainer.state.global_step == 2
trained = {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}
assert len(trained) > 8 and all("lora_" in name for name in trained)
assert all(parameter.abs().max() > 0 for parameter in trained.values())
""",
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory) -> list[str]:
    """What the page prints."""
    for package in ("peft", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("using")
    demo = folder / "demo_output"
    make_demo_inputs.main([str(demo)])
    dense = dense_model(num_hidden_layers=2, patch_size=14, image_size=448)
    for name, model in (("dense", dense), ("packing", as_packing(dense))):
        model.save_pretrained(demo / name)
        LlavaViTProcessor(LlavaViTImageProcessor(packing=name == "packing")).save_pretrained(demo / name)
    done = subprocess.run(
        [sys.executable, "-c", BEFORE + "".join(f"{code}{after(code)}" for code in runnable())],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout.splitlines()


def runnable() -> list[str]:
    installed = importlib.util.find_spec("datasets") is not None
    return [code for code in BLOCKS if installed or "from datasets" not in code]


def after(code: str) -> str:
    (checks,) = [checks for words, checks in AFTER.items() if words in code]
    return checks


@pytest.mark.long
@pytest.mark.once
def test_every_block_runs_and_prints_what_its_comments_say(printed):
    assert len(BLOCKS) == len(AFTER) == len({after(code) for code in BLOCKS})
    said = [line for code in runnable() for line in said_to_print(code)]
    assert len(said) >= 4
    # Behind them is what Trainer prints.
    assert [numbers(line) for line in printed[: len(said)]] == [numbers(line) for line in said]


@pytest.mark.long
@pytest.mark.once
def test_the_block_for_datasets_runs(printed):
    pytest.importorskip("datasets")
    assert "2 805" in printed


def test_both_languages_have_the_same_blocks():
    assert len(BLOCKS) >= 9 and code_blocks(PAGE) == code_blocks(CHINESE_PAGE)
    headings = [re.findall(r"^#+ ", text_of(page), re.MULTILINE) for page in (PAGE, CHINESE_PAGE)]
    assert headings[0] == headings[1]


def test_inference_is_always_in_inference_mode():
    calls = re.compile(r"\b(?:model|compiled)\(|onnx\.export\(")
    infer = [code for code in BLOCKS if calls.search(code)]
    assert len(infer) == 6 and all(
        calls.search(code).start() > code.index("with torch.inference_mode():\n    ") for code in infer
    )


def test_the_readme_links_the_page_on_its_first_screen():
    first = "\n".join(text_of("README.md").splitlines()[:6])
    assert f"]({PAGE})" in first and f"]({CHINESE_PAGE})" in first
