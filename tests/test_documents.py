# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The documents: their commands and snippets run, in order, and the files, tests and variables they name exist.

Every Python and shell block of README.md, CONTRIBUTING.md, `docs/` and the READMEs of `conversion/` and `tests/` runs
on the demo's files, with a Hub on 127.0.0.1. The guide of `examples/` and `docs/using.md` have tests of their own. To
save time, one conversion is verified and checked again; the others are `--skip_verification` here, and verified in
`tests/conversion/test_scripts.py`. Of `make` commands only the target is looked up.
"""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_vit_hf import LlavaViTImageProcessor, LlavaViTProcessor
from tests.clone import copy_project
from tests.loopback_hub import LoopbackHub
from tests.media import pattern
from tests.models import as_packing, dense_model


ROOT = Path(__file__).resolve().parents[1]
# `tests/test_using.py` runs the blocks of the page for users.
USING = ("docs/using.md", "docs/using_zh.md")
PAGES = tuple(
    page for page in (f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))) if page not in USING
)
DOCUMENTS = ("README.md", *PAGES, "conversion/README.md", "CONTRIBUTING.md", "tests/README.md")
DOCUMENTS += ("tests/benchmarks/README.md",)
ELSEWHERE = (*USING, "examples/README.md", "examples/README_zh.md", "SECURITY.md", "CHANGELOG.md")
LONGEST_README = 110

# Options that a command gets here beside its own, by script.
HURRY = {
    "conversion/convert_llava_vit_to_hf.py": ("--time_budget", "0.05"),
    "conversion/verify_model.py": ("--time_budget", "0.05"),
    "conversion/convert_llava_vit_packing_to_hf.py": ("--skip_verification",),
    "conversion/convert_vit_preview_v0_hf_to_packing.py": ("--skip_verification",),
    "conversion/convert_back.py": ("--skip_verification",),
}
# What must hold after a document's Python block, by its place.
AFTER = {
    ("README.md", 0): """
assert [tuple(sample.shape) for sample in features] == [(1, 23, 35, 128), (8, 9, 11, 128)]
assert pooled.shape == (2, 128) and len(output.hidden_states) == 5
only = model(**inputs, vision_feature_layer=-2).hidden_states
assert len(only) == 1 and only[0].equal(output.hidden_states[-2])
""",
    ("README.md", 1): "assert features.shape == (1, 32 * 32, 128) and features.dtype == torch.bfloat16\n",
}


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def code_blocks(document: str) -> list[tuple[str, str]]:
    """`(language, code)` of every block of a document."""
    return code_blocks_of(text_of(document))


def code_blocks_of(text: str) -> list[tuple[str, str]]:
    """`(language, code)` of every block of a text."""
    return re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)


def blocks(document: str, *languages: str) -> list[str]:
    """The code of a document's blocks in one of these languages."""
    return [code for language, code in code_blocks(document) if language in languages]


def commands(document: str) -> list[list[str]]:
    """Every command of a document's shell blocks, in words."""
    lines = "".join(blocks(document, "sh", "bash", "shell")).replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", text_of("Makefile"), re.MULTILINE))


class Clone:
    """What a clone holds after `make demo`, as far as the documents need it."""

    def __init__(self, folder: Path, hub: LoopbackHub):
        self.folder, self.done = folder, {}
        copy_project(folder)
        environment = hub.client_environment(folder.parent / "home", token="hf_writer")
        self.environment = environment | {"OMP_NUM_THREADS": "1"}
        self.python("conversion/make_demo_inputs.py", "demo_output")

    def python(self, *words: str) -> str:
        """What `python WORDS` prints; a command that was run before is not run again."""
        if words not in self.done:
            done = subprocess.run(
                [sys.executable, *words, *HURRY.get(words[0], ())],
                cwd=self.folder,
                env=self.environment,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=600,
                check=False,
            )
            assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
            self.done[words] = done.stdout
        return self.done[words]

    def run(self, words: list[str]) -> str:
        """Runs a command of a document, or checks that it could be run."""
        if words[0] == "make":
            targets = [word for word in words[1:] if "=" not in word]
            assert targets and set(targets) <= make_targets(), words
            return ""
        assert words[0] == "python", f"no way to run {shlex.join(words)} is known here"
        return self.python(*words[1:])


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    with LoopbackHub() as hub:
        hub.add_token("hf_writer", "user")
        hub.create_repo("user/name")
        folder = tmp_path_factory.mktemp("documents") / "clone"
        folder.mkdir()
        yield Clone(folder, hub)


@pytest.mark.long
@pytest.mark.once
@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_runs(clone, document):
    printed = "\n".join(clone.run(words) for words in commands(document))
    if document == "README.md":
        for said in ("verification PASS", "dry run: nothing was sent", "loaded back and equal", "is confirmed"):
            assert said in printed, said
        assert "4 of 4 inputs pass" in printed
        # `make demo` leaves these two there, made by the same commands.
        for layout in ("dense", "packing"):
            shutil.copytree(clone.folder / layout, clone.folder / "demo_output" / layout)


@pytest.mark.long
@pytest.mark.once
def test_every_snippet_runs_and_prints_what_its_comments_say(clone):
    script, said = "", []
    for document in DOCUMENTS:
        for place, code in enumerate(blocks(document, "python", "py")):
            script += f"# {document}\n{code}{AFTER.get((document, place), '')}"
            said += said_to_print(code)
    assert script.count("# README.md\n") == 2 and len(said) >= 6
    printed = clone.python("-c", script).splitlines()
    assert [numbers(line) for line in printed] == [numbers(line) for line in said]


