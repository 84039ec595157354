# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What may come of an input: a right result, or one of our documented errors. Anything else is a finding."""

import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
OURS = tuple(str(ROOT / name) + "/" for name in ("llava_vit_hf", "conversion", "examples"))
# `CheckpointError` and `PublishError` are ValueErrors, `FileNotFoundError` and `ConnectionError` OSErrors.
DOCUMENTED = (ValueError, TypeError, OSError, ImportError)
# What is raised by accident even where our own line raises it: these are subclasses of the above.
ACCIDENTS = (UnicodeError,)
MAX_SECONDS = 5.0


def documented(error: BaseException, kinds: tuple[type, ...] = DOCUMENTED, names: tuple[str, ...] = ()) -> str | None:
    """Why an error is not one of ours; `None` if it is: of a documented kind, raised by a `raise` statement in our
    own code and not below it, with a message of its own that names one of `names`.
    """
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    if not frame.filename.startswith(OURS):
        where = f"{where} below {_ours(error)}"
    told = f"{type(error).__name__} at {where}: {str(error)[:300]}"
    if not isinstance(error, kinds) or isinstance(error, ACCIDENTS):
        return f"undocumented {told}"
    if not frame.filename.startswith(OURS):
        return f"raised below our code, {told}"
    if "raise" not in _statement(frame):
        return f"raised by accident, {told}"
    if len(str(error)) < 15 or (names and not any(name in str(error) for name in names)):
        return f"names none of {', '.join(names)}, {told}"
    return None


def _ours(error: BaseException) -> str:
    """The innermost line of our own code."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(OURS)]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "a call"


def _statement(frame: traceback.FrameSummary) -> str:
    lines = Path(frame.filename).read_text(encoding="utf-8").splitlines()
    return " ".join(lines[frame.lineno - 1 : frame.end_lineno])


@dataclass
class Tally:
    """Counts of one entry point."""

    name: str
    tried: int = 0
    right: int = 0
    refused: int = 0
    findings: dict[str, str] = field(default_factory=dict)

    def watch(
        self, call: Callable[[], object], kinds: tuple[type, ...] = DOCUMENTED, names: tuple[str, ...] = ()
    ) -> str | None:
        """Calls, which raises AssertionError for a wrong result, and counts. Returns the finding, if it is one."""
        self.tried += 1
        started, finding = time.monotonic(), None
        try:
            call()
            self.right += 1
        except AssertionError as error:
            finding = f"wrong result, {error}"
        # Whatever comes is what this is to judge.
        except Exception as error:
            finding = documented(error, kinds, names)
            self.refused += finding is None
        seconds = time.monotonic() - started
        if finding is None and seconds > MAX_SECONDS:
            finding = f"took {seconds:.0f} s"
        if finding is not None:
            # One of each kind and place, with the message that came first.
            self.findings.setdefault(finding.split(": ")[0], finding)
        return finding

    def as_dict(self) -> dict:
        return asdict(self)


def table(tallies: list[dict]) -> str:
    """Markdown: one row per entry point."""
    lines = ["| entry point | inputs tried | right results | documented errors | findings |", "|---|---|---|---|---|"]
    for tally in [*tallies, _total(tallies)]:
        numbers = " | ".join(f"{tally[name]:,}" for name in ("tried", "right", "refused"))
        lines.append(f"| {tally['name']} | {numbers} | {len(tally['findings'])} |")
    return "\n".join(lines)


def _total(tallies: list[dict]) -> dict:
    counts = {name: sum(tally[name] for tally in tallies) for name in ("tried", "right", "refused")}
    return {"name": "all", **counts, "findings": [finding for tally in tallies for finding in tally["findings"]]}
