"""The loop over files when something fails: one file, its batch, the disk or the program."""

import errno
import gc
import weakref

import pytest
import torch
from PIL import Image

from lucidnft.inference import folder as folder_module
from lucidnft.inference.batching import plan_batches
from lucidnft.inference.folder import OutputSettings, restore_files
from lucidnft.inference.jobs import plan_jobs
from tests.folder_runs import doubled, run, touch


def test_alpha_that_the_format_cannot_hold_is_refused_before_the_network(tmp_path):
    touch(tmp_path / "in", "a.png")
    Image.new("RGBA", (4, 3)).save(tmp_path / "in" / "b.png")
    seen = []

    def watched(lr, keys):
        seen.extend(keys)
        return doubled(lr, keys)

    batches = plan_batches(plan_jobs(tmp_path / "in", tmp_path / "out", image_format="jpeg"), 2)
    summary = restore_files(batches, watched, progress=False)
    assert seen == ["a"] and "jpeg holds no alpha" in summary.failed[0][1]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_failures_are_recorded_and_the_rest_go_on(tmp_path, batch_size):
    touch(tmp_path / "in", "a.png", "b.png", "c.png", "d.png", "e.png")
    (tmp_path / "in" / "b.png").write_bytes((tmp_path / "in" / "b.png").read_bytes()[:40])

    def fragile(lr, keys):
        if "c" in keys:
            raise ValueError("not finite")
        if "d" in keys:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return doubled(lr, keys)

    records = []
    summary = run(tmp_path, fragile, batch_size=batch_size, record=records.append)
    assert [path.name for path in summary.restored] == ["a.png", "e.png"]
    reasons = {path.name: reason.split(";")[0] for path, reason in summary.failed}
    assert reasons.pop("b.png")
    assert reasons == {"c.png": "not finite", "d.png": "not enough memory to restore it"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "e.png"]
    assert sorted((r.job.key, r.reason is None) for r in records) == [
        ("a", True), ("b", False), ("c", False), ("d", False), ("e", True)
    ]  # fmt: skip
    assert {(r.input_size, r.output_size) for r in records if r.reason is None} == {((3, 4), (6, 8))}


def test_one_bug_is_a_failed_image_and_three_in_a_row_end_the_run(tmp_path):
    touch(tmp_path / "in", *(f"{i}.png" for i in range(6)))

    def broken_for(*bad):
        def broken(lr, keys):
            if keys[0] in bad:
                raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
            return doubled(lr, keys)

        return broken

    summary = run(tmp_path, broken_for("0", "1", "3", "4"))
    assert [reason for _, reason in summary.failed] == [
        "RuntimeError: mat1 and mat2 shapes cannot be multiplied"
    ] * 4
    with pytest.raises(RuntimeError, match="mat1"):
        run(tmp_path, broken_for("1", "2", "3"))


def test_a_bug_that_befalls_a_batch_counts_once(tmp_path):
    """Images of one batch are of one size: an error of that size is no sign that the machine is broken."""
    touch(tmp_path / "in", *(f"{i}.png" for i in range(4)))
    touch(tmp_path / "in", *(f"other{i}.png" for i in range(4)), size=(5, 5))

    def broken(lr, keys):
        if lr.shape[2] == 3:
            raise RuntimeError("too much shared memory required")
        return doubled(lr, keys)

    summary = run(tmp_path, broken, batch_size=4)
    assert len(summary.failed) == 4 and len(summary.restored) == 4


def test_what_a_failed_attempt_held_is_free_before_the_next(tmp_path):
    """An exception's traceback holds the tensors of every frame; out of memory, they would be in the way."""

    class Activations:
        pass

    touch(tmp_path / "in", "a.png", "b.png", "c.png")
    held = []

    def full(lr, keys):
        assert all(reference() is None for reference in held)
        activations = Activations()
        held.append(weakref.ref(activations))
        if len(keys) > 1 or keys[0] == "b":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return doubled(lr, keys)

    gc.disable()  # it would free a cycle at times
    try:
        summary = run(tmp_path, full, batch_size=3)
    finally:
        gc.enable()
    assert len(held) == 4 and [path.name for path, _ in summary.failed] == ["b.png"]


def test_an_output_whose_name_is_too_long_is_its_own_failure_when_resumed(tmp_path):
    """The system refuses even the question whether such a file is there."""
    touch(tmp_path / "in", "a.png", "n" * 251 + ".png")
    (tmp_path / "out").mkdir()
    batches = plan_batches(plan_jobs(tmp_path / "in", tmp_path / "out", full_names=True), 1)
    summary = restore_files(batches, doubled, skip_existing=True, progress=False)
    assert [path.name for path in summary.restored] == ["a.png.png"]
    assert len(summary.failed) == 1 and "File name too long" in summary.failed[0][1]


def test_a_full_disk_stops_the_run_and_one_bad_name_does_not(tmp_path, monkeypatch):
    touch(tmp_path / "in", "a.png", "b.png")
    real, error = folder_module.save_image, errno.ENAMETOOLONG

    def failing(path, *args, **options):
        if path.name == "a.png":
            raise OSError(error, "no")
        real(path, *args, **options)

    monkeypatch.setattr(folder_module, "save_image", failing)
    summary = run(tmp_path)
    assert [p.name for p, _ in summary.failed] == ["a.png"] and [p.name for p in summary.restored] == [
        "b.png"
    ]
    assert "cannot be written" in summary.failed[0][1]
    error = errno.ENOSPC
    summary = folder_module.RestoreSummary()
    with pytest.raises(OSError):
        run(tmp_path, summary=summary)
    assert not summary.failed


def test_an_output_too_large_for_its_format_is_named_before_it_is_restored(tmp_path):
    touch(tmp_path / "in", "wide.png", size=(30, 2))
    touch(tmp_path / "in", "small.png", size=(20, 2))
    restored = []

    def watched(lr, keys):
        restored.extend(keys)
        return doubled(lr, keys)

    output = OutputSettings(size_of=lambda height, width: (600 * height, 600 * width))
    summary = run(tmp_path, watched, output, image_format="webp")
    assert [path.name for path in summary.restored] == ["small.webp"] and restored == ["small"]
    assert [(path.name, reason) for path, reason in summary.failed] == [
        (
            "wide.png",
            "webp holds sides of up to 16383 pixels, this image is 18000 x 1200; write png or tiff (--format)",
        )
    ]


def test_a_size_that_an_image_cannot_have_is_its_failure(tmp_path):
    touch(tmp_path / "in", "a.png")

    def refused(height, width):
        raise ValueError("would distort")

    summary = run(tmp_path, output=OutputSettings(size_of=refused))
    assert [reason for _, reason in summary.failed] == ["would distort"] and not summary.restored
