# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Applies a rename table to a checkpoint, completely or not at all. No tensor is read before it is asked for."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from conversion.checkpoints.checkpoint import Checkpoint, CheckpointError
from conversion.checkpoints.rename_tables import Rule, Table


_PLACEHOLDERS = {"[layer]": r"(?P<layer>0|[1-9][0-9]*)", "[parameter]": r"(?P<parameter>weight|bias)"}


class RenamedTensor(NamedTuple):
    """A tensor of the target layout: its name, the names it is made from, its shape, and how to read it."""

    name: str
    sources: list[str]
    shape: tuple[int, ...]
    load: Callable[[], torch.Tensor]


def rename(checkpoint: Checkpoint, table: Table) -> list[RenamedTensor]:
    """Renames, splits and stacks all weights of a checkpoint by a table, without reading them yet.

    Returns:
        One entry per tensor of the target layout, in the order of the table's rules and the checkpoint's names.

    Raises:
        CheckpointError: if the checkpoint has another layout than the table's source, holds names that the table
            does not know (they are listed; known drops are not among them), lacks a part of a stack, or a stack
            cannot be split or made for its shape.
    """
    if checkpoint.layout != table.source_layout:
        raise CheckpointError(
            f"{checkpoint.location} holds weights of the {checkpoint.layout} layout, but the table converts "
            f"{table.source_layout} to {table.target_layout}."
        )
    patterns = [
        (re.compile(_pattern(template)), number, position)
        for number, rule in enumerate(table.rules)
        for position, template in enumerate(rule.sources)
    ]
    groups: dict[tuple, dict[int, str]] = {}
    dropped, unused = dict(table.drops), []
    for name in checkpoint.specs:
        for pattern, number, position in patterns:
            if match := pattern.fullmatch(name):
                groups.setdefault((number, *match.groupdict().items()), {})[position] = name
                break
        else:
            if name not in dropped:
                unused.append(name)
    if unused:
        raise CheckpointError(
            f"{checkpoint.location} holds {len(unused)} weights that no rule from {table.source_layout} to "
            f"{table.target_layout} uses: {', '.join(sorted(unused))}."
        )
    renamed = []
    for (number, *values), names in sorted(groups.items(), key=lambda group: group[0][0]):
        renamed.extend(_apply(checkpoint, table.rules[number], dict(values), names))
    return renamed


def dropped_names(checkpoint: Checkpoint, table: Table) -> dict[str, str]:
    """The weights of a checkpoint that a table drops on purpose, with the reasons."""
    return {name: reason for name, reason in table.drops if name in checkpoint.specs}


def check_coverage(renamed: list[RenamedTensor], expected: Mapping[str, tuple[int, ...]], location: str) -> None:
    """Checks that the renamed tensors are exactly the target's, in name and shape.

    Raises:
        CheckpointError: listing every missing, unknown and misshapen name.
    """
    shapes = {tensor.name: tensor.shape for tensor in renamed}
    origins = {tensor.name: ", ".join(tensor.sources) for tensor in renamed}
    problems = []
    if missing := sorted(expected.keys() - shapes.keys()):
        problems.append(f"nothing fills {', '.join(missing)}")
    if unknown := sorted(shapes.keys() - expected.keys()):
        problems.append("the model has no " + ", ".join(f"{name} (from {origins[name]})" for name in unknown))
    problems.extend(
        f"{name} (from {origins[name]}) is {shapes[name]}, expected {tuple(expected[name])}"
        for name in sorted(shapes.keys() & expected.keys())
        if shapes[name] != tuple(expected[name])
    )
    if problems:
        raise CheckpointError(f"{location} does not fit the configuration: {'; '.join(problems)}.")


def _pattern(template: str) -> str:
    pattern = re.escape(template)
    for placeholder, group in _PLACEHOLDERS.items():
        pattern = pattern.replace(re.escape(placeholder), group)
    return pattern


def _fill(template: str, values: Mapping[str, str]) -> str:
    for key, value in values.items():
        template = template.replace(f"[{key}]", value)
    return template


def _apply(checkpoint: Checkpoint, rule: Rule, values: dict[str, str], names: dict[int, str]) -> list[RenamedTensor]:
    """The targets of one rule for one layer and parameter; `names` are its sources by position in the rule."""
    targets = [_fill(template, values) for template in rule.targets]
    wanted = [_fill(template, values) for template in rule.sources]
    if absent := [name for position, name in enumerate(wanted) if position not in names]:
        raise CheckpointError(f"{checkpoint.location} lacks {', '.join(absent)}, needed for {', '.join(targets)}.")
    shapes = [checkpoint.specs[name].shape for name in wanted]
    if len(wanted) > 1:
        return [_stacked(checkpoint, targets[0], wanted, shapes)]
    if len(targets) > 1:
        return _split(checkpoint, targets, wanted[0], shapes[0])
    return [RenamedTensor(targets[0], wanted, shapes[0], lambda: checkpoint.tensor(wanted[0]))]


def _stacked(checkpoint: Checkpoint, target: str, names: list[str], shapes: list[tuple[int, ...]]) -> RenamedTensor:
    if len(set(shapes)) > 1 or not shapes[0]:
        found = ", ".join(f"{name} {shape}" for name, shape in zip(names, shapes, strict=True))
        raise CheckpointError(f"{checkpoint.location}: {target} stacks equal shapes, found {found}.")
    shape = (len(shapes) * shapes[0][0], *shapes[0][1:])
    return RenamedTensor(target, names, shape, lambda: torch.cat([checkpoint.tensor(name) for name in names]))


def _split(checkpoint: Checkpoint, targets: list[str], name: str, shape: tuple[int, ...]) -> list[RenamedTensor]:
    if not shape or shape[0] % len(targets):
        raise CheckpointError(
            f"{checkpoint.location}: {name} {shape} must split into {len(targets)} equal parts along its first axis."
        )
    rows = shape[0] // len(targets)

    def part(index: int) -> Callable[[], torch.Tensor]:
        return lambda: checkpoint.tensor(name).narrow(0, index * rows, rows)

    return [RenamedTensor(target, [name], (rows, *shape[1:]), part(index)) for index, target in enumerate(targets)]
