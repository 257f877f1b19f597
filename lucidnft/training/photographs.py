"""Photographs kept decoded in memory, and random crops of them: the raw material of the learned rewards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from lucidnft.data.bundled import HELD_OUT_PHOTOGRAPHS, TRAIN_PHOTOGRAPHS, photograph_paths
from lucidnft.data.folders import split_held_out
from lucidnft.image_decoding import decode_pixels
from lucidnft.images import list_images, pixels_to_tensor, resize
from lucidnft.schema import ConfigModel


class PhotographSettings(ConfigModel):
    """Which photographs a reward learns from: fields of the learned rewards' task sections."""

    folder: str | None = None  # null: the photographs that come with scikit-image
    val_folder: str | None = None  # null: a tenth of `folder`, or the bundled held-out photographs
    crop_size: int = Field(default=64, ge=32, multiple_of=16)  # pixels
    held_out_crop_size: int = Field(default=128, ge=32, multiple_of=16)
    restored_folders: tuple[str, ...] = ()  # restorations of `folder`, each file under its photograph's name

    def build_photographs(self) -> tuple[Photographs, Photographs]:
        """Decode the training and the held-out photographs.

        Raises:
            ValueError: as `list_images`, `split_held_out` and `Photographs`.
        """
        if self.folder is None:
            train, held_out = photograph_paths(TRAIN_PHOTOGRAPHS), photograph_paths(HELD_OUT_PHOTOGRAPHS)
        else:
            train, held_out = list_images(self.folder), []
            if self.val_folder is None:
                kept, left = split_held_out([path.name for path in train], 0.1, where=f"'{self.folder}'")
                train, held_out = [train[i] for i in kept], [train[i] for i in left]
        if self.val_folder is not None:
            held_out = list_images(self.val_folder)
        return (
            Photographs(train, crop_size=self.crop_size, restored_folders=self.restored_folders),
            Photographs(held_out, crop_size=self.held_out_crop_size),
        )


class Photographs:
    """Square crops of photographs, at native size or reduced by up to a half.

    Reducing varies the sharpness of the content and hides the compression of the files.
    """

    def __init__(
        self, paths: Sequence[Path], *, crop_size: int, restored_folders: Sequence[str | Path] = ()
    ) -> None:
        """Decode everything.  restored_folders: each holds a version of every photograph, by name and size.

        Raises:
            ValueError: no paths, a photograph smaller than crop_size, or a restoration missing or of another size.
            UnreadableImageError: a file that cannot be decoded.
        """
        if not paths:
            raise ValueError("no photographs to train on; give a folder that holds some")
        self.crop_size = crop_size
        self.names = [path.stem for path in paths]
        self._pixels = [decode_pixels(path).rgb for path in paths]
        for path, pixels in zip(paths, self._pixels, strict=True):
            if min(pixels.shape[:2]) < crop_size:
                raise ValueError(
                    f"'{path}' is {pixels.shape[1]}x{pixels.shape[0]} px, below crop_size {crop_size}; "
                    "remove it or reduce crop_size"
                )

        self._restored = [self._read_restored(Path(folder)) for folder in restored_folders]

    def _read_restored(self, folder: Path) -> list[np.ndarray]:
        files = {path.stem: path for path in list_images(folder)}
        versions = []
        for name, pixels in zip(self.names, self._pixels, strict=True):
            if name not in files:
                raise ValueError(f"'{folder}' has no restoration of photograph '{name}'; restore them all")
            restored = decode_pixels(files[name]).rgb
            if restored.shape != pixels.shape:
                raise ValueError(
                    f"'{files[name]}' is {restored.shape[1]}x{restored.shape[0]} px, its photograph "
                    f"{pixels.shape[1]}x{pixels.shape[0]}; a restoration must have the size of its original"
                )
            versions.append(restored)
        return versions

    def __len__(self) -> int:
        return len(self._pixels)

    def crop(self, index: int, generator: np.random.Generator) -> Tensor:
        """(3, crop_size, crop_size) float32 in [0, 1] of one photograph: place, scale and mirroring drawn."""
        return self._cut(self._pixels[index : index + 1], generator)[0]

    def crop_with_restored(self, index: int, generator: np.random.Generator) -> tuple[Tensor, Tensor | None]:
        """The same, and the same window of one of its restorations (drawn); None when there are none."""
        chosen = int(generator.integers(len(self._restored))) if self._restored else None
        restored = [] if chosen is None else [self._restored[chosen][index]]
        image, *others = self._cut([self._pixels[index], *restored], generator)
        return image, others[0] if others else None

    def _cut(self, versions: Sequence[np.ndarray], generator: np.random.Generator) -> list[Tensor]:
        pixels = versions[0]
        largest = min(2 * self.crop_size, *pixels.shape[:2])
        side = int(generator.integers(self.crop_size, largest + 1))
        if generator.random() < 0.4:
            side = self.crop_size
        top = int(generator.integers(pixels.shape[0] - side + 1))
        left = int(generator.integers(pixels.shape[1] - side + 1))
        step = -1 if generator.random() < 0.5 else 1
        windows = torch.stack(
            [pixels_to_tensor(v[top : top + side, left : left + side][:, ::step]) for v in versions]
        )
        if side != self.crop_size:
            windows = resize(windows, (self.crop_size, self.crop_size))
        return list(windows)

    def centre(self, index: int) -> Tensor:
        """(3, crop_size, crop_size): the middle of a photograph at native size, for evaluation."""
        pixels = self._pixels[index]
        top, left = ((side - self.crop_size) // 2 for side in pixels.shape[:2])
        return pixels_to_tensor(pixels[top : top + self.crop_size, left : left + self.crop_size])


def describe_photographs(train: Photographs, held_out: Photographs) -> str:
    """One line for the start of a run."""
    return (
        f"{len(train)} photographs in crops of {train.crop_size} px, {len(held_out)} held out in crops of "
        f"{held_out.crop_size} px"
    )
