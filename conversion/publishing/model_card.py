# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The model card: metadata, facts, usage and the verification tables, made from the published files alone.

In a README that exists only the marked section, a warning in its first line and missing metadata are ours; the rest
is kept as it is.
"""

import re
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData
from safetensors import SafetensorError, safe_open

from conversion.checkpoints.hub_configs import fitting_variant, read_card_data
from conversion.common.json_files import NONE, NUMBER, check_shape
from conversion.common.model_folder import CONFIG, REPORT, ModelFolder, PublishError, PublishInputError
from llava_vit_hf import LlavaViTConfig


TEMPLATE = Path(__file__).with_name("card_template.md")
BEGIN = "<!-- llava_vit_hf: generated from here on, edits are lost -->"
END = "<!-- llava_vit_hf: generated up to here -->"
NOTICE = "> **Not verified by llava_vit_hf:**"
LICENSE = "apache-2.0"
PIPELINE_TAG = "image-feature-extraction"
TAGS = ("custom_code", "vision", "image-feature-extraction", "video", "llava-vit")
# What the tables take for granted, in reports of any age.
_METRICS = {f"{name}?": (*NUMBER, NONE) for name in ("min_cosine", "relative_error", "max_abs")}
_REPORT = {
    "source?": ({"sha256?": {str: str}}),
    "bounds?": {str: _METRICS},
    "notes?": [str],
    "cases?": [{"arrays?": {"hidden_states?": [{**_METRICS, "relative_error": (*NUMBER, NONE)}]}}],
    "controls?": [{"metrics?": _METRICS}],
    "inputs?": {str: {"grids?": [[int]]}},
    "environment?": dict,
}
_FACTS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size")
_FACTS += ("layer_norm_type", "layer_norm_eps", "head_norm_eps", "rope_theta")
REPEAT_COMMAND = "python conversion/verify_model.py MODEL_FOLDER --source backbone.pt"


def render_card(
    folder: ModelFolder, repo_id: str, pin: str, existing: str | None = None, base_model: str | None = None
) -> str:
    """The README.md to publish.

    Args:
        pin: the tag or pull request that the snippets load.
        existing: a README whose prose and metadata are kept.
        base_model: repo id that the model derives from; None takes the variant's, if any.

    Raises:
        PublishError: if `existing` has metadata that is no YAML mapping, or one marker without the other.
    """
    data = card_data(folder, base_model)
    card = ModelCard.from_template(data, template_path=str(TEMPLATE), **_template_fields(folder, repo_id, pin))
    if existing is None or not existing.strip():
        return str(card).rstrip("\n") + "\n"
    return merge_cards(existing, card, folder)


def card_data(folder: ModelFolder, base_model: str | None = None) -> ModelCardData:
    """The metadata: license, library, task, base model and tags; the license and tags of a named variant's card."""
    variant = fitting_variant(folder.config)
    known = read_card_data(variant) if variant else {}
    return ModelCardData(
        license=known.get("license") or LICENSE,
        library_name="transformers",
        pipeline_tag=PIPELINE_TAG,
        base_model=base_model or known.get("base_model"),
        tags=list(dict.fromkeys((*TAGS, *known.get("tags", ()), folder.layout))),
    )


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


