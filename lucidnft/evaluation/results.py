"""The files of an evaluation that programs read: scores.csv in long format, scores.json with everything."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lucidnft.checkpoint import save_json, save_text
from lucidnft.evaluation.evaluator import Evaluation
from lucidnft.evaluation.summary import Summary, label
from lucidnft.evaluation.tables import latex, markdown

CSV_FILE, JSON_FILE, MARKDOWN_FILE, LATEX_FILE = "scores.csv", "scores.json", "tables.md", "tables.tex"


def write_results(folder: Path, result: Evaluation, summary: Summary, *, method_column: bool) -> None:
    """Write scores.csv, scores.json, tables.md and tables.tex, each whole or not at all.

    method_column: scores.csv starts with the column method; else its columns are stem, metric, value.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = long_rows(result)
    columns = ["method"] * method_column + ["stem", "metric", "value"]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([row[name] for name in columns] for row in rows)
    save_text(folder / CSV_FILE, text.getvalue())
    save_json(folder / JSON_FILE, record_of(result, summary, rows))
    save_text(folder / MARKDOWN_FILE, markdown(result, summary))
    save_text(folder / LATEX_FILE, latex(result, summary))


def long_rows(result: Evaluation) -> list[dict[str, Any]]:
    """One row for every score, by method, image and metric; what has no score has no row."""
    return [
        {"method": method, "stem": stem, "metric": metric.name, "value": values[metric.name][stem]}
        for method, values in result.scores.items()
        for stem in result.cases[method]
        for metric in result.metrics
        if stem in values[metric.name]
    ]


def record_of(result: Evaluation, summary: Summary, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything, as plain values: what was asked, how it was computed, the numbers, and what is missing."""
    return {
        "benchmark": result.benchmark,
        "protocol": asdict(result.protocol),
        "baseline": result.baseline,
        "methods": {method: {"folder": result.folders[method]} for method in result.methods},
        "metrics": {
            metric.name: {"label": label(metric), "lower_is_better": metric.lower_is_better, **metric.facts}
            for metric in result.metrics
        },
        "summary": [cell.record() for cell in summary.cells.values()],
        "scores": rows,
        "problems": [asdict(problem) for problem in result.problems],
        "unavailable": [asdict(metric) for metric in result.unavailable],
        "notes": [*result.notes, *summary.notes],
    }
