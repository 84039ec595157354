# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The model card says what is published and no more, and leaves other people's prose alone."""

import json
import urllib.error
import urllib.request

import pytest
from huggingface_hub import ModelCard

from conversion.common.model_folder import PublishError, PublishInputError, read_model_folder
from conversion.publishing import model_card
from conversion.publishing.card_features import CardRecord
from conversion.publishing.model_card import BEGIN, END, NOTICE, render_card
from conversion.verification.report import markdown_report, read_report
from conversion.verification.report_tables import (
    bounds_list,
    cases_table,
    controls_table,
    environment_table,
    inputs_table,
)
from tests.conversion.publishing.publishable import report_of, sha256_of, verified_folder, write_report
from tests.loopback_hub import LoopbackHub


PROSE = "# Our model\n\nTrained with care.\n\n## Citation\n\n> cite us\n"


def card_of(folder, pin="verified-0", features=None, sibling=None, project_url=None, **given):
    record = CardRecord("user/model.v1", pin, pin, sibling, project_url)
    return render_card(read_model_folder(folder), record, features, **given)


@pytest.fixture(params=["dense", "packing"])
def folder(request, tmp_path):
    return verified_folder(tmp_path / "model", request.param)


def validate(content):
    """The loopback's validator, asked as the clients ask the Hub."""
    with LoopbackHub() as hub:
        body = json.dumps({"content": content, "repoType": "model"}).encode()
        url, headers = f"{hub.endpoint}/api/validate-yaml", {"Content-Type": "application/json"}
        request = urllib.request.Request(url, body, headers)
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)["errors"]
        except urllib.error.HTTPError as error:
            return json.load(error)["errors"]


def test_metadata_comes_first_and_is_valid(folder):
    content = card_of(folder, base_model="user/base")
    assert content.startswith("---\n") and validate(content) == []
    assert validate(PROSE)  # the validator can refuse
    data = ModelCard(content).data
    layout = read_model_folder(folder).layout
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "apache-2.0",
        "transformers",
        "image-feature-extraction",
    )
    assert data.base_model == "user/base" and {"custom_code", layout} <= set(data.tags)
    assert ModelCard(card_of(folder)).data.base_model is None


def test_facts_come_from_the_files(folder):
    content = card_of(folder)
    assert "| hidden size, layers | 64, 2 |" in content and "| heads, head dim | 2, 32 |" in content
    assert "| norm | layer_norm, epsilon 1e-05 |" in content and "(F32)" in content
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.25}))
    assert "| norm | layer_norm, epsilon 0.25 |" in card_of(folder)


def test_the_conformance_kit_is_linked_where_the_variant_names_one(folder, monkeypatch):
    assert "use the conformance kit, which `make kit`" in card_of(folder)
    monkeypatch.setattr(model_card, "fitting_variant", lambda config: "llava_vit_ours")
    monkeypatch.setattr(model_card, "read_card_data", lambda name: {"conformance_kit": "user/kit"})
    assert "use the conformance kit [user/kit](/datasets/user/kit), which `make kit`" in card_of(folder)


def test_every_executed_file_is_listed_with_its_hash(folder):
    content = card_of(folder)
    code, data = content[content.index("<summary>Code that") :].split("<summary>Weights, configuration and report")
    for path in folder.iterdir():
        row = f"| `{path.name}` | {path.stat().st_size} | `{sha256_of(path.read_bytes())}` |"
        assert (row in code) == (path.suffix == ".py")
        assert (row in data) == (path.name.endswith((".safetensors", ".json", ".md")))


def test_verification_tables_show_the_report(folder):
    content = card_of(folder)
    assert "**PASS** (2026-11-23T12:00:00+00:00), against `backbone.pt`" in content
    assert "* nearest structural fault: height_width_swapped at a relative error of 6.32e-01" in content
    assert "float32: min cosine >= 0.99999999, relative error <= 1e-05" in content
    assert "| image_448 | float32 | hidden_states[-2] | 0.80000000 | 6.32e-01 | 1.00e+00 | PASS |" in content
    assert "| image_448 | float32 | pooler_output | 1.00000000 | " in content
    assert "\n* The weights hide nothing.\n" in content
    assert "| height_width_swapped | positions (t, w, h) for (t, h, w) | image_448 | structural |" in content
    assert f"| image_448 | one \\| image | 1x32x32 | `{'b' * 64}` |" in content
    assert "| transformers | 5.23.0 |" in content and "verify_model.py model.v1\n" in content


def test_hidden_fault_and_absent_numbers_stand_out(folder):
    report = report_of(folder, "INCONCLUSIVE")
    report["controls"][0]["detected"] = False
    report["cases"][0]["arrays"]["pooler_output"]["min_cosine"] = None
    content = card_of(write_report(folder, report))
    assert "| **no** |" in content and "| pooler_output | n/a |" in content
    assert "It does not prove this model: verification.json says 'INCONCLUSIVE'" in content


