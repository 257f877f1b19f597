"""Conditions of an image's tiles that agree where the tiles overlap.

An autoencoder that encodes a tile takes the statistics of its group norms from the tile, and one that draws from its
posterior draws anew for every tile.  Here tiles share both: one set of statistics, and one draw for the whole image,
which is the draw it has untiled.  What attention sees, and what lies beyond a tile's border, still differ.

The statistics are the mean over the tiles, not those of a small version of the image as in decoding: shrunk, an image
has another texture, and the encoder of a small random DiT4SR came out further from the untiled latent than with every
tile's own statistics.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from lucidnft.backbones.autoencoder import DrawsImages, vae_in_one_piece
from lucidnft.backbones.base import Backbone
from lucidnft.backbones.image_conditions import EncodesImages
from lucidnft.inference.group_norms import GivenGroupNorms, RecordedGroupNorms, Statistics, pooled
from lucidnft.inference.tiling import Tile, TileLayout
from lucidnft.records import Condition

STATISTICS_PASSES = 2
"""In the first pass over the tiles every norm normalises by the tile's own statistics, so what the later norms see is
not yet what they will see; the second pass is under the first one's."""


class TileConditions:
    """One LR image, padded, encoded tile by tile on the backbone's device."""

    def __init__(self, backbone: Backbone, lr: Tensor, *, native: int, unit: int, layout: TileLayout) -> None:
        """lr: (1, 3, h, w) in [0, 1].  native: the backbone's factor.  unit: output pixels a unit of the layout."""
        self.backbone = backbone
        self.lr = lr
        self.native = native
        self.unit = unit
        self.layout = layout
        self.tiles = layout.tiles(unit // native)
        self._statistics: list[Statistics] | None = None
        self._noise: Tensor | None = None

    def encode(self, places: list[int]) -> Condition:
        """The condition of the tiles at these places of the layout."""
        if self._statistics is None:
            self._statistics = self._shared_statistics()
        parts = [self._cut(self.tiles[place]) for place in places]
        noise = self._drawn()
        if not self._statistics and noise is None:
            return self._encoded(torch.cat(parts))
        cells = self.layout.tiles(self.unit // self.backbone.latent_spec.downscale)
        rows = []
        for place, part in zip(places, parts, strict=True):  # one by one: the calls of group norm are counted
            draw = None if noise is None else cells[place].cut(noise)
            with self._uncached(), _given_norms(self._statistics), self._given_noise(draw):
                rows.append(self._encoded(part))
        return Condition({name: torch.cat([row[name] for row in rows]) for name in rows[0].fields})

    def release(self) -> None:
        """Give up what is as large as the image: the draw, which is made again when it is needed again."""
        self._noise = None

    def _shared_statistics(self) -> list[Statistics]:
        """Of the whole image, estimated; none for a backbone without group norms on the way to its condition."""
        shared: list[Statistics] = []
        for _ in range(STATISTICS_PASSES):
            of_tiles = []
            for tile in self.tiles:
                with self._uncached(), _given_norms(shared), RecordedGroupNorms() as recorded:
                    self._encoded(self._cut(tile))
                if not recorded.statistics:
                    return []
                of_tiles.append(recorded.statistics)
            shared = pooled(of_tiles)
        return shared

    def _drawn(self) -> Tensor | None:
        """The posterior's noise for the whole image, (1, C, H, W) in latent cells; None where none is drawn."""
        if not isinstance(self.backbone, DrawsImages) or not self.backbone.autoencoder.draws:
            return None
        if self._noise is None:
            size = (self.lr.shape[2] * self.native, self.lr.shape[3] * self.native)
            noise = self.backbone.autoencoder.noise(self.lr[0], self.backbone.latent_spec.grid(*size))
            self._noise = noise[None].to(self.lr.device)
        return self._noise

    def _encoded(self, lr: Tensor) -> Condition:
        with vae_in_one_piece(self.backbone):
            return self.backbone.encode_condition(lr, upscale=self.native)

    def _cut(self, tile: Tile) -> Tensor:
        return tile.cut(self.lr).to(self.backbone.device)

    def _uncached(self) -> AbstractContextManager[None]:
        """A store's keys know a tile, not the image it is from; and a hit would record no statistics."""
        if isinstance(self.backbone, EncodesImages):
            return self.backbone.image_conditions.without_store()
        return nullcontext()

    def _given_noise(self, noise: Tensor | None) -> AbstractContextManager[None]:
        if noise is None or not isinstance(self.backbone, DrawsImages):
            return nullcontext()
        return self.backbone.autoencoder.given_noise(noise)


def _given_norms(statistics: list[Statistics]) -> AbstractContextManager[object]:
    return GivenGroupNorms(statistics) if statistics else nullcontext()
