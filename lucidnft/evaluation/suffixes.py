"""What file names have behind the stem that pairs them, and advice where a suffix is missing or wrong."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

_SAMPLE = 20  # stems that endings are looked for at; all are counted
_SEPARATORS = "_-. "


@dataclass(frozen=True)
class Names:
    """The file names of a folder, as they are."""

    setting: str  # of their suffix: lr_suffix, hr_suffix or sr_suffix.METHOD
    suffix: str  # that was given
    stems: Collection[str]

    @property
    def flag(self) -> str:
        """The setting on a command line without a config."""
        return f"--{self.setting.partition('.')[0]}"


def without_suffix(stem: str, suffix: str) -> str | None:
    """The stem before the suffix; None where there is no such suffix, or nothing before it."""
    return stem.removesuffix(suffix) if stem.endswith(suffix) and stem != suffix else None


def advice(wanted: Names, others: Names) -> str | None:
    """What tells most stems of both folders apart and how to say so; None where no pair of suffixes does.

    It reads on from "no image of `others` belongs to one of `wanted`, but ".
    """
    found = _endings(list(wanted.stems), set(others.stems))
    if found is None:
        return None
    before, behind, count = found
    text = f"{count} of {len(wanted.stems)} have " + (
        f"'{behind}' behind the stem" if behind else "no suffix"
    )
    if before:
        text += f" where the others have '{before}'"
    changed = [(n, end) for n, end in ((wanted, before), (others, behind)) if end != n.suffix]
    given = [(names, end) for names, end in changed if end]
    parts = [f"leave {names.setting.partition('.')[0]} out" for names, end in changed if not end]
    if given:
        flags = " ".join(f"{names.flag}={end}" for names, end in given)
        settings = " ".join(f"{names.setting}={end}" for names, end in given)
        parts.insert(0, f"give {settings} ({flags} without a config)")
    return f"{text}: {' and '.join(parts)}"


def _endings(wanted: list[str], names: set[str]) -> tuple[str, str, int] | None:
    """(ending of wanted, ending of names, how many they pair) of what pairs more than half of `wanted`."""
    seen: Counter[tuple[str, str]] = Counter()
    for stem in wanted[:_SAMPLE]:
        shared = {name: len(os.path.commonprefix((stem, name))) for name in sorted(names)}
        longest = max(shared.values(), default=0)
        for name, length in shared.items():
            if longest and length == longest:
                seen.update((stem[cut:], name[cut:]) for cut in _cuts(stem, name, length))
    pairs = {ends: _num_paired(wanted, names, *ends) for ends, _ in seen.most_common(8)}
    ends = max(pairs, key=lambda e: (pairs[e], len(e[0])), default=None)
    if ends is None or pairs[ends] <= len(wanted) / 2:
        return None
    return *ends, pairs[ends]


def _cuts(stem: str, name: str, length: int) -> set[int]:
    """Where the endings may begin: where the names part, or, with an ending on both, at the separator before."""
    cuts = {length}
    if length < min(len(stem), len(name)):
        cuts.add(max(stem.rfind(mark, 0, length) for mark in _SEPARATORS))
    return {cut for cut in cuts if cut > 0}


def _num_paired(wanted: list[str], names: set[str], before: str, behind: str) -> int:
    found = (without_suffix(stem, before) for stem in wanted)
    return sum(stem is not None and stem + behind in names for stem in found)
