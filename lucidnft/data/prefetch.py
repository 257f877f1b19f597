"""Loading the next step's batch while the current one trains."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from lucidnft.data.batches import ImageSource
from lucidnft.records import ImageBatch


class Prefetched:
    """An image source with one thread that works one step ahead.

    Batches are those of the wrapped source, whatever order the steps come in; an error in the thread is
    raised by the call that asks for that batch.
    """

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        self.name, self.provides = source.name, source.provides
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._ahead: tuple[tuple[int, int, range], Future[ImageBatch]] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def describe(self) -> str:
        return self.source.describe()

    def batch(self, step: int, num_groups: int, rows: range) -> ImageBatch:
        """See `ImageSource.batch`; then starts on step + 1."""
        wanted = (step, num_groups, rows)
        ahead, self._ahead = self._ahead, None
        future = ahead[1] if ahead is not None and ahead[0] == wanted else None
        batch = self.source.batch(*wanted) if future is None else future.result()
        following = (step + 1, num_groups, rows)
        self._ahead = (following, self._pool.submit(self.source.batch, *following))
        return batch

    def close(self) -> None:
        """Stop the thread; the batch it is loading is dropped."""
        self._ahead = None
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Prefetched:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
