# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""One HTML page about a run: it needs no other file, no network and no script."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

from PIL import Image

from examples.extraction.comparisons import MAX_ROWS, RELATIVE_ERROR, Report
from examples.extraction.feature_pictures import HEAT, HIGHEST, LOWEST


STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1b1f24; --soft: #59636e; --line: #d5dae0;
  --good: #116329; --good-page: #dcf5e3; --bad: #a40e26; --bad-page: #ffe3e0; }
@media (prefers-color-scheme: dark) {
  :root { --page: #101418; --card: #181d23; --text: #e6eaef; --soft: #9aa5b1; --line: #333c46;
    --good: #7ee2a0; --good-page: #12351f; --bad: #ff9d94; --bad-page: #4a1513; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.5rem; margin: 8px 0; } h2 { font-size: 1.15rem; margin: 28px 0 8px; }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
p { margin: 4px 0 12px; } .soft { color: var(--soft); font-size: .875rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px; margin: 12px 0; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
tr:last-child td { border-bottom: 0; } th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
.facts td:first-child { white-space: nowrap; color: var(--soft); }
.mark { display: inline-block; padding: 1px 8px; border-radius: 10px; font-weight: 600; }
.pass { color: var(--good); background: var(--good-page); } .fail { color: var(--bad); background: var(--bad-page); }
.pictures { display: flex; flex-wrap: wrap; gap: 14px; margin-top: 10px; }
figure { margin: 0; flex: 1 1 260px; min-width: 0; } figure.strip { flex-basis: 100%; overflow-x: auto; }
figure.strip img { max-width: none; height: 150px; width: auto; }
img { max-width: 100%; max-height: 480px; display: block; }
figcaption { color: var(--soft); font-size: .8125rem; margin-bottom: 4px; position: sticky; left: 0; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)); gap: 12px; }
.gallery .card { margin: 0; } .gallery img { margin: 0 auto 8px; max-height: 200px; }
.gallery figure:first-child { border-color: var(--text); }
.scale { height: 14px; border-radius: 4px; border: 1px solid var(--line); }
.ticks { display: flex; justify-content: space-between; font-size: .8125rem; color: var(--soft); }
.reasons { color: var(--bad); margin: 6px 0; font-size: .875rem; overflow-wrap: anywhere; }
@media (max-width: 600px) { main { padding: 10px; } figure.strip img { height: 120px; }
  .gallery { grid-template-columns: 1fr 1fr; } }
"""


@dataclass
class SamplePictures:
    """What the page shows of one sample: pictures by caption, and words where there is none."""

    name: str
    facts: str
    pictures: dict[str, Image.Image] = field(default_factory=dict)
    is_strip: bool = False
    note: str = ""


def render_page(title: str, samples: list[SamplePictures], report: Report | None, facts: dict, omitted: int) -> str:
    """The page as text.

    Args:
        report: the comparison, if there was something to compare with.
        facts: what to say of the environment, by name.
        omitted: how many samples have no pictures.
    """
    parts = []
    if report is not None:
        parts += [_summary(report), _origins(report), _table(report)]
    parts.append("<h2>Pictures</h2>")
    if report is not None:
        parts.append(_scale(report))
    parts += [_sample(sample) for sample in samples]
    if omitted:
        parts.append(f'<p class="soft">{omitted} more samples are not shown; see --max_samples and --ids.</p>')
    parts += ["<h2>Environment</h2>", _facts(facts)]
    return page_of(title, parts)


def page_of(title: str, parts: list[str]) -> str:
    """A whole page of its parts, which are HTML."""
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n<h1>{escape(title)}</h1>\n{body}\n"
        "</main></body></html>\n"
    )


def table_of(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of text, which may be wider than the page."""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _mark(passed: bool) -> str:
    return f'<span class="mark {"pass" if passed else "fail"}">{"PASS" if passed else "FAIL"}</span>'


def _summary(report: Report) -> str:
    passed = sum(verdict.passed for verdict in report.verdicts)
    return (
        f"<p>{_mark(report.passed)} {passed} of {len(report.verdicts)} comparisons pass: {escape(report.actual)} "
        f"against {escape(report.expected)}, {report.dtype}, min cosine &ge; {report.threshold:g}, relative error "
        f"&le; {RELATIVE_ERROR[report.dtype]:g}.</p>"
    )


def _origins(report: Report) -> str:
    if not report.origins:
        return ""
    rows = []
    for name, reasons in report.origins.items():
        said = "<br>".join(escape(reason) for reason in reasons[:MAX_ROWS]) or f"same ({report.checked[name]})"
        rows.append(f"<tr><td>{escape(name)}</td><td>{_mark(not reasons)} {said}</td></tr>")
    return f'<h2>Made from</h2><div class="scroll"><table class="facts">{"".join(rows)}</table></div>'


def _table(report: Report) -> str:
    verdicts = report.verdicts
    if len(verdicts) > MAX_ROWS:
        verdicts = [verdict for verdict in verdicts if not verdict.passed][:MAX_ROWS]
    if not verdicts:
        return ""
    names = ("input", "result", "shape", "min cosine", "mean cosine", "max abs", "mean abs", "relative error")
    rows = "".join(_verdict_row(verdict) for verdict in verdicts)
    head = "".join(f"<th>{name}</th>" for name in names)
    reasons = "".join(
        f'<p class="reasons">{escape(verdict.name)}: {escape("; ".join(verdict.reasons))}</p>'
        for verdict in verdicts
        if not verdict.passed
    )
    return f'<h2>Comparison</h2><div class="scroll"><table><tr>{head}</tr>{rows}</table></div>{reasons}'


def _verdict_row(verdict) -> str:
    c = verdict.comparison
    shape = "&times;".join(map(str, c.shape_expected))
    if not c.shapes_equal:
        shape = f"{'&times;'.join(map(str, c.shape_actual))} for {shape}"
    numbers = [f"{value:.7f}" for value in (c.min_cosine, c.mean_cosine)]
    numbers += [f"{value:.2e}" for value in (c.max_abs, c.mean_abs, c.relative_error)]
    cells = "".join(f"<td>{cell}</td>" for cell in (_mark(verdict.passed), shape, *numbers))
    return f"<tr><td>{escape(verdict.name)}</td>{cells}</tr>"


def _scale(report: Report) -> str:
    colours = ", ".join("#{:02x}{:02x}{:02x}".format(*colour) for colour in HEAT)
    ticks = "".join(f"<span>1e{decade}</span>" for decade in range(LOWEST, HIGHEST + 1, 2))
    return (
        '<div class="card"><p class="soft">Difference of each patch, relative to its size, on one logarithmic scale '
        f"for all pictures. Rounding is dark; the bound of a whole sample is {RELATIVE_ERROR[report.dtype]:g}.</p>"
        f'<div class="scale" style="background:linear-gradient(90deg, {colours})"></div>'
        f'<div class="ticks">{ticks}</div></div>'
    )


def _sample(sample: SamplePictures) -> str:
    kind = ' class="strip"' if sample.is_strip else ""
    figures = "".join(
        f"<figure{kind}><figcaption>{escape(caption)}</figcaption>"
        f'<img alt="{escape(caption)} of {escape(sample.name)}" src="{data_url(picture)}"></figure>'
        for caption, picture in sample.pictures.items()
    )
    note = f'<p class="reasons">{escape(sample.note)}</p>' if sample.note else ""
    return (
        f'<section class="card"><h3>{escape(sample.name)}</h3><p class="soft">{escape(sample.facts)}</p>{note}'
        f'<div class="pictures">{figures}</div></section>'
    )


def data_url(picture: Image.Image) -> str:
    """A picture as an address that holds it."""
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _facts(facts: dict) -> str:
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>" for name, value in facts.items())
    return f'<div class="scroll"><table class="facts">{rows}</table></div>'
