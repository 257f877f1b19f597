"""report.html of a run: one self-contained file with the before/after table, curves, pictures and settings."""

from __future__ import annotations

import base64
import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from lucidnft.charts import Curve, interval_bar, line_chart
from lucidnft.checkpoint import load_json, save_text
from lucidnft.metric_logger import read_metrics
from lucidnft.report_page import fold, page, paragraph, section, table
from lucidnft.training.comparison import (
    ScoreComparison,
    compare_scores,
    format_table,
    read_scores,
    summarise,
)

__all__ = ["compare_scores", "finish_run", "format_table", "write_report"]

REPORT_FILE = "report.html"
MAX_PICTURE_WIDTH = 1800  # pixels; wider grids are scaled down
JPEG_QUALITY = 90

GROUPS = {  # prefix of a metric's name -> (title, what its y axis shows)
    "eval": ("On the held-out images", "mean score"),
    "reward": ("Rewards of the rollouts", "score"),
    "advantage": ("Advantages: is there a signal?", "value"),
    "loss": ("Losses", "loss"),
    "health": ("Distance from the base", "ratio or rms"),
    "train": ("Optimisation", "value"),
    "perf": ("Speed", "seconds"),
}
FOLDED = frozenset({"train", "perf"})

_PICTURE = re.compile(r"(?P<name>.+)-(?P<step>\d{6,})\.png")


def finish_run(run_dir: str | Path) -> Path:
    """Print the before/after table of a run and write its report; returns the report's path."""
    records = read_scores(run_dir)
    if len(records) > 1:
        rows = compare_scores(records[0], records[-1])
        first, last = (record["step"] for record in (records[0], records[-1]))
        print(f"\nHeld-out images, step {first}{' (base)' * (first == 0)} against step {last}:\n")
        print(f"{format_table(rows)}\n\n{summarise(rows)}")
    path = write_report(run_dir)
    print(f"report: {path}")
    return path


def write_report(run_dir: str | Path) -> Path:
    """Build <run_dir>/report.html from what the run folder holds; whatever is not there is left out or said.

    Returns:
        The path of the report, which replaces an earlier one.

    Raises:
        FileNotFoundError: there is no metrics.jsonl, so this is not a run folder.
        ValueError: a file of the run is damaged.
    """
    run_dir = Path(run_dir)
    metrics, records = read_metrics(run_dir), read_scores(run_dir)
    rows = compare_scores(records[0], records[-1]) if len(records) > 1 else []
    last_step = max((row["step"] for row in metrics), default=0)
    html = page(
        f"{run_dir.resolve().name}: report",
        [
            f"<h1>{escape(run_dir.resolve().name)}</h1>",
            paragraph(f"After {last_step} steps: {_verdict(rows, metrics)}", "verdict"),
            _comparison_section(rows, records) or _first_and_last_section(metrics),
            _picture_section(run_dir),
            *_curve_sections(metrics, records),
            _settings_section(run_dir),
        ],
    )
    path = run_dir / REPORT_FILE
    save_text(path, html)
    return path


def _verdict(rows: Sequence[ScoreComparison], metrics: Sequence[Mapping[str, Any]]) -> str:
    if rows:
        return summarise(rows)
    changes = [
        f"{name} {p[0][1]:.4f} to {p[-1][1]:.4f}"
        for name, p in _series(metrics, "eval").items()
        if len(p) > 1
    ]
    return f"{', '.join(changes)}." if changes else "no two evaluations to compare yet."


def _comparison_section(rows: Sequence[ScoreComparison], records: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    cells = []
    for row in rows:
        name, kind, _, before, after, difference, interval, verdict = (escape(cell) for cell in row.cells())
        badge = f'<span class="badge {verdict if " " not in verdict else ""}">{verdict}</span>'
        p = row.paired
        bar = interval_bar(p.difference, p.low, p.high)
        cells.append(
            [f'{name} <span class="soft">{kind}</span>', badge, before, after, difference, interval, bar]
        )
    note = (
        f"The same {rows[0].paired.n} images with the same noise, restored by "
        f"{'the base' if records[0]['step'] == 0 else 'the policy'} (step {records[0]['step']}) and "
        f"by the tuned policy (step {records[-1]['step']}). The interval is a paired bootstrap over images; a change "
        "counts when it leaves out zero. Rewards are what the run trained on, guards are only watched."
    )
    header = ["score", "", "before", "after", "difference", "95% interval", ""]
    return section("Before and after", table(header, cells, frozenset({2, 3, 4})), paragraph(note, "soft"))


def _first_and_last_section(metrics: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            escape(name),
            *(f"{v:.4f}" for v in (points[0][1], points[-1][1])),
            f"{points[-1][1] - points[0][1]:+.4f}",
        ]
        for name, points in _series(metrics, "eval").items()
        if len(points) > 1
    ]
    if not rows:
        return ""
    return section(
        "First and last evaluation", table(["metric", "first", "last", "change"], rows, frozenset({1, 2, 3}))
    )


