# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What the card says of a model: refused where no model can have it, by the model's own rules."""

import json
import math

import pytest

from conversion.checkpoints.hub_configs import read_config, variant_names
from conversion.common.model_folder import PublishInputError, read_model_folder
from conversion.publishing.model_facts import FACTS, facts_table, wrong_fact
from llava_vit_hf import LlavaViTConfig
from tests.conversion.publishing.publishable import converted_folder


GOOD = dict(zip(FACTS, (64, 2, 2, 96, 14, "layer_norm", 1e-5, 1e-6, 10000.0), strict=True))
VALUES = (
    *(None, True, False, "x", "14", "rms_norm", [], [1], {}, {"a": 1}),
    *(0, -1, 1, 2, 3, 32, 64, 2**31 - 1, 2**31, 2**53 - 1, 2**53, 10**30),
    *(0.0, -1.0, 0.5, 32.0, 1e-300, 1e300, float(2**53), math.inf, -math.inf, math.nan),
)


def refused_by_the_model(config):
    try:
        LlavaViTConfig(**config)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", FACTS)
def test_the_rules_are_those_of_the_model(name):
    """Every value is refused here and there, with the field's name in both messages, or taken by both."""
    outcomes = set()
    for value in VALUES:
        config = GOOD | {name: value}
        ours, theirs = wrong_fact(config), refused_by_the_model(config)
        assert (ours is None) == (theirs is None), (value, ours, theirs)
        assert ours is None or (name in ours and name in theirs), (value, ours, theirs)
        outcomes.add(ours is None)
    assert outcomes == {True, False}


def test_sizes_that_do_not_go_together_are_refused():
    for hidden, heads in ((64, 3), (96, 2), (64, 4), (64, 128), (2048, 64), (1536, 16)):
        config = GOOD | {"hidden_size": hidden, "num_attention_heads": heads}
        assert (wrong_fact(config) is None) == (refused_by_the_model(config) is None)
        assert (wrong_fact(config) is None) == (hidden % heads == 0 and hidden // heads % 32 == 0)


@pytest.mark.parametrize("name", variant_names())
def test_every_variant_is_taken(name):
    assert wrong_fact(read_config(name, "dense")) is None and wrong_fact(read_config(name, "packing")) is None


def test_a_folder_is_refused_by_file_and_field(tmp_path):
    folder = converted_folder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"rope_theta": "x"}, "config.json: rope_theta must be a positive number, found 'x'"),
        ({"num_attention_heads": 0}, "config.json: num_attention_heads must be a positive integer"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(PublishInputError, match=message):
            facts_table(read_model_folder(folder))
    (folder / "config.json").write_text(json.dumps({**config, "head_norm_eps": None, "layer_norm_eps": 0.25}))
    assert "| pooling head | yes, epsilon 0.25 |" in facts_table(read_model_folder(folder))
    del config["layer_norm_type"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PublishInputError, match="config.json: the file has no field layer_norm_type"):
        facts_table(read_model_folder(folder))