def verification_section(folder: ModelFolder) -> str:
    """The verification report as Markdown: what it found, on what, where, and how to repeat it."""
    if folder.report is None:
        return f"None: {folder.unverified}."
    report = folder.report
    check_shape(report, _REPORT, folder.path / REPORT, PublishInputError)
    for case in report.get("cases", ()):
        arrays = {name: metrics for name, metrics in case.get("arrays", {}).items() if name != "hidden_states"}
        check_shape(arrays, {str: _METRICS}, folder.path / REPORT, PublishInputError, "arrays")
    source = report.get("source") or {}
    hashes = ", ".join(f"`{name}` sha256 `{digest}`" for name, digest in (source.get("sha256") or {}).items())
    outcome = "" if folder.unverified is None else f" It does not prove this model: {folder.unverified}."
    if set((source.get("sha256") or {}).values()) <= {file.sha256 for file in folder.files.values()}:
        outcome += " The weights were taken from this model itself: that proves its code, not its conversion."
    parts = [
        f"Verdict: **{report.get('verdict')}** ({report.get('created')}), against `{source.get('location')}` "
        f"({hashes or 'no hashes'}), computed by an independent encoder.{outcome} All numbers, also of every layer, "
        f"are in [`{REPORT}`]({REPORT}).",
        "Bounds: " + "; ".join(f"{dtype}: {_bounds(bounds)}" for dtype, bounds in report.get("bounds", {}).items()),
        *report.get("notes", ()),
        cases_table(report),
        "Planted faults, which the check has to detect:",
        controls_table(report),
        "Inputs:",
        inputs_table(report),
        "Environment:",
        environment_table(report),
        f"To repeat it, in a clone of llava_vit_hf:\n\n```sh\n{REPEAT_COMMAND}\n```",
        "The test suite of llava_vit_hf runs with transformers 4.57 and 5 and their generations of huggingface_hub.",
    ]
    return "\n\n".join(parts)


def cases_table(report: dict) -> str:
    """One row per case and array: the numbers of `Comparison`, and the result."""
    rows = []
    for case in report.get("cases", ()):
        for label, metrics in _case_arrays(case.get("arrays", {})) or [("none", None)]:
            rows.append((case.get("name"), case.get("dtype"), label, *_metrics(metrics), case.get("result")))
    return table(("case", "dtype", "array", "min cosine", "relative error", "max abs", "result"), rows)


def controls_table(report: dict) -> str:
    """One row per planted fault: what it is, what it changes, and whether it was detected."""
    rows = [
        (
            *(control.get(name) for name in ("name", "description", "case", "kind", "weights")),
            *_metrics(control.get("metrics")),
            "yes" if control.get("detected") else "**no**",
        )
        for control in report.get("controls", ())
    ]
    numbers = ("min cosine", "relative error", "max abs")
    return table(("fault", "what is wrong", "case", "kind", "weights", *numbers, "detected"), rows)


def inputs_table(report: dict) -> str:
    """One row per input: its grids in patches `(t, h, w)` and the hash of its pixels."""
    rows = [
        (name, value.get("description"), _grids(value.get("grids", ())), f"`{value.get('sha256')}`")
        for name, value in report.get("inputs", {}).items()
    ]
    return table(("input", "description", "patches (t x h x w)", "sha256"), rows)


def environment_table(report: dict) -> str:
    """Versions, device and threads."""
    return table(("environment", ""), list(report.get("environment", {}).items()))


