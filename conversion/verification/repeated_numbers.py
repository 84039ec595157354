# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The numbers of a published verification beside those of one made here: which are repeated, and which differ."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from conversion.common.hub_revision import split_revision
from conversion.common.json_files import read_json_object
from conversion.common.report_schema import REPORT_FILE, check_report
from conversion.verification.backends import label_of
from conversion.verification.report_tables import error_text


# Numbers that agree to this are called repeated. What float32 rounds differs between machines by more.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Number:
    """A relative error as it was found here and as it was published; `None` is no finite number."""

    label: str
    here: float | None
    published: float | None

    @property
    def repeated(self) -> bool:
        if self.here is None or self.published is None:
            return self.here is self.published
        return abs(self.here - self.published) <= TOLERANCE * max(abs(self.here), abs(self.published))

    def __str__(self) -> str:
        return f"{self.label}: {error_text(self.here)} here, {error_text(self.published)} published"


def read_published(name: str, revision: str | None = None) -> dict:
    """The report of a folder, a repo id (`user/name@revision` too) or a file, such as `--json` writes.

    Raises:
        ValueError: if there is none, or it is no report.
    """
    name, revision = split_revision("--compare_with", name, revision)
    path = Path(name)
    if path.is_dir():
        path = path / REPORT_FILE
    elif not path.exists():
        try:
            path = Path(hf_hub_download(name, REPORT_FILE, revision=revision))
        except (HfHubHTTPError, EntryNotFoundError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ValueError(
                f"--compare_with {name}: neither a file or folder here nor a repo with a {REPORT_FILE}: {reason}"
            ) from error
    if not path.is_file():
        raise ValueError(f"--compare_with {name}: there is no {REPORT_FILE} in it.")
    report = read_json_object(path)
    if "backends" not in report:
        check_report(report, path)
    elif not isinstance(report["backends"], list) or not isinstance(report.get("model"), dict):
        raise ValueError(f"--compare_with {path}: not as --json of verify_model.py writes it.")
    return report


def compare_numbers(mine: dict, published: dict) -> list[Number]:
    """Relative errors of every case and planted fault that both have, on inputs of one size.

    Args:
        mine, published: reports, or what `verify_backends` returns. Of a report and backends every backend is compared
            with the report's case in its dtype, which ran on a CPU.
    """
    theirs = {key: value for key, value in _numbers(published)}
    backends = "backends" in mine and "backends" not in published
    grids = {name: value["grids"] for name, value in mine.get("inputs", {}).items()}
    other = {name: value["grids"] for name, value in published.get("inputs", {}).items()}
    resized = {name for name in grids.keys() & other.keys() if grids[name] != other[name]}
    found = []
    for key, here in _numbers(mine):
        wanted = ("", *key[1:]) if backends else key
        if wanted in theirs and key[1] not in resized:
            found.append(Number(" ".join(part for part in key if part), here, theirs[wanted]))
    return found


def _numbers(report: dict) -> list[tuple[tuple[str, ...], float | None]]:
    """Relative errors by backend, case or fault, dtype and array; a report of the CPU has no backend."""
    if "backends" in report:
        return [
            ((label_of(row), *key[1:]), value)
            for row in report["backends"]
            for key, value in _numbers({"cases": row["cases"], "controls": row["controls"], "dtype": row["dtype"]})
        ]
    numbers = []
    for case in report["cases"]:
        arrays = {name: metrics for name, metrics in case["arrays"].items() if name != "hidden_states"}
        if len(layers := case["arrays"].get("hidden_states", [])) > 1:
            arrays["hidden_states[-2]"] = layers[-2]
        for name, metrics in arrays.items():
            numbers.append((("", case["name"], case["dtype"], name), metrics["relative_error"]))
    for control in report["controls"]:
        key = ("", f"fault {control['name']}", report.get("dtype", control.get("kind", "")), control["weights"])
        numbers.append((key, control["metrics"]["relative_error"]))
    return numbers


def numbers_lines(numbers: list[Number]) -> list[str]:
    """How many numbers are repeated, and a line for each that is not."""
    differ = [number for number in numbers if not number.repeated]
    if not numbers:
        return ["no number of the published verification was made here"]
    counted = f"{len(numbers) - len(differ)} of {len(numbers)} published numbers are repeated here to {TOLERANCE:.0%}"
    return [counted + (", and differ:" if differ else ""), *(f"  {number}" for number in differ)]
