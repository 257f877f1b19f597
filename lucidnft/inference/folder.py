"""The loop over files: decoded ahead, restored in batches, written behind; one bad file does not stop the rest."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lucidnft.image_encoding import DEEP_FORMATS, output_format
from lucidnft.images import (
    LoadedImage,
    UnreadableImageError,
    check_format,
    holds_profile,
    resize,
    save_image,
)
from lucidnft.inference.batching import Batch
from lucidnft.inference.jobs import RestoreJob
from lucidnft.inference.progress import Progress
from lucidnft.inference.streaming import ReadResult, WriteBehind, read_ahead
from lucidnft.inference.tile_memory import is_out_of_memory

STOPPING_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENODEV, errno.ESTALE})
"""What befalls all that follow too; other errors of the file system are one file's (a name too long, say)."""

UNEXPECTED_IN_A_ROW = 3
"""Batches with errors that no image should cause (a bug, a broken device), without a restored image between them, that
end the run.  Batches, because the images of one are alike: what fails on one fails on all."""


@dataclass(frozen=True)
class RestoredImage:
    """What became of one input."""

    sr: Tensor  # (3, H, W) in [0, 1]
    facts: Mapping[str, Any] = field(default_factory=dict)  # for the record
    others: Mapping[str, Tensor] = field(default_factory=dict)  # further candidates, by name


RestoreFunction = Callable[[Tensor, Sequence[str]], Sequence[RestoredImage]]
"""(lr (B, 3, h, w) in [0, 1], B keys) -> B restored images."""


@dataclass(frozen=True)
class OutputSettings:
    """How outputs are written.

    What a format cannot hold of a picture's depth or colour profile is left out; an alpha channel is not, see
    `check_format`.
    """

    bit_depth: Literal["auto", 8, 16] = "auto"  # auto: the input's, as far as the format holds it
    quality: int = 95  # of JPEG and WebP
    keep_metadata: bool = False  # EXIF, XMP and resolution
    size_of: Callable[[int, int], tuple[int, int]] | None = None
    """(h, w) of an input -> (H, W) of its output: what a format cannot hold is then said before it is restored."""
    place_candidate: Callable[[Path, str], Path] | None = None
    """(output file, name of a candidate) -> file of that candidate; None: no candidate is written."""


@dataclass(frozen=True)
class FileRecord:
    """What happened to one input, for the manifest."""

    job: RestoreJob
    reason: str | None  # why it failed; None when it was restored
    seconds: float = 0.0  # of the network's work
    input_size: tuple[int, int] | None = None  # (h, w), upright
    output_size: tuple[int, int] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class RestoreSummary:
    """What happened to the files of a run."""

    restored: list[Path] = field(default_factory=list)  # outputs written
    skipped: list[Path] = field(default_factory=list)  # outputs that were there already
    failed: list[tuple[Path, str]] = field(default_factory=list)  # inputs, and the reason
    notes: list[tuple[Path, str]] = field(default_factory=list)  # inputs, and what their outputs lack


def restore_files(
    batches: Sequence[Batch],
    restore_images: RestoreFunction,
    output: OutputSettings | None = None,
    *,
    skip_existing: bool = False,
    progress: bool = True,
    record: Callable[[FileRecord], None] | None = None,
    summary: RestoreSummary | None = None,
) -> RestoreSummary:
    """Restore batch after batch; a file that cannot be read, restored or written is recorded and the rest go on.

    A batch of which some outputs are missing is restored whole, and only those are written: see `batching`.

    Args:
        record: called once for every file that was restored or failed, as soon as that is known; from any thread.
        summary: filled and returned; to be given by a caller who wants to know what was done before an error.

    Raises:
        OSError: an output cannot be written for a reason that would befall all that follow too.
        RuntimeError, ...: an unexpected error in UNEXPECTED_IN_A_ROW batches in a row.
    """
    output = output or OutputSettings()
    run = _Run(restore_images, output, record, RestoreSummary() if summary is None else summary)
    todo = []
    for batch in batches:
        existing = {job.target for job in batch.jobs if skip_existing and os.path.isfile(job.target)}
        run.summary.skipped += [job.target for job in batch.jobs if job.target in existing]
        if len(existing) < len(batch.jobs):
            todo.append(batch)
    run.skipped = frozenset(run.summary.skipped)
    count = sum(len(batch.jobs) for batch in batches) - len(run.skipped)
    pixels = sum(batch.pixels for batch in todo)
    with Progress(count, pixels, shown=progress) as run.bar, WriteBehind(run.finished) as run.writers:
        for batch, images in read_ahead(todo):
            run.restore_batch(batch, images)
    return run.summary


