# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Every command of the guide runs, in order, in what a fresh clone holds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clone import commands_in, copy_project, shrink_demo
from tests.examples.commands import EXAMPLES, environment
from tests.loopback_hub import LoopbackHub
from tests.test_documents import code_blocks


def test_both_languages_give_the_same_commands():
    english = code_blocks("examples/README.md")
    assert len(english) >= 10 and english == code_blocks("examples/README_zh.md")
    headings = [
        re.findall(r"^## ", (EXAMPLES / name).read_text(encoding="utf-8"), re.MULTILINE)
        for name in ("README.md", "README_zh.md")
    ]
    assert len(headings[0]) == len(headings[1])


def test_options_named_in_the_guides_exist():
    from examples.extract_features import build_parser

    known = {option for action in build_parser()._actions for option in action.option_strings}
    elsewhere = {"--num_attention_heads", "--features_dir", "--reference", "--cpu", "--multi_gpu", "--num_processes"}
    elsewhere |= {"--model", "--video"}  # of quickstart.py
    elsewhere |= {"--features", "--remove_features"}  # of push_to_hub.py
    elsewhere |= {
        "--layout",
        "--patch_size",
        "--keep_frames",
        "--codec_score",
        "--canvas_format",
        "--order",
        "--output",
        "--processor",
    }  # of codec_assets.py
    elsewhere |= {"--diagnose"}  # of verify_features.py
    elsewhere |= {"--address", "--min_actors", "--max_actors", "--num_gpus"}  # of extract_with_ray.py
    elsewhere |= {"--query", "--top"}  # of search_features.py
    elsewhere |= {
        "--max_archive_bytes",
        "--max_json_bytes",
        "--num_machines",
        "--mixed_precision",
        "--dynamo_backend",
        "--main_process_port",
    }
    for guide in ("README.md", "README_zh.md"):
        named = set(re.findall(r"(?<![\w-])--[a-z]\w*", (EXAMPLES / guide).read_text(encoding="utf-8")))
        assert named - known <= elsewhere


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    folder = copy_project(tmp_path_factory.mktemp("guide") / "clone")
    shrink_demo(folder)
    return folder


def run_blocks(blocks: list[tuple[str, str]], folder: Path, variables: dict[str, str]) -> str:
    """Runs blocks in order, as bash and Python would. All that they print."""
    commands = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    output = ""
    for language, code in blocks:
        command = [*commands[language], code]
        result = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{code}\n{result.stdout}\n{result.stderr}"
        output += result.stdout
    return output


@pytest.mark.long
@pytest.mark.once
def test_every_command_runs(clone, tmp_path):
    with LoopbackHub() as hub:
        hub.add_token("hf_writer", "your-name")
        variables = environment(**hub.client_environment(tmp_path, token="hf_writer"))
        variables["PATH"] = f"{commands_in(tmp_path / 'bin')}:{variables['PATH']}"
        # The requirements are there: pip says so, and can fetch nothing.
        variables |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        output = run_blocks(code_blocks("examples/README.md"), clone, variables)
    assert "FAIL" not in output
    assert "made from the same: PASS" in output
    assert "2 samples" in output and output.count("4 samples") >= 2
    assert "1.mp4 video [0, 9, 18, 27, 36, 45, 54, 63] (8, 9, 11, 64) (8, 9, 11, 64) (64,)" in output
    assert "video: (8, 9, 11, 64)  (frames, rows, columns, channels)" in output
    assert "['1.jpg pooler', '2.jpg pooler'] (2, 64)" in output
    assert re.search(r"\['[12].jpg' '[12].jpg'\] \(2, 64\)", output)
    assert output.count("features of 2 samples") >= 5, "files, a dataset, tars and Ray"
    assert "['kind', 'grid', 'error', 'pooler'] (2, 64) ['' '']" in output
    assert re.search(r"1  1\.0000  1\.jpg +image", output)
    assert "{'samples': 2, 'failures': 0, " in output
