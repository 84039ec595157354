# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Checks what an implementation of the LLaVA-ViT encoder puts out, and names the mistake that it looks like.

    python check.py MY_OUTPUTS.npz
    python check.py MY_OUTPUTS.npz --checkpoint layer_norm --case image clip --dtype bfloat16 --svg errors.svg

MY_OUTPUTS.npz holds arrays named CHECKPOINT/CASE/ARRAY, in float32 or float16; README.md beside this file says what
goes in and which shapes come out. What is left out of the file must be left out here: with --checkpoint, --case and
--array. Exit code 0 for PASS, 1 for FAIL, 2 for a file or arguments that cannot be.

This file needs Python 3.9 or newer, numpy and safetensors, and the rest of its folder.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
import sys
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open


ARRAYS = ("embeddings", "hidden_states", "last_hidden_state", "pooled")

# By the dtype an implementation computes in: the smallest cosine of a token, and the largest relative error
# ||a - b|| / ||b|| of an array. README.md says what right implementations were measured at.
BOUNDS = {
    "float32": (0.999999, 2e-5),
    "float16": (0.995, 2e-2),
    "bfloat16": (0.95, 1.5e-1),
    "int8": (0.8, 3e-1),
}

# A fault is near if what is left of the difference without it is at most this share of the difference.
NEAR = 0.5
# Faults as near as the nearest, by that share, cannot be told from it by these outputs.
TIE = 0.01


class InputError(Exception):
    """A file or an argument that cannot be; the message says which, what was found and what was expected."""


@dataclass(frozen=True)
class Row:
    """An array of one case, or one hidden state, against what is expected of it.

    Numbers are NaN where shapes differ or a value is not finite. Cosines are per token.
    """

    checkpoint: str
    case: str
    array: str
    reasons: tuple[str, ...] = ()
    min_cosine: float = math.nan
    mean_cosine: float = math.nan
    max_abs: float = math.nan
    relative_error: float = math.nan

    def keeps(self, dtype: str) -> bool:
        """Whether it is within the bounds of a dtype."""
        min_cosine, relative_error = BOUNDS[dtype]
        # Written so that NaN, which compares false with everything, violates.
        return self.min_cosine >= min_cosine and self.relative_error <= relative_error


@dataclass(frozen=True)
class Diagnosis:
    """The known fault that an output is nearest to.

    Attributes:
        near: whether it is near at all.
        unexplained: the share of the difference from the right output that the fault leaves.
        cosine, right_cosine: mean cosine per token to the fault's output and to the right one, where these differ.
        error, right_error: relative error to the same.
        alike: other faults that these outputs cannot tell from it.
        where: the only array that was looked at, the first that departs, if not all were.
    """

    fault: str
    description: str
    near: bool
    unexplained: float
    cosine: float
    right_cosine: float
    error: float
    right_error: float
    alike: tuple[str, ...] = ()
    where: str | None = None

    def text(self) -> str:
        numbers = (
            f"cosine {self.cosine:.4f} to that fault's output, {self.right_cosine:.4f} to the right one; relative "
            f"error {self.error:.1e} and {self.right_error:.1e}"
        )
        if not self.near:
            return f"looks like none of the known faults; the nearest is: {self.description} ({numbers})"
        also = f"; these outputs cannot tell it from {', '.join(self.alike)}" if self.alike else ""
        where = f"{self.where}, where it departs first, looks" if self.where else "looks"
        return f"{where} like {self.description}: {numbers}{also}"


