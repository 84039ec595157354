# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What a model that failed is said to look like, and the oracle with a fault planted in it."""

from unittest.mock import patch

import pytest
import torch

from conversion.checkpoints.model_folder_writer import ConversionRequest, convert_folder
from conversion.source.encoder import SourceEncoder
from conversion.verification.diagnosis import WITHOUT_NUMBERS, diagnose_model, diagnosis_case
from conversion.verification.faults import larger_epsilons, tanh_gelu
from conversion.verification.loaded_model import ModelUnderTest, oracle_outputs
from conversion.verification.oracle_faults import COMMON_PAIRS, ORACLE_FAULTS, fault_combinations, run_oracle
from tests.conversion.weights import peaked_state_dict, tiny_config


CONFIG = tiny_config(patch_size=14)
DESCRIPTIONS = {fault.name: fault.description for fault in ORACLE_FAULTS}


@pytest.fixture(scope="module")
def oracle() -> SourceEncoder:
    return SourceEncoder.from_state_dict(CONFIG, peaked_state_dict(CONFIG))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ModelUnderTest:
    """The dense model; `tests/slow/test_mutations.py` has faults of both named, from the command line."""
    folder = tmp_path_factory.mktemp("diagnosed")
    torch.save(peaked_state_dict(CONFIG), folder / "backbone.pt")
    target = folder / "diagnosed_dense"
    convert_folder(ConversionRequest(str(folder / "backbone.pt"), "dense", target, num_attention_heads=2))
    return ModelUnderTest(target, torch.float32, "sdpa")


def no_post_norm(model: torch.nn.Module):
    return patch.object(model.layernorm_post, "forward", lambda x: x)


@pytest.mark.long
@pytest.mark.once
class TestModels:
    def test_a_right_model_is_given_no_name(self, model, oracle):
        assert diagnose_model(model, oracle) == []

    @pytest.mark.parametrize(
        ("plant", "name"),
        [(no_post_norm, "no_post_norm"), (tanh_gelu, "tanh_gelu")],
        ids=["structural", "numeric"],
    )
    def test_a_fault_in_the_model_is_named(self, model, oracle, plant, name):
        with plant(model.model):
            (line,) = diagnose_model(model, oracle)
        assert line.startswith(f"looks like {DESCRIPTIONS[name]}: cosine 1.0000 to that fault's output")

    def test_what_is_no_known_fault_is_not_called_one(self, model, oracle):
        with larger_epsilons(model.model, factor=1000.0):
            (line,) = diagnose_model(model, oracle)
        assert line.startswith("looks like none of the known faults; the nearest is: ")

    def test_without_time_it_says_so(self, model, oracle):
        with tanh_gelu(model.model):
            assert diagnose_model(model, oracle, longest=0.0) == [
                f"only 0 of {len(fault_combinations())} known faults were tried for lack of time"
            ]

    def test_outputs_without_numbers_are_not_compared(self, model, oracle):
        norm = model.model.layernorm_post
        weight = norm.weight.data
        norm.weight.data = weight * float("nan")
        try:
            assert diagnose_model(model, oracle) == [WITHOUT_NUMBERS]
        finally:
            norm.weight.data = weight


@pytest.mark.once
class TestOracleFaults:
    def test_names_are_unique_and_pairs_known(self):
        assert len(DESCRIPTIONS) == len(ORACLE_FAULTS) >= 20
        assert all(set(pair) <= DESCRIPTIONS.keys() for pair in COMMON_PAIRS)

    def test_without_a_fault_it_is_the_oracle(self, oracle):
        samples = diagnosis_case(14).samples
        arrays = run_oracle(oracle, samples)
        expected = list(oracle_outputs(oracle, diagnosis_case(14), 14))
        assert torch.equal(arrays["hidden_states"][1], torch.cat([sample.hidden_states[1] for sample in expected]))
        assert torch.equal(arrays["last_hidden_state"], torch.cat([sample.last_hidden_state for sample in expected]))
        assert torch.equal(arrays["pooled"], torch.stack([sample.pooler_output for sample in expected]))

    @pytest.mark.parametrize("fault", ORACLE_FAULTS, ids=lambda fault: fault.name)
    def test_every_fault_changes_an_output_and_leaves_the_oracle_as_it_was(self, oracle, fault):
        samples = diagnosis_case(14).samples
        before = run_oracle(oracle, samples)
        changed = run_oracle(oracle, samples, (fault,))
        after = run_oracle(oracle, samples)
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert any(not torch.equal(before[name], changed[name]) for name in before)

    def test_faults_of_a_head_leave_an_encoder_without_one_alone(self):
        config = tiny_config(patch_size=14, use_head=False)
        encoder = SourceEncoder.from_state_dict(config, peaked_state_dict(config))
        samples = diagnosis_case(14).samples
        before = run_oracle(encoder, samples)
        assert "pooled" not in before
        for name in ("head_epsilon", "head_without_residual", "mean_pooled", "pooled_before_post_norm"):
            changed = run_oracle(encoder, samples, fault_combinations()[name])
            assert before.keys() == changed.keys()
            assert all(torch.equal(before[array], changed[array]) for array in before)
