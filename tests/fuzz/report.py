# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Fuzzes every entry point and prints a table: inputs tried, right results, documented errors, findings.

    python tests/fuzz/report.py --seconds 60 [--only NAME ...] [--seed 1] [--output fuzz.json] [--findings FOLDER]

The time is shared evenly. Exit code 1 if there is a finding.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.fuzz.fuzz_parsers import SCRIPT  # noqa: E402
from tests.fuzz.outcomes import table  # noqa: E402
from tests.fuzz.parsers import TARGETS  # noqa: E402
from tests.fuzz.public_api import ENTRIES, explore  # noqa: E402


# Of one round; rounds of other seeds follow while there is time.
EXAMPLES = 200


def explore_for(name: str, seconds: float, seed: int) -> dict:
    """Rounds of drawn arguments until the time is over."""
    end, total = time.monotonic() + seconds, None
    while total is None or time.monotonic() < end:
        tally = explore(name, EXAMPLES, seed, lambda: time.monotonic() > end).as_dict()
        if total is None:
            total = {**tally, "engine": "hypothesis"}
        else:
            total |= {count: total[count] + tally[count] for count in ("tried", "right", "refused")}
            total["findings"] = {**tally["findings"], **total["findings"]}
        seed += 1
    return total


def fuzz_for(name: str, seconds: float, seed: int, findings: Path | None) -> dict:
    """One parser, in a process of its own."""
    arguments = [name, "--seconds", str(seconds), "--seed", str(seed)]
    arguments += ["--findings", str(findings)] if findings else []
    process = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)
    lines = process.stdout.strip().splitlines()
    if process.returncode not in (0, 1) or not lines:
        ended = f"the process ended with {process.returncode}: {process.stderr[-400:]}"
        return {"name": name, "tried": 0, "right": 0, "refused": 0, "findings": {"crash": ended}, "engine": "none"}
    return json.loads(lines[-1])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all together, without starting processes")
    parser.add_argument("--only", nargs="+", choices=[*ENTRIES, *TARGETS])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="the same as JSON")
    parser.add_argument("--findings", type=Path, help="folder for the files of findings")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    names = options.only or [*ENTRIES, *TARGETS]
    share, tallies = options.seconds / len(names), []
    for name in names:
        explored = name in ENTRIES
        tally = (
            explore_for(name, share, options.seed)
            if explored
            else fuzz_for(name, share, options.seed, options.findings)
        )
        tallies.append(tally)
        print(f"{name} ({tally['engine']}): {tally['tried']} tried", file=sys.stderr, flush=True)
    print(table(tallies))
    for tally in tallies:
        for finding in tally["findings"].values():
            print(f"\n{tally['name']}: {finding}")
    if options.output:
        options.output.write_text(json.dumps({"seed": options.seed, "entry_points": tallies}, indent=1) + "\n")
    return 1 if any(tally["findings"] for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