def said_to_print(code: str) -> list[str]:
    """What the comments behind a snippet's `print` calls say, up to a colon."""
    return re.findall(r"^print\(.*\)  # ([^:\n]*)", code, re.MULTILINE)


def numbers(line: str) -> list[str]:
    return re.findall(r"\b\d+\b", line)


@pytest.mark.parametrize("document", [*DOCUMENTS, *ELSEWHERE])
class TestNames:
    def test_links_lead_somewhere(self, document):
        for target in re.findall(r"\]\(([^)#]+)", text_of(document)):
            assert "://" in target or ((ROOT / document).parent / target).exists(), target

    def test_files_exist(self, document):
        """Paths in backticks that begin with a folder of ours, or of the document's own."""
        own = (ROOT / document).parent
        folders = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"demo_output", "benchmarks", "build"}
        for span in re.findall(r"`([^`\n]+)`", text_of(document)):
            for word in re.sub(r"::[\w:]+", "", span).split():
                is_path = re.fullmatch(r"[\w-]+(/[\w.-]+)+/?|[\w-]+/", word) and "NAME" not in word
                first = word.split("/")[0]
                if is_path and (first in folders or own != ROOT and (own / first).is_dir()):
                    assert (ROOT / word).exists() or (own / word).exists(), word

    def test_modules_exist(self, document):
        for name in re.findall(r"python -m ((?:conversion|examples|tests)\.[\w.]+)", text_of(document)):
            assert importlib.util.find_spec(name), name

    def test_make_targets_exist(self, document):
        for target in re.findall(r"`make ([a-z][\w-]*)", text_of(document)):
            assert target in make_targets(), target


def test_tests_of_the_ecosystem_table_exist():
    named = re.findall(r"`(test_\w+\.py)((?:::\w+)*)`", text_of("tests/README.md"))
    assert len(named) > 25
    for file, parts in named:
        source = (ROOT / "tests" / "llava_vit_hf" / file).read_text(encoding="utf-8")
        for part in parts.split("::")[1:]:
            assert re.search(rf"^ *(?:def|class) {part}\b", source, re.MULTILINE), (file, part)


def test_every_row_of_the_ecosystem_table_names_its_test():
    table = text_of("tests/README.md").split("| Feature |")[1].split("\n\n")[0].splitlines()[2:]
    assert len(table) > 25 and all(re.search(r"`test_\w+\.py[\w:]*`", row) for row in table)


def test_variables_that_the_suite_reads_are_explained():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    read = {name for source in sources for name in re.findall(r"LLAVA_VIT_[A-Z]+[A-Z_]*", source)}
    assert len(read) >= 2
    assert all(f"`{name}`" in text_of("CONTRIBUTING.md") for name in read)


def test_the_readme_is_short_and_says_first_why():
    lines = text_of("README.md").splitlines()
    assert len(lines) <= LONGEST_README
    assert all(words in "\n".join(lines[:10]) for words in ("equal", "4.57", "flash-attn", "faults", "gated push"))
    assert re.search(r"^!\[.+\]\(docs/features\.png\)$", "\n".join(lines[:14]), re.MULTILINE)


def script(name: str):
    """A script of `docs/`, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_of_a_budget_has_a_photograph_and_both_features():
    budget_picture = script("budget_picture")
    model = as_packing(dense_model(patch_size=14))
    processor = LlavaViTProcessor(LlavaViTImageProcessor(packing=True))
    picture = budget_picture.compose(model, processor, Image.fromarray(pattern(210, 280)), 12).convert("RGB")
    third = (budget_picture.WIDTH - 2 * budget_picture.GAP) // 3
    panels = [
        np.asarray(picture)[budget_picture.LINE :, place * (third + budget_picture.GAP) :][:, :third]
        for place in range(3)
    ]
    # 20 x 15 patches, and 4 x 3 of at most 12: within one everything is of one colour.
    for panel, (columns, rows) in zip(panels[1:], ((20, 15), (4, 3)), strict=True):
        height, width = panel.shape[0] / rows, panel.shape[1] / columns
        inner = panel[: int(height) - 2, : int(width) - 2]
        assert (inner == inner[0, 0]).all() and len(np.unique(panel.reshape(-1, 3), axis=0)) >= 6
    committed = ROOT / "docs" / "budget.png"
    assert committed.stat().st_size < 150_000 and Image.open(committed).width == budget_picture.WIDTH


def test_the_picture_is_composed_of_what_visualize_features_draws(tmp_path):
    features_picture = script("features_picture")
    for place, (name, size) in enumerate((("image1", (64, 42)), ("video1", (260, 26)))):
        for kind, colour in (("input", 200), ("principal_components", 90)):
            picture = Image.new("RGBA", size, (colour, 10 * place, 0, 255))
            picture.save(tmp_path / f"{place:03d}_{name}.{kind}.png")
    assert features_picture.main([str(tmp_path), str(tmp_path / "out.png")]) == 0
    pixels = np.asarray(Image.open(tmp_path / "out.png").convert("RGB")).reshape(-1, 3)
    counts = [(pixels == (colour, green, 0)).all(axis=1).sum() for green in (0, 10) for colour in (200, 90)]
    assert min(counts) > 50_000
    assert "docs/features_picture.py" in text_of("Makefile")
    committed = ROOT / "docs" / "features.png"
    assert committed.stat().st_size < 150_000
    assert Image.open(committed).width == features_picture.WIDTH
