# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The model card: metadata, facts, usage and the verification tables, made from the published files alone.

In a README that exists only the marked section, a warning in its first line and missing metadata are ours; the rest
is kept as it is.
"""

import re
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData

from conversion.checkpoints.hub_configs import fitting_variant, is_tower, read_card_data
from conversion.common.model_folder import ModelFolder, PublishError
from conversion.common.report_schema import PASS, REPORT_FILE
from conversion.publishing.card_features import VERIFICATION, CardRecord, features_section
from conversion.publishing.model_facts import facts_table
from conversion.verification.report_tables import (
    bounds_list,
    cases_table,
    controls_table,
    environment_table,
    error_text,
    inputs_table,
    summary_line,
    table,
)


TEMPLATE = Path(__file__).with_name("card_template.md")
BEGIN = "<!-- llava_vit_hf: generated from here on, edits are lost -->"
END = "<!-- llava_vit_hf: generated up to here -->"
NOTICE = "> **Not verified by llava_vit_hf:**"
LICENSE = "apache-2.0"
PIPELINE_TAG = "image-feature-extraction"
TAGS = ("custom_code", "vision", "image-feature-extraction", "video", "llava-vit")


def render_card(
    folder: ModelFolder,
    record: CardRecord,
    features: dict | None = None,
    existing: str | None = None,
    base_model: str | None = None,
) -> str:
    """The README.md to publish.

    Args:
        record: what the card names: repo, tag or pull request, sibling.
        features: the published `metadata.json` of features beside the model.
        existing: a README whose prose and metadata are kept.
        base_model: repo id that the model derives from; None takes the variant's, if any.

    Raises:
        PublishError: if `existing` has metadata that is no YAML mapping, or one marker without the other.
    """
    data = card_data(folder, base_model)
    fields = _template_fields(folder, record, features)
    card = ModelCard.from_template(data, template_path=str(TEMPLATE), **fields)
    if existing is None or not existing.strip():
        return str(card).rstrip("\n") + "\n"
    return merge_cards(existing, card, folder)


def card_data(folder: ModelFolder, base_model: str | None = None) -> ModelCardData:
    """The metadata: license, library, task, base model and tags; the license and tags of a named variant's card."""
    known = known_card_data(folder)
    return ModelCardData(
        license=known.get("license") or LICENSE,
        library_name="transformers",
        pipeline_tag=PIPELINE_TAG,
        base_model=base_model or known.get("base_model"),
        tags=list(dict.fromkeys((*TAGS, *known.get("tags", ()), folder.layout))),
    )


def known_card_data(folder: ModelFolder) -> dict:
    """The `card.json` of the variant that a folder holds; empty if it is none of them."""
    variant = fitting_variant(folder.config)
    return read_card_data(variant) if variant else {}


def merge_cards(existing: str, card: ModelCard, folder: ModelFolder) -> str:
    """`existing` with our section, notice and missing metadata; its own fields, prose and line endings stay."""
    where = "The README.md that is there"
    try:
        merged = ModelCard(existing)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise PublishError(f"{where} has metadata that cannot be read: {error}. Correct it first.") from error
    begins, ends = merged.text.count(BEGIN), merged.text.count(END)
    if (begins, ends) not in ((0, 0), (1, 1)) or merged.text.find(BEGIN) > merged.text.find(END):
        raise PublishError(f"{where} has {begins} x {BEGIN!r} and {ends} x {END!r}, expected one pair or none.")
    fields = card.data.to_dict()
    for name, value in fields.items():
        if getattr(merged.data, name, None) is None:
            setattr(merged.data, name, value)
    tags = merged.data.tags if isinstance(merged.data.tags, list) else [merged.data.tags]
    merged.data.tags = list(dict.fromkeys((*tags, *fields["tags"])))
    line_break = "\r\n" if "\r\n" in existing else "\n"
    section = card.text[card.text.index(BEGIN) : card.text.index(END) + len(END)].replace("\n", line_break)
    if begins:
        start, end = merged.text.index(BEGIN), merged.text.index(END) + len(END)
        merged.text = merged.text[:start] + section + merged.text[end:]
    else:
        merged.text = merged.text.rstrip() + 2 * line_break + section + line_break
    merged.text = re.sub(rf"\A\s*{re.escape(NOTICE)}[^\n]*\n\s*", line_break, merged.text)
    notice = notice_line(folder)
    if notice:
        merged.text = line_break + notice + 2 * line_break + merged.text.lstrip()
    return str(merged)


