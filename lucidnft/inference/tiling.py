"""Cutting an image into overlapping tiles, and averaging what comes back with weights that fade at seams.

Positions are counted in units: the smallest squares at whose borders an image may be cut so that LR pixels, latent
cells and output pixels all stay whole.  Whatever the layout, the weights of the tiles over a cell sum to 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """A rectangle of one grid of cells, and what it counts for there."""

    rows: slice
    columns: slice
    row_weights: Tensor  # (rows,) above 0
    column_weights: Tensor  # (columns,) above 0

    def cut(self, images: Tensor) -> Tensor:
        """(..., H, W) -> its part of it, a view."""
        return images[..., self.rows, self.columns]

    def add_(self, total: Tensor, part: Tensor) -> None:
        """Add a part, weighted, to its place in a total (..., H, W)."""
        weight = self.row_weights[:, None] * self.column_weights
        self.cut(total).add_(part.to(total) * weight.to(total))


@dataclass(frozen=True)
class TileLayout:
    """Where the tiles of an image lie: starts along both axes, and the sides they share, in units."""

    row_starts: tuple[int, ...]
    column_starts: tuple[int, ...]
    height: int  # of a tile
    width: int

    @classmethod
    def cover(cls, height: int, width: int, tile: int, overlap: int) -> TileLayout:
        """Tiles of at most `tile` units a side over height x width units, sharing at least `overlap` with neighbours.

        All have one size, which is that of the image where it is smaller, and are spread evenly.

        Raises:
            ValueError: tile below 1, or overlap outside [0, tile).
        """
        if tile < 1 or not 0 <= overlap < tile:
            raise ValueError(
                f"tiles of {tile} units cannot overlap by {overlap}; 0 to {tile - 1} are possible"
            )
        return cls(
            tile_starts(height, tile, overlap),
            tile_starts(width, tile, overlap),
            min(height, tile),
            min(width, tile),
        )

    @property
    def is_whole(self) -> bool:
        """One tile, the image itself."""
        return len(self) == 1

    def __len__(self) -> int:
        return len(self.row_starts) * len(self.column_starts)

    def tiles(self, cells: int) -> list[Tile]:
        """The tiles, row by row, on a grid of `cells` x `cells` cells a unit."""
        rows = _spans(self.row_starts, self.height, cells)
        columns = _spans(self.column_starts, self.width, cells)
        return [Tile(r, c, of_r, of_c) for (r, of_r), (c, of_c) in product(rows, columns)]


def tile_starts(length: int, tile: int, overlap: int) -> tuple[int, ...]:
    """Starts of the fewest tiles that cover `length` and overlap by `overlap` or more, evenly spread."""
    if tile >= length:
        return (0,)
    gaps = math.ceil((length - tile) / (tile - overlap))
    # rounded to the nearest whole number: two neighbours are at most ceil(even distance) apart
    return tuple((2 * i * (length - tile) + gaps) // (2 * gaps) for i in range(gaps + 1))


def _spans(starts: tuple[int, ...], size: int, cells: int) -> list[tuple[slice, Tensor]]:
    """Each tile's slice of an axis and its weights: rising over what it shares with the tile before, then falling.

    A raised cosine with its zero half a cell outside the tile: its slope is continuous, and where two tiles overlap
    they sum to 1 by themselves.  Where more do, the division makes them.
    """
    raw = []
    for index, start in enumerate(starts):
        weights = torch.ones(size * cells, dtype=torch.float64)
        if index > 0:
            weights *= _rise((starts[index - 1] + size - start) * cells, size * cells)
        if index + 1 < len(starts):
            weights *= _rise((start + size - starts[index + 1]) * cells, size * cells).flip(0)
        raw.append((slice(start * cells, (start + size) * cells), weights))
    total = torch.zeros(raw[-1][0].stop, dtype=torch.float64)
    for span, weights in raw:
        total[span] += weights
    return [(span, (weights / total[span]).float()) for span, weights in raw]


def _rise(overlap: int, length: int) -> Tensor:
    """(length,) from near 0 to 1 over the first `overlap` cells."""
    positions = (torch.arange(length, dtype=torch.float64) + 0.5) / max(overlap, 1)
    return (0.5 * math.pi * positions.clamp(max=1)).sin().square() if overlap else torch.ones_like(positions)