@dataclass(frozen=True)
class Report:
    """All rows, and what they look like if one is out of bounds."""

    dtype: str
    rows: list[Row]
    diagnoses: tuple[Diagnosis, ...] = ()

    @property
    def passed(self) -> bool:
        return bool(self.rows) and all(row.keeps(self.dtype) for row in self.rows)

    def kept(self) -> list[str]:
        """The dtypes whose bounds all rows keep to."""
        return [dtype for dtype in BOUNDS if all(row.keeps(dtype) for row in self.rows)]

    def cases(self) -> dict[tuple[str, str], list[Row]]:
        """Rows by checkpoint and case, in order of computation."""
        cases: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            cases.setdefault((row.checkpoint, row.case), []).append(row)
        return cases

    def first_departing(self) -> dict[tuple[str, str], Row]:
        """By checkpoint and case, the first row in order of computation that is out of bounds."""
        departing = {}
        for key, rows in self.cases().items():
            wrong = [row for row in rows if not row.keeps(self.dtype)]
            if wrong:
                departing[key] = wrong[0]
        return departing

    def text(self) -> str:
        """A line for each case, its worst numbers, why it fails, and the diagnosis."""
        departing = self.first_departing()
        header = f"{'checkpoint':<12}{'case':<24}{'min cosine':>11}{'mean cosine':>12}{'max abs':>10}{'relative':>10}"
        lines = [f"{header}  result"]
        for (checkpoint, case), rows in self.cases().items():
            numbers = (
                _worst(rows, "min_cosine", min),
                _worst(rows, "mean_cosine", min),
                _worst(rows, "max_abs", max),
                _worst(rows, "relative_error", max),
            )
            first = departing.get((checkpoint, case))
            result = "PASS" if first is None else f"FAIL, first at {first.array}"
            lines.append(
                "{:<12}{:<24}{:>11.7f}{:>12.7f}{:>10.1e}{:>10.1e}  {}".format(checkpoint, case, *numbers, result)
            )
        lines += [f"{row.checkpoint}/{row.case}/{row.array}: {reason}" for row in self.rows for reason in row.reasons]
        min_cosine, relative_error = BOUNDS[self.dtype]
        lines.append(
            f"{'PASS' if self.passed else 'FAIL'} as {self.dtype} (cosine of every token >= {min_cosine:g}, relative "
            f"error <= {relative_error:g})"
        )
        if not self.passed and self.kept():
            lines.append(
                f"within the bounds of {self.kept()[0]}: if it computes in that, say --dtype {self.kept()[0]}"
            )
        if not self.passed and not self.diagnoses:
            lines.append("no fault to compare with: no array has numbers, or the kit has no faults for these cases")
        return "\n".join([*lines, *(diagnosis.text() for diagnosis in self.diagnoses)])

    def to_dict(self) -> dict:
        """The report as JSON types; numbers that JSON lacks are null."""
        rows = [
            {name: _json(value) for name, value in asdict(row).items()} | {"passed": row.keeps(self.dtype)}
            for row in self.rows
        ]
        return {
            "verdict": "PASS" if self.passed else "FAIL",
            "dtype": self.dtype,
            "bounds": dict(zip(("min_cosine", "relative_error"), BOUNDS[self.dtype])),
            "within_bounds_of": self.kept(),
            "first_departing": {"/".join(key): row.array for key, row in self.first_departing().items()},
            "diagnoses": [asdict(diagnosis) for diagnosis in self.diagnoses],
            "arrays": rows,
        }


