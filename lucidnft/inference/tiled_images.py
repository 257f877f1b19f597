"""LR images on their way through a backbone, whole or in tiles that meet at every solver step.

Tiles that are solved one by one end in different drawings, and no blending hides where they meet.  Here there is one
latent for the whole image, started from one draw of noise; at each time of the solve the tiles only give velocities,
which are averaged with weights that fade towards a tile's border (MultiDiffusion, arXiv 2302.08113, and the Mixture of
Diffusers, arXiv 2302.02412).  A tile's condition is encoded from its part of the LR image, so a backbone that sums an
image up (LucidFlux's SigLIP tokens) sums up the tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lucidnft.backbones.autoencoder import vae_in_one_piece
from lucidnft.backbones.base import Backbone
from lucidnft.flow.conversions import velocity_to_x0
from lucidnft.flow.solvers import ODE_SOLVERS, times_like
from lucidnft.inference.group_norms import GivenGroupNorms, RecordedGroupNorms
from lucidnft.inference.tile_conditions import TileConditions
from lucidnft.inference.tiling import TileLayout
from lucidnft.inference.whole_images import known_free_memory
from lucidnft.policy import Policy, Role
from lucidnft.records import Condition

CONDITION_BYTES = 2 * 2**30
"""Conditions of tiles up to this size, and to a quarter of the free memory, are kept from step to step; those beyond
it are encoded again at each."""


def backbone_of(policy_or_backbone: Policy | Backbone) -> Backbone:
    """A policy's backbone, or the backbone itself."""
    return policy_or_backbone.backbone if isinstance(policy_or_backbone, Policy) else policy_or_backbone


def folded(policy_or_backbone: Policy | Backbone) -> AbstractContextManager[None]:
    """A region in which a policy's current adapter is part of its base: added once for all that is restored there."""
    if isinstance(policy_or_backbone, Policy):
        return policy_or_backbone.folded(Role.CURRENT)
    return nullcontext()


def tile_unit(backbone: Backbone, native: int) -> int:
    """Output pixels a side of the smallest square that whole LR pixels and what the backbone takes both fill."""
    return math.lcm(backbone.latent_spec.multiple, native)


@dataclass(frozen=True)
class SolveSettings:
    """How latents are solved."""

    num_inference_steps: int
    solver: str  # of ODE_SOLVERS
    fidelity: float  # 0 to 1


