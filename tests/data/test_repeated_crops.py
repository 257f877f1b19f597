"""crops_per_image: a fixed set of crops of every image, so that conditions of LR images are computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from lucidnft.data.batches import CroppedSource
from lucidnft.data.sources import HrFolderConfig, LrFolderConfig, PairedFolderConfig


def source(folder: Path, seed: int = 3, **settings: Any) -> CroppedSource:
    config = LrFolderConfig(folder=str(folder), val_folder=str(folder), crop_size=16, **settings)
    made = config.build(seed, 4).train
    assert isinstance(made, CroppedSource)
    return made


def crops(made: CroppedSource, steps: int = 40) -> dict[str, set[bytes]]:
    """Distinct crops by image."""
    found: dict[str, set[bytes]] = {}
    for step in range(steps):
        batch = made.batch(step, 9, range(9))
        for key, lr in zip(batch.keys, batch.lr, strict=True):
            found.setdefault(key, set()).add(lr.numpy().tobytes())
    return found


def test_an_image_has_that_many_crops_and_they_are_its_own(photos: Path) -> None:
    found = crops(source(photos, crops_per_image=3))
    assert len(found) == 9 and all(len(windows) == 3 for windows in found.values())
    assert all(len(windows) > 20 for windows in crops(source(photos)).values())
    assert found == crops(source(photos, crops_per_image=3))
    assert all(
        not found[name] & windows for name, windows in crops(source(photos, 4, crops_per_image=3)).items()
    )
    more = crops(source(photos, crops_per_image=5), 60)
    assert all(found[name] < windows and len(windows) == 5 for name, windows in more.items())
    (photos / "image_00.png").unlink()  # crops go by the image's name, not its number
    assert all(windows == found[name] for name, windows in crops(source(photos, crops_per_image=3)).items())


def test_null_is_the_crops_of_before(photos: Path) -> None:
    one, other = source(photos), source(photos, crops_per_image=None)
    assert torch.equal(one.batch(5, 4, range(4)).lr, other.batch(5, 4, range(4)).lr)
    assert (
        "per image" not in one.describe()
        and "16 px, 2 per image" in source(photos, crops_per_image=2).describe()
    )


def test_pairs_and_bundled_photographs_repeat_with_hr_and_degradation() -> None:
    made = PairedFolderConfig(crop_size=16, crops_per_image=1).build(0, 4).train
    by_key: dict[str, list[Any]] = {}
    for step in range(6):
        batch = made.batch(step, 8, range(8))
        for key, lr, hr, record in zip(batch.keys, batch.lr, batch.hr, batch.metadata, strict=True):
            by_key.setdefault(key, []).append((lr, hr, record))
    assert max(map(len, by_key.values())) > 1
    for (lr, hr, record), *rest in by_key.values():
        for again in rest:
            assert torch.equal(again[0], lr) and torch.equal(again[1], hr) and again[2] == record


def test_crops_that_are_degraded_anew_each_time_cannot_repeat(photos: Path) -> None:
    with pytest.raises(ValidationError, match="crops_per_image"):
        HrFolderConfig(folder=str(photos), crops_per_image=2)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        source(photos, crops_per_image=0)
