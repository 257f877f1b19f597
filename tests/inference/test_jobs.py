"""From input files to output names: folders, globs, lists, formats and collisions."""

import glob
import os
from pathlib import Path

import pytest
from PIL import Image

from lucidnft.images import OUTPUT_FORMATS
from lucidnft.inference.batching import plan_batches
from lucidnft.inference.folder import restore_files
from lucidnft.inference.jobs import RestoreJob, plan_jobs


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
    with pytest.raises(ValueError, match=r"would replace an input .*a\.png.*another output_dir"):
        plan_jobs(tmp_path / "a.png", tmp_path / ".." / tmp_path.name)


def test_a_folder_is_not_its_own_output_folder(tmp_path):
    """Its outputs, of another format, would be inputs when the command is run again."""
    touch(tmp_path, "a.jpg")
    with pytest.raises(ValueError, match="is the input folder: the next run would take outputs for inputs"):
        plan_jobs(tmp_path, tmp_path / ".." / tmp_path.name)
    assert (
        len(plan_jobs(tmp_path / "a.jpg", tmp_path)) == 1 == len(plan_jobs(tmp_path, tmp_path / "restored"))
    )


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


def test_a_glob_takes_images_and_keeps_sub_folders_when_asked(tmp_path):
    touch(tmp_path / "in", "a.png", "x1/b.JPG", "x2/c.png", "x2/deep/d.png")
    (tmp_path / "in" / "x1" / "notes.txt").write_text("no image")
    pattern = str(tmp_path / "in" / "x*" / "*")
    assert [j.source.name for j in plan_jobs(pattern, tmp_path / "out")] == ["b.JPG", "c.png"]
    jobs = plan_jobs(str(tmp_path / "in" / "**" / "*.png"), tmp_path / "out", recursive=True)
    assert [str(j.target.relative_to(tmp_path / "out")) for j in jobs] == [
        "a.png",
        "x2/c.png",
        "x2/deep/d.png",
    ]
    with pytest.raises(ValueError, match=r"no image file matches '.*\*\.gif'"):
        plan_jobs(str(tmp_path / "in" / "*.gif"), tmp_path / "out")


@pytest.mark.parametrize("link", ["link", "a_link"])
def test_loops_of_folders_are_crossed_once_by_a_glob(tmp_path, link):
    touch(tmp_path / "in", "a.png", "sub/b.png")
    touch(tmp_path / "elsewhere", "c.png")
    for name, target in (
        (f"{link}1", "."),
        (f"{link}2", "sub"),
        ("sub/up", ".."),
        ("sub/down", "../../elsewhere"),
    ):
        os.symlink(target, tmp_path / "in" / name)  # glob.iglob would follow them 2^40 times
    os.symlink("a.png", tmp_path / "in" / "linked.png")
    for pattern in ("**/*.png", "**/**/*.png", "**"):
        jobs = plan_jobs(str(tmp_path / "in" / pattern), tmp_path / "out", recursive=True)
        found = [str(job.source.relative_to(tmp_path / "in")) for job in jobs]
        assert found == ["a.png", "linked.png", "sub/b.png", "sub/down/c.png"]


def test_without_loops_a_glob_finds_what_python_s_finds(tmp_path, monkeypatch):
    names = ["a.png", "x[1]/b.png", "x[1]/deep/c.png", ".hidden/d.png", "y/.e.png", "y/deep/y/f.png"]
    touch(tmp_path / "in", *names)
    monkeypatch.chdir(tmp_path)
    patterns = [
        "in/**/*.png", "in/**", "in/**/deep/*", "*/**/y/**/*.png", "**/*.png", "in/x*/**/?.png", "in/y/**/.*.png",
        "in/.*/**/*.png", "in/**/.hidden/*", f"{tmp_path}/**/deep/**", "in//**/c.png", "./in/**/**/f.png", "*/a*",
    ]  # fmt: skip
    for pattern in patterns:
        expected = {path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file()}
        assert expected
        jobs = plan_jobs(pattern, "out", recursive=True)
        assert [job.source for job in jobs] == sorted(expected), pattern
    with pytest.raises(ValueError, match="no image file matches"):
        plan_jobs("in/**/", "out")


