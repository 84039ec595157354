# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Fuzzes our parsers of files, each from valid files on, with mutations that know the format.

    python tests/fuzz/fuzz_parsers.py TARGET [--seconds 60] [--seed 1] [--blind] [--findings FOLDER]

Where atheris is installed, its coverage of our code guides which mutants are kept; without it, or with `--blind`,
mutants of the valid files are tried at random. Every input must give a right result or one of our documented errors.
Prints counts and findings as JSON; exit code 1 if there is a finding. The inputs of findings are kept in FOLDER.
"""

import argparse
import importlib.util
import json
import os
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path


SCRIPT = Path(__file__).resolve()
ROOT = SCRIPT.parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

# What atheris watches: all that is ours.
INSTRUMENTED = ("conversion", "llava_vit_hf", "examples")
INSTRUMENTED += ("publishing", "shards", "tests.fuzz.planted")
MAX_BYTES = 2**18


def guided() -> bool:
    """Whether coverage can guide the run."""
    return importlib.util.find_spec("atheris") is not None


def fuzz(name: str, seconds: float, seed: int, blind: bool, keep: Path | None, first: bool = False) -> dict:
    """Runs one target in this process. Returns its tally, with the engine's name; a guided run ends the process."""
    if blind or not guided():
        from tests.fuzz.parsers import PLANTED, TARGETS
    else:
        import atheris

        # Looked at one by one, their thousands of modules would take minutes.
        import pyarrow.parquet  # noqa: F401
        import transformers.modeling_utils  # noqa: F401

        # Not watched: what it does is no progress in a parser.
        import tests.fuzz.mutators  # noqa: F401

        with atheris.instrument_imports(include=list(INSTRUMENTED)):
            import tests.fuzz.planted  # noqa: F401
            from tests.fuzz.parsers import PLANTED, TARGETS
    from tests.fuzz.mutators import flip, mutate
    from tests.fuzz.outcomes import Tally

    warnings.simplefilter("ignore")
    target, tally = {**TARGETS, **PLANTED}[name], Tally(name)
    blind = blind or target.native or not guided()
    with tempfile.TemporaryDirectory(prefix="llava_vit_fuzz_") as scratch:
        folder = Path(scratch, name)
        folder.mkdir()
        seeds, parse = target.make(folder)
        end = None

        def one(data: bytes) -> None:
            nonlocal end
            known = len(tally.findings)
            tally.watch(lambda: parse(data), names=target.names)
            if first and tally.findings:
                end = 0.0
            if keep is not None and len(tally.findings) > known:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{name}-{known}").write_bytes(data)
                (keep / f"{name}-{known}.txt").write_text(list(tally.findings.values())[-1] + "\n")

        for data in seeds:
            if (finding := tally.watch(lambda data=data: parse(data))) or tally.refused:
                raise SystemExit(f"{name}: a valid file is refused: {finding or 'as documented'}")
        if blind:
            rng, pool, end = random.Random(seed), list(seeds), time.monotonic() + seconds
            while time.monotonic() < end:
                data = mutate(rng.choice(pool), rng, target.mutate)[:MAX_BYTES]
                one(data)
                # Some mutants are mutated further.
                if rng.random() < 0.05:
                    pool = [*seeds, *pool[len(seeds) :][-50:], data]
            return {**tally.as_dict(), "engine": "blind"}

        corpus = Path(scratch, "corpus")
        corpus.mkdir()
        for index, data in enumerate(seeds):
            (corpus / str(index)).write_bytes(data)

        def test_one_input(data: bytes) -> None:
            nonlocal end
            now = time.monotonic()
            end = now + seconds if end is None else end
            if now >= end:
                _print({**tally.as_dict(), "engine": "guided"})
                # The library's loop does not return.
                os._exit(1 if tally.findings else 0)
            one(data)

        def mutator(data: bytes, max_size: int, number: int) -> bytes:
            rng = random.Random(number)
            if rng.random() < 0.15:
                return atheris.Mutate(data, max_size)
            return mutate(data or rng.choice(seeds), rng, target.mutate if data else flip)[:max_size]

        options = (f"-seed={seed}", f"-max_len={MAX_BYTES}", "-len_control=0", "-rss_limit_mb=4096", "-verbosity=0")
        atheris.Setup([sys.argv[0], str(corpus), *options], test_one_input, custom_mutator=mutator)
        atheris.Fuzz()


def _print(tally: dict) -> None:
    print(json.dumps(tally), flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--blind", action="store_true", help="without coverage, even where atheris is installed")
    parser.add_argument("--first", action="store_true", help="stop at the first finding")
    parser.add_argument("--findings", type=Path, help="folder for the inputs of findings")
    options = parser.parse_args(arguments)
    tally = fuzz(options.target, options.seconds, options.seed, options.blind, options.findings, options.first)
    _print(tally)
    return 1 if tally["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
