# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What a model card names besides the model itself, so that it can be read back, and its part about features.

Features may be published after the model. The card then gets another tag and another such part, and nothing else.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import jinja2
from huggingface_hub import constants

from conversion.common.json_files import NONE, check_shape, parse_json_object
from conversion.common.model_folder import PublishError
from conversion.verification.report_tables import table


FEATURES_BEGIN, FEATURES_END = "<!-- llava_vit_hf: features -->", "<!-- llava_vit_hf: end of features -->"
_RECORD = re.compile(r"<!-- llava_vit_hf: (\{.*\}) -->")
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    keep_trailing_newline=False,
    undefined=jinja2.StrictUndefined,
)
VERIFICATION = _TEMPLATES.get_template("card_verification_template.md")
FEATURES = _TEMPLATES.get_template("card_features_template.md")


@dataclass(frozen=True)
class CardRecord:
    """What a card names, and keeps in a comment.

    Attributes:
        repo_id: of the model.
        pin: the tag or pull request that its snippets load.
        model: the tag for the model without features.
        sibling: repo of the other layout with the same weights, `user/name` or `user/name@revision`.
        project_url: of a clone of this project.
    """

    repo_id: str
    pin: str
    model: str
    sibling: str | None = None
    project_url: str | None = None

    @classmethod
    def read(cls, card: str) -> "CardRecord | None":
        """The record of a card, or None if it has none.

        Raises:
            PublishError: if it was edited.
        """
        found = _RECORD.search(card)
        if found is None:
            return None
        where = "The model card's generated part"
        record = parse_json_object(found[1].encode(), where, PublishError, "Publish the model again.")
        shape = {"repo_id": str, "pin": str, "model": str, "sibling": (str, NONE), "project_url": (str, NONE)}
        check_shape(record, shape, where, PublishError)
        return cls(**{name: record[name] for name in shape})

    def as_comment(self) -> str:
        """The record as a Markdown comment."""
        return f"<!-- llava_vit_hf: {json.dumps(asdict(self))} -->"

    @property
    def clone(self) -> str:
        """Where the card's commands run."""
        return f"a clone of [llava_vit_hf]({self.project_url})" if self.project_url else "a clone of llava_vit_hf"

    @property
    def sibling_id(self) -> str | None:
        """The sibling's repo id."""
        return self.sibling and self.sibling.partition("@")[0]

    @property
    def sibling_url(self) -> str | None:
        """The sibling's page."""
        return self.sibling and f"{constants.ENDPOINT}/{self.sibling_id}"


def features_section(metadata: dict | None, record: CardRecord, layout: str) -> str:
    """What features lie beside the model and how to compare with them, between its markers; nothing where none do.

    Args:
        metadata: the published `metadata.json`, or None.
        layout: of the model.
    """
    text = "" if metadata is None else _features_text(metadata, record, layout)
    return "\n".join(filter(None, (FEATURES_BEGIN, text, FEATURES_END)))


def with_features(card: str, old: CardRecord, new: CardRecord, metadata: dict, layout: str) -> str:
    """A published card with another tag and other features; all else stays.

    Raises:
        PublishError: if its markers were edited.
    """
    start, begin, end = card.find(old.as_comment()), card.find(FEATURES_BEGIN), card.find(FEATURES_END)
    if not 0 <= start < begin < end:
        raise PublishError("The model card's part about features has lost its markers. Publish the model again.")
    prose, before, after = card[:start], card[start + len(old.as_comment()) : begin], card[end + len(FEATURES_END) :]
    line_break = "\r\n" if "\r\n" in card else "\n"
    features = features_section(metadata, new, layout).replace("\n", line_break)
    return prose + new.as_comment() + before.replace(old.pin, new.pin) + features + after


def _features_text(metadata: dict, record: CardRecord, layout: str) -> str:
    published, mine = metadata.get("files", {}), f"{record.repo_id}@{record.pin}"
    models = {"dense": "DENSE_MODEL", "packing": "PACKING_MODEL"}
    if record.sibling:
        models = dict.fromkeys(models, record.sibling)
    models[layout] = mine
    options = [f"--packing_model_path {models['packing']}"]
    if "index.jsonl" in published:
        inputs = f"{metadata['counts']['samples']} samples, listed in `verification/index.jsonl` with their SHA-256."
        options += [f"--inputs FILES --layers={','.join(metadata['layers'])}"]
    else:
        facts = {name: models["dense"] for name, models in metadata["inputs"].items()}
        rows = [(name, each["file"], f"`{each['sha256']}`") for name, each in facts.items()]
        inputs = table(("input", "file", "sha256"), rows)
        there = {Path(file).stem: f"published/verification/{file}" for file in published if file.startswith("inputs/")}
        options = [f"--hf_model_path {models['dense']}", *options]
        options += [f"--{name} {there.get(name, each['file'])}" for name, each in facts.items()]
        options += [f"--num_frames {metadata['num_frames']}"]
    options += [f"--dtype {metadata['dtype']} --output_dir features"]
    return FEATURES.render(
        record=record,
        has_inputs=any(file.startswith("inputs/") for file in published),
        feature=metadata.get("feature"),
        inputs=inputs,
        extract=" \\\n    ".join(["python examples/extract_features.py", *options]),
    )