def test_a_name_too_long_for_the_file_system_is_one_file_that_fails(tmp_path):
    long = "x" * 300 + ".png"
    (tmp_path / "list.txt").write_text(f"{long}\n")
    jobs = plan_jobs(tmp_path / "list.txt", tmp_path / "out")
    summary = restore_files(plan_batches(jobs, 1), lambda *_: [], progress=False)
    [(path, reason)] = summary.failed
    assert str(path) == long and "File name too long" in reason
    for name in (long, "x" * 300 + ".txt"):
        with pytest.raises(FileNotFoundError, match=f"{name} does not exist"):
            plan_jobs(name, tmp_path / "out")


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    touch(tmp_path, "a[1].png", "a1.png")
    assert [j.source.name for j in plan_jobs(tmp_path / "a[1].png", tmp_path / "out")] == ["a[1].png"]


@pytest.mark.parametrize("end", ["\n", "\0"])
def test_a_list_keeps_its_order_and_names_what_is_missing_later(tmp_path, end):
    touch(tmp_path / "in", "b.png", "sub/a.png")
    names = [
        tmp_path / "in" / "b.png",
        tmp_path / "in" / "gone.png",
        tmp_path / "in" / "sub" / ".." / "sub" / "a.png",
    ]
    names.append(names[0])
    (tmp_path / "list.txt").write_text("".join(f"{name}{end}" for name in names))
    jobs = plan_jobs(tmp_path / "list.txt", tmp_path / "out")
    assert [j.source.name for j in jobs] == ["b.png", "gone.png", "a.png"]
    jobs = plan_jobs(tmp_path / "list.txt", tmp_path / "out", recursive=True)
    assert [str(j.target.relative_to(tmp_path / "out")) for j in jobs] == ["b.png", "gone.png", "sub/a.png"]


def test_a_list_without_files_or_with_a_folder_is_refused(tmp_path):
    (tmp_path / "list.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="names no file"):
        plan_jobs(tmp_path / "list.txt", tmp_path / "out")
    (tmp_path / "list.txt").write_text(f"{tmp_path}\n")
    with pytest.raises(ValueError, match="names the folder"):
        plan_jobs(tmp_path / "list.txt", tmp_path / "out")


def test_paths_of_a_list_count_from_the_working_directory(tmp_path, monkeypatch):
    touch(tmp_path / "in", "a.png")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "some.txt").write_text("in/a.png\n")
    monkeypatch.chdir(tmp_path)
    assert plan_jobs("lists/some.txt", "out")[0].source.is_file()


def test_the_format_decides_the_extension(tmp_path):
    touch(tmp_path / "in", "a.png", "b.JPEG", "c.gif", "d.tiff", "e.webp", "f.bmp")
    for name, extension in OUTPUT_FORMATS.items():
        jobs = plan_jobs(tmp_path / "in", tmp_path / "out", image_format=name)
        assert {j.target.suffix for j in jobs} == {extension}
    jobs = plan_jobs(tmp_path / "in", tmp_path / "out", image_format="auto")
    assert [j.target.name for j in jobs] == ["a.png", "b.jpg", "c.png", "d.tif", "e.webp", "f.bmp"]
    with pytest.raises(ValueError, match="format is 'jp2', expected one of auto, png"):
        plan_jobs(tmp_path / "in", tmp_path / "out", image_format="jp2")


def test_whole_names_keep_apart_what_stems_do_not(tmp_path):
    touch(tmp_path / "in", "a.png", "a.jpg")
    jobs = plan_jobs(tmp_path / "in", tmp_path / "out", full_names=True)
    assert [j.target.name for j in jobs] == ["a.jpg.png", "a.png.png"]
    assert {j.key for j in jobs} == {"a"}  # the noise is that of the short name


def test_a_loop_of_folders_has_an_end_and_one_of_files_is_listed_to_be_reported(tmp_path):
    touch(tmp_path / "in", "a.png")
    os.symlink(tmp_path / "in", tmp_path / "in" / "again")
    os.symlink("loop.png", tmp_path / "in" / "loop.png")
    jobs = plan_jobs(tmp_path / "in", tmp_path / "out", recursive=True)
    assert [j.source.name for j in jobs] == ["a.png", "loop.png"]
    assert [j.target.name for j in plan_jobs(tmp_path / "in" / "loop.png", tmp_path / "out")] == ["loop.png"]
