# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Training both models: gradients, checkpointing, Trainer, LoRA, freezing, mixed precision, dropout."""

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from tests.llava_vit_hf.both_models import LAYOUTS, make_case
from tests.models import relative_error


# The linear layers of the encoder, by the names that LoRA's `target_modules` takes.
LORA_TARGETS = {
    "dense": ["q_proj", "k_proj", "v_proj", "self_attn.out_proj", "fc1", "fc2"],
    "packing": ["qkv", "self_attn.proj", "fc1", "fc2"],
}
PATCH_PROJECTION = {"dense": "embeddings.patch_embedding", "packing": "patch_embed.proj"}


@pytest.fixture(params=LAYOUTS)
def case(request):
    return make_case(request.param)


def loss_of(case, model=None) -> torch.Tensor:
    """Depends on every parameter: on the pooled vectors, the tokens after the last norm, and a layer in between."""
    output = (model or case.model)(**case.inputs, output_hidden_states=True)
    tokens = output.last_hidden_state.square().mean() + output.hidden_states[-2].square().mean()
    return output.pooler_output.square().mean() + tokens


def gradients(case) -> dict[str, torch.Tensor]:
    case.model.zero_grad()
    loss_of(case).backward()
    return {name: parameter.grad.clone() for name, parameter in case.model.named_parameters()}


def test_every_parameter_has_a_gradient(case):
    case.model.train()
    for name, gradient in gradients(case).items():
        # The softmax does not see a constant added to all keys, so only rounding reaches their bias.
        assert gradient.isfinite().all() and gradient.abs().max() > 0, name


def compare_checkpointed(case, expected: dict[str, torch.Tensor]) -> None:
    """Gradients with checkpointing are those without, and a layer's forward ran twice."""
    calls = []
    hook = case.model.encoder.layers[1].mlp.fc1.register_forward_hook(lambda *_: calls.append(1))
    for name, gradient in gradients(case).items():
        # The inputs of q, k and v add up in another order.
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    hook.remove()
    assert len(calls) == 2


@pytest.mark.filterwarnings("error::FutureWarning", "error::DeprecationWarning")
@pytest.mark.parametrize("reentrant", [None, False, True], ids=["by default", "not reentrant", "reentrant"])
def test_activation_checkpointing_gives_equal_gradients(case, reentrant):
    case.model.train()
    expected = gradients(case)
    assert case.model.is_activation_checkpointing is False
    case.model.activation_checkpointing_enable(None if reentrant is None else {"use_reentrant": reentrant})
    if reentrant:
        case.model.enable_input_require_grads()
    assert case.model.is_activation_checkpointing is True
    used = case.model.encoder.layers[0]._gradient_checkpointing_func.keywords
    assert used["use_reentrant"] is bool(reentrant)
    compare_checkpointed(case, expected)
    case.model.activation_checkpointing_disable()
    assert all(torch.equal(gradient, expected[name]) for name, gradient in gradients(case).items())


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_gradient_checkpointing_is_its_earlier_name(case):
    """Which transformers warns of from 5.24 on."""
    case.model.train()
    expected = gradients(case)
    case.model.gradient_checkpointing_enable({"use_reentrant": False})
    assert case.model.is_gradient_checkpointing and case.model.is_activation_checkpointing
    compare_checkpointed(case, expected)
    case.model.gradient_checkpointing_disable()
    assert not case.model.is_activation_checkpointing


def test_activation_checkpointing_repeats_the_dropout(case):
    case.model.config.attention_dropout = 0.5
    case.model.train()
    torch.manual_seed(0)
    expected = gradients(case)
    case.model.activation_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(0)
    for name, gradient in gradients(case).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_checkpointing_is_off_in_evaluation(case):
    expected = case.features()
    case.model.activation_checkpointing_enable()
    assert torch.equal(case.features(), expected)


