# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The variants of the pretraining code, read from `hub_configs/`: what a checkpoint of that name is compared with."""

from conversion.checkpoints.hub_configs import read_config, variant_names
from conversion.checkpoints.rename_tables import CONFIG_ARCHITECTURE


# Only weights tell whether a checkpoint was saved with its pooling head.
_FIELDS = {theirs: ours for theirs, ours in CONFIG_ARCHITECTURE.items() if ours != "use_head"}

VARIANTS: dict[str, dict] = {
    name: {ours: read_config(name, "dense")[theirs] for theirs, ours in _FIELDS.items()} for name in variant_names()
}
"""Name to fields of `SourceConfig`. Weights tell the sizes; heads, epsilons and theta come from the name."""