def table(heads: tuple[str, ...], rows: list[tuple]) -> str:
    """A Markdown table; cells are kept on one line."""
    cells = [[" ".join(str(cell).replace("|", "\\|").split()) for cell in row] for row in rows]
    lines = [heads, ["---"] * len(heads), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def facts_table(folder: ModelFolder) -> str:
    """What `config.json` and the weights say.

    Raises:
        PublishInputError: if they cannot be.
    """
    config, (parameters, dtypes) = folder.config, weight_facts(folder)
    check_shape(config, dict.fromkeys(_FACTS, object), folder.path / CONFIG, PublishInputError)
    try:
        LlavaViTConfig(**{name: config[name] for name in _FACTS})
    except ValueError as error:
        raise PublishInputError(f"{folder.path / CONFIG}: {error}") from error
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    rows = [
        ("layout", f"{folder.layout} (`model_type: {config['model_type']}`)"),
        ("parameters", f"{parameters:,} ({', '.join(dtypes)})"),
        ("hidden size, layers", f"{config['hidden_size']}, {config['num_hidden_layers']}"),
        ("heads, head dim", f"{config['num_attention_heads']}, {head_dim}"),
        ("MLP size", config["intermediate_size"]),
        ("patch size", f"{config['patch_size']} pixels"),
        ("norm", f"{config['layer_norm_type']}, epsilon {config['layer_norm_eps']}"),
        ("pooling head", f"yes, epsilon {config['head_norm_eps']}" if config.get("use_head", True) else "no"),
        ("rotary embedding", f"time, height, width = 4:6:6, theta {config['rope_theta']:g}"),
    ]
    variant = fitting_variant(config)
    return table(("", ""), [("variant", f"`{variant}`"), *rows] if variant else rows)


def weight_facts(folder: ModelFolder) -> tuple[int, list[str]]:
    """Number of parameters and the dtypes of the weights, from the headers of the safetensors files.

    Raises:
        PublishError: if a file is no safetensors file.
    """
    parameters, dtypes = 0, set()
    for file in folder.files.values():
        if file.path is None:
            continue
        try:
            with safe_open(file.path, framework="np") as weights:
                for name in weights.keys():
                    tensor = weights.get_slice(name)
                    size = 1
                    for side in tensor.get_shape():
                        size *= side
                    parameters += size
                    dtypes.add(tensor.get_dtype())
        except SafetensorError as error:
            raise PublishError(f"{file.path} is no complete safetensors file: {error}.") from error
    return parameters, sorted(dtypes)


def _template_fields(folder: ModelFolder, repo_id: str, pin: str) -> dict:
    config, processor = folder.config, folder.processor
    crop = processor.get("crop_size") or config.get("image_size")
    code = [file for name, file in folder.files.items() if name.endswith(".py")]
    data = [file for name, file in (folder.files | folder.reports).items() if not name.endswith(".py")]
    return {
        "title": repo_id.split("/")[-1],
        "repo_id": repo_id,
        "pin": pin,
        "layout": folder.layout,
        "notice": notice_line(folder),
        "begin": BEGIN,
        "end": END,
        "facts": facts_table(folder),
        "image_size": crop.get("height") if isinstance(crop, dict) else crop,
        "num_frames": processor.get("num_frames", 8),
        "patch_size": config["patch_size"],
        "hidden_size": config["hidden_size"],
        "use_head": config.get("use_head", True),
        "verification": verification_section(folder),
        "code": _hash_table(code),
        "data": _hash_table(data),
    }


def _hash_table(files: list) -> str:
    return table(("file", "bytes", "sha256"), [(f"`{file.name}`", file.size, f"`{file.sha256}`") for file in files])


def _case_arrays(arrays: dict) -> list[tuple[str, dict | None]]:
    layers = arrays.get("hidden_states") or []
    found = [("hidden_states[-2]", layers[-2])] if len(layers) > 1 else []
    if layers:
        # A layer without a number differs most of all.
        worst = max(layers, key=lambda metrics: float("inf") if (e := metrics["relative_error"]) is None else e)
        found.append((f"hidden_states, worst of {len(layers)}", worst))
    return found + [(name, arrays[name]) for name in ("last_hidden_state", "pooler_output") if arrays.get(name)]


def _grids(grids: list[list[int]]) -> str:
    return ", ".join("x".join(map(str, grid)) for grid in grids)


def _metrics(metrics: dict | None) -> tuple[str, str, str]:
    metrics = metrics or {}
    cosine = metrics.get("min_cosine")
    others = (metrics.get(name) for name in ("relative_error", "max_abs"))
    return ("n/a" if cosine is None else f"{cosine:.8f}", *("n/a" if v is None else f"{v:.2e}" for v in others))


def _bounds(bounds: dict) -> str:
    signs = {"min_cosine": ">=", "relative_error": "<=", "max_abs": "<="}
    named = [(name, sign, bounds.get(name)) for name, sign in signs.items()]
    # Ten digits: a bound on the cosine may be that close to 1.
    return ", ".join(
        f"{name.replace('_', ' ')} {sign} {value:.10g}" for name, sign, value in named if value is not None
    )