class PooledClassifier(nn.Module):
    """A linear head on the pooled vectors, the way users put one in front of `Trainer`."""

    def __init__(self, backbone, classes: int = 3):
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.config.hidden_size, classes)

    def forward(self, labels, num_items_in_batch=None, **inputs):
        logits = self.classifier(self.backbone(**inputs).pooler_output)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def trained(case, folder, **arguments) -> PooledClassifier:
    torch.manual_seed(0)
    model = PooledClassifier(case.model)
    settings = TrainingArguments(
        output_dir=str(folder),
        max_steps=1,
        learning_rate=1e-3,
        per_device_train_batch_size=1,
        use_cpu=True,
        report_to=[],
        remove_unused_columns=False,
        save_strategy="no",
        disable_tqdm=True,
        **arguments,
    )
    batch = {**case.inputs, "labels": torch.arange(case.samples)}
    # A pack is one item: the collator hands it on.
    trainer = Trainer(model=model, args=settings, train_dataset=[batch], data_collator=lambda items: items[0])
    result = trainer.train()
    assert result.global_step == 1 and 0 < result.training_loss < 100
    return model


def test_one_step_of_trainer(case, tmp_path):
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    trained(case, tmp_path)
    changed = {name for name, value in case.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(before)


def test_one_step_of_trainer_in_bfloat16(case, tmp_path):
    before = case.model.encoder.layers[0].mlp.fc1.weight.clone()
    trained(case, tmp_path, bf16=True)
    assert case.model.dtype == torch.float32
    assert not torch.equal(case.model.encoder.layers[0].mlp.fc1.weight, before)


def test_trainer_takes_the_model_itself(case, tmp_path):
    """Without a module around it, and with the loss from a function: Trainer passes nothing of its own."""
    settings = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        use_cpu=True,
        report_to=[],
        remove_unused_columns=False,
        label_names=["labels"],
        save_strategy="no",
        disable_tqdm=True,
    )

    def loss(output, labels, num_items_in_batch=None):
        return nn.functional.mse_loss(output.pooler_output, labels)

    batch = {**case.inputs, "labels": torch.zeros(case.samples, case.model.config.hidden_size)}
    collator = {"train_dataset": [batch], "data_collator": lambda items: items[0]}
    trainer = Trainer(model=case.model, args=settings, compute_loss_func=loss, **collator)
    assert 0 < trainer.train().training_loss < 100


