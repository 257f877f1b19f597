"""The loop over files: failures, batches, what is kept of a picture, and what is done again."""

import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from lucidnft.images import read_image, save_image
from lucidnft.inference import folder as folder_module
from lucidnft.inference.batching import plan_batches
from lucidnft.inference.folder import OutputSettings, RestoredImage, restore_files
from lucidnft.inference.jobs import RestoreJob, plan_jobs
from tests.folder_runs import doubled, run, touch
from tests.test_image_encoding import GREY_PROFILE


def restored(tmp_path, name, array, **arguments):
    source = tmp_path / name
    Image.fromarray(array).save(source, **arguments)
    job = RestoreJob(source, tmp_path / "out" / f"{source.stem}.png")
    assert restore_files(plan_batches([job], 1), doubled, progress=False).failed == []
    return read_image(job.target)


def test_alpha_is_scaled_separately_and_kept(tmp_path):
    array = np.zeros((3, 5, 4), np.uint8)
    array[..., 0], array[:, :2, 3] = 200, 255
    image = restored(tmp_path, "a.png", array)
    assert image.alpha.shape == (1, 6, 10)
    assert image.alpha[0, :, 0].eq(1).all() and image.alpha[0, :, -1].eq(0).all()
    torch.testing.assert_close(image.rgb[0], torch.full((6, 10), 200 / 255), atol=2e-3, rtol=0)


def test_grey_stays_grey_and_sixteen_bits_stay_sixteen(tmp_path):
    image = restored(tmp_path, "g.jpg", np.full((4, 4), 90, np.uint8))
    assert image.was_grey and image.bit_depth == 8
    image = restored(tmp_path, "d.png", np.array([[256 * 10 + 3, 256 * 10 + 9]], np.uint16))
    assert image.was_grey and image.bit_depth == 16
    assert len(torch.unique(image.rgb)) > 2  # levels between the two that 8 bits cannot tell apart


@pytest.mark.parametrize("depth", [8, 16])
def test_the_depth_can_be_asked_for(tmp_path, depth):
    touch(tmp_path / "in", "a.png")
    run(tmp_path, output=OutputSettings(bit_depth=depth))
    assert read_image(tmp_path / "out" / "a.png").bit_depth == depth