def test_a_check_against_the_own_weights_is_called_so(folder):
    report = report_of(folder)
    report["source"]["sha256"] = {"model.safetensors": report["model"]["files"]["model.safetensors"]}
    phrase = "proves its code, not its conversion"
    assert phrase not in card_of(folder) and phrase in card_of(write_report(folder, report))


def test_snippets_pin_and_repeat_nothing_unpinned(folder):
    content = card_of(folder, pin="verified-123")
    loads = [line for line in content.splitlines() if "from_pretrained" in line or "pipeline(" in line]
    assert len(loads) >= 2 and all("revision=revision" in line and "trust_remote_code=True" in line for line in loads)
    assert 'repo_id, revision = "user/model.v1", "verified-123"' in content


def test_unverified_is_said_in_the_first_line(folder):
    (folder / "verification.json").unlink()
    first = ModelCard(card_of(folder)).text.strip().splitlines()[0]
    assert first.startswith(f"{NOTICE} there is no verification.json")
    merged = card_of(folder, existing=f"---\nlicense: mit\n---\n{PROSE}")
    assert ModelCard(merged).text.strip().splitlines()[0] == first
    again = card_of(folder, existing=merged)
    assert again == merged and again.count(NOTICE) == 1


def test_notice_goes_when_the_model_is_verified(folder, tmp_path):
    hidden = (folder / "verification.json").rename(tmp_path / "kept.json")
    unverified = card_of(folder)
    hidden.rename(folder / "verification.json")
    verified = card_of(folder, existing=unverified)
    assert verified == card_of(folder)


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_prose_of_an_existing_readme_is_kept(folder, line_break):
    existing = f"---\nlicense: mit\nlanguage: en\ntags:\n- mine\n---\n{PROSE}".replace("\n", line_break)
    first = card_of(folder, existing=existing)
    assert PROSE.replace("\n", line_break).strip() in first and validate(first) == []
    data = ModelCard(first).data
    assert (data.license, data.language, data.library_name) == ("mit", "en", "transformers")
    assert data.tags[0] == "mine" and "custom_code" in data.tags
    assert first.replace(line_break, "").isprintable()
    assert card_of(folder, existing=first) == first

    edited = first.replace("Trained with care.", "Trained twice.") + f"{line_break}A last word.{line_break}"
    second = card_of(folder, pin="verified-new", existing=edited)
    assert "Trained twice." in second and second.rstrip().endswith("A last word.")
    assert "verified-new" in second and "verified-0" not in second
    assert second.count(BEGIN) == second.count(END) == 1


def test_generated_card_is_stable(folder):
    content = card_of(folder)
    assert card_of(folder, existing=content) == content


@pytest.mark.parametrize(
    ("existing", "message"),
    [
        ("---\nlicense: [unclosed\n---\n", "metadata that cannot be read"),
        ("---\n- a\n---\n", "metadata that cannot be read"),
        (f"{PROSE}{BEGIN}\n", "expected one pair or none"),
        (f"{PROSE}{END}\n{BEGIN}\n", "expected one pair or none"),
        (f"{BEGIN}{END}{BEGIN}{END}", "expected one pair or none"),
    ],
)
def test_a_readme_that_cannot_be_merged_is_refused(folder, existing, message):
    with pytest.raises(PublishError, match=message):
        card_of(folder, existing=existing)


def test_weights_that_are_cut_short_are_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(PublishError, match="model.safetensors is no complete safetensors file"):
        card_of(folder)


def test_reports_of_the_first_form_are_published_with_their_tables(folder):
    """They lack two fields that `verify_model.py` needs and the card does not show."""
    report = report_of(folder)
    first = {name: value for name, value in report.items() if name not in ("taken_on_trust", "margins")}
    content = card_of(folder)
    with pytest.raises(ValueError, match="has no field taken_on_trust, margins"):
        read_report(write_report(folder, first))
    hash_of_report = sha256_of((folder / "verification.json").read_bytes())
    tables = "".join(
        line for line in content[: content.index("## Files")].splitlines(True) if "* nearest " not in line
    )
    assert card_of(folder).startswith(tables) and hash_of_report in card_of(folder)
    first["cases"][0]["arrays"]["pooler_output"] = {"min_cosine": 1.0}
    with pytest.raises(PublishInputError, match=r"cases\[0\]\.arrays\.pooler_output has no field mean_cosine"):
        card_of(write_report(folder, first))


def test_both_pages_show_the_same_tables(folder):
    content, page = card_of(folder), markdown_report(report_of(folder))
    for part in (controls_table, inputs_table, environment_table):
        assert part(report_of(folder)) in content and part(report_of(folder)) in page
    assert cases_table(report_of(folder)) in content and cases_table(report_of(folder), detailed=True) in page
    for bounds in bounds_list(report_of(folder)):
        assert bounds in content and f"* {bounds}" in page
