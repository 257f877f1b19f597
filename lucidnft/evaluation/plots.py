"""Pictures of an evaluation as inline SVG: perception against faithfulness, and sorted differences of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from lucidnft.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Point, axes, scale, thinned, ticks
from lucidnft.evaluation.evaluator import Evaluation, MetricInfo
from lucidnft.evaluation.summary import Cell, Summary, label

MAX_BARS = 240
MAX_DOTS = 120  # images of one method that a scatter shows
NUM_COLOURS = 8

STYLE = """
:root { --m0: #5b6675; --m1: #2463c9; --m2: #c2571a; --m3: #10734a; --m4: #8a3ea8; --m5: #b3261e; --m6: #8a6d00;
  --m7: #0b7285; }
@media (prefers-color-scheme: dark) { :root { --m0: #9aa6b5; --m1: #79a8f7; --m2: #f0a06a; --m3: #7fd8ad;
  --m4: #d39bea; --m5: #f5a49e; --m6: #e0c35a; --m7: #6cc9d8; } }
.image { opacity: .28; } .cross { stroke-width: 1.6; opacity: .8; fill: none; } .mean { stroke: var(--card); }
.gained { fill: var(--good); } .lost { fill: var(--bad); } .gained, .lost { opacity: .75; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: .9rem; margin: .4em 0 .9em; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 99px; margin-right: 6px; }
""" + "".join(
    f".m{i} {{ fill: var(--m{i}); stroke: var(--m{i}); background: var(--m{i}); }}\n"
    for i in range(NUM_COLOURS)
)


@dataclass(frozen=True)
class _Cloud:
    """One method in a scatter."""

    name: str
    colour: str
    images: list[tuple[str, Point]]  # (stem, scores)
    x: Cell
    y: Cell


def scatter_charts(result: Evaluation, summary: Summary, limit: int = 2) -> list[str]:
    """Figures of perception (metrics of the restored image alone) against faithfulness (those that see HR or LR).

    Up to `limit` metrics of each kind, in the order of the tables; none where one kind is missing.
    """
    faithful = [m for m in result.metrics if m.needs & {"hr", "lr"}][:limit]
    perceptual = [m for m in result.metrics if not m.needs & {"hr", "lr"}][:limit]
    charts = (_scatter(result, summary, x, y) for y in perceptual for x in faithful)
    return [chart for chart in charts if chart]


def legend(result: Evaluation) -> str:
    """Which colour is which method."""
    return '<p class="legend">' + "".join(
        f'<span><i class="{colour_of(result, name)}"></i>{escape(name)}</span>' for name in result.methods
    ) + "</p>"  # fmt: skip


def colour_of(result: Evaluation, method: str) -> str:
    """The CSS class of a method."""
    return f"m{result.methods.index(method) % NUM_COLOURS}"


def sorted_charts(result: Evaluation, method: str) -> list[str]:
    """One figure for each metric: how much better than the baseline each image is, worst first."""
    assert result.baseline is not None
    charts = []
    for metric in result.metrics:
        base, own = (result.scores[name][metric.name] for name in (result.baseline, method))
        changes = [(own[stem] - base[stem], stem) for stem in own if stem in base]
        if changes:
            charts.append(_sorted_bars(metric, sorted(changes, reverse=metric.lower_is_better)))
    return charts


def _scatter(result: Evaluation, summary: Summary, x: MetricInfo, y: MetricInfo) -> str:
    clouds = []
    for method in result.methods:
        cells = summary.get(method, x.name), summary.get(method, y.name)
        across, up = result.scores[method][x.name], result.scores[method][y.name]
        if cells[0] is not None and cells[1] is not None:
            images = [(stem, (across[stem], up[stem])) for stem in across if stem in up]
            step = -(-len(images) // MAX_DOTS) or 1
            clouds.append(_Cloud(method, colour_of(result, method), images[::step], *cells))  # type: ignore[arg-type]
    if not clouds:
        return ""
    points = [point for cloud in clouds for _, point in cloud.images]
    points += [(cloud.x.mean, cloud.y.mean) for cloud in clouds]
    x_ticks, y_ticks = (ticks(min(values), max(values)) for values in zip(*points, strict=True))
    ends = ((LEFT, WIDTH - RIGHT), (HEIGHT - BOTTOM, TOP))
    to_x, to_y = (
        scale(*((t[-1], t[0]) if metric.lower_is_better else (t[0], t[-1])), *end)
        for t, metric, end in zip((x_ticks, y_ticks), (x, y), ends, strict=True)
    )
    parts = axes(
        x_ticks,
        y_ticks,
        to_x,
        to_y,
        x_label=f"{label(x)}, better to the right",
        y_label=f"{label(y)}, better up",
    )
    for cloud in clouds:
        parts += [
            f'<circle class="image {cloud.colour}" cx="{to_x(p[0]):.1f}" cy="{to_y(p[1]):.1f}" r="2.2">'
            f"<title>{escape(cloud.name)}, {escape(stem)}: {p[0]:.5g}, {p[1]:.5g}</title></circle>"
            for stem, p in cloud.images
        ]
    for cloud in clouds:
        middle = to_x(cloud.x.mean), to_y(cloud.y.mean)
        if cloud.x.low is not None and cloud.x.high is not None:
            parts.append(_line(cloud.colour, to_x(cloud.x.low), middle[1], to_x(cloud.x.high), middle[1]))
        if cloud.y.low is not None and cloud.y.high is not None:
            parts.append(_line(cloud.colour, middle[0], to_y(cloud.y.low), middle[0], to_y(cloud.y.high)))
        parts.append(
            f'<circle class="mean {cloud.colour}" cx="{middle[0]:.1f}" cy="{middle[1]:.1f}" r="5">'
            f"<title>{escape(cloud.name)}, mean: {cloud.x.mean:.5g}, {cloud.y.mean:.5g}</title></circle>"
        )
    return _figure(f"{label(y)} against {label(x)}", "", parts)


def _sorted_bars(metric: MetricInfo, changes: Sequence[tuple[float, str]]) -> str:
    better = sum((change < 0) if metric.lower_is_better else (change > 0) for change, _ in changes)
    bars = thinned([(index + 0.5, change) for index, (change, _) in enumerate(changes)], MAX_BARS)
    values = [change for _, change in bars]
    y_ticks = ticks(min(0.0, *values), max(0.0, *values))
    x_ticks = [t for t in ticks(0, len(changes), whole=True) if t <= len(changes)]
    to_x = scale(0, len(changes), LEFT, WIDTH - RIGHT)
    to_y = scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    sign = " (negative is better)" if metric.lower_is_better else ""
    parts = axes(
        x_ticks, y_ticks, to_x, to_y, x_label="images, from the most worsened", y_label=f"change{sign}"
    )
    width = (WIDTH - LEFT - RIGHT) / len(bars)
    for index, (_, change) in enumerate(bars):
        upper, lower = sorted((to_y(change), to_y(0.0)))
        gained = (change < 0) if metric.lower_is_better else (change > 0)
        title = (
            f"<title>{escape(changes[index][1])}: {change:+.5g}</title>" if len(bars) == len(changes) else ""
        )
        parts.append(
            f'<rect class="{"gained" if gained else "lost"}" x="{LEFT + index * width:.2f}" y="{upper:.1f}" '
            f'width="{max(width - 0.6, 0.6):.2f}" height="{max(lower - upper, 0.4):.1f}">{title}</rect>'
        )
    parts.append(
        f'<line class="zero" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{to_y(0.0):.1f}" y2="{to_y(0.0):.1f}"/>'
    )
    return _figure(label(metric), f"better in {better} of {len(changes)}", parts)


def _line(colour: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="cross {colour}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _figure(title: str, remark: str, parts: Sequence[str]) -> str:
    return (
        f'<figure><figcaption>{escape(title)}<span class="last">{escape(remark)}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )
