"""report.html of an evaluation: one self-contained file with tables, plots and the worst and best images."""

from __future__ import annotations

import json
from collections import Counter
from html import escape
from pathlib import Path

from lucidnft.charts import interval_bar
from lucidnft.checkpoint import save_text
from lucidnft.evaluation import contact_sheets, plots
from lucidnft.evaluation.evaluator import Evaluation, MetricInfo
from lucidnft.evaluation.summary import SIGNIFICANT, Summary, label
from lucidnft.evaluation.tables import arrow, detail_cells, detail_note, legend, missing_lines, num_images
from lucidnft.report_page import fold, page, paragraph, section, table

REPORT_FILE = "report.html"
MOST_LINES = 200  # of what is missing; scores.json has all
STYLE = (
    ".best { font-weight: 700; } .second { text-decoration: underline; } li { overflow-wrap: anywhere; }\n"
)


def write_report(folder: Path, result: Evaluation, summary: Summary) -> Path:
    """Write folder/report.html, replacing an earlier one; returns its path.  Raises OSError when it cannot."""
    html = page(
        f"{result.benchmark}: evaluation",
        [
            f"<h1>{escape(result.benchmark)}</h1>",
            paragraph(verdict(result, summary), "verdict"),
            paragraph(f"Protocol {result.protocol.name}. {result.protocol.summary}", "soft"),
            _missing_section(result),
            _table_section(result, summary),
            _interval_section(result, summary),
            _scatter_section(result, summary),
            *_sorted_sections(result),
            *_sheet_sections(result, summary),
            _facts_section(result),
        ],
        style=STYLE + plots.STYLE + contact_sheets.STYLE,
    )
    path = folder / REPORT_FILE
    save_text(path, html)
    return path


def verdict(result: Evaluation, summary: Summary) -> str:
    """A sentence for every method: how many metrics it improves over the baseline, by the corrected test."""
    sentences = []
    for method in result.methods:
        cells = [c for m in result.metrics if (c := summary.get(method, m.name)) is not None]
        counts = Counter(cell.gain.verdict for cell in cells if cell.gain is not None)
        if counts:
            parts = [f"{counts[kind]} {kind}" for kind in ("improved", "worse", "not distinguishable")]
            if alone := len(cells) - counts.total():
                parts.append(f"{alone} without a comparison")
            sentences.append(
                f"{method} against {result.baseline}: {', '.join(parts)} of {len(cells)} metrics."
            )
        elif method != result.baseline:
            sentences.append(
                f"{method}: {len(cells)} metrics on {num_images(result, summary, method)} images."
            )
    if any(cell.gain is not None for cell in summary.cells.values()):
        sentences.append(f"(Wilcoxon's signed-rank test, Holm-corrected, p < {SIGNIFICANT:g}.)")
    return " ".join(sentences)


def _missing_section(result: Evaluation) -> str:
    lines = [*result.notes, *missing_lines(result)]
    if not lines:
        return ""
    shown = "".join(f"<li>{escape(line)}</li>" for line in lines[:MOST_LINES])
    if len(lines) > MOST_LINES:
        shown += f"<li>and {len(lines) - MOST_LINES} more, in scores.json</li>"
    count = len(lines) - len(result.notes)
    title = f"{count} without a number" if count else "Notes"
    return section(title, f'<ul class="soft">{shown}</ul>')


def _table_section(result: Evaluation, summary: Summary) -> str:
    header = ["method", "n", *(f"{escape(label(m))} {arrow(m)}" for m in result.metrics)]
    rows = [
        [escape(method), num_images(result, summary, method)]
        + [_number(summary, method, metric) for metric in result.metrics]
        for method in result.methods
    ]
    note = legend(result, summary, bold="bold", second="underlined", star="*")
    numeric = frozenset(range(1, len(header)))
    return section("Results", table(header, rows, numeric), paragraph(note, "soft"))


