"""How far a run over files is: images done, seconds per image, and the time that is left by their pixels."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

TERMINAL_SECONDS = 0.2
LOG_SECONDS = 30.0
"""Between reports: in a terminal one line is drawn over, in a log every report is a line of its own."""


class Progress:
    """Reports on stderr.  The time left follows pixels, not files: a panorama takes as long as many snapshots."""

    def __init__(self, num_images: int, pixels: int, *, shown: bool = True) -> None:
        """num_images, pixels: of the inputs that are to be restored."""
        self.num_images = num_images
        self.pixels = pixels
        self._shown = shown and num_images > 0
        self._in_terminal = sys.stderr.isatty()
        self._images_done = 0
        self._pixels_done = 0
        self._last_name = ""
        self._started = self._reported = time.monotonic()

    def advance(self, pixels: int) -> None:
        """Input pixels that have been through the network, or could not be read."""
        self._pixels_done += pixels
        self._report_when_due()

    def done(self, name: str) -> None:
        """One more image was restored, or failed."""
        self._images_done += 1
        self._last_name = name
        self._report_when_due()

    def text(self) -> str:
        """ "12/112 images, 3.41 s/image, 06:30 left, last 'a.jpg'"."""
        elapsed = time.monotonic() - self._started
        parts = [f"{self._images_done}/{self.num_images} images"]
        if self._images_done:
            parts.append(f"{elapsed / self._images_done:.2f} s/image")
        if self._pixels_done:
            left = elapsed * max(0, self.pixels - self._pixels_done) / self._pixels_done
            parts.append(f"{tqdm.format_interval(left)} left")
        if self._last_name:
            parts.append(f"last {self._last_name!r}")
        return ", ".join(parts)

    def _report_when_due(self) -> None:
        now = time.monotonic()
        if now - self._reported >= (TERMINAL_SECONDS if self._in_terminal else LOG_SECONDS):
            self._reported = now
            self._report(last=False)

    def _report(self, *, last: bool) -> None:
        if not self._shown:
            return
        if self._in_terminal:
            erase = "\r\x1b[K"
            print(f"{erase}restore: {self.text()}", end="\n" if last else "", file=sys.stderr, flush=True)
        else:
            print(f"restore: {self.text()}", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._report(last=True)
