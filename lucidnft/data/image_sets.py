"""Sets of images that examples are cut from: LR files, LR/HR pairs, and HR files that are degraded.

Windows are in LR pixels.  Cutting is a pure function of (index, window, generator).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from lucidnft.data.degradation import Degradation
from lucidnft.images import decode_pixels, pixels_to_tensor


@dataclass(frozen=True)
class Window:
    """A rectangle of an LR image, in LR pixels; flip mirrors left and right."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False

    def cut(self, pixels: np.ndarray, scale: int = 1) -> Tensor:
        """The window, `scale` times as large, of (H, W, 3) integers -> (3, height, width) in [0, 1]."""
        rows = slice(self.top * scale, (self.top + self.height) * scale)
        columns = slice(self.left * scale, (self.left + self.width) * scale)
        part = pixels[rows, columns]
        return pixels_to_tensor(part[:, ::-1] if self.flip else part)


def centre_window(size: tuple[int, int], crop_size: int, multiple: int) -> Window:
    """The middle of an LR image of `size`: crop_size a side, or in steps of `multiple` what there is."""
    height, width = (min(crop_size, side // multiple * multiple) for side in size)
    return Window((size[0] - height) // 2, (size[1] - width) // 2, height, width)


def tile_windows(size: tuple[int, int], crop_size: int, multiple: int) -> list[Window]:
    """Crops side by side, as many as fit, together in the middle; one smaller crop when none fits."""
    rows, columns = (max(1, side // crop_size) for side in size)
    first = centre_window(size, crop_size, multiple)
    top = (size[0] - rows * first.height) // 2
    left = (size[1] - columns * first.width) // 2
    return [
        Window(top + row * first.height, left + column * first.width, first.height, first.width)
        for row in range(rows)
        for column in range(columns)
    ]


@dataclass(frozen=True)
class Example:
    """One crop: lr (3, h, w), hr (3, r h, r w) when known, and the record of its degradation."""

    lr: Tensor
    hr: Tensor | None
    metadata: dict[str, Any]


class ImageSet(Protocol):
    """Images by number."""

    names: tuple[str, ...]
    files: tuple[Path, ...]  # all that are read
    provides: frozenset[str]
    upscale: int

    def lr_size(self, index: int) -> tuple[int, int]:
        """(h, w) of the upright LR image; decodes it."""

    def example(self, index: int, window: Window, rng: np.random.Generator) -> Example:
        """Cut one window; `rng` draws the degradation, where there is one."""


class DecodedImages:
    """Decoded RGB arrays by path, kept up to a number of bytes; the least recently used leave first."""

    def __init__(self, limit_bytes: int) -> None:
        """limit_bytes: 0 keeps nothing.  Safe to share between threads."""
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._arrays: OrderedDict[Path, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Path) -> np.ndarray:
        """(H, W, 3) uint8 or uint16.  Raises UnreadableImageError."""
        with self._lock:
            if path in self._arrays:
                self._arrays.move_to_end(path)
                return self._arrays[path]
        pixels = decode_pixels(path).rgb
        with self._lock:
            if path not in self._arrays and pixels.nbytes <= self.limit_bytes:
                self._arrays[path] = pixels
                self.used_bytes += pixels.nbytes
                while self.used_bytes > self.limit_bytes:
                    self.used_bytes -= self._arrays.popitem(last=False)[1].nbytes
        return pixels


class LrImages:
    """LR files without references."""

    provides = frozenset({"lr"})

    def __init__(
        self, paths: Sequence[Path], names: Sequence[str], upscale: int, cache: DecodedImages
    ) -> None:
        self.paths, self.names, self.upscale, self.cache = tuple(paths), tuple(names), upscale, cache
        self.files = self.paths

    def lr_size(self, index: int) -> tuple[int, int]:
        height, width = self.cache.get(self.paths[index]).shape[:2]
        return height, width

    def example(self, index: int, window: Window, rng: np.random.Generator) -> Example:
        return Example(window.cut(self.cache.get(self.paths[index])), None, {})


class PairedImages:
    """LR files with the HR file of each."""

    provides = frozenset({"lr", "hr"})

    def __init__(
        self,
        lr_paths: Sequence[Path],
        hr_paths: Sequence[Path],
        names: Sequence[str],
        upscale: int,
        cache: DecodedImages,
    ) -> None:
        self.lr_paths, self.hr_paths = tuple(lr_paths), tuple(hr_paths)
        self.names, self.upscale, self.cache = tuple(names), upscale, cache
        self.files = (*self.lr_paths, *self.hr_paths)

    def lr_size(self, index: int) -> tuple[int, int]:
        height, width = self.cache.get(self.lr_paths[index]).shape[:2]
        return height, width

    def example(self, index: int, window: Window, rng: np.random.Generator) -> Example:
        lr, hr = self.cache.get(self.lr_paths[index]), self.cache.get(self.hr_paths[index])
        check_pair_size(self.lr_paths[index], lr.shape[:2], self.hr_paths[index], hr.shape[:2], self.upscale)
        return Example(window.cut(lr), window.cut(hr, self.upscale), {})


class DegradedImages:
    """HR files whose LR crops are made on the way, each crop with a degradation of its own."""

    provides = frozenset({"lr", "hr"})

    def __init__(
        self, paths: Sequence[Path], names: Sequence[str], degradation: Degradation, cache: DecodedImages
    ) -> None:
        self.paths, self.names, self.degradation, self.cache = tuple(paths), tuple(names), degradation, cache
        self.files = self.paths
        self.upscale = degradation.upscale

    def lr_size(self, index: int) -> tuple[int, int]:
        height, width = self.cache.get(self.paths[index]).shape[:2]
        return height // self.upscale, width // self.upscale

    def example(self, index: int, window: Window, rng: np.random.Generator) -> Example:
        hr = window.cut(self.cache.get(self.paths[index]), self.upscale)
        lr, record = self.degradation(hr, rng)
        return Example(lr, hr, record)


def check_pair_size(
    lr_path: Path, lr_size: tuple[int, ...], hr_path: Path, hr_size: tuple[int, ...], upscale: int
) -> None:
    """Raise a ValueError unless the HR image is exactly `upscale` times the LR image."""
    if tuple(hr_size) != (lr_size[0] * upscale, lr_size[1] * upscale):
        raise ValueError(
            f"'{hr_path}' is {hr_size[0]}x{hr_size[1]} (height x width) but '{lr_path}' is "
            f"{lr_size[0]}x{lr_size[1]}; at upscale {upscale} it should be "
            f"{lr_size[0] * upscale}x{lr_size[1] * upscale}"
        )
