# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Which files of a folder make up its model, and whether `verification.json` speaks of exactly their bytes.

A file belongs to the model only if loading it reads it: the configurations, the weights that the index names, and the
code that `auto_map` leads to. Whatever else lies in the folder is a stranger, and strangers are never published.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from conversion.common.files import sha256_of_file
from conversion.common.json_files import MAX_JSON_BYTES, check_shape, read_json_object
from conversion.common.report_schema import MARKDOWN_FILE, PASS, REPORT_FILE, SCHEMA_VERSION, check_report


CONFIG = "config.json"
PROCESSOR_CONFIGS = ("preprocessor_config.json", "processor_config.json")
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
CARD = "README.md"
# What both majors write into a processor's configuration without an effect on pixels.
_NOT_SETTINGS = (
    "auto_map",
    "processor_class",
    "image_processor_type",
    "feature_extractor_type",
    "_valid_processor_keys",
    "max_image_pixels",
    "max_frames",
)
LAYOUTS = {"llava_vit": "dense", "llava_vit_packing": "packing"}

_RELATIVE_IMPORT = re.compile(r"^[ \t]*(?:from[ \t]+\.(\w+)[ \t]+import|import[ \t]+\.(\w+))", re.MULTILINE)


class PublishError(ValueError):
    """A folder that cannot be published, or a publication that failed; the message says why and what to do."""


class PublishInputError(PublishError):
    """A folder or argument that is not what it must be, told before anything is asked of the Hub."""


