"""From input files to output files: names, collisions, failures and what is kept of a picture."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from lucidnft.images import read_image, resize
from lucidnft.inference.folder import RestoreJob, plan_jobs, restore_file, restore_files


def doubled(lr, key):
    """Stands for a network: twice the size, no learning."""
    return resize(lr, (lr.shape[2] * 2, lr.shape[3] * 2))


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (10, 200, 30)).save(path)
    return folder


def targets(jobs, folder):
    return {str(j.source.name): str(j.target.relative_to(folder)) for j in jobs}


def test_names_with_dots_survive_and_everything_becomes_png(tmp_path):
    touch(tmp_path / "in", "a.b.png", "a.c.JPG", "plain.bmp")
    jobs = plan_jobs(tmp_path / "in", tmp_path / "out")
    assert targets(jobs, tmp_path / "out") == {
        "a.b.png": "a.b.png",
        "a.c.JPG": "a.c.png",
        "plain.bmp": "plain.png",
    }
    assert [j.key for j in jobs] == ["a.b", "a.c", "plain"]


def test_sub_folders_are_kept_when_asked_for_and_left_out_otherwise(tmp_path):
    touch(tmp_path / "in", "a.png", "sub/a.png")
    jobs = plan_jobs(tmp_path / "in", tmp_path / "out", recursive=True)
    assert [str(j.target.relative_to(tmp_path / "out")) for j in jobs] == ["a.png", "sub/a.png"]
    assert len(plan_jobs(tmp_path / "in", tmp_path / "out")) == 1


def test_one_file_is_one_job(tmp_path):
    touch(tmp_path, "x.y.webp")
    assert plan_jobs(tmp_path / "x.y.webp", tmp_path / "out") == [
        RestoreJob(tmp_path / "x.y.webp", tmp_path / "out" / "x.y.png")
    ]


def test_two_inputs_for_one_output_are_refused(tmp_path):
    touch(tmp_path / "in", "a.png", "a.jpg", "b.png")
    with pytest.raises(
        ValueError, match=r"1 output\(s\) would be written by several inputs: a\.png <- .*a\.jpg"
    ):
        plan_jobs(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_input_is_never_replaced(tmp_path):
    touch(tmp_path, "a.png")
    for source in (tmp_path, tmp_path / "a.png"):
        with pytest.raises(ValueError, match=r"would replace an input .*a\.png.*another output_dir"):
            plan_jobs(source, tmp_path / ".." / tmp_path.name)


def test_results_below_the_input_folder_are_not_inputs_of_the_next_run(tmp_path):
    touch(tmp_path, "a.png", "restored/a.png", "restored/sub/b.png")
    jobs = plan_jobs(tmp_path, tmp_path / "restored", recursive=True)
    assert [j.source for j in jobs] == [tmp_path / "a.png"]
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match="nothing to restore"):
        plan_jobs(tmp_path, tmp_path / "restored", recursive=True)


def test_missing_and_empty_inputs_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        plan_jobs(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="no image file"):
        plan_jobs(tmp_path / "in", tmp_path / "out")
    touch(tmp_path / "in", "a.png")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        plan_jobs(tmp_path / "in", tmp_path / "in" / "a.png")


def restored(tmp_path, name, **arguments):
    source = tmp_path / name
    if "array" in arguments:
        Image.fromarray(arguments.pop("array")).save(source, **arguments)
    job = RestoreJob(source, tmp_path / "out" / f"{source.stem}.png")
    assert restore_file(job, doubled) is None
    return read_image(job.target)


def test_alpha_is_scaled_separately_and_kept(tmp_path):
    array = np.zeros((3, 5, 4), np.uint8)
    array[..., 0], array[:, :2, 3] = 200, 255
    image = restored(tmp_path, "a.png", array=array)
    assert image.alpha.shape == (1, 6, 10)
    assert image.alpha[0, :, 0].eq(1).all() and image.alpha[0, :, -1].eq(0).all()
    torch.testing.assert_close(image.rgb[0], torch.full((6, 10), 200 / 255), atol=2e-3, rtol=0)


def test_grey_stays_grey_and_sixteen_bits_stay_sixteen(tmp_path):
    image = restored(tmp_path, "g.jpg", array=np.full((4, 4), 90, np.uint8))
    assert image.was_grey and image.bit_depth == 8
    deep = np.array([[256 * 10 + 3, 256 * 10 + 9]], np.uint16)
    image = restored(tmp_path, "d.png", array=deep)
    assert image.was_grey and image.bit_depth == 16
    assert len(torch.unique(image.rgb)) > 2  # levels between the two that 8 bits cannot tell apart


def test_a_colour_profile_is_kept(tmp_path):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = restored(tmp_path, "p.png", array=np.zeros((2, 2, 3), np.uint8), icc_profile=profile)
    assert image.icc_profile == profile


def test_failures_are_recorded_and_the_rest_go_on(tmp_path):
    touch(tmp_path / "in", "a.png", "b.png", "c.png", "d.png")
    (tmp_path / "in" / "b.png").write_bytes((tmp_path / "in" / "b.png").read_bytes()[:40])

    def fragile(lr, key):
        if key == "c":
            raise ValueError("not finite")
        if key == "d":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return doubled(lr, key)

    summary = restore_files(plan_jobs(tmp_path / "in", tmp_path / "out"), fragile, progress=False)
    assert summary.restored == [tmp_path / "out" / "a.png"]
    assert [(p.name, reason.split(";")[0]) for p, reason in summary.failed][1:] == [
        ("c.png", "not finite"),
        ("d.png", "not enough memory to restore it"),
    ]
    assert summary.failed[0][0].name == "b.png"
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png"]


def test_a_bug_in_the_network_is_not_a_bad_image(tmp_path):
    touch(tmp_path / "in", "a.png")

    def broken(lr, key):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        restore_files(plan_jobs(tmp_path / "in", tmp_path / "out"), broken, progress=False)


def test_an_unwritable_output_stops_the_run(tmp_path):
    touch(tmp_path / "in", "a.png")
    jobs = plan_jobs(tmp_path / "in", tmp_path / "out")
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(OSError):
        restore_files(jobs, doubled, progress=False)


def test_existing_outputs_are_skipped_by_their_output_name(tmp_path):
    touch(tmp_path / "in", "a.jpg", "b.jpg")
    jobs = plan_jobs(tmp_path / "in", tmp_path / "out")
    restore_files(jobs[:1], doubled, progress=False)
    before = (tmp_path / "out" / "a.png").stat().st_mtime_ns
    summary = restore_files(jobs, doubled, skip_existing=True, progress=False)
    assert [p.name for p in summary.skipped] == ["a.png"] and [p.name for p in summary.restored] == ["b.png"]
    assert (tmp_path / "out" / "a.png").stat().st_mtime_ns == before
    assert len(restore_files(jobs, doubled, progress=False).restored) == 2


def test_the_bar_shows_count_and_seconds_per_image(tmp_path, capsys):
    touch(tmp_path / "in", "a.png", "b.png")
    restore_files(plan_jobs(tmp_path / "in", tmp_path / "out"), doubled)
    assert "2/2" in capsys.readouterr().err.split("\r")[-1]
    restore_files(plan_jobs(tmp_path / "in", tmp_path / "out"), doubled)
    assert "s/image" in capsys.readouterr().err
