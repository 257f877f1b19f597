"""The prefetching wrapper hands out the same batches, and the errors."""

from __future__ import annotations

import threading

import pytest
import torch

from lucidnft.data.prefetch import Prefetched
from lucidnft.records import ImageBatch


class CountingSource:
    """Batches that hold their step number; records which thread made which step."""

    name = "counting"
    provides = frozenset({"lr"})

    def __init__(self, failing_step: int | None = None) -> None:
        self.failing_step = failing_step
        self.made: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return 3

    def describe(self) -> str:
        return "three images"

    def batch(self, step: int, num_groups: int, rows: range) -> ImageBatch:
        self.made.append((step, threading.current_thread().name))
        if step == self.failing_step:
            raise ValueError(f"step {step} cannot be read")
        ids = tuple(step * num_groups + row for row in rows)
        return ImageBatch(torch.full((len(rows), 3, 4, 4), step / 100), tuple(map(str, ids)), ids)


def test_batches_are_those_of_the_source_in_any_order():
    plain = CountingSource()
    with Prefetched(CountingSource()) as source:
        assert (source.name, source.provides, len(source)) == ("counting", {"lr"}, 3)
        assert source.describe() == "three images"
        for step, num_groups, rows in (
            (0, 4, range(4)),
            (1, 4, range(4)),
            (9, 4, range(4)),
            (10, 4, range(2)),
        ):
            batch, expected = source.batch(step, num_groups, rows), plain.batch(step, num_groups, rows)
            assert torch.equal(batch.lr, expected.lr) and batch.group_ids == expected.group_ids


def test_the_next_step_is_made_by_the_thread_once():
    inner = CountingSource()
    with Prefetched(inner) as source:
        for step in range(5):
            source.batch(step, 2, range(2))
    steps = dict(inner.made)
    assert steps[0] == threading.current_thread().name
    assert all(steps[step].startswith("prefetch") for step in range(1, 5))
    assert sorted(step for step, _ in inner.made if step < 5) == list(range(5))


def test_an_error_ahead_is_raised_when_that_step_is_asked_for():
    with Prefetched(CountingSource(failing_step=2)) as source:
        source.batch(0, 2, range(2))
        assert source.batch(1, 2, range(2)).group_ids == (2, 3)
        with pytest.raises(ValueError, match="step 2 cannot be read"):
            source.batch(2, 2, range(2))