@dataclass(frozen=True)
class ModelFile:
    """One file to publish. `content` is a small file's bytes, read once; a weight file is read from its path."""

    name: str
    size: int
    sha256: str
    content: bytes | None = field(repr=False, default=None)
    path: Path | None = None

    @classmethod
    def from_bytes(cls, name: str, content: bytes) -> "ModelFile":
        return cls(name, len(content), hashlib.sha256(content).hexdigest(), content)

    @classmethod
    def read(cls, path: Path) -> "ModelFile":
        """Reads a small file, or hashes a weight file in blocks."""
        if path.suffix != ".safetensors":
            return cls.from_bytes(path.name, path.read_bytes())
        return cls.at(path, path.name)

    @classmethod
    def at(cls, path: Path, name: str) -> "ModelFile":
        """A file that stays on disk until it is sent, published as `name`; hashed in blocks."""
        return cls(name, path.stat().st_size, sha256_of_file(path), path=path)

    def under(self, folder: str) -> "ModelFile":
        """The same file, published below a folder of the repo."""
        return replace(self, name=f"{folder}/{self.name}")

    def git_oid(self) -> str:
        """The id that git gives this content when it is no large file."""
        digest = hashlib.sha1(b"blob %d\0" % self.size)
        if self.content is not None:
            digest.update(self.content)
            return digest.hexdigest()
        with open(self.path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest()


@dataclass(frozen=True)
class ModelFolder:
    """A folder read for publishing.

    Attributes:
        files: name to file, of the model alone.
        reports: `verification.json` and `VERIFICATION.md`, where there are any that speak of these files.
        report: the parsed `verification.json`, or None.
        readme: the folder's own README.md, or None.
        left_out: every other path of the folder, with the reason.
        unverified: why the report does not prove these bytes; None if it does.
    """

    path: Path
    layout: str
    config: dict
    processor: dict
    files: dict[str, ModelFile]
    reports: dict[str, ModelFile]
    report: dict | None
    readme: str | None
    left_out: dict[str, str]
    unverified: str | None


def model_file_names(folder: Path) -> list[str]:
    """The names of the files that make up the model in `folder`, sorted.

    Raises:
        PublishInputError: if one is missing, is not JSON, or `auto_map` points into another repo.
    """
    config = read_json(folder / CONFIG)
    if not (folder / PROCESSOR_CONFIGS[0]).is_file():
        raise PublishInputError(
            f"{folder} has no {PROCESSOR_CONFIGS[0]}. Convert the checkpoint again to have one made."
        )
    configs = [CONFIG, *(name for name in PROCESSOR_CONFIGS if (folder / name).is_file())]
    names = {*configs, *_weight_names(folder)}
    for name in configs:
        names |= code_file_names(
            folder, name, (config if name == CONFIG else read_json(folder / name)).get("auto_map")
        )
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise PublishInputError(f"{folder} lacks {', '.join(missing)}, which its configuration or index names.")
    return sorted(names)


def read_model_folder(folder: str | Path) -> ModelFolder:
    """Reads and hashes what there is to publish, and compares it with the folder's verification report.

    Raises:
        PublishInputError: if the folder is no complete model folder of this project, or its report cannot be read.
        OSError: if a file cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PublishInputError(f"{folder} is no folder. Expected a converted model folder.")
    config = read_json(folder / CONFIG)
    if not isinstance(config.get("model_type"), str) or config["model_type"] not in LAYOUTS:
        raise PublishInputError(
            f"{folder / CONFIG} says model_type={config.get('model_type')!r}, expected one of {', '.join(LAYOUTS)}."
        )
    names = model_file_names(folder)
    _refuse_links(folder, (*names, REPORT_FILE, MARKDOWN_FILE, CARD))
    files = {name: ModelFile.read(folder / name) for name in names}
    report = read_json(folder / REPORT_FILE) if (folder / REPORT_FILE).is_file() else None
    hashes = {name: file.sha256 for name, file in files.items()}
    unverified, concerns = verdict_on(hashes, report)
    if concerns:
        check_report(report, folder / REPORT_FILE, PublishInputError, first_reports=True)
    told = (REPORT_FILE, MARKDOWN_FILE) if concerns else ()
    reports = {name: ModelFile.read(folder / name) for name in told if (folder / name).is_file()}
    readme = folder / CARD
    return ModelFolder(
        path=folder,
        layout=LAYOUTS[config["model_type"]],
        config=json.loads(files[CONFIG].content),
        processor=json.loads(files[PROCESSOR_CONFIGS[0]].content),
        files=files,
        reports=reports,
        report=json.loads(reports[REPORT_FILE].content) if reports else None,
        readme=_read_text(readme) if readme.is_file() else None,
        left_out=_left_out(folder, {*files, *reports, CARD}),
        unverified=unverified,
    )


def verdict_on(hashes: dict[str, str], report: dict | None) -> tuple[str | None, bool]:
    """Judges files against a verification report.

    Args:
        hashes: SHA-256 of every file of the model, by name.

    Returns:
        Why the report does not prove them (None if it does), and whether it is about these very bytes at all.
    """
    if report is None:
        return f"there is no {REPORT_FILE}", False
    if report.get("schema_version") != SCHEMA_VERSION:
        return f"{REPORT_FILE} has schema_version {report.get('schema_version')!r}, expected {SCHEMA_VERSION}", False
    model = report.get("model")
    verified = model.get("files") if isinstance(model, dict) else None
    if not isinstance(verified, dict):
        return f"{REPORT_FILE} lists no model.files", False
    changed = sorted(name for name in hashes.keys() & verified if hashes[name] != verified[name])
    added, removed = sorted(hashes.keys() - verified), sorted(verified.keys() - hashes)
    found = (("changed", changed), ("not in the report", added), ("only in the report", removed))
    differences = [f"{what}: {', '.join(names)}" for what, names in found if names]
    if differences:
        return f"{REPORT_FILE} is about other files ({'; '.join(differences)})", False
    if report.get("verdict") != PASS:
        return f"{REPORT_FILE} says {report.get('verdict')!r}, expected {PASS!r}", True
    return None, True


def content_name(folder: ModelFolder) -> str:
    """A name for exactly these bytes, used as the tag that the model card pins: `verified-` and twelve digits."""
    named = {**folder.files, **{name: file for name, file in folder.reports.items() if name == REPORT_FILE}}
    lines = "".join(f"{file.sha256} {name}\n" for name, file in sorted(named.items()))
    return f"{'un' * (folder.unverified is not None)}verified-{hashlib.sha256(lines.encode()).hexdigest()[:12]}"


def processor_sha256(settings: dict) -> str:
    """SHA-256 of what a `preprocessor_config.json` says about pixels, in whatever order and by whichever major."""
    kept = {name: value for name, value in settings.items() if name not in _NOT_SETTINGS}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def read_json(
    path: Path, missing: str = "Expected a converted model folder.", max_json_bytes: int = MAX_JSON_BYTES
) -> dict:
    """Reads a JSON object of a model folder, as `read_json_object`; what is raised is a `PublishInputError`."""
    return read_json_object(path, PublishInputError, missing, max_json_bytes=max_json_bytes)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PublishInputError(f"{path} is not UTF-8 text: {error}.") from error


def _weight_names(folder: Path) -> set[str]:
    """The single file where there is one, as transformers prefers it; else the index and its shards."""
    if (folder / WEIGHTS).is_file():
        return {WEIGHTS}
    shards = read_json(folder / WEIGHTS_INDEX).get("weight_map") if (folder / WEIGHTS_INDEX).is_file() else None
    if not isinstance(shards, dict) or not shards:
        raise PublishInputError(f"{folder} has neither {WEIGHTS} nor a {WEIGHTS_INDEX} with a weight_map.")
    foreign = sorted({str(name) for name in shards.values() if not re.fullmatch(r"[\w-]+\.safetensors", str(name))})
    if foreign:
        raise PublishInputError(
            f"{folder / WEIGHTS_INDEX} names {foreign[0]!r}, expected safetensors files beside it."
        )
    return {WEIGHTS_INDEX, *shards.values()}


def code_file_names(folder: Path, config_name: str, auto_map: dict | None) -> set[str]:
    """The Python files that `auto_map` leads to, through relative imports, as the remote loader follows them."""
    check_shape(auto_map or {}, {str: (str, list)}, folder / config_name, PublishInputError, "auto_map")
    values = [[value] if isinstance(value, str) else value for value in (auto_map or {}).values()]
    classes = [entry for value in values for entry in value if entry]
    check_shape(classes, [str], folder / config_name, PublishInputError, "auto_map")
    foreign = [entry for entry in classes if not re.fullmatch(r"\w+\.\w+", entry)]
    if foreign:
        raise PublishInputError(
            f"{folder / config_name}: auto_map names {foreign[0]!r}, expected module.Class in the folder itself."
        )
    names, waiting = set(), [entry.split(".")[0] for entry in classes]
    while waiting:
        name = f"{waiting.pop()}.py"
        if name not in names:
            names.add(name)
            source = _read_text(folder / name) if (folder / name).is_file() else ""
            waiting += [a or b for a, b in _RELATIVE_IMPORT.findall(source)]
    return names


def _refuse_links(folder: Path, names: Iterable[str]) -> None:
    """A link would publish what lies elsewhere on this machine under a file name of the model."""
    links = [name for name in names if (folder / name).is_symlink()]
    if links:
        raise PublishInputError(
            f"{folder / links[0]} is a symbolic link to {os.readlink(folder / links[0])}; links are not published. "
            "Put the file itself there (cp -rL copies a folder with its files)."
        )


def _left_out(folder: Path, published: set[str]) -> dict[str, str]:
    reasons = {REPORT_FILE: "not about these files", MARKDOWN_FILE: "not about these files"}
    reasons |= {"verification": "no part of the model; --features publishes a run's features"}
    return {
        path.name + "/" * (path.is_dir() and not path.is_symlink()): reasons.get(path.name, "no part of the model")
        for path in sorted(folder.iterdir())
        if path.name not in published
    }
