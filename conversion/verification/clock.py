# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""How long a verification will take, and where its time goes."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from conversion.source.encoder import SourceConfig, SourceEncoder


# A product of float64 is that much slower.
FLOAT64_FACTOR = 2.0
PROBE_TOKENS, PROBE_RUNS = 256, 3


class Clock:
    """Seconds by part."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Adds the time within to that of `part`."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] += time.monotonic() - started

    def rounded(self) -> dict[str, float]:
        """Parts, longest first."""
        return {part: round(taken, 1) for part, taken in sorted(self.seconds.items(), key=lambda item: -item[1])}


def work(config: SourceConfig, tokens: list[int], layers: int | None = None) -> float:
    """Multiplications of some layers, by default all, for samples of these lengths."""
    width, inner = config.hidden_size, config.intermediate_size
    one = sum(length * (4 * width**2 + 2 * width * inner) + 2 * length**2 * width for length in tokens)
    return one * (config.num_hidden_layers if layers is None else layers)


def seconds_per_multiplication(oracle: SourceEncoder) -> float:
    """What one of the oracle's first layer takes in float32."""
    config, layer = oracle.config, oracle.transformer.layers[0]
    x = torch.zeros(PROBE_TOKENS, config.hidden_size)
    angle = torch.zeros(PROBE_TOKENS, config.head_dim)
    taken = []
    with torch.no_grad():
        for _ in range(PROBE_RUNS):
            started = time.monotonic()
            layer(x, angle.cos(), angle.sin())
            taken.append(time.monotonic() - started)
    return min(taken) / work(config, [PROBE_TOKENS], 1)
