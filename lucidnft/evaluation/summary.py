"""From scores of images to the numbers of a table: means, intervals, gains over the baseline, ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lucidnft.evaluation.evaluator import Evaluation, MetricInfo
from lucidnft.evaluation.protocols import decimals_of, label_of
from lucidnft.statistics import (
    PairedDifference,
    Verdict,
    holm,
    mean_interval,
    paired_difference,
    signed_rank_p,
    signed_rank_sum,
)

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Gain:
    """A method against the baseline, on the images that both have."""

    paired: PairedDifference
    p: float  # of Wilcoxon's signed-rank test, two-sided
    p_holm: float  # adjusted for the number of gains in the table
    rank_sum: float  # ranks of the rises minus ranks of the falls: the direction of the test

    @property
    def significant(self) -> bool:
        """Whether the corrected test is, and the mean gain has the direction that the test found."""
        return self.p_holm < SIGNIFICANT and self.rank_sum * self.paired.difference > 0

    @property
    def verdict(self) -> Verdict:
        """Improved or worse, in the metric's direction, where significant.

        Unlike `paired.verdict` it does not go by the interval, which is corrected for nothing.
        """
        if not self.significant:
            return "not distinguishable"
        return "improved" if (self.paired.difference > 0) is not self.paired.lower_is_better else "worse"


@dataclass(frozen=True)
class Cell:
    """One method and one metric."""

    method: str
    metric: str
    n: int
    mean: float
    low: float | None  # 95 % bootstrap interval of the mean; None for one image
    high: float | None
    gain: Gain | None  # None for the baseline, and where there is none

    def record(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = {key: value for key, value in asdict(self).items() if key != "gain"}
        if self.gain is not None:
            paired = self.gain.paired
            values |= {
                "gain": paired.difference,
                "gain_low": paired.low,
                "gain_high": paired.high,
                "gain_n": paired.n,
                "p": self.gain.p,
                "p_holm": self.gain.p_holm,
                "verdict": self.gain.verdict,
            }
        return values


@dataclass(frozen=True)
class Summary:
    """Every cell that has a number, with the ranks that tables mark."""

    cells: dict[tuple[str, str], Cell]  # (method, metric)
    decimals: dict[str, int]  # digits behind the point, by metric
    best: dict[str, frozenset[str]]  # metric -> methods that show the best number; empty where images differ
    second: dict[str, frozenset[str]]  # empty with fewer than three methods
    notes: tuple[str, ...]  # which columns are not marked, and why

    def get(self, method: str, metric: str) -> Cell | None:
        """The cell, or None where nothing was scored."""
        return self.cells.get((method, metric))


def label(metric: MetricInfo) -> str:
    """What tables call a metric, with its weights where the name alone would mislead."""
    return label_of(metric.name, metric.facts.get("settings"))


def summarise(result: Evaluation) -> Summary:
    """Means, intervals and gains of an evaluation."""
    gains = _gains(result)
    cells = {}
    for method in result.methods:
        for metric in result.metrics:
            scores = list(result.scores[method][metric.name].values())
            if scores:
                low, high = mean_interval(scores, key=f"{method}/{metric.name}") or (None, None)
                cells[method, metric.name] = Cell(
                    method, metric.name, len(scores), sum(scores) / len(scores), low, high,
                    gains.get((method, metric.name)),
                )  # fmt: skip
    decimals, best, second = {}, {}, {}
    uneven = {metric.name: text for metric in result.metrics if (text := _uneven(result, metric))}
    for metric in result.metrics:
        column = [cell for cell in cells.values() if cell.metric == metric.name]
        decimals[metric.name] = _decimals(metric, column)
        ranked = len(column) > 1 and metric.name not in uneven
        first_two = _ranked(column, metric, decimals[metric.name]) if ranked else [frozenset()] * 2
        best[metric.name] = first_two[0]
        second[metric.name] = first_two[1] if len(column) > 2 else frozenset()
    return Summary(cells, decimals, best, second, _notes(result, uneven))


def _decimals(metric: MetricInfo, column: list[Cell]) -> int:
    """Digits behind the point: the usual ones, and more where a significant gain would print as zero."""
    decimals = decimals_of(metric.name, max((abs(c.mean) for c in column), default=0.0))
    marked = [c.gain.paired.difference for c in column if c.gain is not None and c.gain.significant]
    while any(round(gain, decimals) == 0 for gain in marked):
        decimals += 1
    return decimals


def _uneven(result: Evaluation, metric: MetricInfo) -> str:
    """Over how many images each method's mean is, where these are not the same images for all; else empty.

    A method that failed on hard images would win by their absence.
    """
    images = {
        m: result.scores[m][metric.name].keys() for m in result.methods if result.scores[m][metric.name]
    }
    common = set.intersection(*map(set, images.values())) if images else set()
    if all(len(stems) == len(common) for stems in images.values()):
        return ""
    counts = ", ".join(f"{method} {len(stems)}" for method, stems in images.items())
    return f"{counts}; {len(common)} in common"


def _notes(result: Evaluation, uneven: Mapping[str, str]) -> tuple[str, ...]:
    """One sentence for all columns with the same numbers of images."""
    columns: dict[str, list[str]] = {}
    for metric in result.metrics:
        if metric.name in uneven:
            columns.setdefault(uneven[metric.name], []).append(label(metric))
    return tuple(
        f"No best is marked for {', '.join(labels)}: the means are over different images ({text})."
        for text, labels in columns.items()
    )


def _gains(result: Evaluation) -> dict[tuple[str, str], Gain]:
    if result.baseline is None:
        return {}
    paired: dict[tuple[str, str], tuple[PairedDifference, float, float]] = {}
    for method in result.methods:
        for metric in result.metrics:
            base, own = (result.scores[name][metric.name] for name in (result.baseline, method))
            common = sorted(base.keys() & own.keys())
            if method == result.baseline or not common:
                continue
            before, after = [base[stem] for stem in common], [own[stem] for stem in common]
            difference = paired_difference(
                before, after, key=f"{method}/{metric.name}", lower_is_better=metric.lower_is_better
            )
            tested = signed_rank_p(before, after), signed_rank_sum(before, after)
            paired[method, metric.name] = (difference, *tested)
    adjusted = holm([p for _, p, _ in paired.values()])
    return {
        place: Gain(difference, p, p_holm, rank_sum)
        for (place, (difference, p, rank_sum)), p_holm in zip(paired.items(), adjusted, strict=True)
    }


def _ranked(column: list[Cell], metric: MetricInfo, decimals: int) -> list[frozenset[str]]:
    """Methods with the best and with the second number, as printed: what looks equal is equal."""
    shown = {cell.method: round(cell.mean, decimals) for cell in column}
    values = sorted(set(shown.values()), reverse=not metric.lower_is_better)
    found = [frozenset(method for method, value in shown.items() if value == wanted) for wanted in values[:2]]
    return [*found, frozenset()][:2]
