# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Every variant converts and verifies with random peaked weights; the biggest two with fewer layers.

That all names of all layers are mapped is tested without weights, in `tests/conversion/checkpoints/test_convert.py`.
"""

import json
from dataclasses import replace

import pytest
import safetensors.torch

from conversion.checkpoints.hub_configs import read_architecture, variant_names
from conversion.source.encoder import SourceConfig
from conversion.source.peaked_weights import peaked_state_dict
from tests.conversion.scripts import convert_script, run_script


pytestmark = pytest.mark.slow
LAYERS = {"llava_vit_huge_ln": 4, "llava_vit_giant_ln": 4}


@pytest.mark.parametrize("layout", ["dense", "packing"])
@pytest.mark.parametrize("name", variant_names())
def test_variant_converts_and_verifies(tmp_path, capsys, name, layout):
    config = SourceConfig(**read_architecture(name))
    config = replace(config, num_hidden_layers=LAYERS.get(name, config.num_hidden_layers))
    weights, output = tmp_path / "weights.safetensors", tmp_path / "out"
    safetensors.torch.save_file(peaked_state_dict(config), weights)
    reduced = ("auto", weights, "--num_attention_heads", config.num_attention_heads)
    arguments = reduced if name in LAYERS else (name, weights)
    result = run_script(convert_script(layout), *arguments, "--output_dir", output, "--time_budget", 60)
    assert result.returncode == 0, result.stderr
    report = json.loads((output / "verification.json").read_text())
    assert report["verdict"] == "PASS"
    float64 = max(
        case["arrays"]["last_hidden_state"]["relative_error"] for case in report["cases"] if case["dtype"] == "float64"
    )
    with capsys.disabled():
        print(
            f"\n{name} {layout}, {config.num_hidden_layers} layers: {report['seconds']} s, float64 {float64:.1e}, "
            f"float32 bounds {report['bounds']['float32']}, {report['margins']}, "
            f"weights of controls { ({c['weights'] for c in report['controls']}) }"
        )
