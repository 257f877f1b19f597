"""A huggingface.co of a few bytes: what is on it, its faults, and the cache that downloads go to."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

COMMIT = "0" * 40


class SmallHub:
    """In the place of huggingface_hub's two download functions; looking into the cache stays theirs."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.cache = folder / "cache"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.fault: Callable[[str], None] | None = None  # called before a file is written
        self.offline: Exception | None = None
        self.fetched: list[str] = []
        self._real = huggingface_hub.snapshot_download
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(self.cache))
        patch.setattr("huggingface_hub.snapshot_download", self.snapshot_download)
        patch.setattr("huggingface_hub.hf_hub_download", self.hf_hub_download)

    def snapshot(self, repository: str) -> Path:
        """Where the cache keeps the files of a repository."""
        folder = self.cache / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text(COMMIT)
        return folder / "snapshots" / COMMIT

    def snapshot_download(
        self,
        repo_id: str,
        *,
        allow_patterns: list[str] | None = None,
        dry_run: bool = False,
        local_files_only: bool = False,
    ) -> Any:
        if local_files_only:
            return self._real(repo_id, local_files_only=True)
        self._reach(repo_id)
        names = [n for n in self.repositories[repo_id] if any(fnmatch(n, p) for p in allow_patterns or ["*"])]
        found = [self._bring(repo_id, name, self.snapshot(repo_id), dry_run) for name in names]
        return found if dry_run else str(self.snapshot(repo_id))

    def hf_hub_download(
        self,
        repo_id: str,
        filename: str,
        *,
        local_dir: Path | None = None,
        dry_run: bool = False,
        force_download: bool = False,
    ) -> Any:
        self._reach(repo_id)
        if filename not in self.repositories[repo_id]:
            raise errors.EntryNotFoundError(f"404: {filename}")
        folder = self.snapshot(repo_id) if local_dir is None else Path(local_dir)
        if force_download:
            (folder / filename).unlink()
        found = self._bring(repo_id, filename, folder, dry_run)
        return found if dry_run else str(folder / filename)

    def _reach(self, repository: str) -> None:
        if self.offline is not None:
            raise errors.LocalEntryNotFoundError("Please check your connection") from self.offline
        if repository in self.gated or repository not in self.repositories:
            gated = repository in self.gated
            kind = errors.GatedRepoError if gated else errors.RepositoryNotFoundError
            error = kind.__new__(kind)  # their constructors want a server's answer
            OSError.__init__(error, "403 Client Error.")
            raise error

    def _bring(self, repository: str, name: str, folder: Path, dry_run: bool) -> SimpleNamespace:
        content, file = self.repositories[repository][name], folder / name
        info = SimpleNamespace(file_size=len(content), will_download=not file.exists())
        if dry_run or file.exists():
            return info
        if self.fault is not None:
            self.fault(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        self.fetched.append(name)
        return info


def files_in(folder: Path, under: str = "") -> dict[str, bytes]:
    """Name -> contents of a folder, as a repository has them."""
    found = (f for f in folder.rglob("*") if f.is_file())
    return {f"{under}{file.relative_to(folder).as_posix()}": file.read_bytes() for file in found}