class TestLora:
    peft = staticmethod(lambda: pytest.importorskip("peft", reason="peft is not installed"))

    @pytest.mark.parametrize("targets", ["named", "all-linear"])
    def test_one_step_and_merge(self, case, targets):
        peft = self.peft()
        names = LORA_TARGETS[case.layout] if targets == "named" else targets
        untouched = case.features()
        # No task_type: those of peft are for text and pass input_ids.
        model = peft.get_peft_model(case.model, peft.LoraConfig(target_modules=names, r=4, init_lora_weights=True))
        adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
        layers = len(case.model.encoder.layers)
        heads = 0 if targets == "named" else 1
        assert sum(".encoder.layers." in name for name in adapted) == len(LORA_TARGETS[case.layout]) * layers
        assert sum(".head.attention." in name for name in adapted) == heads
        assert torch.equal(case.features(model), untouched)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
        for _ in range(2):
            optimizer.zero_grad()
            loss_of(case, model).backward()
            optimizer.step()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == ("lora_" in name), name
        tuned = case.features(model)
        assert relative_error(tuned, untouched) > 1e-3
        merged = model.merge_and_unload()
        torch.testing.assert_close(case.features(merged), tuned, rtol=0, atol=1e-3)

    def test_adapter_is_saved_and_loaded(self, case, tmp_path):
        peft = self.peft()
        settings = peft.LoraConfig(target_modules=LORA_TARGETS[case.layout], r=2, init_lora_weights=False)
        model = peft.get_peft_model(case.model, settings).eval()
        expected = case.features(model)
        model.save_pretrained(tmp_path)
        other = peft.PeftModel.from_pretrained(make_case(case.layout).model, tmp_path).eval()
        assert torch.equal(case.features(other), expected)

    @pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
    def test_with_activation_checkpointing(self, case, reentrant):
        peft = self.peft()
        settings = peft.LoraConfig(target_modules=LORA_TARGETS[case.layout], r=2, init_lora_weights=False)
        model = peft.get_peft_model(case.model, settings).train()

        def collect():
            model.zero_grad()
            loss_of(case, model).backward()
            return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

        expected = collect()
        # The base is frozen: reentrant checkpoints need the embeddings to ask for gradients.
        model.enable_input_require_grads()
        case.model.activation_checkpointing_enable({"use_reentrant": reentrant})
        found = collect()
        assert set(found) == set(expected) and all("lora_" in name for name in found)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)

    @pytest.mark.parametrize("name", ["the layer", "its parameter", "a short name"])
    def test_on_the_patch_projection_is_refused_by_name(self, case, name):
        """Its weight is that of a convolution, applied as a matrix product: no layer that PEFT knows."""
        peft = self.peft()
        layer = PATCH_PROJECTION[case.layout]
        settings = {
            "the layer": {"target_modules": [layer]},
            "its parameter": {"target_modules": [], "target_parameters": [f"{layer}.weight"]},
            "a short name": {"target_modules": [layer.split(".")[-1]]},
        }[name]
        message = "4 dimensional Parameter" if name == "its parameter" else r"LlavaViTPatchProjection\(\) is not supp"
        with pytest.raises(ValueError, match=message):
            peft.get_peft_model(case.model, peft.LoraConfig(**settings))

    def test_beside_a_patch_projection_trained_whole(self, case, tmp_path):
        peft = self.peft()
        layer = PATCH_PROJECTION[case.layout]
        settings = peft.LoraConfig(target_modules=LORA_TARGETS[case.layout], modules_to_save=[layer], r=2)
        model = peft.get_peft_model(case.model, settings).train()
        before = case.features(model)
        loss_of(case, model).backward()
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05).step()
        (trained,) = (p for name, p in model.named_parameters() if f"{layer}.modules_to_save" in name)
        assert trained.grad.abs().max() > 0
        expected = case.features(model.eval())
        assert relative_error(expected, before) > 1e-3
        model.save_pretrained(tmp_path)
        other = peft.PeftModel.from_pretrained(make_case(case.layout).model, tmp_path).eval()
        assert torch.equal(case.features(other), expected)


def test_freeze_and_unfreeze(case):
    case.model.train().requires_grad_(False)
    case.model.head.requires_grad_(True)
    loss_of(case).backward()
    for name, parameter in case.model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("head."), name
    case.model.requires_grad_(True)
    assert all(gradient.abs().max() > 0 for gradient in gradients(case).values())


def test_frozen_embeddings_stay_frozen(case):
    case.model.get_input_embeddings().requires_grad_(False)
    loss_of(case).backward()
    without = [name for name, parameter in case.model.named_parameters() if parameter.grad is None]
    assert without == [f"{PATCH_PROJECTION[case.layout]}.weight"]


def test_bfloat16_autocast(case):
    case.model.train()
    expected = gradients(case)
    case.model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(case)
    loss.backward()
    for name, parameter in case.model.named_parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all(), name
    weight = "encoder.layers.0.mlp.fc1.weight"
    cosine = nn.functional.cosine_similarity(
        case.model.get_parameter(weight).grad.flatten(), expected[weight].flatten(), dim=0
    )
    assert cosine > 0.95


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_dropout(case, implementation):
    case.model.set_attn_implementation(implementation)
    expected = case.features()
    case.model.config.attention_dropout = 0.5
    assert torch.equal(case.features(), expected)
    case.model.train()
    assert not torch.equal(case.features(), case.features())
    torch.manual_seed(0)
    first = case.features()
    torch.manual_seed(0)
    assert torch.equal(case.features(), first)
    # Dropout keeps the expectation: the mean over many draws comes near the value without.
    attention = case.model.encoder.layers[0].self_attn
    draws = []
    attention.register_forward_hook(lambda _, __, output: draws.append(output[0]))
    for _ in range(200):
        case.features()
    mean = torch.stack(draws).mean(0)
    case.model.eval()
    case.features()
    assert relative_error(mean, draws[-1]) < 0.25 < relative_error(draws[0], draws[-1])
