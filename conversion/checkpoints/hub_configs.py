# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
r"""Reads and writes `hub_configs/`: what a named variant looks like on the Hub.

One folder per variant: `dense/` and `packing/` with `config.json` and `preprocessor_config.json`, and `card.json` with
the license, base model and tags of its model card.

    python -m conversion.checkpoints.hub_configs --write llava_vit_tiny_ln --hidden_size 192 --num_attention_heads 3 \
        --num_hidden_layers 6 --intermediate_size 768 --patch_size 16 --layer_norm_type layer_norm
    python -m conversion.checkpoints.hub_configs --write llava_vit_tiny_ln

The first adds a variant. The second writes the files of one that is there again from its dense/config.json, for
instance after that was edited. A card.json that is there is kept, for its license, base model and tags are yours.
"""

import argparse
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from conversion.checkpoints.rename_tables import CONFIG_ARCHITECTURE
from conversion.common.arguments import ArgumentParser
from conversion.common.json_files import NUMBER, check_shape, read_json_object


FOLDER = Path(__file__).resolve().parents[2] / "hub_configs"
LAYOUTS = ("dense", "packing")
CARD_FIELDS = ("license", "base_model", "tags")
# That a card may have, too; `read_card_data` says what they are.
MORE_CARD_FIELDS = ("pretraining", "project_url", "conformance_kit")
NORMS = ("layer_norm", "rms_norm")
SIZES = (
    *("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "patch_size"),
    "layer_norm_type",
)
"""What tells one variant from another, under the names of `config.json`, which are those of `SourceConfig` too."""

WRITE_COMMAND = "python -m conversion.checkpoints.hub_configs --write"

# Only weights tell whether a checkpoint was saved with its pooling head.
_ARCHITECTURE = {theirs: ours for theirs, ours in CONFIG_ARCHITECTURE.items() if ours != "use_head"}
_SHAPE = {
    **dict.fromkeys(_ARCHITECTURE, NUMBER),
    **{name: str if name == "layer_norm_type" else int for name in SIZES},
}
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def variant_names() -> tuple[str, ...]:
    """The variants that have a folder, by hidden size."""
    names = [path.parent.name for path in FOLDER.glob("*/card.json")]
    return tuple(sorted(names, key=lambda name: (read_config(name, "dense")["hidden_size"], name)))


def read_config(name: str, layout: str) -> dict:
    """The `config.json` of a variant's model, without the dtype and the version of transformers.

    Raises:
        ValueError: if it is missing, no JSON object, or lacks a field.
    """
    config = _read(name, layout, "config.json")
    check_shape(config, _SHAPE, FOLDER / name / layout / "config.json")
    return config


def read_processor(name: str, layout: str) -> dict:
    """The `preprocessor_config.json` of a variant's model."""
    return _read(name, layout, "preprocessor_config.json")


def read_card_data(name: str) -> dict:
    """License, base model (None where there is none) and tags of a variant's model card; and where it has them,
    `pretraining`, a phrase that follows "pretrained", `project_url`, and `conformance_kit`, the dataset repo that the
    card links."""
    return _read(name, "card.json")


def read_architecture(name: str) -> dict:
    """The fields of `SourceConfig` that a variant's name stands for: sizes, heads, epsilons and theta."""
    config = read_config(name, "dense")
    return {ours: config[theirs] for theirs, ours in _ARCHITECTURE.items()}


def fitting_variants(sizes: Mapping, fields: Collection[str] = SIZES) -> list[str]:
    """The variants that have the sizes and norms of `sizes`.

    Args:
        sizes: the `config.json` of a dense or packing model, or what is known of one.
        fields: those of `SIZES` that are compared.
    """
    rows = {name: read_config(name, "dense") for name in variant_names()}
    return [name for name, row in rows.items() if all(sizes.get(field) == row[field] for field in fields)]


def is_tower(config: Mapping) -> bool:
    """Whether a `config.json` is that of a VLM's tower."""
    return config.get("attention_window") is not None or config.get("merge_size", 1) != 1


def fitting_variant(config: Mapping) -> str | None:
    """The variant that a dense or packing `config.json` describes; None if there is none, as of a VLM's tower."""
    if is_tower(config):
        return None
    return next(iter(fitting_variants(config)), None)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    sizes = {name: getattr(options, name) for name in SIZES}
    given = [name for name in SIZES if sizes[name] is not None]
    try:
        if given and len(options.write) > 1:
            raise ValueError(f"--{given[0]} is for one variant, found {len(options.write)} names.")
        if given and len(given) < len(SIZES):
            absent = ", ".join(f"--{name}" for name in SIZES if name not in given)
            raise ValueError(f"{absent} must be given too. Without any size, those of dense/config.json are taken.")
        for name in options.write:
            if not _NAME.fullmatch(name) or name == "auto":
                raise ValueError(f"--write {name}: expected a name such as llava_vit_base_ln.")
        # Whoever only reads needs neither torch nor transformers, nor their seconds.
        from conversion.checkpoints.variant_writer import write_variant

        for name in options.write:
            for path in write_variant(name, sizes if given else None):
                print(path)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--write", metavar="NAME", nargs="+", required=True, help="the variants to write")
    for name in SIZES:
        if name == "layer_norm_type":
            parser.add_argument(f"--{name}", choices=NORMS)
        else:
            parser.add_argument(f"--{name}", type=int, metavar="N")
    return parser.parse_args(arguments)


def _read(*parts: str) -> dict:
    missing = f"{WRITE_COMMAND} {parts[0]}, with its sizes as options, writes it."
    return read_json_object(FOLDER.joinpath(*parts), missing=missing)


if __name__ == "__main__":
    sys.exit(main())
