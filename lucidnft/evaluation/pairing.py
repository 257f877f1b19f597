"""Which files belong together: by stem.  What cannot be paired is a problem with a name, not an exception."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lucidnft.images import list_images


@dataclass(frozen=True)
class Problem:
    """Something that was asked for and has no score."""

    method: str  # empty where there is but one folder
    stem: str
    reason: str
    metrics: tuple[str, ...] = ()  # that have no score for it; empty: none has

    def line(self) -> str:
        """As it is printed."""
        which = f" [{', '.join(self.metrics)}]" if self.metrics else ""
        where = f"{self.method}/{self.stem}" if self.method else self.stem
        return f"{where}{which}: {self.reason}"


@dataclass(frozen=True)
class Case:
    """One restored image and what it is compared with."""

    method: str
    stem: str
    sr: Path
    lr: Path | None = None
    hr: Path | None = None

    def files(self) -> dict[str, Path]:
        """The sides that are there."""
        sides = {"sr": self.sr, "lr": self.lr, "hr": self.hr}
        return {side: path for side, path in sides.items() if path is not None}


@dataclass
class Pairs:
    """The cases of a benchmark and what could not be paired."""

    cases: list[Case] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def pair_method(
    method: str, folder: Path, benchmark: Mapping[str, Path], known: Mapping[str, str] | None = None
) -> Pairs:
    """Pair a method's folder with the benchmark's: {"hr": folder} or {"lr": folder}, or both, or none.

    Every image of the benchmark (its HR images, or else its LR images) has to have been restored, and every
    restored one has to be of the benchmark.  known: stems whose restoration failed before, with the reason.

    Raises:
        ValueError: a folder is missing or holds no image.
    """
    sides = {side: _by_stem(path) for side, path in benchmark.items()}
    try:
        restored = _by_stem(folder)
    except ValueError:
        if not known:
            raise
        restored = {}  # every restoration failed
    expected = sides.get("hr") or sides.get("lr") or {}
    pairs = Pairs()
    for stem in sorted({*expected, *restored}):
        found = {"sr": restored.get(stem, []), **{side: files.get(stem, []) for side, files in sides.items()}}
        places = {"sr": folder, **benchmark}
        reason = (known or {}).get(stem) or _reason(found, places)
        if reason is None:
            pairs.cases.append(Case(method, stem, **{side: files[0] for side, files in found.items()}))
        else:
            pairs.problems.append(Problem(method, stem, reason))
    return pairs


def _reason(found: Mapping[str, list[Path]], places: Mapping[str, Path]) -> str | None:
    for side, files in found.items():
        if not files:
            what = "no restored image" if side == "sr" else f"no {side.upper()} image"
            return f"{what} of this stem in {places[side]}"
        if len(files) > 1:
            return (
                f"several files of this stem in {places[side]}: {', '.join(printable(f.name) for f in files)}"
            )
    return None


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    found: defaultdict[str, list[Path]] = defaultdict(list)
    for path in list_images(folder):
        found[printable(path.stem)].append(path)
    return dict(found)


def printable(name: str) -> str:
    """A file name that can be written as UTF-8 on one line: other bytes and control characters as escapes."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def file_digest(path: Path) -> str:
    """A hash of a file's bytes.  Raises OSError when it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
