# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""A small parser with a defect, to see whether the fuzzer finds one."""

import json


def parse(data: bytes) -> None:
    """Reads a size, carelessly: a height of 0 divides by zero."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return
    size = content.get("size") if isinstance(content, dict) else None
    if isinstance(size, dict) and isinstance(size.get("width"), int) and isinstance(size.get("height"), int):
        size["ratio"] = abs(size["width"]) // abs(size["height"])
