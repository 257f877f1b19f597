"""The images that a consistency head learns from: one content, degraded in many ways and altered in places."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from lucidnft.data.batches import HeldOut, ImageSource
from lucidnft.data.defects import visible_severity
from lucidnft.data.degradation import Degradation, Preset, aligned, replay
from lucidnft.data.region_swaps import Filling, draw_swap_mask, swap_region, visible_swap
from lucidnft.images import resize
from lucidnft.rng import derived_seed

ATTEMPTS = 20  # masks tried for a swap that shows
CELL = 16
"""Pixels a side of the cells in which is judged how much a swap shows, for embedders that have none themselves."""

Inpaint = Callable[[Tensor, Tensor, int], Tensor]
"""(image (3, H, W), mask (H, W) bool, seed) -> the image with the mask repainted."""


Donor = Callable[[], Tensor]
"""Loads an HR crop (3, H, W) of another photograph; not every recipe wants one."""


@dataclass(frozen=True)
class Crop:
    """One LR-HR pair: lr (3, h, w), hr (3, H, W) in [0, 1]; key names the photograph and the place."""

    lr: Tensor
    hr: Tensor
    key: str


class Crops:
    """Crops by number: random ones of a training source, or the fixed ones of a held-out set."""

    def __init__(self, source: ImageSource | HeldOut, count: int) -> None:
        """count: how many there are; of a held-out set at most what it has.

        Raises:
            ValueError: the source has no HR images.
        """
        if "hr" not in source.provides:
            raise ValueError(
                "task consistency learns from HR images; use data.images of type hr_folder or paired_folder"
            )
        self._source = source
        self._fixed: list[Crop] | None = None
        self._count = min(count, len(source)) if isinstance(source, HeldOut) else count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Crop:
        if not isinstance(self._source, HeldOut):
            batch = self._source.batch(index, 1, range(1))
            assert batch.hr is not None
            return Crop(batch.lr[0], batch.hr[0], f"{batch.keys[0]}#{index}")
        if self._fixed is None:
            self._fixed = [
                Crop(lr, hr, key)
                for batch in self._source.batches()
                for lr, hr, key in zip(
                    batch.lr, batch.hr if batch.hr is not None else (), batch.keys, strict=True
                )
            ]
        return self._fixed[index]

    def donor(self, index: int) -> Tensor:
        """An HR crop (3, H, W) of the same size, of another photograph where there is one."""
        own = self[index]
        photograph = re.split("[#@]", own.key)[0]
        others = (self[(index + step) % len(self)] for step in range(1, len(self)))
        same_size = (crop for crop in islice(others, ATTEMPTS) if crop.hr.shape == own.hr.shape)
        first: Crop | None = None
        for crop in same_size:
            if not crop.key.startswith(photograph):
                return crop.hr
            first = first or crop
        if first is None:
            raise ValueError(
                f"'{own.key}' is the only crop of its size: there is nothing to swap in; add images"
            )
        return first.hr


@dataclass(frozen=True)
class ContentImages:
    """One content.  C conditions: as it is, and under one degradation; V versions: unaltered, Q altered, own region."""

    lr: Tensor  # (P, 3, h, w)
    sr: Tensor  # (C, V, 3, H, W)
    shown: Tensor  # (Q, H / 16, W / 16) in [0, 1]: how much of an alteration each cell shows


@dataclass(frozen=True)
class PoolRecipe:
    """How the pool of a content and its hard negatives are drawn."""

    degradations: Sequence[Preset]
    pool_size: int  # P, the crop's own LR image included
    num_altered: int  # Q
    altered_area: tuple[float, float]  # fractions of the image, drawn evenly in their logarithm
    inpaint: Inpaint | None = None  # fills regions instead of other photographs and synthesised texture

    def draw(self, crop: Crop, donor: Donor, generator: np.random.Generator) -> ContentImages:
        """The images of one content; a function of the crop, the donor and the generator's state."""
        other = donor() if self.inpaint is None else None
        hr, upscale = crop.hr, crop.hr.shape[1] // crop.lr.shape[1]
        degradations = [
            Degradation(self.degradations[int(generator.integers(len(self.degradations)))], upscale)
            for _ in range(self.pool_size)
        ]
        drawn = [degradation(hr, generator) for degradation in degradations]
        versions, shown = [hr], []
        for number in range(self.num_altered):
            altered, mask = self._alter(hr, other, number, generator)
            versions.append(altered)
            shown.append(visible_severity(hr, altered, mask[None].float(), CELL))
        mask = draw_swap_mask(generator, hr.shape[1], hr.shape[2], self._area(generator))
        versions.append(swap_region(hr, mask, "own", generator))
        clean = torch.stack(versions)
        record = aligned(drawn[-1][1])  # not among the LR images, so that none of them is what SR was made of
        degraded = resize(torch.stack([replay(v, record) for v in versions]), (hr.shape[1], hr.shape[2]))
        lr = torch.stack([crop.lr, *(image for image, _ in drawn[:-1])])
        return ContentImages(lr, torch.stack((clean, degraded)), torch.stack(shown))

    def _alter(
        self, image: Tensor, donor: Tensor | None, number: int, generator: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """(altered image, mask); after 20 masks whose filling does not show, the last is taken as it is."""
        filling: Filling = "foreign" if number % 2 == 0 else "texture"
        for _ in range(ATTEMPTS):
            mask = draw_swap_mask(generator, image.shape[1], image.shape[2], self._area(generator))
            if self.inpaint is None:
                altered = swap_region(image, mask, filling, generator, donor=donor)
            else:
                altered = self.inpaint(image, mask, derived_seed(int(generator.integers(2**62)), "inpaint"))
            if visible_swap(image, altered, mask):
                break
        return altered, mask

    def _area(self, generator: np.random.Generator) -> float:
        low, high = np.log(self.altered_area)
        return float(np.exp(generator.uniform(low, high)))


@dataclass(frozen=True)
class PairRecipe:
    """The pair as it is: one LR image, one HR image, nothing altered."""

    def draw(self, crop: Crop, donor: Donor, generator: np.random.Generator) -> ContentImages:
        """The pair; nothing is drawn."""
        return ContentImages(crop.lr[None], crop.hr[None, None], torch.zeros(0, 1, 1))
