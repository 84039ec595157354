# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Everything that is worth knowing of one GPU, by one command, in under eight minutes and without network.

    python tests/benchmarks/gpu.py [--output_dir benchmarks] [--minutes 7.5]
    python tests/benchmarks/gpu.py --device cpu --small

Side by side: the tests that need a CUDA device, and the verification of small models of both kinds and of a random
large variant on every backend of the device. Then, alone: whether a forward waits for the device, and how fast the
large variant is in bfloat16, in patches a second and as a share of the matrix product rate measured here. Writes
gpu.json and gpu.png, and what the parts printed beside them. What does not fit the time is left out and named. Exit
code 0 only if all of it ran and passed. The second form runs the same lines on a CPU with tiny models, for nothing but
to see that they run.

Needs what the models and the conversion need, pytest, and matplotlib for the picture; nothing is installed.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from conversion.checkpoints.hub_configs import read_architecture  # noqa: E402
from conversion.checkpoints.model_folder_writer import ConversionRequest, convert_folder  # noqa: E402
from conversion.common.files import write_atomically  # noqa: E402
from conversion.common.report_schema import PASS  # noqa: E402
from conversion.make_demo_inputs import CONFIG  # noqa: E402
from conversion.source.encoder import SourceConfig  # noqa: E402
from conversion.source.peaked_weights import peaked_state_dict  # noqa: E402
from conversion.verification.backends import ABSENT, label_of, worst_error  # noqa: E402
from conversion.verification.report_tables import table  # noqa: E402
from tests.benchmarks.cuda_speed import LARGE, TOKENS, WORKLOADS, cuda_ratios, cuda_table  # noqa: E402


SMALL = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 128}
# Share of the matrix product rate that is aimed at.
AIM = 0.55
# Those that must not wait for the device.
WITHOUT_WAITING = ("packing", "packing compiled", "packing, CUDA graph", "dense", "dense compiled")
# Share of the time after which what is left is for speed.
CHECKS_SHARE = 0.75


@dataclass(frozen=True)
class Check:
    """A process that runs beside others.

    Attributes:
        name: also of its log.
        arguments: of the interpreter.
        result: the file that it writes.
    """

    name: str
    arguments: list[str]
    result: Path


def tests_check(scratch: Path) -> Check:
    """The tests that need a CUDA device. Only their files are read, as others import more than a bare machine has."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "@pytest.mark.gpu" in path.read_text()]
    result = scratch / "tests.xml"
    options = ["-m", "gpu", "-q", "-p", "no:cacheprovider", f"--junit-xml={result}"]
    names = [str(path.relative_to(ROOT)) for path in files if path != Path(__file__)]
    return Check("tests", ["-m", "pytest", *options, *names], result)


def verification_check(name: str, layout: str, config: SourceConfig, device: str, oracle: str, scratch: Path) -> Check:
    """A folder with random peaked weights is made here; the check verifies it on every backend of the device."""
    weights, folder, result = (scratch / f"{name}{suffix}" for suffix in (".pt", "", ".json"))
    torch.save(peaked_state_dict(config), weights)
    heads = config.num_attention_heads
    convert_folder(ConversionRequest(str(weights), layout, folder, num_attention_heads=heads))
    options = ["--backends", "all", "--device", device, "--oracle_device", oracle, "--json", str(result)]
    source = ["--source", str(weights), "--num_attention_heads", str(heads)]
    return Check(name, ["conversion/verify_model.py", str(folder), *source, *options], result)


def all_checks(device: str, small: bool, scratch: Path) -> list[Check]:
    large = SMALL | {"patch_size": 14} if small else read_architecture("llava_vit_large_ln")
    demo = SourceConfig(**SMALL, patch_size=14) if small else CONFIG
    return [
        tests_check(scratch),
        verification_check("demo_dense", "dense", demo, device, "cpu", scratch),
        verification_check("demo_packing", "packing", demo, device, "cpu", scratch),
        # The oracle of this one would take most of the time on a CPU.
        verification_check("large_packing", "packing", SourceConfig(**large), device, device, scratch),
    ]


def run_side_by_side(checks: list[Check], logs: Path, ends: float) -> dict[str, dict]:
    """Runs them all, until `ends` by `time.monotonic()`: `rc` (None if it was stopped then) and `seconds` by name."""
    started, outcome, running = time.monotonic(), {}, {}
    for check in checks:
        with (logs / f"gpu_{check.name}.log").open("w") as log:
            running[check.name] = subprocess.Popen(
                [sys.executable, *check.arguments],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "LLAVA_VIT_COLD": "1"},
                start_new_session=True,
            )
    try:
        while running:
            for name, process in list(running.items()):
                over = time.monotonic() > ends
                if process.poll() is None and not over:
                    continue
                outcome[name] = {"rc": process.poll(), "seconds": round(time.monotonic() - started, 1)}
                _stop(running.pop(name))
                print(f"{name:<14} {_ended(outcome[name])}", flush=True)
            time.sleep(0.1)
    finally:
        for process in running.values():
            _stop(process)
    return outcome


def _stop(process: subprocess.Popen) -> None:
    """Ends it with what it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _ended(outcome: dict) -> str:
    how = "stopped, as time was over" if outcome["rc"] is None else f"ended with {outcome['rc']}"
    return f"{how} after {outcome['seconds']} s"


