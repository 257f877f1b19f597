"""Scores of the files that were written: the numbers that `python -m lucidnft.evaluation` gives for them.

Scores are kept under a hash of both files and of everything the metric depends on, so a second run computes only
what is new, and a killed one goes on.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lucidnft.checkpoint import save_text
from lucidnft.evaluation.cache import ScoreCache
from lucidnft.evaluation.evaluator import BAR_FORMAT, plan_workers
from lucidnft.evaluation.metrics import (
    MetricInfo,
    MetricSpec,
    UnavailableMetric,
    check_names,
    settings_of,
)
from lucidnft.evaluation.pairing import Case, Problem, printable
from lucidnft.evaluation.protocols import PROTOCOLS, decimals_of
from lucidnft.evaluation.score_plan import plan_scores
from lucidnft.evaluation.scoring import Scorer
from lucidnft.evaluation.tables import interval
from lucidnft.statistics import mean_interval

COLUMNS = ("stem", "metric", "value")
NamedPair = tuple[str, Path, Path]
"""Name, input file, output file."""


@dataclass
class OutputScores:
    """Scores of restored files, and every score that is missing with its reason."""

    rows: list[dict[str, Any]] = field(default_factory=list)  # of COLUMNS, by image; metrics' own direction
    lower_is_better: dict[str, bool] = field(default_factory=dict)  # by metric, in the order asked for
    problems: list[Problem] = field(default_factory=list)
    unavailable: list[UnavailableMetric] = field(default_factory=list)
    num_computed: int = 0  # scores that were not kept from before

    def missing_lines(self) -> list[str]:
        """One line for every metric that is not available and every image without a score."""
        return [metric.line() for metric in self.unavailable] + [problem.line() for problem in self.problems]

    def summary_lines(self) -> list[str]:
        """A table: metric, direction, number of images, mean and its 95 % bootstrap interval."""
        lines = [f"{'metric':<24}{'better':>8}{'n':>7}{'mean':>12}   95 % interval"]
        for name, lower in self.lower_is_better.items():
            values = [row["value"] for row in self.rows if row["metric"] == name]
            if not values:
                continue
            mean = sum(values) / len(values)
            low, high = mean_interval(values, key=name) or (None, None)
            digits = decimals_of(name, abs(mean))
            better = "lower" if lower else "higher"
            ends = interval(low, high, digits)
            lines.append(f"{name:<24}{better:>8}{len(values):>7}{mean:>12.{digits}f}   {ends}")
        return lines


def parse_metrics(text: str) -> tuple[str, ...]:
    """Names of "musiq,lucid_consistency": metrics of pyiqa and rewards of this library.

    Without pyiqa its names are not known and stay; loading says that they are not available.

    Raises:
        ValueError: a name is unknown (the nearest one is given), missing, or stands twice.
    """
    names = tuple(part.strip() for part in text.split(","))
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not all(names):
        raise ValueError(f"metrics: a name is missing in {text!r}; write name,name")
    if twice:
        raise ValueError(f"metrics: {', '.join(twice)} stands twice; name a metric once")
    try:
        check_names(names)
    except ValueError as error:
        raise ValueError(f"metrics: {error}") from error
    return names


def check_metrics(names: Sequence[str]) -> list[UnavailableMetric]:
    """Load every metric once, on the CPU, and let it go: what is said before hours of restoring, not after.

    Returns those that cannot be loaded; the others will be computed.

    Raises:
        ValueError: a metric needs what restoring does not have, such as an HR image.
    """
    with Scorer([_spec(name) for name in names], ["cpu"], workers=1) as scorer:
        return _described(scorer, progress=False)[1]


def name_pairs(pairs: Sequence[tuple[Path, Path]], output_dir: Path) -> list[NamedPair]:
    """Name (input, output) files by the output's path below output_dir, without its suffix: "sub/cat.1".

    Outputs that differ in their suffix alone keep it.  Names that only look alike once they can be printed (a line
    break, and a backslash before an n) are numbered.
    """
    places = [output.relative_to(output_dir) for _, output in pairs]
    stems = [place.with_suffix("") for place in places]
    shared = {stem for stem, count in Counter(stems).items() if count > 1}
    names = [
        printable((place if stem in shared else stem).as_posix())
        for place, stem in zip(places, stems, strict=True)
    ]
    return [(name, source, output) for name, (source, output) in zip(_numbered(names), pairs, strict=True)]


def _numbered(names: Sequence[str]) -> list[str]:
    taken: dict[str, None] = {}
    for name in names:
        number, free = 1, name
        while free in taken:
            number += 1
            free = f"{name} ({number})"
        taken[free] = None
    return list(taken)


def score_outputs(
    pairs: Sequence[NamedPair],
    names: Sequence[str],
    *,
    cache: Path,
    device: torch.device | str = "cpu",
    workers: int = 1,
    progress: bool = True,
) -> OutputScores:
    """Score saved outputs against their inputs, upright, on 8-bit levels (deeper files are rounded to them).

    Args:
        pairs: as `name_pairs` gives them; files that cannot be read become problems.
        names: of metrics, as `parse_metrics` gives them; those that cannot be loaded are reported, the rest goes on.
        cache: the file that keeps scores; for one process at a time.
        workers: processes, each of which loads every metric; 0: one for each core (at most 8) or GPU.  Numbers do not
            depend on it; to start them takes longer than to score a few dozen small images.

    Raises:
        ValueError: a metric needs more than the input, two pairs share a name, or the cache is in use or damaged.
        RuntimeError: a scoring process died; what was scored is kept.
    """
    twice = [stem for stem, count in Counter(stem for stem, _, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"{len(twice)} name(s) stand for several outputs, e.g. {twice[0]!r}")
    devices, workers = plan_workers(str(device), workers)
    with Scorer([_spec(name) for name in names], devices, workers) as scorer:
        metrics, unavailable = _described(scorer, progress)
        directions = {name: metric.lower_is_better for name, metric in metrics.items()}
        result = OutputScores(lower_is_better=directions, unavailable=unavailable)
        if metrics:
            _fill(result, pairs, metrics, scorer, cache, progress)
    result.problems.sort(key=lambda problem: (problem.stem, problem.reason))
    return result


def _fill(
    result: OutputScores,
    pairs: Sequence[NamedPair],
    metrics: dict[str, MetricInfo],
    scorer: Scorer,
    cache: Path,
    progress: bool,
) -> None:
    with ScoreCache(cache) as kept:
        cases = (Case("", stem, sr=output, lr=source) for stem, source, output in pairs)
        plan = plan_scores(cases, metrics, kept)
        failed: list[Problem] = []
        bar = tqdm(
            total=len(plan.jobs), desc="score", unit="image", bar_format=BAR_FORMAT, disable=not progress
        )
        with bar:
            for done in scorer.score(plan.jobs):
                stem = done.job.case.stem
                kept.add(
                    (plan.keys["", stem][name], name, stem, score) for name, score in done.scores.items()
                )
                result.num_computed += len(done.scores)
                failed += done.problems
                bar.update()
        result.problems += [*plan.problems, *failed, *plan.of_copies(failed)]
        for (_, stem), wanted in plan.keys.items():
            found = {name: kept.get(key) for name, key in wanted.items()}
            result.rows += [
                {"stem": stem, "metric": name, "value": value}
                for name, value in found.items()
                if value is not None
            ]


def write_scores_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write stem,metric,value; the file appears whole or not at all.  Raises OSError when it cannot be written."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_text(path, text.getvalue())


def _spec(name: str) -> MetricSpec:
    return MetricSpec(name, settings_of(name, PROTOCOLS["rgb"]))  # protocols fix metrics with an HR image


def _described(scorer: Scorer, progress: bool) -> tuple[dict[str, MetricInfo], list[UnavailableMetric]]:
    """Metrics that can be computed, by name, and those that cannot; see `check_metrics` for errors."""
    metrics, unavailable = {}, []
    for metric in scorer.describe(progress):
        if isinstance(metric, UnavailableMetric):
            unavailable.append(metric)
        else:
            metrics[metric.name] = metric
    lacking = {name: sorted(metric.needs - {"lr"}) for name, metric in metrics.items()}
    refused = [f"'{name}' needs {' and '.join(needs)}" for name, needs in lacking.items() if needs]
    if refused:
        raise ValueError(
            f"metrics: {'; '.join(refused)}, and restoring has the input image alone; with HR images run: python -m "
            "lucidnft.evaluation --sr OUTPUTS --hr HR"
        )
    return metrics, unavailable
