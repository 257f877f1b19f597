"""Which files go together, and that the shares of processes make up the whole."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lucidnft.inference import batching
from lucidnft.inference.batching import Batch, plan_batches, share_of
from lucidnft.inference.jobs import RestoreJob


def job(path):
    return RestoreJob(path, path.with_suffix(".out"))


def images(folder, *sizes):
    jobs = []
    for number, size in enumerate(sizes):
        path = folder / f"{number}.png"
        Image.new("RGB", size).save(path)
        jobs.append(job(path))
    return jobs


def test_files_of_one_size_share_batches_wherever_they_lie(tmp_path):
    jobs = images(tmp_path, (4, 3), (5, 3), (4, 3), (4, 3), (5, 3))
    (tmp_path / "bad.png").write_bytes(b"no image")
    jobs.insert(1, job(tmp_path / "bad.png"))
    batches = plan_batches(jobs, 2)
    assert [[j.source.stem for j in batch.jobs] for batch in batches] == [
        ["0", "2"],
        ["bad"],
        ["1", "4"],
        ["3"],
    ]
    assert [batch.pixels for batch in batches] == [24, 0, 30, 12]


def test_large_images_come_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(batching, "BATCH_PIXELS", 30)
    batches = plan_batches(images(tmp_path, (4, 3), (4, 3), (4, 3), (6, 6), (6, 6)), 8)
    assert [len(batch.jobs) for batch in batches] == [2, 1, 1, 1]


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="batch_size is 0"):
        plan_batches([], 0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 1000), max_size=30), st.integers(1, 5))
def test_shares_are_disjoint_complete_and_even(pixels, count):
    batches = [Batch((RestoreJob(f"{i}", f"{i}"),), p) for i, p in enumerate(pixels)]
    shares = [share_of(batches, index, count) for index in range(count)]
    names = [batch.jobs[0].source for share in shares for batch in share]
    assert sorted(names) == sorted(str(i) for i in range(len(pixels)))
    loads = [sum(max(1, batch.pixels) for batch in share) for share in shares]
    assert max(loads) - min(loads) <= max([1, *pixels])
    for share in shares:
        order = [int(batch.jobs[0].source) for batch in share]
        assert order == sorted(order)


def test_a_share_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="share 2 of 2"):
        share_of([], 2, 2)
