# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Every fault planted in a copy of the project makes the conversion scripts refuse, and shows by which check."""

import shutil

import pytest
import torch

from conversion.source.encoder import SourceConfig
from conversion.source.peaked_weights import peaked_state_dict
from conversion.verification.oracle_faults import ORACLE_FAULTS
from tests.conversion.scripts import ROOT, convert_script, run_script
from tests.slow.mutations import MUTATIONS, Mutation


# As many weights in as out of the MLP, so that shapes cannot tell the two apart.
CONFIG = SourceConfig(hidden_size=64, num_attention_heads=2, num_hidden_layers=2, intermediate_size=64, patch_size=14)
# Those that `make test` runs too: one each in the tables, the encoder and the processor.
QUICK = ("qkv_order", "rope_rotates_halves", "bgr")
# What the diagnosis must call them: the names in `conversion/verification/oracle_faults.py`. The others are not among
# those, or do not show in the encoder's outputs.
LOOKS_LIKE = {
    "epsilon_of_the_origin": "epsilon",
    "rope_split": "split_6_6_4",
    "rope_sign": "rotated_backwards",
    "rope_angles_interleaved": "interleaved_angles",
    "rope_rotates_halves": "rotate_half",
    "causal_attention": "causal",
    "leak_between_equal_samples": None,
    "qkv_order": "query_key_exchanged",
    "tanh_gelu": "tanh_gelu",
    "pre_norm_left_out": "no_pre_norm",
    "post_norm_left_out": "no_post_norm",
    "head_residual_left_out": "head_without_residual",
    "patch_order": "weight_channels_last",
    "rows_off_by_one": "rows_shifted",
    "height_width_swapped": "height_width_swapped",
    "time_in_steps_of_one": "frame_numbers",
    "wrong_mean": None,
    "keys_not_rotated": None,
    "bgr": "bgr",
}
MARKS = (pytest.mark.long, pytest.mark.once)
TREES = ("conversion", "llava_vit_hf", "hub_configs")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "backbone.pt"
    torch.save(peaked_state_dict(CONFIG), path)
    return path


@pytest.fixture(scope="module")
def caught(request):
    """Fault to the check that caught it; printed as a table at the end."""
    table: dict[str, str] = {}
    yield table
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n| fault | file | layout | caught by |\n|---|---|---|---|")
        print("\n".join(table.values()))


def plant(mutation: Mutation, root) -> None:
    """Copies the project into `root` and plants the fault there."""
    for tree in TREES:
        shutil.copytree(ROOT / tree, root / tree, ignore=shutil.ignore_patterns("__pycache__"))
    path = mutation.file(root)
    path.write_text(path.read_text(encoding="utf-8").replace(mutation.old, mutation.new), encoding="utf-8")


def convert(root, weights, output, layout):
    arguments = ("auto", weights, "--num_attention_heads", 2, "--output_dir", output, "--time_budget", 0.1)
    return run_script(convert_script(layout), *arguments, root=root)


@pytest.mark.parametrize(
    "mutation",
    [pytest.param(m, marks=MARKS if m.name in QUICK else pytest.mark.slow, id=m.name) for m in MUTATIONS],
)
def test_fault_is_caught(tmp_path, weights, caught, mutation):
    plant(mutation, tmp_path / "tree")
    output = tmp_path / "out"
    result = convert(tmp_path / "tree", weights, output, mutation.layout)
    assert result.returncode != 0
    assert not output.exists()
    lines = result.stderr[result.stderr.rindex("error: ") :].splitlines()
    reason = lines[1].strip() if lines[0].endswith(("FAIL:", "INCONCLUSIVE:")) else lines[0]
    assert "Error" not in result.stderr and "Traceback" not in reason, result.stderr
    if mutation.name in LOOKS_LIKE:
        named = {fault.description for fault in ORACLE_FAULTS if f"looks like {fault.description}: " in result.stderr}
        wanted = LOOKS_LIKE[mutation.name]
        assert named == {fault.description for fault in ORACLE_FAULTS if fault.name == wanted}, result.stderr
    caught[mutation.name] = f"| {mutation.name} | {mutation.file(ROOT).name} | {mutation.layout} | {reason[:160]} |"


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["dense", "packing"])
def test_nothing_is_caught_without_a_fault(tmp_path, weights, layout):
    plant(Mutation("none", "conversion", "cast = stored.to(dtype)", "cast = stored.to(dtype)"), tmp_path / "tree")
    result = convert(tmp_path / "tree", weights, tmp_path / "out", layout)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "verification.json").is_file()


def test_texts_of_all_faults_are_in_place():
    for mutation in MUTATIONS:
        assert mutation.file(ROOT)
