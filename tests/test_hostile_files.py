"""Every hostile file is restored correctly or refused with its reason: by the reader, and by the command."""

from __future__ import annotations

import re
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from lucidnft.images import LoadedImage, UnreadableImageError, list_images, read_image, read_size
from tests.hostile_files import hostile_files
from tests.hostile_pictures import Hostile

ENTRIES = hostile_files()


def integers(image: LoadedImage) -> np.ndarray:
    """What was read as (H, W, channels) integers of the file's depth, grey in one channel."""
    planes = [image.rgb[:1] if image.was_grey else image.rgb]
    planes += [] if image.alpha is None else [image.alpha]
    scaled = torch.cat(planes).double().mul(2**image.bit_depth - 1)
    assert (scaled - scaled.round()).abs().max() < 0.01
    return scaled.round().long().permute(1, 2, 0).numpy()


def test_there_are_enough_of_them():
    assert len(ENTRIES) >= 60
    assert sum(entry.pixels is None for entry in ENTRIES) >= 30
    assert sum(entry.pixels is not None for entry in ENTRIES) >= 30


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: re.sub(r"\W", "_", entry.name)[:40])
def test_the_reader_restores_or_refuses(tmp_path: Path, entry: Hostile):
    path = tmp_path / entry.name
    entry.write(path)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about metadata
        if entry.pixels is None:
            with pytest.raises(UnreadableImageError) as caught:
                read_image(path)
            assert re.search(entry.reason, caught.value.reason), caught.value.reason
            assert str(path) in str(caught.value) and entry.reason
        else:
            image = read_image(path)
            found = integers(image)
            assert image.bit_depth == 8 * entry.pixels.itemsize
            assert found.shape == entry.pixels.shape
            assert np.abs(found - entry.pixels).max() <= entry.tolerance
            assert re.search(entry.problems or "^$", " ".join(image.metadata.problems))
            assert sorted(read_size(path)) == sorted(found.shape[:2])
    assert time.perf_counter() - started < 5
    assert [found.name for found in list_images(tmp_path)] == [entry.name]
