# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""How long the stages of a run took, which of them held it up, and for how much of the time the model did nothing."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


STAGES = ("reading", "model", "writing")


class StageTimes:
    """Seconds of the stages of one process, which run at the same time.

    Reading, which is decoding and processing, is the sum over the processes that read. A stage is written to by one
    thread only.

    Args:
        readers: processes that read.
    """

    def __init__(self, readers: int):
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.patches = 0
        self._readers, self._start = readers, time.monotonic()
        # From the start of the first forward pass to the end of the last.
        self._first: float | None = None
        self._last = 0.0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds what the block takes."""
        start = time.monotonic()
        try:
            yield
        finally:
            end = time.monotonic()
            self.seconds[stage] += end - start
            if stage == "model":
                self._first = start if self._first is None else self._first
                self._last = end

    def summary(self) -> dict:
        """What `merge_times` takes, as JSON types."""
        span = 0.0 if self._first is None else self._last - self._first
        passed = time.monotonic() - self._start
        return {"passed": passed, "span": span, "readers": self._readers, "patches": self.patches} | self.seconds

    def text(self) -> str:
        """In a few words, for a progress bar."""
        times = merge_times([self.summary()])
        text = f"{times['patches_per_second']:.0f} patches/s, model idle {times['model_idle_share']:.0%}"
        return f"{text}, slowest {times['slowest_stage']}"


def merge_times(summaries: Sequence[dict]) -> dict:
    """The times of a run on one or more processes.

    Returns:
        `seconds` of the run (`total`) and, over all processes, of each stage; `patches`; `patches_per_second`;
        `model_idle_share`, of the time from the first forward pass to the end of the last; and `slowest_stage`: the
        one that would take longest if it had nothing to wait for, with as many processes as it has.
    """
    seconds = {stage: sum(summary[stage] for summary in summaries) for stage in STAGES}
    total = max(summary["passed"] for summary in summaries)
    patches = sum(summary["patches"] for summary in summaries)
    span, readers = (sum(summary[name] for summary in summaries) for name in ("span", "readers"))
    at_once = {"reading": readers, "model": len(summaries), "writing": len(summaries)}
    alone = {stage: seconds[stage] / at_once[stage] for stage in STAGES}
    return {
        "seconds": {name: round(value, 3) for name, value in {"total": total, **seconds}.items()},
        "readers": readers,
        "patches": patches,
        "patches_per_second": round(patches / max(total, 1e-9), 1),
        "model_idle_share": round(1 - seconds["model"] / span, 4) if span else 0.0,
        "slowest_stage": max(alone, key=alone.get),
    }
