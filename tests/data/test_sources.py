"""Image sources: pure batches, buckets of crop sizes, degradations with their records."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from lucidnft.data.bundled import HELD_OUT_PHOTOGRAPHS, TRAIN_PHOTOGRAPHS
from lucidnft.data.degradation import replay
from lucidnft.data.image_sets import DecodedImages, tile_windows
from lucidnft.data.sources import HrFolderConfig, LrFolderConfig
from lucidnft.records import ImageBatch


def same(a: ImageBatch, b: ImageBatch) -> bool:
    hr = (a.hr is None and b.hr is None) or torch.equal(a.hr, b.hr)
    return (
        torch.equal(a.lr, b.lr)
        and hr
        and (a.keys, a.group_ids, a.metadata) == (b.keys, b.group_ids, b.metadata)
    )


@pytest.mark.parametrize(
    "config",
    [LrFolderConfig(crop_size=16), HrFolderConfig(crop_size=16), HrFolderConfig(degradation="bsrgan")],
)
def test_batches_are_pure_in_seed_and_step(config):
    first, second = config.build(5, 4).train, config.build(5, 4).train
    forward = [first.batch(step, 4, range(4)) for step in (0, 1, 7)]
    backward = [second.batch(step, 4, range(4)) for step in (7, 1, 0)][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
    assert forward[1].group_ids == (4, 5, 6, 7)
    other_seed = config.build(6, 4).train.batch(0, 4, range(4))
    assert not torch.equal(other_seed.lr, forward[0].lr)


def test_a_row_does_not_depend_on_the_other_rows():
    source = HrFolderConfig(crop_size=16).build(0, 4).train
    whole = source.batch(3, 6, range(6))
    for rows in (range(2), range(2, 6), range(5, 6), range(1, 6, 2)):
        assert same(source.batch(3, 6, rows), whole.index(rows))


@pytest.mark.parametrize("rows", [range(0), range(2, 7), range(-1, 2)])
def test_rows_outside_the_step_are_refused(rows):
    with pytest.raises(ValueError, match="of 6 groups"):
        LrFolderConfig(crop_size=16).build(0, 4).train.batch(0, 6, rows)


def test_an_epoch_takes_every_image_and_mixes_their_order(photos):
    source = LrFolderConfig(folder=str(photos), val_folder=str(photos), crop_size=24).build(1, 4).train
    assert len(source) == 9
    epochs = [[key for s in range(3) for key in source.batch(3 * e + s, 3, range(3)).keys] for e in range(3)]
    for epoch in epochs:
        assert Counter(epoch) == Counter({f"image_{i:02d}.png": 1 for i in range(9)})
    assert epochs[0] != epochs[1] and epochs[1] != epochs[2]


def test_fewer_images_than_groups_gives_repeats_with_other_crops(tmp_path, write_images):
    write_images(tmp_path, [(64, 64), (64, 64)])
    config = LrFolderConfig(folder=str(tmp_path), val_folder=str(tmp_path), crop_size=16, flip=False)
    batch = config.build(0, 4).train.batch(0, 8, range(8))
    assert Counter(batch.keys) == {"image_00.png": 4, "image_01.png": 4}
    assert len({batch.lr[g].numpy().tobytes() for g in range(8)}) == 8


def test_mixed_sizes_share_a_step_only_with_crops_of_their_size(tmp_path, write_images):
    write_images(tmp_path, [(100, 90), (60, 64), (40, 200), (25, 31), (15, 80), (64, 48)])
    config = LrFolderConfig(folder=str(tmp_path), val_folder=str(tmp_path), crop_size=48)
    data = config.build(0, 4)
    sides = {0: 48, 1: 48, 2: 40, 3: 24, 5: 48}
    seen = Counter()
    for step in range(4):
        batch = data.train.batch(step, 2, range(2))
        for key in batch.keys:
            assert batch.lr.shape[2:] == (sides[int(key[6:8])],) * 2
            seen[key] += 1
    assert set(seen) == {f"image_{i:02d}.png" for i in sides}
    text = data.train.describe()
    assert "3 at 48 px, 1 at 40 px, 1 at 24 px" in text
    assert "'image_04.png' is 15x80, below 16 px" in text


def test_crops_are_cut_from_the_image_and_flipped_half_the_time(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    config = LrFolderConfig(folder=str(tmp_path), val_folder=str(tmp_path), crop_size=16)
    batch = config.build(0, 4).train.batch(0, 64, range(64))
    places = {}
    for flip in (False, True):
        for top in range(5):
            for left in range(9):
                crop = pixels[top : top + 16, left : left + 16]
                places[(crop[:, ::-1] if flip else crop).tobytes()] = (top, left, flip)
    found = [
        places[(lr * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy().tobytes()]
        for lr in batch.lr
    ]
    assert {top for top, _, _ in found} == set(range(5)) and {left for _, left, _ in found} == set(range(9))
    assert 16 <= sum(flip for _, _, flip in found) <= 48
    still = LrFolderConfig(folder=str(tmp_path), val_folder=str(tmp_path), crop_size=16, flip=False)
    batch = still.build(0, 4).train.batch(0, 64, range(64))
    assert all(
        not places[(lr * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy().tobytes()][2]
        for lr in batch.lr
    )


def test_bundled_lr_data_hides_the_hr_in_training_and_knows_it_in_evaluation():
    data = LrFolderConfig().build(0, 4)
    assert data.train.provides == {"lr"} and data.train.batch(0, 3, range(3)).hr is None
    assert data.held_out.provides == {"lr", "hr"}
    batches = list(data.held_out.batches())
    assert sum(len(batch.keys) for batch in batches) == len(data.held_out) == 18
    for batch in batches:
        assert batch.lr.shape[1:] == (3, 48, 48) and batch.hr.shape[1:] == (3, 192, 192)
        for row, record in enumerate(batch.metadata):
            assert torch.equal(replay(batch.hr[row], json.loads(json.dumps(record))), batch.lr[row])
    keys = [key for batch in batches for key in batch.keys]
    assert len(set(keys)) == 18
    assert {key.split("@")[0] for key in keys} == set(HELD_OUT_PHOTOGRAPHS)
    again = next(iter(LrFolderConfig().build(99, 4).held_out.batches()))
    assert same(again, batches[0])
    trained = {key for step in range(2) for key in data.train.batch(step, 4, range(4)).keys}
    assert trained == set(TRAIN_PHOTOGRAPHS) and not trained & set(HELD_OUT_PHOTOGRAPHS)


def test_number_of_held_out_crops_is_capped_and_spread():
    held_out = LrFolderConfig(num_val_images=6).build(0, 4).held_out
    assert len(held_out) == 6
    assert len({key.split("@")[0] for key in held_out.keys}) >= 4


def test_tiles_do_not_overlap_and_stay_inside():
    for size in ((75, 112), (48, 48), (100, 47), (20, 30)):
        windows = tile_windows(size, 48, 8)
        covered = np.zeros(size, int)
        for w in windows:
            covered[w.top : w.top + w.height, w.left : w.left + w.width] += 1
        assert covered.max() == 1
        assert covered.sum() == sum(w.height * w.width for w in windows)
        assert len(windows) == max(1, size[0] // 48) * max(1, size[1] // 48)


def test_hr_folder_degrades_crops_and_records_how(tmp_path, write_images):
    write_images(tmp_path, [(130, 141), (90, 100), (67, 65)])
    config = HrFolderConfig(
        folder=str(tmp_path), val_folder=str(tmp_path), crop_size=24, degradation="realesrgan"
    )
    source = config.build(0, 4).train
    assert source.provides == {"lr", "hr"}
    shapes = set()
    for step in range(3):
        batch = source.batch(step, 2, range(2))
        shapes.add(tuple(batch.lr.shape[2:]))
        assert batch.hr.shape[2] == 4 * batch.lr.shape[2]
        for row, record in enumerate(batch.metadata):
            assert record["preset"] == "realesrgan"
            assert torch.equal(replay(batch.hr[row], record), batch.lr[row])
        assert batch.metadata[0] != batch.metadata[1]
    assert shapes == {(24, 24), (16, 16)}


def test_grey_16_bit_and_rotated_files_become_rgb_crops(tmp_path):
    ramp = np.linspace(0, 65535, 32 * 40).astype(np.uint16).reshape(32, 40)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 16), "red").save(tmp_path / "b.JPG", exif=exif)
    data = LrFolderConfig(folder=str(tmp_path), val_folder=str(tmp_path), crop_size=16).build(0, 4)
    batch = data.train.batch(0, 2, range(2))
    grey = batch.lr[batch.keys.index("a.png")]
    assert torch.equal(grey[0], grey[2]) and 0 < grey.mean() < 1 and grey.std() > 0.01
    red = batch.lr[batch.keys.index("b.JPG")]
    assert (red.mean((1, 2)) - torch.tensor([1.0, 0, 0])).abs().max() < 0.02


def test_decoded_images_are_kept_up_to_a_limit(tmp_path, monkeypatch, write_images):
    names = write_images(tmp_path, [(10, 10)] * 4)
    cache = DecodedImages(limit_bytes=2 * 300)
    paths = [tmp_path / name for name in names]
    for index in (0, 1, 0, 2):
        cache.get(paths[index])
        assert cache.used_bytes <= 600
    decoded = []
    original = cache.get.__globals__["decode_pixels"]
    monkeypatch.setitem(
        cache.get.__globals__, "decode_pixels", lambda path: decoded.append(path.name) or original(path)
    )
    for index in (0, 2, 1, 0):
        assert cache.get(paths[index]).shape == (10, 10, 3)
    assert decoded == [names[1], names[0]]
    nothing = DecodedImages(limit_bytes=0)
    nothing.get(paths[0])
    assert nothing.used_bytes == 0