def _number(summary: Summary, method: str, metric: MetricInfo) -> str:
    cell = summary.get(method, metric.name)
    if cell is None:
        return "-"
    digits = summary.decimals[metric.name]
    kind = (
        "best"
        if method in summary.best[metric.name]
        else "second"
        if method in summary.second[metric.name]
        else ""
    )
    text = f'<span class="{kind}">{cell.mean:.{digits}f}</span>'
    if cell.gain is None:
        return text
    star = "*" * cell.gain.significant
    return f'{text}<br><span class="soft">({cell.gain.paired.difference:+.{digits}f}{star})</span>'


def _interval_section(result: Evaluation, summary: Summary) -> str:
    means, gains = [], []
    for method in result.methods:
        for metric in result.metrics:
            cell = summary.get(method, metric.name)
            if cell is None:
                continue
            texts = [escape(text) for text in detail_cells(cell, summary.decimals[metric.name])]
            name = [escape(method), f"{escape(label(metric))} {arrow(metric)}"]
            means.append([*name, *texts[:3]])
            if cell.gain is not None:
                paired = cell.gain.paired
                kind = "" if " " in cell.gain.verdict else cell.gain.verdict
                badge = f'<span class="badge {kind}">{cell.gain.verdict}</span>'
                bar = interval_bar(paired.difference, paired.low, paired.high)
                gains.append([*name, str(paired.n), *texts[3:7], bar, badge])
    if not means:
        return ""
    parts = [table(["method", "metric", "n", "mean", "95% interval"], means, frozenset({2, 3, 4}))]
    if gains:
        header = ["method", "metric", "n", "gain", "95% interval", "p", "p (Holm)", "", ""]
        parts = [
            f"<h3>Gains over {escape(str(result.baseline))}</h3>",
            table(header, gains, frozenset({2, 3, 4, 5, 6})),
            "<h3>Means</h3>",
            *parts,
        ]
    return section("Intervals and tests", *parts, paragraph(detail_note(result, summary), "soft"))


def _scatter_section(result: Evaluation, summary: Summary) -> str:
    charts = plots.scatter_charts(result, summary)
    if not charts:
        return ""
    note = "Large dots: means with 95% intervals; small dots: images. Axes of lower-is-better metrics are reversed."
    return section(
        "Perception against faithfulness",
        plots.legend(result),
        f'<div class="grid">{"".join(charts)}</div>',
        paragraph(note, "soft"),
    )


def _sorted_sections(result: Evaluation) -> list[str]:
    if result.baseline is None:
        return []
    return [
        section(
            f"{method} against {result.baseline}, image by image",
            f'<div class="grid">{"".join(plots.sorted_charts(result, method))}</div>',
        )
        for method in result.methods
        if method != result.baseline
    ]


def _sheet_sections(result: Evaluation, summary: Summary) -> list[str]:
    methods = [m for m in result.methods if m != result.baseline] or list(result.methods)
    sections = []
    for method in methods:
        sheets = [
            (metric, contact_sheets.contact_sheet(result, summary, method, metric))
            for metric in result.metrics
            if result.scores[method][metric.name]
        ]
        folds = [
            f'<details class="card"{" open" * (index == 0)}><summary>{escape(label(metric))}, '
            f"{escape(contact_sheets.order_of(result, method, metric))}</summary>{sheet}</details>"
            for index, (metric, sheet) in enumerate(sheets)
        ]
        sections.append(section(f"{method}: worst and best", *folds))
    return sections


def _facts_section(result: Evaluation) -> str:
    folders = [[escape(method), escape(folder)] for method, folder in result.folders.items()]
    facts = json.dumps({metric.name: metric.facts for metric in result.metrics}, indent=2)
    return section(
        "How it was computed",
        fold("Folders", table([], folders)),
        fold("Settings, weights and versions of every metric", f"<pre>{escape(facts)}</pre>"),
    )