def read_tests(path: Path) -> dict:
    """Counts by outcome, and why tests were skipped, from pytest's file."""
    suite = xml.etree.ElementTree.parse(path).getroot().find("testsuite")
    counts = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    reasons = sorted({skipped.get("message") for skipped in suite.iter("skipped")})
    return {**counts, "reasons": reasons}


def problems_of(report: dict) -> list[str]:
    """What did not run or did not pass, a line each."""
    found = [f"{name}: {_ended(one)}" for name, one in report["checks"].items() if one["rc"] != 0]
    found += [f"{name}: {one['verdict']}" for name, one in report["verification"].items() if one["verdict"] != PASS]
    for result in report["speed"]:
        setting = f"{result['workload']}, {result['tokens']:,} tokens"
        found += [f"{setting}, {name}: {reason}" for name, reason in result["failed"].items()]
        # Of the others it is told, in the JSON; transformers' tower reads its grid.
        found += [f"{setting}, {name}: {how}" for name, how in result["waits"].items() if name in WITHOUT_WAITING]
    missing = report["settings"] - len(report["speed"])
    return found + [f"speed: {missing} of {report['settings']} settings left out, as time was over"] * bool(missing)


def _write(report: dict, folder: Path, started: float) -> None:
    report |= {"problems": problems_of(report), "seconds": round(time.monotonic() - started, 1)}
    text = json.dumps(report, indent=1) + "\n"
    write_atomically(folder / "gpu.json", lambda stream: stream.write(text.encode()))


def draw(report: dict, path: Path) -> None:
    """Shares of the matrix product rate above, errors of backends below."""
    try:
        from matplotlib import pyplot
    except ImportError:
        print("no picture: matplotlib is not installed")
        return
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(11, 10))
    speed = report["speed"]
    names = list(dict.fromkeys(name for result in speed for name in result["utilisation"]))
    for index, name in enumerate(names):
        places = [(place, result["utilisation"].get(name)) for place, result in enumerate(speed)]
        places = [(place + index / (len(names) + 1), 100 * share) for place, share in places if share is not None]
        above.bar(*zip(*places, strict=True), width=1 / (len(names) + 1), label=name)
    above.axhline(100 * AIM, color="black", linestyle=":", linewidth=0.8)
    above.set_xticks(range(len(speed)), [f"{one['workload']}\n{one['tokens']:,}" for one in speed], fontsize=8)
    above.set_ylabel("% of the matrix product rate")
    above.set_title(f"{report['device']}, bfloat16", fontsize=10)
    if names:
        above.legend(fontsize=7)
    rows = [(model, row) for model, one in report["verification"].items() for row in one["backends"]]
    rows = [(model, row) for model, row in rows if row["result"] != ABSENT and worst_error(row)]
    below.semilogy([worst_error(row) for _, row in rows], "o", label="model")
    bounds = [row["cases"][0]["arrays"]["last_hidden_state"]["bounds"]["relative_error"] for _, row in rows]
    below.semilogy(bounds, "_", color="black", label="bound")
    below.semilogy([row["margin"]["fault"] for _, row in rows], "x", color="red", label="nearest fault")
    below.set_xticks(range(len(rows)), [f"{model}: {label_of(row)}" for model, row in rows], rotation=90, fontsize=6)
    below.set_ylabel("relative error")
    below.legend(fontsize=7)
    figure.tight_layout()
    # Matplotlib takes the format from the name, which a file beside the final one has not.
    write_atomically(path, lambda stream: figure.savefig(stream, format="png", dpi=120))
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks"))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="tiny models: to see that it runs")
    parser.add_argument("--minutes", type=float, default=7.5, help="for all of it; default: 7.5")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "error: PyTorch finds no CUDA device here. --device cpu --small runs the same on a CPU.", file=sys.stderr
        )
        return 2
    options.output_dir.mkdir(parents=True, exist_ok=True)
    ends = started + 60 * options.minutes
    sizes, tokens = (SMALL, [4096]) if options.small else (LARGE, TOKENS)
    report = {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else options.device,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "small": options.small,
        "settings": len(WORKLOADS) * len(tokens),
        "speed": [],
    }
    with tempfile.TemporaryDirectory(prefix="llava_vit_gpu_") as scratch:
        checks = all_checks(options.device, options.small, Path(scratch))
        until = started + CHECKS_SHARE * 60 * options.minutes
        report["checks"] = run_side_by_side(checks, options.output_dir, until)
        written = {check.name: check.result for check in checks if check.result.is_file()}
        report["tests"] = read_tests(written.pop("tests")) if "tests" in written else None
        report["verification"] = {name: json.loads(path.read_text()) for name, path in written.items()}
    # Once before, in case that the machine is taken back meanwhile.
    _write(report, options.output_dir, started)
    report["speed"] = cuda_ratios(options.device, tokens, sizes, ends=ends)
    _write(report, options.output_dir, started)
    draw(report, options.output_dir / "gpu.png")
    header, *rows = cuda_table(report["speed"])
    print(f"\n{table(header, rows)}")
    best = max((max(one["utilisation"].values()) for one in report["speed"]), default=0.0)
    print(f"\nbest: {100 * best:.0f} % of the matrix product rate; aimed at: {100 * AIM:.0f} %")
    for line in report["problems"]:
        print(f"problem: {line}")
    print(f"{options.output_dir}/gpu.json, gpu.png: {report['seconds']} s")
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
