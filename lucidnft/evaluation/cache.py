"""Scores that were computed before, in a file that a killed run leaves usable.

A score's name is a hash of the bytes of every file it looked at and of everything the metric depends on: a changed
picture, metric, option, version or weight is another name.  Scores computed for one folder serve any other with
the same files.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO

from lucidnft.evaluation.metrics import MetricInfo

_SIDES = ("sr", "lr", "hr")


def score_key(metric: MetricInfo, digests: dict[str, str]) -> str:
    """The name of a metric's score; digests: {"sr": hash of the file, "hr": ..., "lr": ...}, as far as they exist."""
    seen = [digests.get(side, "") if side == "sr" or side in metric.needs else "" for side in _SIDES]
    return hashlib.blake2b("|".join([metric.identity, *seen]).encode(), digest_size=16).hexdigest()


class ScoreCache:
    """A JSON-lines file of scores: lines are added whole, and a last one cut short is dropped."""

    def __init__(self, path: Path) -> None:
        """Open or make the file, for this process alone.

        Raises:
            ValueError: another process has it open, or a line in its midst is damaged.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise ValueError(
                f"{path} is in use by another evaluation; wait for it or choose another output_dir"
            ) from error
        try:
            self._scores = self._read()
        except ValueError:
            self._file.close()
            raise

    def get(self, key: str) -> float | None:
        """A score, or None."""
        return self._scores.get(key)

    def add(self, entries: Iterable[tuple[str, str, str, float]]) -> None:
        """Keep (key, metric, stem, score), on the disk when this returns to its caller."""
        lines = []
        for key, metric, stem, score in entries:
            self._scores[key] = score
            lines.append(json.dumps({"key": key, "metric": metric, "stem": stem, "value": score}) + "\n")
        self._file.write("".join(lines).encode())
        self._file.flush()

    def __enter__(self) -> ScoreCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()  # and with it the lock

    def _read(self) -> dict[str, float]:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._file.truncate(whole)
        scores = {}
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                entry = json.loads(line)
                key, value = str(entry["key"]), float(entry["value"])
            except (ValueError, KeyError, TypeError):
                value = math.nan
            if not math.isfinite(value):
                raise ValueError(
                    f"{self.path} is damaged in line {number}; delete it, scores are computed again"
                )
            scores[key] = value
        return scores
