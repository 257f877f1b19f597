"""What is made of the outputs once all are there: scores, maps, and the page that compares them with their inputs.

It looks at the saved files, also at those of earlier runs: with --skip_existing it can be asked for afterwards.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lucidnft.images import set_max_pixels
from lucidnft.inference.jobs import RestoreJob
from lucidnft.rewards.base import Reward
from lucidnft.sample.compare import ComparedPair, write_comparison
from lucidnft.sample.manifest import chosen_samples
from lucidnft.sample.maps import build_map_rewards, save_maps
from lucidnft.sample.scores import (
    NamedPair,
    OutputScores,
    check_metrics,
    name_pairs,
    parse_metrics,
    score_outputs,
    write_scores_csv,
)

CACHE_FILE = ".scores"
ONE_PROCESS = 64
"""Outputs up to which scoring stays in this process: starting others takes longer than they save."""


@dataclass(frozen=True)
class Checks:
    """What was asked for, by names that are known to be good."""

    metrics: tuple[str, ...]
    maps: Mapping[str, Reward]
    compare: bool


NO_CHECKS = Checks((), {}, False)
"""Of the processes that do not speak for all."""


def plan_checks(args: argparse.Namespace) -> Checks:
    """What the command line asks for; what cannot be computed is said now, not after hours of restoring.

    Raises:
        ValueError, ImportError, RuntimeError: an unknown name, a metric that needs more than the input, a reward
            without a map, or one that cannot be loaded.
    """
    metrics = parse_metrics(args.metrics) if args.metrics is not None else ()
    for metric in check_metrics(metrics):
        print(f"sample.py: {metric.line()}; the rest goes on")
    maps = build_map_rewards([name.strip() for name in args.save_map.split(",")]) if args.save_map else {}
    return Checks(metrics, maps, args.compare)


def run_checks(
    checks: Checks,
    jobs: Sequence[RestoreJob],
    output_dir: Path,
    device: torch.device,
    *,
    part: str,
    largest: int = 0,
) -> list[str]:
    """Make everything; returns what is missing, one line each.

    Args:
        part: which shard this is, in the names of files; "" when it is all.
        largest: pixels of the largest output, which may be more than is read of files that nobody promised.

    Raises:
        OSError: a file cannot be written.
    """
    pairs = name_pairs([(job.source, job.target) for job in jobs if os.path.isfile(job.target)], output_dir)
    if not pairs:
        return ["there is no output to look at"] if checks.metrics or checks.maps or checks.compare else []
    limit = set_max_pixels(max(1, largest))
    set_max_pixels(max(limit, largest))
    missing: list[str] = []
    scores = None
    if checks.metrics:
        scores = _score(checks.metrics, pairs, output_dir, device, part)
        missing += scores.missing_lines()
    if checks.maps:
        maps = save_maps(pairs, checks.maps, output_dir / "maps", device=device)
        missing += [problem.line() for problem in maps.problems]
        before = f" ({len(maps.kept)} of them from before)" if maps.kept else ""
        print(f"maps: {len(maps.written) + len(maps.kept)} in {output_dir / 'maps'}{before}")
    if checks.compare:
        samples = chosen_samples(output_dir)
        compared = [
            ComparedPair(name, source, output, samples.get(str(output), {})) for name, source, output in pairs
        ]
        page = write_comparison(
            compared,
            output_dir,
            scores=None if scores is None else _by_name(scores.rows),
            lower_is_better=[] if scores is None else [n for n, low in scores.lower_is_better.items() if low],
        )
        print(f"comparison: {page}")
    return missing


def _score(
    metrics: Sequence[str], pairs: Sequence[NamedPair], output_dir: Path, device: torch.device, part: str
) -> OutputScores:
    suffix = f".{part}" if part else ""
    workers = 1 if len(pairs) <= ONE_PROCESS else 0
    cache = output_dir / f"{CACHE_FILE}{suffix}.jsonl"
    scores = score_outputs(pairs, metrics, cache=cache, device=device, workers=workers)
    table = output_dir / f"metrics{suffix}.csv"
    write_scores_csv(table, scores.rows)
    print("\n".join([*scores.summary_lines(), f"scores: {table}"]))
    return scores


def _by_name(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row["stem"], {})[row["metric"]] = row["value"]
    return found
