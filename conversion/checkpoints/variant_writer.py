# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Writes the files of a variant in `hub_configs/` as a conversion writes them, from the few facts that define it."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from conversion.checkpoints import hub_configs
from conversion.checkpoints.hub_configs import (
    CARD_FIELDS,
    LAYOUTS,
    MORE_CARD_FIELDS,
    fitting_variants,
    read_architecture,
    read_config,
)
from conversion.checkpoints.model_folder_writer import write_code_and_configurations
from conversion.checkpoints.source_config import model_config
from conversion.common.files import write_atomically
from conversion.common.json_files import check_shape, read_json_object
from conversion.source.encoder import SourceConfig


LICENSE = "apache-2.0"
# What depends on the checkpoint, or on the version that writes.
UNSTORED = ("dtype", "torch_dtype", "transformers_version", "processor_class")

_NORM_TAGS = {"layer_norm": "layer-norm", "rms_norm": "rms-norm"}
_NORM_ENDINGS = ("ln", "rms")


def write_variant(name: str, sizes: dict | None = None) -> list[Path]:
    """Writes the folder of a variant and returns its files.

    Args:
        sizes: as `variant_files` takes them.

    Raises:
        ValueError: as `variant_files`.
        OSError: if writing fails.
    """
    files = {hub_configs.FOLDER / name / path: text for path, text in variant_files(name, sizes).items()}
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda stream, text=text: stream.write(text.encode()))
    return list(files)


def variant_files(name: str, sizes: dict | None = None) -> dict[str, str]:
    """What the folder of a variant should hold: path in the folder to text.

    Args:
        sizes: the fields `SIZES`, with which epsilons and all else are those of the pretraining code; None takes
            everything from the folder's `dense/config.json`.

    Raises:
        ValueError: if no encoder has these sizes, another variant has them, or a file that is there cannot be used.
    """
    stored = read_config(name, "dense") if sizes is None else None
    source = SourceConfig(**(read_architecture(name) if sizes is None else sizes))
    same = [other for other in fitting_variants(stored or sizes) if other != name]
    if same:
        raise ValueError(f"{name} has the sizes and norm of {same[0]}; a model card could not tell them apart.")
    files = {"card.json": _text(_card(name, source))}
    for layout in LAYOUTS:
        config = model_config(source, layout, stored)
        with TemporaryDirectory() as scratch:
            write_code_and_configurations(config, layout, Path(scratch))
            for file in ("config.json", "preprocessor_config.json"):
                written = read_json_object(Path(scratch) / file)
                # transformers 4 writes what is None, transformers 5 does not.
                kept = {key: written[key] for key in written if key not in UNSTORED and written[key] is not None}
                files[f"{layout}/{file}"] = _text(kept, sort_keys=True)
    return files


def _card(name: str, source: SourceConfig) -> dict:
    """The card data that lie in the folder, or the usual ones: the words of the name and the norm as tags."""
    path = hub_configs.FOLDER / name / "card.json"
    if path.is_file():
        advice = f"Mend it, or remove it and run {hub_configs.WRITE_COMMAND} {name}."
        card = read_json_object(path, advice=advice)
        shape = {"license": str, "base_model": (str, type(None)), "tags": [str]}
        check_shape(card, shape | {f"{name}?": str for name in MORE_CARD_FIELDS}, path)
        if unknown := sorted(card.keys() - {*CARD_FIELDS, *MORE_CARD_FIELDS}):
            expected = ", ".join((*CARD_FIELDS, *MORE_CARD_FIELDS))
            raise ValueError(f"{path} has unknown fields: {', '.join(unknown)}. Expected {expected}.")
        return card
    words = [word for word in name.removeprefix("llava_vit_").split("_") if word not in _NORM_ENDINGS]
    return {"license": LICENSE, "base_model": None, "tags": ["llava-vit", *words, _NORM_TAGS[source.layer_norm_type]]}


def _text(value: dict, sort_keys: bool = False) -> str:
    return json.dumps(value, indent=2, sort_keys=sort_keys) + "\n"
