"""Reading the next files and writing the last ones in threads, while the network works; both bounded in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

from lucidnft.images import LoadedImage, read_image
from lucidnft.inference.batching import Batch

READERS = 4
READ_AHEAD_PIXELS = 2**26
"""Input pixels read before they are needed; 12 bytes each.  One batch is always read ahead, however large."""

WRITERS = 4
WRITE_BEHIND_PIXELS = 2**26
"""Output pixels waiting to be written, 12 bytes each, before the network has to wait."""

Item = TypeVar("Item")
"""What is written, to whoever asked for it."""

ReadResult = LoadedImage | Exception


def read_ahead(batches: Sequence[Batch]) -> Iterator[tuple[Batch, list[ReadResult]]]:
    """Each batch with its decoded files, or the errors that decoding raised; the following ones are on their way."""
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="read")
    waiting: deque[tuple[Batch, list[Future[ReadResult]]]] = deque()
    pixels = 0
    upcoming = iter(batches)
    following = next(upcoming, None)
    try:
        while waiting or following is not None:
            while following is not None and (
                len(waiting) < 2 or pixels + following.pixels <= READ_AHEAD_PIXELS
            ):
                waiting.append((following, [pool.submit(_read, job.source) for job in following.jobs]))
                pixels += following.pixels
                following = next(upcoming, None)
                if len(waiting) > 2 * READERS:
                    break
            batch, futures = waiting.popleft()
            pixels -= batch.pixels
            yield batch, [future.result() for future in futures]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(path: Path) -> ReadResult:
    """Errors are values here: that a file is bad is said when its turn comes."""
    try:
        return read_image(path)
    except Exception as error:
        return error


class WriteBehind(Generic[Item]):
    """Writes in threads; results come back in the order of submission, when asked for or when memory is short.

    Leaving the context waits for what was submitted.
    """

    def __init__(self, finished: Callable[[Item, BaseException | None], None]) -> None:
        """finished: called in the caller's thread with what was submitted, and the error of writing it."""
        self._finished = finished
        self._pool = ThreadPoolExecutor(WRITERS, thread_name_prefix="write")
        self._waiting: deque[tuple[Item, int, Future[None]]] = deque()
        self._pixels = 0

    def submit(self, what: Item, pixels: int, write: Callable[[], None]) -> None:
        """Start `write`; waits before while too many pixels are pending."""
        while self._waiting and (self._waiting[0][2].done() or self._pixels + pixels > WRITE_BEHIND_PIXELS):
            self._collect()
        self._waiting.append((what, pixels, self._pool.submit(write)))
        self._pixels += pixels

    def collect_all(self) -> None:
        """Wait for everything."""
        while self._waiting:
            self._collect()

    def _collect(self) -> None:
        what, pixels, future = self._waiting.popleft()
        self._pixels -= pixels
        self._finished(what, future.exception())

    def __enter__(self) -> WriteBehind[Item]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.collect_all()  # what is written has to be known, also when the run is interrupted
        finally:
            self._pool.shutdown(wait=True)
