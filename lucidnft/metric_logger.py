"""What a run reports while it runs: metrics.jsonl, TensorBoard, image grids and phase timers.

metrics.jsonl holds one JSON object per logged step: "step" and flat names like "reward/musiq/mean".  It is
cut back on resume, so a run that was killed and resumed leaves the file of a run that never stopped, but
for `perf/` values, which are wall-clock seconds and differ between any two runs.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS_FILE = "metrics.jsonl"
PERF_PREFIX = "perf/"
"""Metrics under this prefix are timings: the only ones that may differ between a run and its repetition."""

PHASE_NOTE = "phase: "  # begins the note on an error of memory that says where a step was
_NAME = re.compile(r"[\w.+\-]+(/[\w.+\-]+)*")
_GAP = 4  # pixels between the images of a grid
_CAPTION_HEIGHT = 18  # pixels

Scalar = float | int | bool | Tensor | None


class MetricLogger:
    """Writes the scalars and pictures of one run.  Only the main process has an enabled one."""

    def __init__(
        self, run_dir: str | Path, *, step0: int = 0, enabled: bool = True, tensorboard: bool = True
    ) -> None:
        """Open the logs of a run that continues after step `step0`; 0 starts the logs afresh.

        Lines of later steps and a half-written last line are cut off.  Whatever belongs to step s must be
        logged before the checkpoint of step s is complete; then nothing is lost by a kill at any moment.

        Raises:
            ValueError: step0 is negative, or metrics.jsonl is damaged before its last line.
        """
        if step0 < 0:
            raise ValueError(f"step0 is {step0}, expected 0 or more")
        self.run_dir = Path(run_dir)
        self.enabled = enabled
        self.on_phase: Callable[[str | None], None] = lambda phase: None  # told when one begins and ends
        self._step0 = step0
        self._tensorboard = tensorboard
        self._writer: SummaryWriter | None = None
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._row: dict[str, Any] = {"step": step0}
        self._row_start = 0
        if enabled:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self._cut_back()
            self._file = open(self.run_dir / METRICS_FILE, "r+b")  # noqa: SIM115  closed by close()

    def log(self, metrics: Mapping[str, Scalar], step: int) -> None:
        """Record scalars of `step`, with the seconds of every phase timed since the last call.

        Further calls with the same step add to its line.  Tensors are moved to the host together, once.
        None stands for "not defined at this step" and becomes null.

        Raises:
            ValueError: a value is NaN or infinite, a name is malformed or was logged for this step with
                another value, or the step lies before one already logged.
        """
        if not self.enabled:
            return
        values = _to_numbers(metrics)
        _check(values, step)
        if step < self._row["step"]:
            raise ValueError(f"cannot log step {step}: step {self._row['step']} is already in the log")
        if step > self._row["step"]:
            self._row_start = self._file.seek(0, 2)
            self._row = {"step": step}
        for name, value in values.items():
            if name in self._row and self._row[name] != value:
                raise ValueError(f"'{name}' was logged as {self._row[name]} and as {value} for step {step}")
        for name in [n for n in self._seconds if n not in self._row and n not in values]:
            values[name] = self._seconds.pop(name)
        self._row.update(values)
        # Only what follows the part already on disk changes, and it goes out in one write.
        with _naming(self.run_dir / METRICS_FILE):
            self._file.seek(self._row_start)
            self._file.write(json.dumps(self._row, allow_nan=False).encode() + b"\n")
            self._file.flush()
        writer = self._open_writer()
        if writer is not None:
            for name, value in values.items():
                if value is not None:
                    writer.add_scalar(name, value, step)

    def log_images(self, name: str, rows: Tensor, captions: Sequence[str], step: int) -> Path | None:
        """Save a captioned grid as images/<name>-<step>.png and show it in TensorBoard.

        rows: (R, C, 3, H, W) in [0, 1], R pictures in C versions; captions: C column titles.
        Returns the path of the PNG, or None when the logger is not enabled.

        Raises:
            ValueError: the shape or the number of captions is wrong, or the name is malformed.
        """
        if not self.enabled:
            return None
        if rows.ndim != 5 or rows.shape[2] != 3 or rows.shape[1] != len(captions):
            raise ValueError(
                f"image grid '{name}' has shape {tuple(rows.shape)} and {len(captions)} captions, expected "
                "(R, C, 3, H, W) and C captions"
            )
        _check({name: 0.0}, step)
        grid = draw_grid(rows, captions)
        path = self.run_dir / "images" / f"{name.replace('/', '-')}-{step:06d}.png"
        with _naming(path):
            path.parent.mkdir(exist_ok=True)
            grid.save(path)
        writer = self._open_writer()
        if writer is not None:
            writer.add_image(name, np.asarray(grid), step, dataformats="HWC")
        return path

    @contextmanager
    def phase(self, name: str, *, synchronize: bool = False) -> Iterator[None]:
        """Add the seconds the block takes to "perf/<name>_seconds" of the next logged line.

        GPU work is asynchronous: without `synchronize` only the time to launch it is seen, with it the
        device is waited for, which slows the run a little.  An error of memory gets the name as a note.
        """
        with _noting(name), self._timed(name, synchronize):
            yield

    @contextmanager
    def _timed(self, name: str, synchronize: bool) -> Iterator[None]:
        if not self.enabled:
            yield
            return
        _synchronize(synchronize)
        self.on_phase(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.on_phase(None)
            _synchronize(synchronize)
            self._seconds[f"{PERF_PREFIX}{name}_seconds"] += time.perf_counter() - start

    def close(self) -> None:
        """Flush and close all files; timers not yet logged are dropped.  Safe to call twice."""
        if self.enabled:
            self._file.close()
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> MetricLogger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cut_back(self) -> None:
        path = self.run_dir / METRICS_FILE
        path.touch()
        end = 0
        for start, stop, row in _rows_of(path):
            if self._step0 == 0 or row["step"] > self._step0:
                break
            end = stop
            if row["step"] == self._step0:
                self._row, self._row_start = row, start
            else:
                self._row_start = stop
        with open(path, "r+b") as file:
            file.truncate(end)

    def _open_writer(self) -> SummaryWriter | None:
        if self._writer is None and self._tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            purge_step = self._step0 + 1 if self._step0 else 0
            self._writer = SummaryWriter(str(self.run_dir / "tensorboard"), purge_step=purge_step)
        return self._writer


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """A full disk says only that it is full: name the file that could not be written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror or error}") from error


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """The logged lines of a run, finished or still running, in order; a half-written last line is left out.

    Raises:
        FileNotFoundError: the folder has no metrics.jsonl.
        ValueError: a line before the last is damaged.
    """
    path = Path(run_dir) / METRICS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; is {run_dir} the folder of a run?")
    return [row for _, _, row in _rows_of(path)]