class TiledImages:
    """LR images of one size, padded, with the layout they are seen in.

    Full-size tensors stay on the device of `lr`; only tiles go to the backbone's.
    """

    def __init__(
        self,
        policy_or_backbone: Policy | Backbone,
        lr: Tensor,
        *,
        native: int,
        layout: TileLayout,
        tiles_at_once: int,
    ) -> None:
        """lr: (B, 3, h, w) in [0, 1], sides whole units; one image when the layout has several tiles.

        native: the whole factor that the backbone restores at.
        """
        if not layout.is_whole and lr.shape[0] != 1:
            raise ValueError(f"{lr.shape[0]} images in tiles; one at a time")
        self.policy_or_backbone = policy_or_backbone
        self.backbone = backbone_of(policy_or_backbone)
        self.lr = lr
        self.native = native
        self.layout = layout
        self.unit = tile_unit(self.backbone, native)
        self.latent_cells = self.unit // self.backbone.latent_spec.downscale
        places = list(range(len(layout)))
        self._chunks = [places[i : i + tiles_at_once] for i in range(0, len(places), tiles_at_once)]
        self._tiles = TileConditions(self.backbone, lr, native=native, unit=self.unit, layout=layout)
        self._kept: dict[int, Condition] = {}
        self._kept_bytes = 0
        free = None if layout.is_whole else known_free_memory(lr.device)
        self._may_keep = CONDITION_BYTES if free is None else min(CONDITION_BYTES, free // 4)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one image's latent."""
        return self.backbone.latent_spec.grid(self.lr.shape[2] * self.native, self.lr.shape[3] * self.native)

    def solve(self, draw: Callable[[], Tensor], settings: SolveSettings) -> Tensor:
        """The latents x_0 (B, C, h, w) of the images.  Conditions that were kept are given up at the end.

        draw: gives the noise (B, C, h, w), once; a function, for a tensor held here would stay beside the solver's.

        The time grid is that of a tile: the shift of some backbones' grids belongs to what the network sees at once.
        Fidelity moves the drawn latents towards their expectation given the LR image: detail that the draw made up
        fades, and its error with it.
        """
        size = (self.layout.height * self.unit, self.layout.width * self.unit)
        grid = self.backbone.default_time_grid(settings.num_inference_steps, *size)
        with folded(self.policy_or_backbone):
            x_0 = self._solved(draw, settings, grid)
        self._kept.clear()
        self._tiles.release()
        return x_0

    def _solved(self, draw: Callable[[], Tensor], settings: SolveSettings, grid: Tensor) -> Tensor:
        solver = ODE_SOLVERS[settings.solver]
        if settings.fidelity == 0:
            return solver(self._velocity, draw(), grid).x_0
        noise = draw()
        if settings.fidelity == 1:
            return self._expectation(noise)
        x_0 = solver(self._velocity, noise, grid).x_0
        return x_0.lerp_(self._expectation(noise), settings.fidelity)

    def decode(self, x_0: Tensor) -> Tensor:
        """x_0 (B, C, h, w) -> images (B, 3, H, W) in [0, 1].

        Tiles share the group-norm statistics of a version of the whole latent that is as small as a tile.
        """
        if self.layout.is_whole:
            return self.backbone.decode(x_0.to(self.backbone.device)).to(x_0.device)
        rows, columns = (side // self.latent_cells for side in x_0.shape[2:])
        shrink = min(1.0, math.sqrt(self.layout.height * self.layout.width / (rows * columns)))
        small = tuple(max(1, math.floor(side * shrink)) * self.latent_cells for side in (rows, columns))
        with vae_in_one_piece(self.backbone), RecordedGroupNorms() as recorded:
            self.backbone.decode(F.interpolate(x_0, size=small, mode="nearest").to(self.backbone.device))

        def of_tiles(parts: Tensor, _: int) -> Tensor:
            with vae_in_one_piece(self.backbone), GivenGroupNorms(recorded.statistics):
                return self.backbone.decode(parts)

        return self._over_tiles(of_tiles, x_0, self.latent_cells, self.unit)

    def pre_restored(self) -> Tensor:
        """What a backbone that `pre_restores` made of the LR images before it drew: (B, 3, H, W) in [0, 1]."""

        def field_of(_: Tensor, chunk: int) -> Tensor:
            return self._condition(chunk)["pre_restored"].float() / 2 + 0.5

        return self._over_tiles(field_of, self.lr, self.unit // self.native, self.unit)

    def _expectation(self, noise: Tensor) -> Tensor:
        """x_0 (B, C, h, w) expected at t = 1, where the noise says nothing about the image.

        Networks let some of the noise through all the same, in proportion to it: the mean over the noise and its
        opposite is without.
        """
        t = times_like(1.0, noise)
        total = velocity_to_x0(noise, self._velocity(noise, t), t)
        opposite = -noise
        total += velocity_to_x0(opposite, self._velocity(opposite, t), t)
        return total.div_(2)

    def _velocity(self, x_t: Tensor, t: Tensor) -> Tensor:
        def of_tiles(parts: Tensor, chunk: int) -> Tensor:
            time = t[:1].to(parts.device).expand(len(parts))
            if isinstance(self.policy_or_backbone, Policy):
                return self.policy_or_backbone(parts, time, self._condition(chunk), Role.CURRENT)
            return self.backbone.velocity(parts, time, self._condition(chunk))

        return self._over_tiles(of_tiles, x_t, self.latent_cells, self.latent_cells)

    def _condition(self, chunk: int) -> Condition:
        """Of a chunk of tiles, on the backbone's device."""
        if chunk in self._kept:
            return self._kept[chunk].to(self.backbone.device)
        if self.layout.is_whole:
            condition = self.backbone.encode_condition(self.lr.to(self.backbone.device), upscale=self.native)
        else:
            condition = self._tiles.encode(self._chunks[chunk])
        size = sum(value.nbytes for value in condition.fields.values())
        if len(self._chunks) == 1 or self._kept_bytes + size <= self._may_keep:
            self._kept[chunk] = condition if self.layout.is_whole else condition.to(self.lr.device)
            self._kept_bytes += size
        return condition

    def _over_tiles(
        self, function: Callable[[Tensor, int], Tensor], source: Tensor, cells: int, cells_out: int
    ) -> Tensor:
        """Average of what `function` makes of tiles: `cells` a unit of `source`, `cells_out` of the result.

        function: (tiles of a chunk, the chunk's number), both on the backbone's device -> their results.
        """
        if self.layout.is_whole:
            return function(source.to(self.backbone.device), 0).to(source.device)
        tiles, tiles_out = self.layout.tiles(cells), self.layout.tiles(cells_out)
        size = [side // cells * cells_out for side in source.shape[2:]]
        total: Tensor | None = None
        for chunk, places in enumerate(self._chunks):
            parts = torch.cat([tiles[place].cut(source) for place in places])
            results = function(parts.to(self.backbone.device), chunk)
            if total is None:
                total = torch.zeros(1, results.shape[1], *size, device=source.device)
            for place, part in zip(places, results.split(1), strict=True):
                tiles_out[place].add_(total, part)
        assert total is not None
        return total
