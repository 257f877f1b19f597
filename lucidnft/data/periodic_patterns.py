"""Patterns that repeat every few pixels: what the pixel shuffles and strides of a restorer leave behind.

A learned reward that answers to an invisible one is a reward that a policy can be paid by for nothing: 0.1
steps of 255 of a checkerboard once cost a grey photograph 0.01 of its consistency, and one step of a
checkerboard of 2 x 2 pixels raised its quality by 0.1.  So visible ones are shown as defects, and every
training image carries a faint one that its label ignores.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

PERIODS = (2, 4, 8)
FAINT = (0.0002, 0.003)
"""Range of the standard deviation of a faint pattern: 0.05 to 0.8 steps of 255."""
FAINT_SHARE = 0.7
"""Share of the images that carry a faint pattern."""


def plane_waves(generator: np.random.Generator, period: int, *, count: int) -> Tensor:
    """(3, period, period): the sum of `count` plane waves that the period divides, spread 1, mean 0.

    Half of them are grey, the others of a random colour.  Half of the later ones mirror the first, left to
    right: two such waves are a chequer.
    """
    rows, columns = torch.meshgrid(torch.arange(period), torch.arange(period), indexing="ij")
    tile, first = torch.zeros(3, period, period, dtype=torch.float64), None
    for _ in range(count):
        down, across = divmod(int(generator.integers(1, period * period)), period)  # 0 would be a constant
        colour = torch.ones(3) if generator.random() < 0.5 else torch.from_numpy(generator.normal(size=3))
        colour = float(generator.normal()) * colour
        if first is not None and generator.random() < 0.5:
            down, across, colour = first[0], -first[1], first[2]
        first = first or (down, across, colour)
        # A wave that changes sign from pixel to pixel has only this one phase that does not vanish.
        offset = 0.0 if period == 2 else float(generator.uniform(0, 2 * math.pi))
        phase = (down * rows.double() + across * columns) * (2 * math.pi / period) + offset
        tile += colour[:, None, None] * torch.cos(phase)
    return (tile / tile.std(correction=0).clamp_min(1e-6)).float()


def repeat_tile(tile: Tensor, height: int, width: int) -> Tensor:
    """(C, p, p) -> (C, height, width)."""
    repeats = (math.ceil(height / tile.shape[1]), math.ceil(width / tile.shape[2]))
    return tile.repeat(1, *repeats)[:, :height, :width]


def add_faint_pattern(image: Tensor, generator: np.random.Generator) -> Tensor:
    """(3, H, W) in [0, 1] -> the same photograph to any eye, `FAINT_SHARE` of the time with a faint pattern."""
    if generator.random() >= FAINT_SHARE:
        return image
    period = PERIODS[int(generator.integers(len(PERIODS)))]
    tile = plane_waves(generator, period, count=int(generator.integers(1, 3)))
    low, high = FAINT
    spread = math.exp(generator.uniform(math.log(low), math.log(high)))
    return (image + spread * repeat_tile(tile, image.shape[1], image.shape[2])).clamp(0, 1)
