"""Checkpoint folders that are whole or absent: filled under a hidden name, renamed when complete."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lucidnft.checkpoint.tensor_files import first_few, flush_to_disk, load_json, save_json, write_errors

MANIFEST = "manifest.json"
"""Names and sizes in bytes of the files of a checkpoint folder; written last."""

_FOLDER = re.compile(r"checkpoint-(\d{6,})")


@contextmanager
def checkpoint_folder(run_dir: str | Path, step: int) -> Iterator[Path]:
    """Yield a hidden folder to write into; on a clean exit it becomes `<run_dir>/checkpoint-<step>`.

    A checkpoint of the same step is replaced only once the new one is complete.  When the body raises,
    the hidden folder is removed and every older checkpoint stays.  One process per run calls this.

    Raises:
        CheckpointWriteError: the folder could not be made or renamed.
        ValueError: step is negative.
    """
    if step < 0:
        raise ValueError(f"checkpoint step is {step}, expected 0 or more")
    run_dir = Path(run_dir)
    final = run_dir / f"checkpoint-{step:06d}"
    partial, replaced = _hidden(final, "partial"), _hidden(final, "replaced")
    with write_errors(partial):
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
    try:
        yield partial
        sizes = {str(f.relative_to(partial)): f.stat().st_size for f in _files_of(partial)}
        save_json(partial / MANIFEST, {"step": step, "files": sizes})
        with write_errors(final):
            for entry in _files_of(partial):
                flush_to_disk(entry)
            flush_to_disk(partial)
            if final.exists():
                # A killed process may leave only one of the two names behind, so both count as found.
                if replaced.exists():
                    shutil.rmtree(replaced)
                final.rename(replaced)
            partial.rename(final)
            flush_to_disk(run_dir)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if replaced.exists():
        shutil.rmtree(replaced)


def check_checkpoint(folder: str | Path) -> int:
    """The step of a complete checkpoint folder.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is not a checkpoint, or files are missing or cut short (the first few are named).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"checkpoint folder {folder} does not exist")
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder} is not a complete checkpoint: it has no {MANIFEST}")
    manifest = load_json(folder / MANIFEST)
    listed = manifest.get("files") if isinstance(manifest, dict) and "step" in manifest else None
    if not isinstance(listed, dict):
        raise ValueError(f"{folder / MANIFEST} is damaged: it does not list 'step' and 'files'")
    problems = []
    for name, size in listed.items():
        file = folder / name
        if not file.is_file():
            problems.append(f"{name} is missing")
        elif file.stat().st_size != size:
            problems.append(f"{name} has {file.stat().st_size} bytes instead of {size}")
    if problems:
        raise ValueError(f"{folder} is not a complete checkpoint: {first_few(problems)}")
    return int(manifest["step"])


def latest_checkpoint(run_dir: str | Path) -> Path | None:
    """The complete checkpoint folder with the highest step, or None.

    Half-written and half-copied folders are passed over.  A folder set aside by a replacement that was
    killed between its two renames is still found.
    """
    run_dir = Path(run_dir)
    for final in sorted(_checkpoint_names(run_dir), key=_step_of, reverse=True):
        for folder in (final, _hidden(final, "replaced")):
            if _is_complete(folder):
                return folder
    return None


def prune_checkpoints(run_dir: str | Path, limit: int) -> list[Path]:
    """Delete the oldest complete checkpoints beyond `limit` (>= 1), and leftovers of killed processes.

    Incomplete folders without the hidden prefix are somebody's copies and are left alone.  Returns what
    was removed.
    """
    if limit < 1:
        raise ValueError(f"checkpoint limit is {limit}, expected 1 or more: the last checkpoint always stays")
    run_dir = Path(run_dir)
    finals = sorted(_checkpoint_names(run_dir), key=_step_of)
    complete = [folder for folder in finals if _is_complete(folder)]
    removed = []
    for folder in complete[:-limit]:
        # Renamed first: a kill during the deletion must not leave a folder that looks like a checkpoint.
        hidden = folder.rename(_hidden(folder, "removed"))
        shutil.rmtree(hidden)
        removed.append(folder)
    for final in finals:
        leftovers = [_hidden(final, "partial"), _hidden(final, "removed")]
        if _is_complete(final):
            leftovers.append(_hidden(final, "replaced"))
        for leftover in leftovers:
            if leftover.exists():
                shutil.rmtree(leftover)
                removed.append(leftover)
    return removed


def set_aside_newer(run_dir: str | Path, step: int) -> list[Path]:
    """Move complete checkpoints of later steps into <run_dir>/superseded; returns where they are now.

    A run that continues from an older checkpoint writes a new timeline: `latest` must not find the old one,
    and pruning must not count it.
    """
    run_dir = Path(run_dir)
    moved = []
    for final in sorted(_checkpoint_names(run_dir), key=_step_of):
        for folder in (final, _hidden(final, "replaced")):
            if _step_of(final) > step and _is_complete(folder):
                target = unused_name(run_dir / "superseded" / final.name)
                target.parent.mkdir(exist_ok=True)
                moved.append(folder.rename(target))
    return moved


def unused_name(path: Path) -> Path:
    """The path itself if nothing is there, else the first of <path>.1, <path>.2, ... where nothing is."""
    unused, number = path, 0
    while unused.exists():
        number += 1
        unused = path.with_name(f"{path.name}.{number}")
    return unused


def _files_of(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file())


def _hidden(final: Path, state: str) -> Path:
    return final.with_name(f".{final.name}.{state}")


def _checkpoint_names(run_dir: Path) -> set[Path]:
    """Final paths of every checkpoint with a trace in the run folder, hidden or not."""
    if not run_dir.is_dir():
        return set()
    matches = (re.fullmatch(rf"\.?({_FOLDER.pattern})(\.\w+)?", entry.name) for entry in run_dir.iterdir())
    return {run_dir / match[1] for match in matches if match}


def _step_of(final: Path) -> int:
    return int(final.name.removeprefix("checkpoint-"))


def _is_complete(folder: Path) -> bool:
    try:
        check_checkpoint(folder)
    except (FileNotFoundError, ValueError):
        return False
    return True