def test_a_colour_profile_is_kept(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = restored(tmp_path, "p.png", np.zeros((2, 2, 3), np.uint8), icc_profile=profile)
    assert image.icc_profile == profile


def test_what_an_output_lacks_is_noted(tmp_path):
    touch(tmp_path / "in", "a.png")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (4, 3)).save(tmp_path / "in" / "b.png", icc_profile=profile)
    Image.new("RGB", (4, 3)).save(tmp_path / "in" / "c.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    batches = plan_batches(plan_jobs(tmp_path / "in", tmp_path / "out", image_format="bmp"), 1)
    notes = {path.name: note for path, note in restore_files(batches, doubled, progress=False).notes}
    assert notes["b.png"] == "the colour profile was left out: .bmp has no place for it"
    assert notes["c.jpg"].startswith("EXIF was left out") and set(notes) == {"b.png", "c.jpg"}


@pytest.mark.parametrize(("bit_depth", "held"), [("auto", False), (16, False), (8, True)])
def test_a_grey_profile_is_left_out_where_grey_with_alpha_becomes_rgb(tmp_path, bit_depth, held):
    (tmp_path / "in").mkdir()
    picture = {"alpha": torch.rand(1, 3, 4), "grey": True, "bit_depth": 16, "icc_profile": GREY_PROFILE}
    save_image(tmp_path / "in" / "a.png", torch.full((3, 3, 4), 0.3), **picture)
    summary = run(tmp_path, output=OutputSettings(bit_depth=bit_depth), image_format="tiff")
    assert read_image(tmp_path / "out" / "a.tif").icc_profile == (GREY_PROFILE if held else None)
    with Image.open(tmp_path / "out" / "a.tif") as image:
        assert image.info.get("icc_profile") == (GREY_PROFILE if held else None)
    left_out = [(tmp_path / "in" / "a.png", "the colour profile was left out: .tif has no place for it")]
    assert summary.notes == ([] if held else left_out)


@pytest.mark.parametrize("extension", ["jpg", "webp", "bmp", "tif", "png"])
def test_sixteen_bits_stay_where_the_format_has_them(tmp_path, extension):
    source = tmp_path / "d.png"
    Image.fromarray(np.array([[2563, 60000]], np.uint16)).save(source)
    job = RestoreJob(source, tmp_path / "out" / f"d.{extension}")
    assert restore_files(plan_batches([job], 1), doubled, progress=False).failed == []
    assert read_image(job.target).bit_depth == (16 if extension in ("tif", "png") else 8)


def test_metadata_is_copied_when_asked_for_and_only_then(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    (tmp_path / "in").mkdir()
    Image.new("RGB", (4, 3)).save(tmp_path / "in" / "a.png", exif=exif)
    for keep in (False, True):
        run(tmp_path, output=OutputSettings(keep_metadata=keep))
        with Image.open(tmp_path / "out" / "a.png") as image:
            assert (image.getexif().get(0x010F) == "a camera") is keep


def test_an_output_is_written_after_its_candidates(tmp_path, monkeypatch):
    """--skip_existing looks for the output: a run killed between them makes both again."""
    touch(tmp_path / "in", "a.png")
    real, written = folder_module.save_image, []
    monkeypatch.setattr(
        folder_module, "save_image", lambda path, *a, **o: (written.append(path.name), real(path, *a, **o))
    )

    def two(lr, keys):
        sr = doubled(lr, keys)[0].sr
        return [RestoredImage(sr, {}, {"sample1": sr})]

    place = OutputSettings(place_candidate=lambda path, name: path.with_name(f"{name}.png"))
    run(tmp_path, two, place)
    assert written == ["sample1.png", "a.png"]


def test_existing_outputs_are_skipped_by_their_output_name(tmp_path):
    touch(tmp_path / "in", "a.jpg", "b.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"there")
    summary = run(tmp_path, skip_existing=True)
    assert [p.name for p in summary.skipped] == ["a.png"] and [p.name for p in summary.restored] == ["b.png"]
    assert (tmp_path / "out" / "a.png").read_bytes() == b"there"
    assert len(run(tmp_path).restored) == 2


def test_a_batch_that_was_cut_off_is_restored_whole_and_only_the_rest_is_written(tmp_path):
    touch(tmp_path / "in", "a.png", "b.png", "c.png", "d.png")
    (tmp_path / "out").mkdir()
    for name in ("a", "c", "d"):
        (tmp_path / "out" / f"{name}.png").write_bytes(b"there")
    seen = []

    def watched(lr, keys):
        seen.append(list(keys))
        return doubled(lr, keys)

    summary = run(tmp_path, watched, batch_size=2, skip_existing=True)
    assert seen == [["a", "b"]]
    assert [p.name for p in summary.restored] == ["b.png"] and len(summary.skipped) == 3
    assert (tmp_path / "out" / "a.png").read_bytes() == b"there"


def test_a_batch_whose_missing_file_is_unreadable_is_not_restored_again(tmp_path):
    touch(tmp_path / "in", "a.png", "b.png")
    cut = (tmp_path / "in" / "b.png").read_bytes()[:-30]
    (tmp_path / "in" / "b.png").write_bytes(cut)
    run(tmp_path, batch_size=2)

    seen = []

    def watched(lr, keys):
        seen.extend(keys)
        return doubled(lr, keys)

    summary = run(tmp_path, watched, batch_size=2, skip_existing=True)
    assert [p.name for p, _ in summary.failed] == ["b.png"] and seen == []


def test_images_of_one_header_size_that_are_turned_go_apart(tmp_path):
    touch(tmp_path / "in", "a.jpg", "b.jpg", "c.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 3)).save(tmp_path / "in" / "b.jpg", exif=exif)
    shapes = []

    def watched(lr, keys):
        shapes.append(tuple(lr.shape))
        return doubled(lr, keys)

    run(tmp_path, watched, batch_size=3)
    assert sorted(shapes) == [(1, 3, 4, 3), (2, 3, 3, 4)]


def test_other_candidates_go_to_a_folder_of_their_own(tmp_path):
    touch(tmp_path / "in", "a.png")

    def three(lr, keys):
        sr = doubled(lr, keys)[0].sr
        return [RestoredImage(sr, {"sample": 1}, {"sample0": sr, "sample2": sr})]

    def place(path, name):
        return path.parent / "candidates" / f"{path.stem}.{name}.png"

    records = []
    run(tmp_path, three, OutputSettings(place_candidate=place), record=records.append)
    found = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png"))
    assert found == ["a.png", "candidates/a.sample0.png", "candidates/a.sample2.png"]
    assert records[0].facts == {"sample": 1}


def test_candidates_that_have_no_place_are_not_written(tmp_path):
    touch(tmp_path / "in", "a.png")

    def two(lr, keys):
        sr = doubled(lr, keys)[0].sr
        return [RestoredImage(sr, {}, {"sample1": sr})]

    run(tmp_path, two)
    assert [path.name for path in (tmp_path / "out").rglob("*.png")] == ["a.png"]


def test_files_are_read_while_the_network_works_and_written_behind_it(tmp_path, monkeypatch):
    touch(tmp_path / "in", "a.png", "b.png", "c.png")
    all_read, real_read = threading.Event(), folder_module.read_ahead.__globals__["read_image"]
    reads = []

    def counted(path):
        reads.append(path)
        if len(reads) == 3:
            all_read.set()
        return real_read(path)

    monkeypatch.setitem(folder_module.read_ahead.__globals__, "read_image", counted)
    released, real_save = threading.Event(), folder_module.save_image

    def slow(path, *args, **options):
        assert released.wait(10)
        real_save(path, *args, **options)

    monkeypatch.setattr(folder_module, "save_image", slow)

    def network(lr, keys):
        if keys == ["a"]:
            assert all_read.wait(10), "the next files are read while the first is in the network"
        if keys == ["c"]:
            released.set()  # nothing has been written yet, and the loop came here all the same
        return doubled(lr, keys)

    assert len(run(tmp_path, network).restored) == 3


def test_waiting_outputs_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("lucidnft.inference.streaming.WRITE_BEHIND_PIXELS", 2 * 48)
    touch(tmp_path / "in", *(f"{i}.png" for i in range(8)))
    unwritten, most, real = [0], [0], folder_module.save_image

    def slow(path, *args, **options):
        time.sleep(0.02)
        real(path, *args, **options)
        unwritten[0] -= 1

    def network(lr, keys):
        unwritten[0] += 1
        most[0] = max(most[0], unwritten[0])
        return doubled(lr, keys)

    monkeypatch.setattr(folder_module, "save_image", slow)
    assert len(run(tmp_path, network).restored) == 8
    assert most[0] <= 3  # two wait, one is in the network


def test_progress_names_count_seconds_and_the_time_left(tmp_path, capsys):
    touch(tmp_path / "in", "a.png", "b.png")
    run(tmp_path, progress=True)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("restore: 2/2 images, ") and "s/image, 00:00 left, last 'b.png'" in last