def _series(metrics: Sequence[Mapping[str, Any]], group: str) -> dict[str, list[tuple[float, float]]]:
    """{name without its group: [(step, value)]} of one group of metrics."""
    found: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in metrics:
        for name, value in row.items():
            if name.startswith(f"{group}/") and value is not None:
                found[name.removeprefix(f"{group}/")].append((row["step"], float(value)))
    return dict(found)


def _curve_sections(metrics: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> list[str]:
    named = [name.split("/")[0] for row in metrics for name in row if "/" in name]
    sections = []
    for group in dict.fromkeys([*GROUPS, *named]):
        title, y_label = GROUPS.get(group, (group, "value"))
        bands = _bands(records) if group == "eval" else {}
        charts = []
        for name, points in _series(metrics, group).items():
            axis = "images per second" if name.endswith("_per_second") else y_label
            baseline = points[0][1] if group == "eval" else None
            title_of_chart = name.removesuffix("/mean") if group == "eval" else name
            charts.append(
                line_chart(Curve(title_of_chart, points, axis, bands.get(title_of_chart, ()), baseline))
            )
        if not charts:
            continue
        grid = f'<div class="grid">{"".join(charts)}</div>'
        note = (
            "Dashed: the first evaluation. Shaded: 95% interval of the mean change since then."
            if bands
            else ""
        )
        content = fold(f"{len(charts)} curves", grid) if group in FOLDED else grid
        sections.append(section(title, paragraph(note, "soft") if note else "", content))
    return sections


def _bands(records: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float, float]]]:
    """{score: [(step, low, high)]}: where the mean lies, given the first evaluation, by the interval of the change."""
    bands: defaultdict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for record in records:
        for row in compare_scores(records[0], record):
            p = row.paired
            if p.low is not None and p.high is not None:
                bands[row.name].append((record["step"], p.before + p.low, p.before + p.high))
    return dict(bands)


def _picture_section(run_dir: Path) -> str:
    by_name: defaultdict[str, list[tuple[int, Path]]] = defaultdict(list)
    for path in (run_dir / "images").glob("*.png"):
        match = _PICTURE.fullmatch(path.name)
        if match:
            by_name[match["name"]].append((int(match["step"]), path))
    figures = []
    for name, found in sorted(by_name.items()):
        first, last = min(found), max(found)
        for step, path in dict.fromkeys([last, first]):
            caption = escape(f"{name.replace('_', ' ')}, step {step}")
            figures.append(
                f'<figure class="picture"><figcaption>{caption}</figcaption>'
                f'<img alt="{caption}" src="{_data_uri(path)}"></figure>'
            )
    return section(
        "Pictures, last and first", f'<div class="grid wide">{"".join(figures)}</div>' if figures else ""
    )


def _data_uri(path: Path) -> str:
    with Image.open(path) as image:
        picture = image.convert("RGB")
    if picture.width > MAX_PICTURE_WIDTH:
        height = max(1, round(picture.height * MAX_PICTURE_WIDTH / picture.width))
        picture = picture.resize((MAX_PICTURE_WIDTH, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _settings_section(run_dir: Path) -> str:
    parts = []
    if (run_dir / "config.yaml").is_file():
        text = (run_dir / "config.yaml").read_text(encoding="utf-8")
        parts.append(fold("config.yaml", f"<pre>{escape(text)}</pre>"))
    if (run_dir / "env.json").is_file():
        facts = load_json(run_dir / "env.json")
        packages = facts.pop("packages", {})
        rows = [[escape(str(k)), escape(_plain(v))] for k, v in {**facts, **packages}.items()]
        parts.append(fold("Versions and machine", table([], rows)))
    return section("Settings", *parts)


def _plain(value: Any) -> str:
    if value is None:
        return "not installed or unknown"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
