"""Which files belong together: by stem.  What cannot be paired is a problem with a name, not an exception."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lucidnft.checkpoint.tensor_files import first_few
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
    others: list[str] = field(default_factory=list)  # restored files without the method's suffix


def pair_method(
    method: str,
    folder: Path,
    benchmark: Mapping[str, Path],
    known: Mapping[str, str] | None = None,
    *,
    suffix: str = "",
) -> Pairs:
    """Pair a method's folder with the benchmark's: {"hr": folder} or {"lr": folder}, or both, or none.

    Every image of the benchmark (its HR images, or else its LR images) has to have been restored, and every
    restored one has to be of the benchmark.  known: stems whose restoration failed before, with the reason.
    suffix: what the names of restored files have behind the stem; files without it are not restored images.

    Raises:
        ValueError: a folder is missing or holds no image, no file has the suffix, or no stem is of the benchmark
            and a suffix would explain it.
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
    if suffix:
        restored, pairs.others = _without_suffix(restored, suffix)
    if expected and not expected.keys() & restored.keys():
        _explain_strangers(method, folder, expected, [*restored, *pairs.others], suffix)
    for stem in sorted({*expected, *restored}):
        found = {"sr": restored.get(stem, []), **{side: files.get(stem, []) for side, files in sides.items()}}
        places = {"sr": folder, **benchmark}
        reason = (known or {}).get(stem) or _reason(found, places)
        if reason is None:
            pairs.cases.append(Case(method, stem, **{side: files[0] for side, files in found.items()}))
        else:
            pairs.problems.append(Problem(method, stem, reason))
    return pairs


def _without_suffix(
    restored: Mapping[str, list[Path]], suffix: str
) -> tuple[dict[str, list[Path]], list[str]]:
    """Files by the stem before the suffix, and the stems that do not end in it."""
    ours = {stem: files for stem, files in restored.items() if stem.endswith(suffix) and stem != suffix}
    return {stem.removesuffix(suffix): files for stem, files in ours.items()}, sorted(
        restored.keys() - ours.keys()
    )


def _explain_strangers(
    method: str, folder: Path, expected: Iterable[str], restored: Iterable[str], suffix: str
) -> None:
    """Raise a ValueError where one suffix tells most restored files from the benchmark's, or the given one none."""
    names, tried = set(restored), f" with sr_suffix '{suffix}'" if suffix else ""
    wanted = list(expected)
    behind = Counter(name[len(stem) :] for stem in wanted[:20] for name in names if name.startswith(stem))
    found = {end: sum(stem + end in names for stem in wanted) for end, _ in behind.most_common(5)}
    end = max(found, key=lambda e: found[e], default="")
    if found and found[end] > len(wanted) / 2:
        advice = (
            f"'{end}' behind the stem: give sr_suffix.{method}={end} (--sr_suffix={end} without a config)"
        )
        if not end:
            advice = "no suffix: leave sr_suffix out"
        raise ValueError(
            f"no image in {folder} belongs to the benchmark by its stem{tried}, but {found[end]} of {len(wanted)} have "
            + advice
        )
    if suffix:
        raise ValueError(
            f"no image in {folder} belongs to the benchmark{tried}; it has {first_few(sorted(names))}"
        )


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
