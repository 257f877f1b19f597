"""Where conditions of LR images are kept: in memory, or in a folder that several processes and runs may share.

A key stands for all that the fields depend on, so what is found under it needs no check of its age.  Fields come back
with the very bits they went in with.
"""

from __future__ import annotations

import os
import re
import time
import uuid
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from torch import Tensor

from lucidnft.checkpoint import load_tensors, save_tensors
from lucidnft.checkpoint.fingerprint import fingerprint

GIB = 2**30
STALE_SECONDS = 3600.0
"""Age at which a file that is still being written is what a killed process left."""

_KEPT = re.compile(r"[0-9a-f]{32}\.safetensors")
_UNFINISHED = re.compile(r"\.?[0-9a-f]{32}\.[0-9a-f]{32}\.writing(\.partial)?")


class ConditionStore(Protocol):
    """Named tensors by key."""

    def get(self, key: str) -> dict[str, Tensor] | None:
        """What was put under this key, on the CPU, or None."""

    def put(self, key: str, fields: Mapping[str, Tensor]) -> None:
        """Keep a copy; what was used longest ago leaves when the bound is reached."""


class MemoryStore:
    """Conditions in this process's main memory."""

    def __init__(self, limit_bytes: int) -> None:
        """limit_bytes: of all tensors together."""
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._kept: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

    def get(self, key: str) -> dict[str, Tensor] | None:
        """See `ConditionStore`.  The tensors are the kept ones: not to be changed."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: str, fields: Mapping[str, Tensor]) -> None:
        """See `ConditionStore`."""
        size = _size_of(fields)
        if key in self._kept or not _fits(size, self.limit_bytes):
            return
        self._kept[key] = {name: value.detach().to("cpu", copy=True) for name, value in fields.items()}
        self.used_bytes += size
        while self.used_bytes > self.limit_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.used_bytes -= _size_of(oldest)


class DiskStore:
    """Conditions in a folder, a file each.

    A file is written under a name of its own and renamed when it is whole, so a killed process, or another that
    writes the same key, never leaves half of one under a final name.  A file whose contents are not those it was
    written with is reported by a warning, counts as absent, and is replaced.
    """

    def __init__(self, folder: str | Path, limit_bytes: int) -> None:
        """folder: made when the first condition is kept.  limit_bytes: of all files in it, whoever wrote them.

        Each process looks at the whole folder once for every 1 % of the bound that it has written itself, so with P
        processes the folder may be larger by up to P %.

        Raises:
            ValueError: folder is a file.
        """
        self.folder = Path(folder).expanduser()
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"the folder of the condition cache, {self.folder}, is a file; name a folder")
        self.limit_bytes = limit_bytes
        self._slack = limit_bytes // 100
        self._written = limit_bytes  # nothing is known of the folder yet

    def path(self, key: str) -> Path:
        """The file of a key."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> dict[str, Tensor] | None:
        """See `ConditionStore`."""
        path = self.path(key)
        try:
            fields, header = load_tensors(path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            _report_damage(str(error))
            return None
        if header.get("key") != key or header.get("contents") != fingerprint(fields):
            _report_damage(f"{path} does not hold what it was written with")
            return None
        with suppress(OSError):  # another user's file, or a read-only folder: it only looks older than it is
            os.utime(path)
        return fields

    def put(self, key: str, fields: Mapping[str, Tensor]) -> None:
        """See `ConditionStore`.  Raises OSError when the disk refuses."""
        size = _size_of(fields)
        if not _fits(size, self.limit_bytes):
            return
        path = self.path(key)
        unfinished = path.with_name(f"{key}.{uuid.uuid4().hex}.writing")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                save_tensors(unfinished, fields, {"key": key, "contents": fingerprint(fields)})
                os.replace(unfinished, path)
            finally:
                unfinished.unlink(missing_ok=True)
        except OSError as error:
            reason = error.__cause__ or error  # below save_tensors' advice, which is for checkpoints
            raise OSError(
                error.errno,
                f"the condition cache cannot write {path}: {getattr(reason, 'strerror', reason)}; free some space, "
                "lower model.condition_cache_gib, or set model.condition_cache to memory or none",
            ) from error
        self._written += size
        if self._written > self._slack:
            self._make_room()

    def _make_room(self) -> None:
        """Delete the files used longest ago until the bound holds, and what killed processes left."""
        kept = []
        for path in self.folder.glob("??/*"):
            with suppress(FileNotFoundError):  # deleted by another process
                status = path.stat()
                if _KEPT.fullmatch(path.name):
                    kept.append((status.st_mtime_ns, status.st_size, path))
                elif _UNFINISHED.fullmatch(path.name) and time.time() - status.st_mtime > STALE_SECONDS:
                    path.unlink()
        used = sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if used + self._slack <= self.limit_bytes:
                break
            path.unlink(missing_ok=True)
            used -= size
        self._written = 0


def _report_damage(problem: str) -> None:
    warnings.warn(f"condition cache: {problem}. The condition is computed again", stacklevel=3)


def _fits(size: int, limit_bytes: int) -> bool:
    if size > limit_bytes:
        warnings.warn(
            f"condition cache: the condition of one image takes {size / 2**20:.1f} MiB and is not kept: "
            f"model.condition_cache_gib allows {limit_bytes / 2**20:.1f} MiB for all of them",
            stacklevel=3,
        )
    return size <= limit_bytes


def _size_of(fields: Mapping[str, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in fields.values())