class _Run:
    """State of one call of `restore_files`."""

    bar: Progress
    writers: WriteBehind[FileRecord]

    def __init__(
        self,
        restore_images: RestoreFunction,
        output: OutputSettings,
        record: Callable[[FileRecord], None] | None,
        summary: RestoreSummary,
    ) -> None:
        self.restore_images = restore_images
        self.output = output
        self.record = record
        self.summary = summary
        self.skipped: frozenset[Path] = frozenset()
        self._batch: Batch | None = None
        self._broken: set[Batch | None] = set()  # with unexpected errors since an image was restored

    def restore_batch(self, batch: Batch, images: Sequence[ReadResult]) -> None:
        """Restore what could be decoded, images of one upright size together, and report the others."""
        self._batch = batch
        by_size: dict[tuple[int, ...], list[tuple[RestoreJob, LoadedImage]]] = {}
        for job, image in zip(batch.jobs, images, strict=True):
            problem = _cannot_be_written(job, image, self.output) if isinstance(image, LoadedImage) else image
            if isinstance(image, LoadedImage) and problem is None:
                by_size.setdefault(tuple(image.rgb.shape), []).append((job, image))
            elif problem is not None and job.target not in self.skipped:
                self._failed(job, problem)
        for group in by_size.values():
            if any(job.target not in self.skipped for job, _ in group):
                self._restore_group(group)
        self.bar.advance(batch.pixels)

    def _restore_group(self, group: Sequence[tuple[RestoreJob, LoadedImage]]) -> None:
        started = time.perf_counter()
        restored: Sequence[RestoredImage] | None = None
        try:
            lr = torch.stack([image.rgb for _, image in group])
            restored = self.restore_images(lr, [job.key for job, _ in group])
        except Exception as error:
            # no name may keep it after this block: its traceback holds what filled the memory
            if len(group) == 1:
                if group[0][0].target not in self.skipped:
                    self._failed(group[0][0], error)
                return
        if restored is None:
            for single in group:  # to tell which of them it was
                self._restore_group([single])
            return
        self._broken.clear()
        seconds = (time.perf_counter() - started) / len(group)
        for (job, image), result in zip(group, restored, strict=True):
            if job.target not in self.skipped:
                self._write(job, image, result, seconds)

    def _write(self, job: RestoreJob, image: LoadedImage, result: RestoredImage, seconds: float) -> None:
        sr = result.sr.detach().cpu()
        height, width = sr.shape[1:]
        record = FileRecord(
            job, None, seconds, (image.rgb.shape[1], image.rgb.shape[2]), (height, width), result.facts
        )
        files: dict[Path, Tensor] = {}
        if self.output.place_candidate is not None:
            for name, other in result.others.items():
                files[self.output.place_candidate(job.target, name)] = other.detach().cpu()
        files[job.target] = sr  # last: it is what --skip_existing looks for

        def write() -> None:
            for path, pixels in files.items():
                _save(path, pixels, image, self.output)
            if self.record is not None:
                self.record(record)

        self.summary.notes += [(job.source, note) for note in _notes(job, image, self.output)]
        self.bar.done(job.source.name)
        self.writers.submit(record, len(files) * height * width, write)

    def finished(self, record: FileRecord, error: BaseException | None) -> None:
        """What the writing of a file came to."""
        if error is None:
            self.summary.restored.append(record.job.target)
        elif isinstance(error, OSError) and error.errno in STOPPING_ERRORS:
            raise error
        elif isinstance(error, (OSError, ValueError, MemoryError)):
            self._failed(record.job, error, counted=True)
        else:
            raise error

    def _failed(self, job: RestoreJob, error: BaseException, *, counted: bool = False) -> None:
        """counted: it was restored, and failed after that."""
        if not isinstance(error, (ValueError, OSError)) and not is_out_of_memory(error):
            self._broken.add(self._batch)
            if len(self._broken) == UNEXPECTED_IN_A_ROW:
                raise error
        reason = _reason(error)
        self.summary.failed.append((job.source, reason))
        if not counted:
            self.bar.done(job.source.name)
        if self.record is not None:
            self.record(FileRecord(job, reason))


def _cannot_be_written(job: RestoreJob, image: LoadedImage, output: OutputSettings) -> ValueError | None:
    """What would be refused once the image is restored, said before."""
    depth = 8 if output.bit_depth == "auto" else output.bit_depth
    size = (image.rgb.shape[1], image.rgb.shape[2])
    try:
        size = (1, 1) if output.size_of is None else output.size_of(*size)
    except ValueError as error:
        return error
    try:
        check_format(job.target.suffix, size=size, alpha=image.alpha is not None, bit_depth=depth)
    except ValueError as error:
        return ValueError(f"{error} (--format)")
    return None


def _notes(job: RestoreJob, image: LoadedImage, output: OutputSettings) -> list[str]:
    """What may make the output look different: damage beside the pixels (the orientation is there), a lost profile."""
    notes = list(image.metadata.problems)
    if image.icc_profile and not _holds_profile(job.target, image, output):
        notes.append(f"the colour profile was left out: {job.target.suffix} has no place for it")
    return notes


def _save(path: Path, sr: Tensor, image: LoadedImage, output: OutputSettings) -> None:
    alpha = None
    if image.alpha is not None:
        alpha = resize(image.alpha.unsqueeze(0), (sr.shape[1], sr.shape[2]))[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(
        path,
        sr,
        alpha=alpha,
        grey=image.was_grey,
        bit_depth=_bit_depth(path, image, output),
        icc_profile=image.icc_profile if _holds_profile(path, image, output) else None,
        metadata=image.metadata if output.keep_metadata else None,
        quality=output.quality,
    )


def _bit_depth(path: Path, image: LoadedImage, output: OutputSettings) -> int:
    if output.bit_depth != "auto":
        return output.bit_depth
    return 16 if image.bit_depth == 16 and output_format(path.suffix) in DEEP_FORMATS else 8


def _holds_profile(path: Path, image: LoadedImage, output: OutputSettings) -> bool:
    depth = _bit_depth(path, image, output)
    return holds_profile(path.suffix, grey=image.was_grey, alpha=image.alpha is not None, bit_depth=depth)


def _reason(error: BaseException) -> str:
    if isinstance(error, UnreadableImageError):
        return error.reason
    if isinstance(error, OSError):
        return f"cannot be written: {error}"
    if isinstance(error, MemoryError) and str(error):
        return str(error)
    if is_out_of_memory(error):
        return "not enough memory to restore it; take smaller tiles (--tile_size) or another device"
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
