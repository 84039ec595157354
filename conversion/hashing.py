# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Hashes of files. Imports nothing heavy, so that publishing starts without torch."""

import hashlib
from pathlib import Path


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
