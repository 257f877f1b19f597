"""What one call of `restore` does to its images, once every argument has been checked."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from lucidnft.backbones.autoencoder import DrawsImages
from lucidnft.backbones.base import Backbone
from lucidnft.images import resize
from lucidnft.inference.color_fix import COLOR_FIXES, AlignMethod
from lucidnft.inference.device import give_back_memory
from lucidnft.inference.sizes import pad_to_multiple
from lucidnft.inference.tile_memory import (
    TilePlan,
    auto_tile_size,
    bytes_per_pixel,
    free_memory,
    is_out_of_memory,
    tiles_at_once,
)
from lucidnft.inference.tiled_images import SolveSettings, TiledImages, backbone_of, tile_unit
from lucidnft.inference.whole_images import check_whole_image, whole_image_bytes
from lucidnft.policy import Policy

AlignTo = Literal["lr", "pre_restored"]

NoiseFunction = Callable[[tuple[int, int, int], int, str], Tensor]
"""(shape (C, h, w), seed, key) -> the standard normal start of one image's solve."""

PROBE_SIZE = 256
"""Output pixels a side of the image that memory is measured with."""


@dataclass(frozen=True)
class Restoration:
    """What is asked of every image of a call."""

    policy_or_backbone: Policy | Backbone
    solve: SolveSettings
    size: tuple[int, int]  # (H, W) of the outputs
    native: int  # the whole factor that the backbone restores at
    align_method: AlignMethod
    align_to: AlignTo
    seed: int
    noise_fn: NoiseFunction

    def run(self, lr: Tensor, seen: Tensor, keys: Sequence[str], plan: TilePlan) -> Tensor:
        """lr (N, 3, h, w), and the same images as the backbone should see them -> (N, 3, H, W) in [0, 1].

        An image that does not fit into memory is begun anew with less at once, where the plan allows it; its
        neighbours are left as they are.
        """
        height, width = self._padded_size(seen)
        unit = tile_unit(backbone_of(self.policy_or_backbone), self.native)
        layout = plan.layout(height, width, unit)
        images_at_once = plan.at_once if layout.is_whole else 1
        out: Tensor | None = None
        for start in range(0, len(keys), images_at_once):
            rows = slice(start, start + images_at_once)
            try:
                part = self._images(lr[rows], seen[rows], keys[rows], plan)
            except (MemoryError, RuntimeError) as error:
                smaller = plan.smaller(height, width, unit)
                if smaller is None or not is_out_of_memory(error):
                    raise
                part = None
            # outside of `except`, whose traceback holds on to the tensors of the failed attempt
            if part is None:
                give_back_memory(backbone_of(self.policy_or_backbone).device)
                assert smaller is not None
                warnings.warn(
                    f"{', '.join(keys[rows])}: out of memory with {plan}; going on with {smaller}",
                    stacklevel=2,
                )
                part = self.run(lr[rows], seen[rows], keys[rows], smaller)
            if len(part) == len(keys):
                return part
            out = part.new_empty(len(keys), *part.shape[1:]) if out is None else out
            out[rows] = part
            del part
        assert out is not None
        return out

    def check_memory(self, seen: Tensor) -> None:
        """Raise an ImageTooLargeError when no plan would do: not even the tensors of one whole image fit."""
        native_size, backbone = self._padded_size(seen), backbone_of(self.policy_or_backbone)
        need = whole_image_bytes(
            backbone.latent_spec.grid(*native_size), native_size, self.size,
            num_images=len(seen), solver=self.solve.solver, fidelity=self.solve.fidelity,
            align_method=self.align_method, keeps_style=self.align_to == "pre_restored",
            draws_conditions=isinstance(backbone, DrawsImages) and backbone.autoencoder.draws,
        )  # fmt: skip
        check_whole_image(self.size, need, seen.device)

    def fit(self, seen: Tensor, plan: TilePlan) -> TilePlan:
        """The plan with tiles, and as many at once, that fit into the memory that is free now."""
        backbone = backbone_of(self.policy_or_backbone)
        height, width = self._padded_size(seen)

        def probe() -> int:
            side = max(1, PROBE_SIZE // self.native)
            piece = seen[:1, :, :side, :side]
            size = (piece.shape[2] * self.native, piece.shape[3] * self.native)
            once = replace(self, size=size, solve=replace(self.solve, num_inference_steps=1))
            once.run(piece, piece, ["probe"], replace(plan, at_once=1, may_shrink=False))
            return math.prod(once._padded_size(piece))

        per_pixel = bytes_per_pixel(backbone.device, probe)
        free = free_memory(backbone.device)
        unit = tile_unit(backbone, self.native)
        tile = auto_tile_size(height, width, per_pixel, free, unit=unit, longest=backbone.latent_spec.longest)
        pixels = height * width if tile is None else tile**2
        at_once = tiles_at_once(plan.at_once, pixels, per_pixel, free)
        return replace(plan.with_tile(tile, unit), at_once=at_once)

    def _padded_size(self, seen: Tensor) -> tuple[int, int]:
        """(H, W) of what the backbone makes: whole units."""
        unit = tile_unit(backbone_of(self.policy_or_backbone), self.native)
        height, width = (math.ceil(side * self.native / unit) * unit for side in seen.shape[2:])
        return height, width

    def _images(self, lr: Tensor, seen: Tensor, keys: Sequence[str], plan: TilePlan) -> Tensor:
        """One image in tiles, or several as they are."""
        unit = tile_unit(backbone_of(self.policy_or_backbone), self.native)
        height, width = seen.shape[2] * self.native, seen.shape[3] * self.native
        padded = pad_to_multiple(seen, unit // self.native)
        images = TiledImages(
            self.policy_or_backbone, padded, native=self.native,
            layout=plan.layout(*self._padded_size(seen), unit), tiles_at_once=plan.at_once,
        )  # fmt: skip
        style = None
        if self.align_to == "pre_restored":
            style = resize(images.pre_restored()[:, :, :height, :width], self.size)
        draw = partial(self._noise, images.latent_shape, keys, lr.device)
        x_0 = images.solve(draw, self.solve)
        check_finite(x_0, keys)
        decoded = images.decode(x_0)
        del x_0, images, padded
        sr = decoded.clamp_(0, 1)
        if sr.shape[2:] != self.size:  # else `resize` would be one copy more of the image
            sr = resize(sr[:, :, :height, :width], self.size)
        del decoded
        if self.align_method != "nofix":
            style = resize(lr, self.size) if style is None else style
            sr = COLOR_FIXES[self.align_method](sr, style).clamp_(0, 1)
        check_finite(sr, keys)
        return sr

    def _noise(self, shape: tuple[int, int, int], keys: Sequence[str], device: torch.device) -> Tensor:
        noise = [self.noise_fn(shape, self.seed, key)[None] for key in keys]
        return (noise[0] if len(noise) == 1 else torch.cat(noise)).to(device)


def check_finite(values: Tensor, keys: Sequence[str]) -> None:
    """Raise a ValueError that names the images with NaN or infinite values."""
    bad = [i for i, value in enumerate(values) if not bool(torch.isfinite(value.sum()))]
    if bad:
        names = ", ".join(repr(keys[i]) for i in bad[:3])
        raise ValueError(
            f"the restoration of {len(bad)} image(s) is not finite ({names}): the checkpoint has diverged or is "
            "damaged; use an earlier one"
        )
