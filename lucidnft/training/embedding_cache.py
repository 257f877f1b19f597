"""Embeddings of a frozen model on disk: computed once, in shards, so that a head trains on them in seconds.

A folder per identity (embedder, recipe, images, seed): `manifest.json` says what it is, `shard-00000.safetensors`
and so on hold CONTENTS_PER_SHARD contents each.  A shard is written whole or not at all, and those that are there
are not made again: a run that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from lucidnft.checkpoint import load_header, load_tensors, save_json, save_tensors

CONTENTS_PER_SHARD = 32
DRAWN_AHEAD = 4  # contents drawn by other threads while one is embedded

Drawn = TypeVar("Drawn")


class EmbeddingCache:
    """Named tensors of contents 0 .. count - 1, each with the same shapes."""

    def __init__(self, root: str | Path, identity: Mapping[str, Any], count: int) -> None:
        """root: folder of all caches.  identity: JSON-able; whatever the embeddings depend on but their number."""
        self.identity = json.loads(json.dumps(identity))
        text = json.dumps(self.identity, sort_keys=True).encode()
        self.folder = Path(root) / hashlib.blake2b(text, digest_size=8).hexdigest()
        self.count = count

    def describe(self) -> str:
        """How much of it is there already."""
        shards = len(self.shards())
        return f"{self.count} contents, {shards - len(self.missing())} of {shards} shards in {self.folder}"

    def shards(self) -> list[range]:
        """The contents of each shard."""
        starts = range(0, self.count, CONTENTS_PER_SHARD)
        return [range(start, min(start + CONTENTS_PER_SHARD, self.count)) for start in starts]

    def missing(self) -> list[int]:
        """Numbers of the shards that are not there, or hold fewer contents than are needed.

        Raises:
            ValueError: a shard is damaged.
        """
        return [number for number, contents in enumerate(self.shards()) if not self._has(number, contents)]

    def share(self, rank: int, num_processes: int) -> list[int]:
        """The missing shards of a process."""
        return [number for number in self.missing() if number % num_processes == rank]

    def build(
        self,
        draw: Callable[[int], Drawn],
        embed: Callable[[Drawn], dict[str, Tensor]],
        *,
        desc: str,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        """Make the missing shards of this process.

        draw: images of a content, by number; runs ahead in threads.  embed: their embeddings, float; they
        are stored as float16.

        Raises:
            ValueError: an embedding is not finite, or a content has other shapes than the one before.
        """
        todo = self.share(rank, num_processes)
        if not todo:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if rank == 0:  # who has the first shard
            save_json(self.folder / "manifest.json", self.identity)
        numbers = [number for shard in todo for number in self.shards()[shard]]
        with (
            ThreadPoolExecutor(max_workers=2, thread_name_prefix="contents") as pool,
            tqdm(total=len(numbers), desc=desc, unit="content") as bar,
        ):
            ahead = [pool.submit(draw, number) for number in numbers[:DRAWN_AHEAD]]
            waiting = iter(numbers[DRAWN_AHEAD:])
            for shard in todo:
                rows: list[dict[str, Tensor]] = []
                for number in self.shards()[shard]:
                    images = ahead.pop(0).result()
                    ahead += [pool.submit(draw, following) for following in islice(waiting, 1)]
                    rows.append(embed(images))
                    _check_row(number, rows)
                    bar.update()
                stacked = {name: torch.stack([row[name] for row in rows]).half() for name in rows[0]}
                save_tensors(self._path(shard), stacked, {"contents": len(rows)})

    def load(self) -> dict[str, Tensor]:
        """(count, ...) float16 tensors.

        Raises:
            ValueError: shards are missing or damaged, or were made at another crop size.
        """
        if self.missing():
            raise ValueError(f"{self.folder}: shards {self.missing()[:3]} are missing; build the cache first")
        parts = [load_tensors(self._path(number))[0] for number in range(len(self.shards()))]
        return {name: torch.cat([part[name] for part in parts])[: self.count] for name in parts[0]}

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.safetensors"

    def _has(self, shard: int, contents: range) -> bool:
        path = self._path(shard)
        return path.is_file() and int(load_header(path)["contents"]) >= len(contents)


def _check_row(number: int, rows: list[dict[str, Tensor]]) -> None:
    for name, value in rows[-1].items():
        if not bool(torch.isfinite(value.half()).all()):
            raise ValueError(f"content {number}: the embedding '{name}' is not finite as float16")
        if value.shape != rows[0][name].shape:
            raise ValueError(
                f"content {number}: '{name}' has shape {tuple(value.shape)}, the first of its shard "
                f"{tuple(rows[0][name].shape)}; crops must have one size: leave out the images below crop_size"
            )


def file_identity(path: Path) -> list[Any]:
    """What tells a file from another of its name, without reading it all: name, size, time of its last change."""
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]


def embedder_identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an embedder; where one of them is a local file or folder, also what is in it now."""
    found: dict[str, Any] = dict(settings)
    for name, value in settings.items():
        if isinstance(value, str) and Path(value).exists():
            path = Path(value)
            files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
            found[f"{name}/files"] = [file_identity(file) for file in files]
    return found
