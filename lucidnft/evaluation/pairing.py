"""Which files belong together: by stem.  What cannot be paired is a problem with a name, not an exception."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lucidnft.checkpoint.tensor_files import first_few
from lucidnft.evaluation.suffixes import Names, advice, without_suffix
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
    suffix: str = ""  # of restored files
    others: list[str] = field(default_factory=list)  # restored files without the method's suffix


def pair_method(
    method: str,
    folder: Path,
    benchmark: Mapping[str, Path],
    known: Mapping[str, str] | None = None,
    *,
    suffix: str = "",
    suffixes: Mapping[str, str] | None = None,
    needed: Mapping[str, Sequence[str]] | None = None,
) -> Pairs:
    """Pair a method's folder with the benchmark's: {"hr": folder} or {"lr": folder}, or both, or none.

    Every HR image (else LR image) has to have been restored, and every restored one needs an HR or LR image.  Where
    the other is missing, the case goes without it, and the metrics that need it have a problem.

    Args:
        known: of a folder that was restored just now: stems whose restoration failed, with the reason.
        suffix: what the names of restored files have behind the stem; files without it are not restored images.
        suffixes: the same for the sides of the benchmark.
        needed: names of the metrics that cannot do without a side.

    Raises:
        ValueError: a folder is missing or holds no image, no file has the suffix, or no stem is of the benchmark
            and a suffix would explain it.
    """
    given, wanting = suffixes or {}, needed or {}
    sides = {side: by_stem(path, given.get(side, ""))[0] for side, path in benchmark.items()}
    try:
        restored, others = by_stem(folder, suffix)
    except ValueError:
        if not known:
            raise
        restored, others = {}, []  # every restoration failed
    side = next((side for side in ("hr", "lr") if side in sides), None)
    expected = {} if side is None else sides[side]
    if known is None and not (expected.keys() & restored.keys() if expected else restored):
        end = given.get(side or "", "")
        wanted = Names(f"{side}_suffix", end, [f"{stem}{end}" for stem in expected])
        ours = [*(f"{stem}{suffix}" for stem in restored), *others]
        _explain_strangers(folder, wanted, Names(f"sr_suffix.{method}", suffix, ours))
    pairs = Pairs(suffix=suffix, others=others)
    for stem in sorted({*expected, *restored}):
        lacking = {
            side: _lacking(side, files.get(stem, []), benchmark[side]) for side, files in sides.items()
        }
        reason = (known or {}).get(stem) or _lacking("sr", restored.get(stem, []), folder)
        if reason is None and sides and not any(stem in files for files in sides.values()):
            reason = "; ".join(filter(None, lacking.values()))
        if reason is not None:
            pairs.problems.append(Problem(method, stem, reason))
            continue
        there = {side: sides[side][stem][0] for side, why in lacking.items() if why is None}
        pairs.cases.append(Case(method, stem, restored[stem][0], **there))
        pairs.problems += [
            Problem(method, stem, why, tuple(wanting[side]))
            for side, why in lacking.items()
            if why is not None and wanting.get(side)
        ]
    return pairs


def check_sides(benchmark: Mapping[str, Path], suffixes: Mapping[str, str]) -> None:
    """Whether the files of a benchmark can belong together, before anything is restored or scored.

    Raises:
        ValueError: a folder is missing or holds no image, no file has its suffix, or no LR image has the stem of an
            HR image and other suffixes would explain it.
    """
    raw = {side: [*by_stem(folder)[0]] for side, folder in benchmark.items()}
    names = {side: Names(f"{side}_suffix", suffixes.get(side, ""), stems) for side, stems in raw.items()}
    stems = {
        side: {stem for raw in n.stems if (stem := without_suffix(raw, n.suffix)) is not None}
        for side, n in names.items()
    }
    both = stems.keys() == {"hr", "lr"}
    hint = advice(names["hr"], names["lr"]) if both and not stems["hr"] & stems["lr"] else None
    for side, found in stems.items():
        if not found:
            raise ValueError(
                f"no image in {benchmark[side]} ends in '{suffixes[side]}', as {side}_suffix says"
                + (f"; of LR and HR images {hint}" if hint else f"; it has {first_few(sorted(raw[side]))}")
            )
    if hint:
        raise ValueError(
            f"no LR image in {benchmark['lr']} belongs to an HR image in {benchmark['hr']} by its stem, but {hint}"
        )


def _explain_strangers(folder: Path, wanted: Names, restored: Names) -> None:
    """Raise a ValueError where suffixes tell most restored files from the benchmark's, or the given one none."""
    tried = f" with sr_suffix '{restored.suffix}'" if restored.suffix else ""
    hint = advice(wanted, restored)
    if hint:
        raise ValueError(f"no image in {folder} belongs to the benchmark by its stem{tried}, but {hint}")
    if restored.suffix:
        raise ValueError(
            f"no image in {folder} belongs to the benchmark{tried}; it has {first_few(sorted(restored.stems))}"
        )


def _lacking(side: str, files: Sequence[Path], folder: Path) -> str | None:
    if not files:
        what = "no restored image" if side == "sr" else f"no {side.upper()} image"
        return f"{what} of this stem in {folder}"
    if len(files) > 1:
        return f"several files of this stem in {folder}: {', '.join(printable(f.name) for f in files)}"
    return None


def by_stem(folder: Path, suffix: str = "") -> tuple[dict[str, list[Path]], list[str]]:
    """A folder's images by the stem before the suffix, and the stems of those that do not end in it.

    Raises:
        ValueError: the folder is missing or holds no image.
    """
    found: defaultdict[str, list[Path]] = defaultdict(list)
    others = set()
    for path in list_images(folder):
        stem = without_suffix(printable(path.stem), suffix)
        if stem is None:
            others.add(printable(path.stem))
        else:
            found[stem].append(path)
    return dict(found), sorted(others)


def printable(name: str) -> str:
    """A file name that can be written as UTF-8 on one line: other bytes and control characters as escapes."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def file_digest(path: Path) -> str:
    """A hash of a file's bytes.  Raises OSError when it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
