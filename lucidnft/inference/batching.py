"""Which files go through the network together, and which process restores which of them.

Batches are made of all files of a run before they are split among processes and before finished ones are skipped:
so an image is always restored beside the same others, and no rounding can tell how many processes there were.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lucidnft.images import UnreadableImageError, read_size
from lucidnft.inference.jobs import RestoreJob

BATCH_PIXELS = 2**19
"""Input pixels of the images of a batch together, at most: larger images fill the network alone."""

HEADER_READERS = 8
"""Threads; reading ten thousand headers is waiting for the disk."""


@dataclass(frozen=True)
class Batch:
    """Files whose headers promise one size."""

    jobs: tuple[RestoreJob, ...]
    pixels: int  # of the inputs together; 0 when the header could not be read
    size: tuple[int, int] | None = None  # (h, w) of each


def plan_batches(jobs: Sequence[RestoreJob], batch_size: int) -> list[Batch]:
    """Batches of at most batch_size files of one size, in the order of their first files.

    Files whose header cannot be read come alone; why they fail is said when they are decoded.

    Raises:
        ValueError: batch_size is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected 1 or more")
    with ThreadPoolExecutor(HEADER_READERS) as pool:
        sizes = list(pool.map(_header_size, (job.source for job in jobs)))
    batches: list[list[RestoreJob]] = []
    promised: list[tuple[int, int] | None] = []
    open_batches: dict[tuple[int, int], int] = {}  # size -> index of the batch that still has room
    for job, size in zip(jobs, sizes, strict=True):
        area = 0 if size is None else size[0] * size[1]
        index = None if size is None else open_batches.get(size)
        if index is None:
            index = len(batches)
            batches.append([])
            promised.append(size)
        batches[index].append(job)
        if size is not None:
            full = len(batches[index]) >= min(batch_size, BATCH_PIXELS // max(1, area))
            open_batches.pop(size, None) if full else open_batches.update({size: index})
    return [
        Batch(tuple(batch), 0 if size is None else len(batch) * size[0] * size[1], size)
        for batch, size in zip(batches, promised, strict=True)
    ]


def plan_digest(batches: Sequence[Batch]) -> str:
    """Hash of which files go through the network together: processes that split them must agree on it."""
    digest = hashlib.blake2b(digest_size=8)
    for batch in batches:
        names = b"\0".join(os.fsencode(job.source) for job in batch.jobs)
        digest.update(b"%d %d %d %b\n" % (batch.pixels, len(batch.jobs), len(names), names))
    return digest.hexdigest()


def share_of(batches: Sequence[Batch], index: int, count: int) -> list[Batch]:
    """The batches of process `index` of `count`: about equal pixels each, in their order; the same at every call.

    Raises:
        ValueError: index is not below count.
    """
    if not 0 <= index < count:
        raise ValueError(f"share {index} of {count}: expected 0 .. {count - 1}")
    loads = [0.0] * count
    mine = []
    for place in sorted(range(len(batches)), key=lambda i: -batches[i].pixels):
        lightest = loads.index(min(loads))
        loads[lightest] += max(1, batches[place].pixels)
        if lightest == index:
            mine.append(place)
    return [batches[place] for place in sorted(mine)]


def _header_size(path: Path) -> tuple[int, int] | None:
    try:
        return read_size(path)
    except UnreadableImageError:
        return None
