"""Line charts, interval bars and the axes of any chart as inline SVG, coloured by the page's CSS variables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 240  # of a chart's view box; it scales with its container
LEFT, RIGHT, TOP, BOTTOM = 80, 14, 12, 44  # margins around the plotted area
MAX_POINTS = 400  # of one drawn line; longer curves are averaged in equal runs of steps
MARKED_POINTS = 40  # up to this many points are drawn as dots with their value

Point = tuple[float, float]
Scale = Callable[[float], float]


@dataclass(frozen=True)
class Curve:
    """One metric over training."""

    title: str
    points: Sequence[Point]  # (step, value), in order of step
    y_label: str
    band: Sequence[tuple[float, float, float]] = ()  # (step, low, high) of an interval around the curve
    baseline: float | None = None  # drawn as a dashed line


def line_chart(curve: Curve) -> str:
    """A <figure> with the curve, its axes and their labels.

    Raises:
        ValueError: the curve has no points, or one that is not finite.
    """
    points = thinned(curve.points)
    numbers = [v for point in (*points, *curve.band) for v in point]
    if not points or not all(math.isfinite(v) for v in numbers):
        raise ValueError(f"curve '{curve.title}' has no points, or values that are not finite")
    extra = [] if curve.baseline is None else [curve.baseline]
    values = [y for _, y in points] + extra + [v for _, low, high in curve.band for v in (low, high)]
    x_ticks = ticks(points[0][0], points[-1][0], whole=True)
    y_ticks = ticks(min(values), max(values))
    to_x = scale(min(x_ticks[0], points[0][0]), max(x_ticks[-1], points[-1][0]), LEFT, WIDTH - RIGHT)
    to_y = scale(min(y_ticks[0], *values), max(y_ticks[-1], *values), HEIGHT - BOTTOM, TOP)
    parts = [*axes(x_ticks, y_ticks, to_x, to_y, x_label="training step", y_label=curve.y_label)]
    if len(curve.band) > 1:
        upper = [(s, high) for s, _, high in curve.band]
        lower = [(s, low) for s, low, _ in reversed(curve.band)]
        parts.append(f'<polygon class="band" points="{_path([*upper, *lower], to_x, to_y)}"/>')
    if curve.baseline is not None:
        y = to_y(curve.baseline)
        parts.append(f'<line class="baseline" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    if len(points) > 1:
        parts.append(f'<polyline class="curve" points="{_path(points, to_x, to_y)}"/>')
    if len(points) <= MARKED_POINTS:
        parts += [
            f'<circle class="dot" cx="{to_x(s):.1f}" cy="{to_y(v):.1f}" r="3">'
            f"<title>step {s:g}: {v:.6g}</title></circle>"
            for s, v in points
        ]
    first, last = points[0][1], points[-1][1]
    label = escape(
        f"{curve.title}: {first:.4g} at step {points[0][0]:g}, {last:.4g} at step {points[-1][0]:g}"
    )
    return (
        f'<figure><figcaption>{escape(curve.title)}<span class="last">{last:.4g}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg></figure>'
    )


def interval_bar(difference: float, low: float | None, high: float | None) -> str:
    """A small SVG: the interval of a difference against zero, each on a scale of its own."""
    half, height = 60, 18
    reach = max(abs(v) for v in (difference, low or 0.0, high or 0.0)) or 1.0
    to_x = scale(-reach, reach, 6, 2 * half - 6)
    bar = ""
    if low is not None and high is not None:
        bar = f'<line class="interval" x1="{to_x(low):.1f}" x2="{to_x(high):.1f}" y1="9" y2="9"/>'
    return (
        f'<svg class="bar" viewBox="0 0 {2 * half} {height}" aria-hidden="true">'
        f'<line class="zero" x1="{half}" x2="{half}" y1="1" y2="{height - 1}"/>{bar}'
        f'<circle class="dot" cx="{to_x(difference):.1f}" cy="9" r="3.5"/></svg>'
    )


def thinned(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most `limit` points: means of equal runs of neighbours when there are more."""
    run = math.ceil(len(points) / limit) if points else 1
    if run == 1:
        return list(points)
    chunks = [points[i : i + run] for i in range(0, len(points), run)]
    return [(sum(s for s, _ in c) / len(c), sum(v for _, v in c) / len(c)) for c in chunks]


def ticks(low: float, high: float, count: int = 5, *, whole: bool = False) -> list[float]:
    """About `count` round numbers from at or below `low` to at or above `high`."""
    if high - low < (1 if whole else max(1e-12, 1e-9 * max(abs(low), abs(high)))):
        margin = 0.5 if whole else max(abs(low) * 0.05, 1e-3)
        low, high = low - margin, high + margin
    raw = (high - low) / max(count - 1, 1)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    if whole:
        step = max(1.0, float(math.ceil(step)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def scale(low: float, high: float, start: float, end: float) -> Scale:
    """The straight map that sends low to start and high to end."""
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _path(points: Sequence[Point], to_x: Scale, to_y: Scale) -> str:
    return " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in points)


def axes(
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    to_x: Scale,
    to_y: Scale,
    *,
    x_label: str,
    y_label: str,
) -> list[str]:
    """SVG of the horizontal rules, the numbers at the ticks, and what both axes show."""
    bottom, middle = HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) / 2
    parts = []
    for value in y_ticks:
        y = to_y(value)
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_label(value, y_ticks)}</text>'
        )
    for value in x_ticks:
        parts.append(
            f'<text x="{to_x(value):.1f}" y="{bottom + 16}" text-anchor="middle">{_label(value, x_ticks)}</text>'
        )
    parts.append(
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    parts.append(
        f'<text class="axis" transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return parts


def _label(value: float, all_ticks: Sequence[float]) -> str:
    step = abs(all_ticks[1] - all_ticks[0]) if len(all_ticks) > 1 else 1.0
    largest = max(abs(v) for v in all_ticks)
    if largest >= 1e5 or largest < 1e-4:
        return f"{value:.2g}"
    decimals = max(0, -math.floor(math.log10(step)))
    if abs(step * 10**decimals - round(step * 10**decimals)) > 1e-6:
        decimals += 1
    return f"{value:.{decimals}f}"
