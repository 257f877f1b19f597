"""Folders of images: pairing, held-out splits, and clear messages for bad ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from lucidnft.data.folders import split_held_out
from lucidnft.data.sources import HrFolderConfig, LrFolderConfig, PairedFolderConfig

PairedFolders = Callable[[list[tuple[int, int]]], dict[str, str]]


@pytest.fixture
def paired_folders(tmp_path: Path, write_images: Callable[..., list[str]]) -> PairedFolders:
    """paired_folders([(h, w), ...]) makes lr/*.png and hr/*.tif, each HR pixel block one LR pixel, x4."""

    def make(sizes: list[tuple[int, int]]) -> dict[str, str]:
        write_images(tmp_path / "lr", sizes)
        (tmp_path / "hr").mkdir()
        for path in sorted((tmp_path / "lr").iterdir()):
            pixels = np.asarray(Image.open(path)).repeat(4, 0).repeat(4, 1)
            Image.fromarray(pixels).save(tmp_path / "hr" / f"{path.stem}.tif")
        return {"lr_folder": str(tmp_path / "lr"), "hr_folder": str(tmp_path / "hr")}

    return make


def test_pairs_are_cut_at_the_same_place(tmp_path, paired_folders):
    folders = paired_folders([(30, 40), (33, 28), (24, 24)])
    data = PairedFolderConfig(**folders, crop_size=24).build(0, 4)
    batch = data.train.batch(0, 6, range(6))
    assert torch.equal(batch.hr[..., ::4, ::4], batch.lr) and torch.equal(batch.hr[..., 3::4, 3::4], batch.lr)
    assert data.train.provides == {"lr", "hr"} and data.held_out.provides == {"lr", "hr"}
    assert len(data.held_out) == 1


def test_pairs_that_do_not_fit_are_named(tmp_path, write_images, paired_folders):
    folders = paired_folders([(30, 40), (33, 28), (24, 24)])
    with pytest.raises(
        ValueError, match=r"3 pairs.*'image_00\.png' 30x40 with 'image_00\.tif' 120x160.*upscale"
    ):
        PairedFolderConfig(**folders).build(0, 2)
    (tmp_path / "hr" / "image_01.tif").rename(tmp_path / "hr" / "other.tif")
    with pytest.raises(
        ValueError, match=r"2 images have no partner.*image_01\.png' \(LR only\).*other\.tif' \(HR"
    ):
        PairedFolderConfig(**folders).build(0, 4)
    (tmp_path / "hr" / "other.tif").rename(tmp_path / "hr" / "image_01.tif")
    write_images(tmp_path / "hr", [(120, 160)])
    with pytest.raises(ValueError, match="share a stem"):
        PairedFolderConfig(**folders).build(0, 4)
    with pytest.raises(ValidationError, match="set hr_folder too"):
        PairedFolderConfig(lr_folder="x")


def test_a_turned_hr_image_is_caught(tmp_path, paired_folders):
    folders = paired_folders([(30, 40), (30, 40)])
    for path in (tmp_path / "hr").iterdir():
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    with pytest.raises(ValueError, match=r"2 pairs.*'image_00\.png' 30x40 with 'image_00\.tif' 160x120"):
        PairedFolderConfig(**folders, crop_size=16).build(0, 4)


def test_an_hr_image_that_changes_while_the_run_goes_on_is_caught(tmp_path, paired_folders):
    folders = paired_folders([(30, 40), (30, 40)])
    data = PairedFolderConfig(**folders, crop_size=16).build(0, 4)
    for path in (tmp_path / "hr").iterdir():
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    with pytest.raises(ValueError, match=r"image_0\d\.tif' is 160x120.*should be 120x160"):
        data.train.batch(0, 1, range(1))


def test_pairs_turned_by_their_exif_orientation_fit(tmp_path, paired_folders):
    folders = paired_folders([(30, 40), (30, 40)])
    turned = Image.Exif()
    turned[0x0112] = 6
    for path in (tmp_path / "lr").iterdir():
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, exif=turned)
    batch = PairedFolderConfig(**folders, crop_size=24).build(0, 4).train.batch(0, 1, range(1))
    assert torch.equal(batch.hr[..., ::4, ::4], batch.lr)


@pytest.mark.parametrize("config_class", [LrFolderConfig, HrFolderConfig])
def test_held_out_images_are_never_trained_on(tmp_path, config_class, write_images):
    write_images(tmp_path, [(80, 80)] * 30)
    data = config_class(folder=str(tmp_path), val_fraction=0.2, crop_size=16).build(0, 4)
    held_out = {key.split("@")[0] for batch in data.held_out.batches() for key in batch.keys}
    trained = {key for step in range(8) for key in data.train.batch(step, 10, range(10)).keys}
    assert held_out and not held_out & trained
    assert len(held_out) + len(trained) == 30
    assert f"{len(held_out)} of the 30 images are held out" in data.train.describe()


def test_split_is_stable_when_files_are_added():
    names = [f"photo {i}.jpg" for i in range(200)]
    held_out = {names[i] for i in split_held_out(names, 0.1, where="x")[1]}
    assert 8 <= len(held_out) <= 35
    more = [*names, *(f"new {i}.jpg" for i in range(50))]
    later = {more[i] for i in split_held_out(more, 0.1, where="x")[1]}
    assert held_out == later & set(names)
    for count in (2, 3):
        for fraction in (0.001, 0.5, 0.999):
            train, val = split_held_out(names[:count], fraction, where="x")
            assert train and val and sorted(train + val) == list(range(count))


def test_val_folder_is_used_and_small_images_give_what_they_have(tmp_path, photos, write_images):
    write_images(tmp_path / "val", [(100, 100), (50, 20), (8, 8)], prefix="val")
    data = LrFolderConfig(folder=str(photos), val_folder=str(tmp_path / "val"), val_crop_size=40).build(0, 4)
    crops = {
        key: tuple(lr.shape[1:])
        for b in data.held_out.batches()
        for key, lr in zip(b.keys, b.lr, strict=True)
    }
    assert crops == {"val_00.png@30,30": (40, 40), "val_01.png@5,2": (40, 16)}
    assert "held out, skipped: 'val_02.png' is 8x8" in data.train.describe()
    assert len(data.train) == 9


@pytest.mark.parametrize("config_class", [LrFolderConfig, HrFolderConfig])
def test_unusable_folders_are_named(tmp_path, config_class, write_images):
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "tiny", [(1, 1), (12, 9)])
    write_images(tmp_path / "single", [(99, 99)])
    cases = {
        "nowhere": r"data\.folder: image folder '.*nowhere' does not exist",
        "empty": r"data\.folder: no image file in '.*empty'",
        "tiny": r"data\.folder '.*tiny': all 2 images are too small; the largest is 12x9",
        "single": r"one usable image \('image_00\.png'\).*data\.val_folder",
    }
    for name, message in cases.items():
        with pytest.raises(ValueError, match=message):
            config_class(folder=str(tmp_path / name)).build(0, 4)
    with pytest.raises(ValueError, match=r"data\.val_folder: .*'.*nowhere' does not exist"):
        config_class(val_folder=str(tmp_path / "nowhere")).build(0, 4)


def test_unreadable_files_stop_the_run_or_are_listed(photos):
    for number in range(12):
        (photos / f"bad_{number:02d}.PNG").write_text("not an image")
    with pytest.raises(ValueError) as caught:
        LrFolderConfig(folder=str(photos)).build(0, 4)
    message = str(caught.value)
    assert "12 of 21 images" in message and "data.on_unreadable=skip" in message and "and 2 more" in message
    assert "bad_09.PNG" in message and "bad_10.PNG" not in message
    source = LrFolderConfig(folder=str(photos), val_folder=None, on_unreadable="skip").build(0, 4).train
    assert all(f"bad_{number:02d}.PNG" in source.describe() for number in range(12))
    for path in photos.glob("image*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"none of the 12 images.*bad_00"):
        LrFolderConfig(folder=str(photos), on_unreadable="skip").build(0, 4)


def test_a_file_cut_off_behind_its_header_is_named_or_skipped_before_the_run(photos):
    path = photos / "image_00.png"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"1 of \d+ images.*(?s:.*)image_00\.png.*truncated"):
        LrFolderConfig(folder=str(photos)).build(0, 4)
    data = LrFolderConfig(folder=str(photos), on_unreadable="skip", crop_size=24).build(0, 4)
    assert "skipped: cannot read image" in data.train.describe()
    drawn = {key for step in range(9) for key in data.train.batch(step, 3, range(3)).keys}
    assert not any("image_00.png" in key for key in drawn)


def test_settings_are_checked():
    with pytest.raises(ValidationError, match="crop_size"):
        LrFolderConfig(crop_size=20)
    with pytest.raises(ValidationError, match="crop_size"):
        LrFolderConfig(crop_size=8)
    with pytest.raises(ValidationError, match="degradation"):
        HrFolderConfig(degradation="medium")
    with pytest.raises(ValidationError, match="val_fraction"):
        HrFolderConfig(val_fraction=1.0)