def _json(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _worst(rows: list[Row], name: str, choose) -> float:
    values = [getattr(row, name) for row in rows]
    return math.nan if any(math.isnan(value) for value in values) else choose(values)


# The kit.


class Kit:
    """The folder of this file: what is expected, and what known faults put out."""

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            self.description = json.loads((folder / "kit.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{folder / 'kit.json'} cannot be read ({error}). check.py must stay in its folder."
            ) from None
        self.checkpoints = tuple(self.description["checkpoints"])
        self.cases = tuple(self.description["cases"])
        self.cases_with_faults = tuple(self.description["cases_with_faults"])
        self.faults: dict[str, str] = self.description["faults"]

    def expected(self, checkpoint: str) -> dict[str, np.ndarray]:
        """The right outputs by `CASE/ARRAY`."""
        return self._read(checkpoint, "expected.safetensors")

    def fault_outputs(self, checkpoint: str) -> dict[str, dict[str, np.ndarray]]:
        """By `CASE/ARRAY`, with a number for a hidden state, what each fault puts out where that is not right."""
        outputs: dict[str, dict[str, np.ndarray]] = {}
        for name, array in self._read(checkpoint, "faults.safetensors").items():
            fault, place = name.split("/", 1)
            outputs.setdefault(place, {})[fault] = array
        return outputs

    def _read(self, checkpoint: str, name: str) -> dict[str, np.ndarray]:
        path = self.folder / checkpoint / name
        try:
            with safe_open(str(path), framework="numpy") as file:
                return {key: file.get_tensor(key) for key in file.keys()}
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} cannot be read ({error}). Get the kit anew.") from None


def read_outputs(path: Path, wanted: Iterable[str], known: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays of an implementation.

    Args:
        wanted: the names that are needed.
        known: all names that may be there.

    Raises:
        InputError: if the file is none, is damaged, lacks a name, has an unknown one or a dtype that is not taken.
    """
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise InputError(f"{path} holds one array; expected an NPZ file (numpy.savez).")
        with file:
            _check_names(path, file.files, list(wanted), list(known))
            arrays = {name: file[name] for name in wanted}
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise InputError(
            f"{path} cannot be read ({error}). Write it anew with numpy.savez; it may be cut off."
        ) from None
    for name, array in arrays.items():
        if array.dtype not in (np.float32, np.float16):
            raise InputError(
                f"{path}: {name} is {array.dtype}, expected float32 or float16. Cast it (bfloat16 to float32)."
            )
    return arrays


def _check_names(path: Path, names: list[str], wanted: list[str], known: list[str]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; names are like {known[0]}"
            raise InputError(f"{path}: {name} is no name of the kit{hint}")
    missing = [name for name in wanted if name not in names]
    if missing:
        raise InputError(
            f"{path} lacks {len(missing)} of {len(wanted)} arrays: {', '.join(missing[:4])}"
            f"{', ...' if len(missing) > 4 else ''}. Add them, or choose others with --checkpoint, --case and --array."
        )


# Comparing.


def rows_of(array: str, values: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """`(row, (tokens, C))`: every hidden state is a row of its own."""
    if array == "hidden_states":
        return [(f"{array}[{layer}]", state) for layer, state in enumerate(values)]
    return [(array, values)]


def cosines(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Cosine of each token of two `(tokens, C)` arrays; of a zero vector 0."""
    norms = np.linalg.norm(actual, axis=-1) * np.linalg.norm(expected, axis=-1)
    return (actual * expected).sum(-1) / np.where(norms == 0, 1, norms)


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def compare(checkpoint: str, case: str, array: str, actual: np.ndarray, expected: np.ndarray) -> list[Row]:
    """Compares an array as an implementation wrote it with the right one; shapes are never squeezed or cut."""
    place = (checkpoint, case, array)
    if actual.shape != expected.shape:
        hint = ": drop the batch dimension" if actual.shape == (1, *expected.shape) else ""
        return [Row(*place, (f"shape {actual.shape}, expected {expected.shape}{hint}",))]
    if not np.isfinite(actual).all():
        bad = int((~np.isfinite(actual)).sum())
        return [Row(*place, (f"{bad} of {actual.size} values are NaN or infinite",))]
    rows = []
    for (name, ours), (_, right) in zip(rows_of(array, actual), rows_of(array, expected)):
        ours, right = _double(ours), _double(right)
        cosine = cosines(ours, right)
        numbers = (cosine.min(), cosine.mean(), np.abs(ours - right).max(), relative_error(ours, right))
        rows.append(Row(checkpoint, case, name, (), *map(float, numbers)))
    return rows


# Naming the fault.


@dataclass(frozen=True)
class Evidence:
    """A row for the diagnosis: `(tokens, C)` arrays in float64.

    Attributes:
        faults: what each fault puts out here, where that is not right.
    """

    place: str
    actual: np.ndarray
    right: np.ndarray
    faults: Mapping[str, np.ndarray]


def nearest_fault(evidence: list[Evidence], descriptions: Mapping[str, str], where: str | None = None):
    """The `Diagnosis` of rows that are wrong, or None if no fault is known to change any of them.

    Every row counts by its own scale. The nearest fault is the one that leaves least of the difference from the right
    output; so small faults are named as surely as large ones, as long as the difference is more than rounding.
    """
    total = math.sqrt(sum(relative_error(row.actual, row.right) ** 2 for row in evidence))
    known = list(dict.fromkeys(fault for row in evidence for fault in row.faults))
    if not known or total == 0:
        return None
    unexplained = {fault: math.sqrt(sum(_error_to(fault, row) ** 2 for row in evidence)) / total for fault in known}
    least = min(unexplained.values())
    tied = [fault for fault in known if unexplained[fault] <= least + TIE]
    # Of equals the simplest: not a pair where one of its faults is enough.
    best = min(tied, key=lambda fault: (fault.count("+"), unexplained[fault]))
    near = least <= NEAR
    alike = tuple(fault for fault in tied if near and best not in fault.split("+") and fault != best)
    shown = [row for row in evidence if best in row.faults]
    to_fault = np.concatenate([cosines(row.actual, row.faults[best]) for row in shown])
    to_right = np.concatenate([cosines(row.actual, row.right) for row in shown])
    return Diagnosis(
        fault=best,
        description=descriptions[best],
        near=near,
        unexplained=unexplained[best],
        cosine=float(to_fault.mean()),
        right_cosine=float(to_right.mean()),
        error=_root_mean_square(_error_to(best, row) for row in shown),
        right_error=_root_mean_square(relative_error(row.actual, row.right) for row in shown),
        alike=alike,
        where=where,
    )


def _error_to(fault: str, row: Evidence) -> float:
    """Relative error to what a fault puts out, by the scale of the right output."""
    output = row.faults.get(fault, row.right)
    return float(np.linalg.norm(row.actual - output) / np.linalg.norm(row.right))


def _root_mean_square(values: Iterable[float]) -> float:
    values = list(values)
    return math.sqrt(sum(value * value for value in values) / len(values))


def diagnose(
    evidence: list[Evidence], first_wrong: Iterable[str], descriptions: Mapping[str, str]
) -> tuple[Diagnosis, ...]:
    """The nearest fault by all rows, and by those where an output departs first if that one does not explain them.

    Args:
        first_wrong: places of those rows.
    """
    by_all = nearest_fault(evidence, descriptions)
    if by_all is None:
        return ()
    first_wrong = set(first_wrong)
    first = [row for row in evidence if row.place in first_wrong]
    arrays = {row.place.rsplit("/", 1)[-1] for row in first}
    if len(arrays) != 1 or by_all.near and any(by_all.fault in row.faults for row in first):
        return (by_all,)
    by_first = nearest_fault(first, descriptions, arrays.pop())
    if by_first is None or not by_first.near:
        return (by_all,)
    return (by_first, by_all) if by_all.near else (by_first,)


# All together.


def check(
    path: Path,
    kit: Kit,
    checkpoints: Iterable[str] = (),
    cases: Iterable[str] = (),
    arrays: Iterable[str] = (),
    dtype: str = "float32",
) -> Report:
    """Compares an implementation's outputs with the kit.

    Args:
        path: the NPZ file with the outputs.
        checkpoints, cases, arrays: what is compared; by default everything.
        dtype: what the implementation computes in; sets the bounds.

    Raises:
        InputError: if the outputs or the kit cannot be read.
    """
    checkpoints, cases, arrays = (
        _chosen(chosen, known, name)
        for chosen, known, name in (
            (checkpoints, kit.checkpoints, "checkpoint"),
            (cases, kit.cases, "case"),
            (arrays, ARRAYS, "array"),
        )
    )
    known = [f"{a}/{b}/{c}" for a in kit.checkpoints for b in kit.cases for c in ARRAYS]
    wanted = [f"{a}/{b}/{c}" for a in checkpoints for b in cases for c in arrays]
    outputs = read_outputs(path, wanted, known)
    right = {f"{a}/{name}": array for a in checkpoints for name, array in kit.expected(a).items()}
    rows = [row for name in wanted for row in compare(*name.split("/"), outputs[name], right[name])]
    report = Report(dtype, rows)
    if report.passed:
        return report
    first = [f"{row.checkpoint}/{row.case}/{row.array}" for row in report.first_departing().values()]
    # What is right of a checkpoint speaks against a fault; a checkpoint that is right altogether says nothing of it.
    wrong = [checkpoint for checkpoint in checkpoints if any(checkpoint == of for of, _ in report.first_departing())]
    evidence = [row for checkpoint in wrong for row in _evidence(kit, checkpoint, report, outputs, right)]
    return Report(dtype, rows, diagnose(evidence, first, kit.faults))


def _evidence(
    kit: Kit, checkpoint: str, report: Report, outputs: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]
) -> Iterable[Evidence]:
    """The rows of a checkpoint that have numbers, in the cases for which the kit knows what faults put out."""
    faults = kit.fault_outputs(checkpoint)
    numbered = {(row.case, row.array) for row in report.rows if row.checkpoint == checkpoint and not row.reasons}
    for name, actual in outputs.items():
        of, case, array = name.split("/")
        if of != checkpoint or case not in kit.cases_with_faults:
            continue
        for (row, ours), (_, expected) in zip(rows_of(array, actual), rows_of(array, right[name])):
            if (case, row) in numbered:
                known = {fault: _double(output) for fault, output in faults.get(f"{case}/{row}", {}).items()}
                yield Evidence(f"{checkpoint}/{case}/{row}", _double(ours), _double(expected), known)


def _double(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


def _chosen(chosen: Iterable[str], known: tuple[str, ...], name: str) -> tuple[str, ...]:
    chosen = tuple(chosen)
    for value in chosen:
        if value not in known:
            raise InputError(f"--{name} {value} is unknown, expected one of {', '.join(known)}.")
    # In the kit's order, which is that of the computation.
    return tuple(value for value in known if value in chosen) or known


# A picture.


COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777", "#cc6600", "#000000")
LOWEST, HIGHEST = -8, 1


def error_picture(report: Report) -> str:
    """An SVG: relative error, on a logarithmic scale, by layer; a line for each case, a panel for each checkpoint."""
    panels = dict.fromkeys(checkpoint for checkpoint, _ in report.cases())
    width, height = 760, 300
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height * len(panels)}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, checkpoint in enumerate(panels):
        cases = {case: rows for (name, case), rows in report.cases().items() if name == checkpoint}
        parts += [f'<g transform="translate(0 {height * number})">', *_panel(checkpoint, cases, report.dtype), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(checkpoint: str, cases: dict[str, list[Row]], dtype: str) -> list[str]:
    left, right, top, bottom = 60, 560, 30, 250
    longest = max(cases.values(), key=len)
    step = (right - left) / max(len(longest) - 1, 1)

    def y(error: float) -> float:
        # What has no number, such as a wrong shape, is drawn at the top.
        exponent = HIGHEST if math.isnan(error) else math.log10(max(error, 10.0**LOWEST))
        return bottom - (min(exponent, HIGHEST) - LOWEST) / (HIGHEST - LOWEST) * (bottom - top)

    parts = [f'<text x="{left}" y="18" font-size="13">{checkpoint}: relative error by layer</text>']
    for exponent in range(LOWEST, HIGHEST + 1):
        height = y(10.0**exponent)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{height:.1f}" y2="{height:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{left - 6}" y="{height + 4:.1f}" text-anchor="end">1e{exponent}</text>')
    bound = y(BOUNDS[dtype][1])
    parts.append(
        f'<line x1="{left}" x2="{right}" y1="{bound:.1f}" y2="{bound:.1f}" stroke="red" stroke-dasharray="4"/>'
    )
    parts.append(f'<text x="{right}" y="{bound - 4:.1f}" text-anchor="end" fill="red">{dtype}</text>')
    places = {row.array: left + step * index for index, row in enumerate(longest)}
    for array, x in places.items():
        label = array.replace("hidden_states[", "state ").rstrip("]")
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" font-size="9">{label}</text>')
    for index, (case, rows) in enumerate(cases.items()):
        colour = COLOURS[index % len(COLOURS)]
        line = " ".join(f"{places[row.array]:.1f},{y(row.relative_error):.1f}" for row in rows if row.array in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<text x="{right + 16}" y="{top + 8 + 16 * index}" fill="{colour}">{case}</text>')
    return parts


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("outputs", metavar="MY_OUTPUTS.npz", type=Path)
    parser.add_argument("--checkpoint", nargs="+", default=(), metavar="NAME", help="default: all")
    parser.add_argument("--case", nargs="+", default=(), metavar="NAME", help="default: all")
    parser.add_argument("--array", nargs="+", default=(), metavar="NAME", help=f"of {', '.join(ARRAYS)}; default: all")
    parser.add_argument("--dtype", choices=BOUNDS, default="float32", help="what yours computes in (default float32)")
    parser.add_argument("--json", action="store_true", help="print JSON, with every array and layer")
    parser.add_argument("--svg", metavar="FILE", type=Path, help="write a picture of the error by layer")
    options = parser.parse_args(arguments)
    try:
        kit = Kit(Path(__file__).resolve().parent)
        report = check(options.outputs, kit, options.checkpoint, options.case, options.array, options.dtype)
        if options.svg is not None:
            options.svg.write_text(error_picture(report), encoding="utf-8")
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report.to_dict(), indent=1) if options.json else report.text())
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
