# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What each of two processes does in `test_distributed_training.py`, and one process for comparison."""

import importlib.util
import os
import sys
from pathlib import Path

import torch
import torch.distributed
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainingArguments

from llava_vit_hf import LlavaViTPackingModel
from llava_vit_hf.grid_llava_vit import grid_positions
from tests.models import random_pixels


# Of each rank, which have not as many samples, nor as many tokens.
GRIDS = {0: [(1, 4, 5), (2, 3, 4), (1, 6, 6)], 1: [(1, 2, 3)]}
TOKENS = sum(t * h * w for grids in GRIDS.values() for t, h, w in grids)
CHECKPOINTING = (False, True)
LORA = {"r": 2, "target_modules": ["qkv", "fc1", "fc2"], "init_lora_weights": False}
PROGRAM = "from tests.llava_vit_hf.distributed_steps import {name}; {name}()"


def pack_of(rank: int) -> dict[str, torch.Tensor]:
    """Inputs of that rank's samples."""
    tokens = sum(t * h * w for t, h, w in GRIDS[rank])
    return {
        "pixel_values": random_pixels(tokens, 48, seed=rank),
        "grid_thw": torch.tensor(GRIDS[rank]),
        "patch_positions": grid_positions(GRIDS[rank]),
    }


def loss_on_tokens(model: nn.Module, rank: int) -> torch.Tensor:
    """A rank's part of the mean over all tokens, which knows nothing of pooled vectors."""
    return model(**pack_of(rank)).last_hidden_state.square().sum() / TOKENS


def load(folder: str | Path, checkpointing: bool = False, **changes) -> LlavaViTPackingModel:
    """The model in training, in the way of the guides."""
    torch.manual_seed(0)
    model = LlavaViTPackingModel.from_pretrained(folder, **changes).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    return model


def with_lora(folder: str | Path) -> nn.Module:
    """Adapted without the pooling head, whose MLP has an `fc1` and an `fc2` too."""
    import peft

    torch.manual_seed(0)
    return peft.get_peft_model(load(folder, use_head=False), peft.LoraConfig(**LORA))


def fsdp2(model: nn.Module) -> nn.Module:
    for layer in model.encoder.layers:
        fully_shard(layer)
    return fully_shard(model)


def counted(model: nn.Module) -> list[int]:
    """An entry for every forward of a layer's MLP, from now on."""
    calls = []
    model.encoder.layers[1].mlp.fc1.register_forward_hook(lambda *_: calls.append(1))
    return calls


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Whole gradients, by names without those of wrappers."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            whole = getattr(parameter.grad, "full_tensor", lambda parameter=parameter: parameter.grad)()
            found[name.removeprefix("module.")] = whole.clone()
    return found


def gradients_in_two() -> None:
    """Saves each rank's gradients of a second step by wrapper and checkpointing, and what a head stops DDP with."""
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo")
    wrappers, found = {"ddp": DistributedDataParallel, "fsdp2": fsdp2}, {}
    for name, wrap in wrappers.items():
        for checkpointing in CHECKPOINTING:
            model = load(folder, checkpointing, use_head=False)
            calls = counted(model)
            found[name, checkpointing] = (gradients_of_second_step(wrap(model), rank), len(calls))
    if importlib.util.find_spec("peft"):
        found["lora"] = gradients_of_second_step(DistributedDataParallel(with_lora(folder)), rank)
    try:
        gradients_of_second_step(DistributedDataParallel(load(folder)), rank)
    except RuntimeError as error:
        found["with the head"] = str(error)
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def gradients_of_second_step(model: nn.Module, rank: int) -> dict[str, torch.Tensor]:
    """DDP finds out about unused parameters as the second one starts."""
    for _ in range(2):
        model.zero_grad()
        # Both wrappers take the mean over ranks.
        (2 * loss_on_tokens(model, rank)).backward()
    return gradients(model)


def trainer_in_two() -> None:
    """Saves the weights after a step of `Trainer` on each rank's pack, with checkpointing, and the head left out."""
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    model = load(folder, use_head=False)
    Trainer(
        model=model,
        args=trainer_arguments(folder),
        train_dataset=[0, 1],
        data_collator=lambda ranks: {**pack_of(*ranks), "labels": torch.tensor(ranks)},
        compute_loss_func=mean_over_tokens,
    ).train()
    torch.save(model.state_dict(), folder / f"{rank}.pt")


def mean_over_tokens(output, labels, num_items_in_batch=None) -> torch.Tensor:
    """With `num_items_in_batch`, the sum over ranks, Trainer expects parts of a whole, and takes no mean."""
    return output.last_hidden_state.square().sum() / TOKENS


def trainer_arguments(folder: Path) -> TrainingArguments:
    """Plain descent, so that the change of a weight is its gradient."""
    names = TrainingArguments.__dataclass_fields__
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    return TrainingArguments(
        output_dir=str(folder / "trained"),
        max_steps=1,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        optim="sgd",
        per_device_train_batch_size=1,
        use_cpu=True,
        remove_unused_columns=False,
        label_names=["labels"],
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **{checkpointing: True, f"{checkpointing}_kwargs": {"use_reentrant": False}},
    )