def notice_line(folder: ModelFolder) -> str | None:
    """The card's first line for a model that is published without proof; None for a verified one."""
    if folder.unverified is None:
        return None
    return f"{NOTICE} {folder.unverified}. Nothing proves that this model computes what its checkpoint computes."


def verification_section(folder: ModelFolder, record: CardRecord) -> str:
    """The verification report as Markdown: verdict and margins, how to repeat it, and folded away all its numbers."""
    if folder.report is None:
        return f"None: {folder.unverified}."
    report, source = folder.report, folder.report["source"]
    hashes = ", ".join(f"`{name}` sha256 `{digest}`" for name, digest in source["sha256"].items())
    outcome = "" if folder.unverified is None else f" It does not prove this model: {folder.unverified}."
    if source["sha256"] and set(source["sha256"].values()) <= {file.sha256 for file in folder.files.values()}:
        outcome += " The weights were taken from this model itself: that proves its code, not its conversion."
    return VERIFICATION.render(
        record=record,
        name=record.repo_id.split("/")[-1],
        report=report,
        report_file=REPORT_FILE,
        prefix=next((name[:-1] for name in source["sha256"] if name.endswith("*")), None),
        source=f"`{source['location']}` ({hashes or 'no hashes'})",
        outcome=outcome,
        # In the order in which a reader asks: how far off, how far off a fault would be.
        summary=[*summary_line(report).split("\n"), *report["notes"]],
        bounds="; ".join(bounds_list(report)),
        cases=cases_table(report),
        controls=controls_table(report),
        inputs=inputs_table(report),
        environment=environment_table(report),
    )


def headline(folder: ModelFolder) -> str | None:
    """The verdict in a sentence, for who does not read on; None where nothing is proved."""
    if folder.unverified is not None:
        return None
    report = folder.report
    errors = [case["arrays"]["last_hidden_state"]["relative_error"] for case in report["cases"] if _is_float32(case)]
    told = sum(control["detected"] for control in report["controls"])
    return (
        f"Every layer agrees with an independent encoder's in {len(errors)} comparisons, relative error at most "
        f"{error_text(max(errors, default=None))} in float32; {told} of {len(report['controls'])} "
        "planted faults detected."
    )


def _is_float32(case: dict) -> bool:
    return case["dtype"] == "float32" and "last_hidden_state" in case["arrays"] and case["result"] == PASS


def _template_fields(folder: ModelFolder, record: CardRecord, features: dict | None) -> dict:
    config, processor = folder.config, folder.processor
    crop = processor.get("crop_size") or config.get("image_size")
    known = known_card_data(folder)
    code = [file for name, file in folder.files.items() if name.endswith(".py")]
    data = [file for name, file in (folder.files | folder.reports).items() if not name.endswith(".py")]
    return {
        "title": record.repo_id.split("/")[-1],
        "repo_id": record.repo_id,
        "pin": record.pin,
        "layout": folder.layout,
        "notice": notice_line(folder),
        "begin": BEGIN,
        "end": END,
        "record": record.as_comment(),
        "pretraining": known.get("pretraining"),
        "sibling": record.sibling_id,
        "sibling_url": record.sibling_url,
        "headline": headline(folder),
        "verdict": PASS,
        "facts": facts_table(folder),
        "image_size": crop.get("height") if isinstance(crop, dict) else crop,
        "num_frames": processor.get("num_frames", 8),
        "patch_size": config["patch_size"],
        "hidden_size": config["hidden_size"],
        "use_head": config.get("use_head", True),
        "is_tower": is_tower(config),
        "verification": verification_section(folder, record),
        "features": features_section(features, record, folder.layout),
        "kit": known.get("conformance_kit"),
        "clone": record.clone,
        "code": _hash_table(code),
        "data": _hash_table(data),
    }


def _hash_table(files: list) -> str:
    return table(("file", "bytes", "sha256"), [(f"`{file.name}`", file.size, f"`{file.sha256}`") for file in files])
