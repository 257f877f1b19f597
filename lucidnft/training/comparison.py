"""Before against after on the held-out images: the table at the end of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lucidnft.checkpoint import load_json
from lucidnft.statistics import PairedDifference, paired_difference

LOWER_IS_BETTER = frozenset({"spectral_distance"})
"""Guards that measure a distance.  Rewards are always higher-is-better."""

COLUMNS = ("score", "kind", "n", "before", "after", "difference", "95% interval", "verdict")


@dataclass(frozen=True)
class ScoreComparison:
    """One row of the table."""

    name: str
    kind: Literal["reward", "guard"]  # trained on, or only watched
    paired: PairedDifference

    @property
    def interval(self) -> str:
        """The interval in words."""
        if self.paired.low is None or self.paired.high is None:
            return "needs 2 images"
        return f"[{self.paired.low:+.{self.decimals}f}, {self.paired.high:+.{self.decimals}f}]"

    @property
    def decimals(self) -> int:
        """Digits behind the point: four, and more where the change would not show."""
        change = abs(self.paired.difference)
        return 4 if change == 0 else min(8, max(4, 2 - math.floor(math.log10(change))))

    def cells(self) -> tuple[str, ...]:
        """Text of each of COLUMNS."""
        p = self.paired
        name = f"{self.name} (lower is better)" if p.lower_is_better else self.name
        digits = self.decimals
        numbers = (f"{p.before:.{digits}f}", f"{p.after:.{digits}f}", f"{p.difference:+.{digits}f}")
        return (name, self.kind, str(p.n), *numbers, self.interval, p.verdict)


def read_scores(run_dir: str | Path) -> list[dict[str, Any]]:
    """Records of eval/scores-<step>.json, by step; empty when the run wrote none.

    Raises:
        ValueError: a file is damaged or is not such a record.
    """
    records = []
    for path in sorted((Path(run_dir) / "eval").glob("scores-*.json")):
        record = load_json(path)
        missing = {"step", "keys", "rewards", "guards"} - set(record if isinstance(record, dict) else ())
        if missing:
            raise ValueError(
                f"{path} lacks {', '.join(sorted(missing))}; it is not a record of held-out scores"
            )
        records.append(record)
    return sorted(records, key=lambda record: record["step"])


def compare_scores(
    before: Mapping[str, Any], after: Mapping[str, Any], *, seed: int = 0
) -> list[ScoreComparison]:
    """Paired comparison of every reward and guard of two records of the same images.

    Records are {"step", "keys": n names, "rewards": {name: n scores}, "guards": {name: n scores}}.

    Raises:
        ValueError: the records are of other images or other scores.
    """
    if list(before["keys"]) != list(after["keys"]):
        raise ValueError(
            f"evaluations of steps {before['step']} and {after['step']} are of different images "
            f"({len(before['keys'])} and {len(after['keys'])}); they cannot be compared in pairs"
        )
    rows = []
    for section, kind in (("rewards", "reward"), ("guards", "guard")):
        first, second = before[section], after[section]
        if set(first) != set(second):
            only = ", ".join(sorted(set(first) ^ set(second)))
            raise ValueError(f"{section} differ between steps {before['step']} and {after['step']}: {only}")
        for name, values in first.items():
            paired = paired_difference(
                values, second[name], seed=seed, key=f"{kind}/{name}", lower_is_better=name in LOWER_IS_BETTER
            )
            rows.append(ScoreComparison(name, "reward" if kind == "reward" else "guard", paired))
    return rows


def format_table(rows: Sequence[ScoreComparison]) -> str:
    """The comparison as plain text for a terminal."""
    lines = [COLUMNS, *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    numeric = {2, 3, 4, 5}
    texts = [
        "  ".join(
            cell.rjust(width) if i in numeric else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([texts[0], "-" * max(len(t) for t in texts), *texts[1:]])


def summarise(rows: Sequence[ScoreComparison]) -> str:
    """One sentence: how many rewards rose beyond chance, by how much, and what the guards did."""
    rewards = [row for row in rows if row.kind == "reward"]
    guards = [row for row in rows if row.kind == "guard"]
    if not rewards:
        return "No reward was measured."
    improved = [row for row in rewards if row.paired.verdict == "improved"]
    changes = ", ".join(f"{r.name} {r.cells()[3]} to {r.cells()[4]}" for r in rewards)
    text = f"{len(improved)} of {len(rewards)} rewards improved on {rewards[0].paired.n} held-out images ({changes})"
    worse = [f"{g.name} {g.paired.difference:+.3f}" for g in guards if g.paired.verdict == "worse"]
    if worse:
        return f"{text}; guards that got worse: {', '.join(worse)}."
    return f"{text}; no guard got worse." if guards else f"{text}; HR is unknown, so no guard was measured."
