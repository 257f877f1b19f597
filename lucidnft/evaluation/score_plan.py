"""Which scores have to be computed, so that none is computed twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lucidnft.evaluation.cache import ScoreCache, score_key
from lucidnft.evaluation.metrics import MetricInfo
from lucidnft.evaluation.pairing import Case, Problem, file_digest, printable
from lucidnft.evaluation.scoring import Job

Place = tuple[str, str]
"""Method and stem."""


@dataclass
class ScorePlan:
    """Jobs for the scores that are not in the cache, and where all of them will be."""

    jobs: list[Job] = field(default_factory=list)
    keys: dict[Place, dict[str, str]] = field(default_factory=dict)  # the cache's name of each metric's score
    copies: dict[Place, list[Case]] = field(default_factory=dict)  # cases that equal one with a job
    problems: list[Problem] = field(default_factory=list)  # files that cannot be read

    def of_copies(self, failed: Iterable[Problem]) -> Iterator[Problem]:
        """Files that equal one that could not be scored have no score for the same reason."""
        for problem in failed:
            first = (problem.method, problem.stem)
            for case in self.copies.get(first, ()):
                own = self.keys[case.method, case.stem]
                same = tuple(name for name in problem.metrics if own.get(name) == self.keys[first][name])
                if same or not problem.metrics:
                    yield Problem(case.method, case.stem, problem.reason, same)


def plan_scores(cases: Iterable[Case], metrics: Mapping[str, MetricInfo], cache: ScoreCache) -> ScorePlan:
    """Plan every metric of every case, as far as the files it needs are there."""
    plan = ScorePlan()
    asked: dict[str, Place] = {}  # key -> the case whose job computes it
    digests: dict[Path, str] = {}
    for case in cases:
        place = (case.method, case.stem)
        known = _digests(case, metrics, digests, plan.problems)
        if "sr" not in known:
            continue
        names = {name: score_key(m, known) for name, m in metrics.items() if m.needs <= known.keys()}
        plan.keys[place] = names
        missing = [name for name, key in names.items() if cache.get(key) is None]
        new = tuple(name for name in missing if names[name] not in asked)
        for name in missing:
            first = asked.setdefault(names[name], place)
            if first != place and case not in plan.copies.setdefault(first, []):
                plan.copies[first].append(case)
        if new:
            plan.jobs.append(Job(len(plan.jobs), case, known["sr"], new))
    return plan


def _digests(
    case: Case, metrics: Mapping[str, MetricInfo], digests: dict[Path, str], problems: list[Problem]
) -> dict[str, str]:
    """Hashes of a case's files by side; of one that cannot be read, a problem of the metrics that need it."""
    known = {}
    for side, path in case.files().items():
        try:
            digests[path] = known[side] = digests[path] if path in digests else file_digest(path)
        except OSError as error:
            reason = f"the {side.upper()} file {path.name!r} cannot be read: {error.strerror or error}"
            blocked = tuple(name for name, metric in metrics.items() if side in metric.needs)
            if side == "sr" or blocked:
                problems.append(Problem(case.method, case.stem, printable(reason), blocked))
    return known
