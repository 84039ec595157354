# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The argument parser of the scripts in `conversion/`, for those here."""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.arguments import ArgumentParser  # noqa: E402


__all__ = ["ArgumentParser"]
