"""Folders of images for the data tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WriteImages = Callable[..., list[str]]


def _write_images(folder: Path, sizes: list[tuple[int, int]], *, prefix: str = "image") -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number, size in enumerate(sizes):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        names.append(f"{prefix}_{number:02d}.png")
        Image.fromarray(pixels).save(folder / names[-1])
    return names


@pytest.fixture
def write_images() -> WriteImages:
    """write_images(folder, [(height, width), ...], prefix=...) makes PNG files and returns their names."""
    return _write_images


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of nine images, the shorter side of each at least 40 px."""
    _write_images(tmp_path / "photos", [(40 + 3 * i, 70 - 2 * i) for i in range(9)])
    return tmp_path / "photos"