@contextmanager
def _noting(phase: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        error.add_note(f"{PHASE_NOTE}{phase}")
        raise


def draw_grid(rows: Tensor, captions: Sequence[str]) -> Image.Image:
    """(R, C, 3, H, W) in [0, 1] -> one picture, a title above each column."""
    num_rows, num_columns, _, height, width = rows.shape
    cells = (rows.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = cells.permute(0, 1, 3, 4, 2).numpy()
    size = (num_columns * (width + _GAP) - _GAP, _CAPTION_HEIGHT + num_rows * (height + _GAP) - _GAP)
    grid = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default()
    for column, caption in enumerate(captions):
        draw.text((column * (width + _GAP) + 2, 2), caption, fill="black", font=font)
        for row in range(num_rows):
            corner = (column * (width + _GAP), _CAPTION_HEIGHT + row * (height + _GAP))
            grid.paste(Image.fromarray(pixels[row, column]), corner)
    return grid


def _rows_of(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(first byte, end, row) of every complete line; a broken last line ends the iteration."""
    content = path.read_bytes()
    start = 0
    while start < len(content):
        newline = content.find(b"\n", start)
        stop = len(content) if newline < 0 else newline + 1
        row = _parsed(content[start:stop]) if newline >= 0 else None
        if row is None:
            if stop < len(content):
                raise ValueError(f"{path} is damaged at byte {start}: {content[start : start + 40]!r}...")
            return
        yield start, stop, row
        start = stop


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _to_numbers(metrics: Mapping[str, Scalar]) -> dict[str, float | int | None]:
    by_device: defaultdict[torch.device, list[str]] = defaultdict(list)
    numbers: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"metric '{name}' has shape {tuple(value.shape)}, expected a single number")
            by_device[value.device].append(name)
        numbers[name] = value.item() if isinstance(value, np.generic) else value
    for names in by_device.values():
        stacked = torch.stack([metrics[n].detach().reshape(()).double() for n in names])  # type: ignore[union-attr]
        numbers.update(zip(names, stacked.tolist(), strict=True))
    return numbers


def _check(values: Mapping[str, Any], step: int) -> None:
    if step < 0:
        raise ValueError(f"step is {step}, expected 0 or more")
    for name, value in values.items():
        if name == "step" or not _NAME.fullmatch(name):
            raise ValueError(f"metric name '{name}' is malformed; expected parts like reward/musiq/mean")
        if value is not None and not isinstance(value, (int, float)):
            raise ValueError(f"metric '{name}' is a {type(value).__name__}, expected a number")
    bad = {n: v for n, v in values.items() if v is not None and not math.isfinite(v)}
    if bad:
        raise ValueError(f"not finite at step {step}: {bad}; log None where a value is undefined")


def _synchronize(wanted: bool) -> None:
    if wanted and torch.cuda.is_available():
        torch.cuda.synchronize()
