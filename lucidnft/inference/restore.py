"""From LR images in memory to restored images of exactly the size asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from lucidnft.backbones.base import Backbone
from lucidnft.flow.solvers import ODE_SOLVERS
from lucidnft.images import resize
from lucidnft.inference.color_fix import COLOR_FIXES, AlignMethod
from lucidnft.inference.restoration import AlignTo, NoiseFunction, Restoration
from lucidnft.inference.sizes import output_size, pad_to_multiple
from lucidnft.inference.tile_memory import TilePlan, TileSize
from lucidnft.inference.tiled_images import SolveSettings, backbone_of, tile_unit
from lucidnft.policy import Policy
from lucidnft.rng import generator_for

__all__ = ["check_settings", "keyed_noise", "output_size", "pad_to_multiple", "restore"]


def keyed_noise(shape: tuple[int, int, int], seed: int, key: str) -> Tensor:
    """Noise that depends on (seed, key, shape) alone: not on the batch, the tiles, nor the place in a folder."""
    return torch.randn(shape, generator=generator_for(seed, "restore", key))


@torch.no_grad()
def restore(
    policy_or_backbone: Policy | Backbone,
    lr: Tensor,
    *,
    upscale: float | None = None,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    keys: Sequence[str] | None = None,
    num_inference_steps: int | None = None,
    solver: str = "euler",
    fidelity: float = 0.0,
    align_method: AlignMethod = "nofix",
    align_to: AlignTo = "lr",
    tile_size: TileSize = None,
    tile_overlap: int | None = None,
    process_size: int | None = None,
    batch_size: int = 8,
    storage: torch.device | str | None = None,
    noise_fn: NoiseFunction = keyed_noise,
) -> Tensor:
    """Restore LR images of one size: (N, 3, h, w) in [0, 1] -> (N, 3, round(h * upscale), round(w * upscale)).

    Any size from 1 x 1 works: the LR image is extended at its right and lower edge by reflection to what
    the backbone takes, and the surplus is cropped off.  A backbone with a factor of its own always
    restores at that factor; for another `upscale` the result is then resized (antialiased bicubic).

    Args:
        policy_or_backbone: a policy is used in its current role, a backbone as it is.
        upscale: output size over input size; None takes the backbone's own factor.
        size: (H, W) of the output instead of a factor; `sizes.asked_size` gives one that does not distort.
        keys: N names that key the noise, together with `seed`; default "0" .. "N-1".
        num_inference_steps: solver steps; None takes the backbone's own number.
        solver: "euler", "heun" or "dpm2".
        fidelity: 0 to 1.  0 draws one of the images that the input allows, with all their detail; 1 gives their
            average, which is smoother and closer to the truth pixel by pixel; between is a weighted mean of both.
        align_method: colour transfer onto the whole output, see `color_fix`.
        align_to: whose colours: the up-sampled LR image's, or those of what the backbone's pre-restorer made of it.
        tile_size: output pixels a side of the tiles that the backbone sees; None: the whole image at once;
            "auto": the whole image when it fits into free memory, else the largest tile that does.  When memory
            runs out, tiles of half the size are taken, with a warning; pixels are those of asking for that size.
        tile_overlap: output pixels that neighbouring tiles share at least; default an eighth of the tile.
        process_size: output pixels that the shorter side has at least when the backbone sees it; smaller images
            are enlarged before and the result is brought to its size after.
        batch_size: images, or tiles of one image, solved at a time; bounds memory.
        storage: where tensors of the whole image live; default the backbone's device.
        noise_fn: how one image's noise is drawn.

    Returns:
        float32 in [0, 1], on the storage device.

    Raises:
        ValueError: an argument is out of range, or the result is not finite (the image is named).
        ImageTooLargeError: (a MemoryError) an image so large that no tiles would help; nothing was begun.
        torch.OutOfMemoryError, MemoryError: the smallest tiles do not fit, or tile_size is None.
    """
    backbone = backbone_of(policy_or_backbone)
    check_settings(
        backbone, num_inference_steps=num_inference_steps, solver=solver, fidelity=fidelity, align_method=align_method,
        align_to=align_to, tile_size=tile_size, tile_overlap=tile_overlap, process_size=process_size,
        batch_size=batch_size,
    )  # fmt: skip
    num_inference_steps = backbone.default_num_steps if num_inference_steps is None else num_inference_steps
    keys = [str(i) for i in range(lr.shape[0])] if keys is None else list(keys)
    _check_images(lr, keys)
    size = _wanted_size(backbone, lr, upscale, size)
    lr = lr.float().to(backbone.device if storage is None else storage)
    factor = max(size[0] / lr.shape[2], size[1] / lr.shape[3])
    native = backbone.upscale or max(1, math.ceil(factor))
    restoration = Restoration(
        policy_or_backbone, SolveSettings(num_inference_steps, solver, fidelity), size, native, align_method,
        align_to, seed, noise_fn,
    )  # fmt: skip
    seen = _enlarged(lr, native, process_size)
    restoration.check_memory(seen)
    plan = TilePlan(
        None if tile_size == "auto" else tile_size, tile_overlap, batch_size, tile_size is not None
    )
    return restoration.run(lr, seen, keys, restoration.fit(seen, plan) if tile_size == "auto" else plan)


def _wanted_size(
    backbone: Backbone, lr: Tensor, upscale: float | None, size: tuple[int, int] | None
) -> tuple[int, int]:
    """(H, W) of the outputs."""
    if size is not None:
        if upscale is not None:
            raise ValueError(f"both upscale ({upscale}) and size ({size}) are given; one of them decides")
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size is {size}, expected (height, width), 1 pixel or more each")
        return size
    if upscale is None:
        upscale = backbone.upscale
    if upscale is None:
        raise ValueError(f"backbone '{backbone.name}' has no upscale factor of its own; pass upscale, e.g. 4")
    if isinstance(upscale, bool) or not (math.isfinite(upscale) and upscale > 0):
        raise ValueError(f"upscale is {upscale}, expected a number above 0")
    return output_size(lr.shape[2], lr.shape[3], upscale)


def _enlarged(lr: Tensor, native: int, process_size: int | None) -> Tensor:
    """The LR images, larger if their restorations would be below process_size."""
    shorter = min(lr.shape[2:]) * native
    if process_size is None or shorter >= process_size:
        return lr
    height, width = (math.ceil(side * process_size / shorter) for side in lr.shape[2:])
    return resize(lr, (height, width))


def check_settings(
    policy_or_backbone: Policy | Backbone,
    *,
    num_inference_steps: int | None = None,
    solver: str = "euler",
    fidelity: float = 0.0,
    align_method: str = "nofix",
    align_to: str = "lr",
    tile_size: TileSize = None,
    tile_overlap: int | None = None,
    process_size: int | None = None,
    batch_size: int = 8,
) -> None:
    """Raise a ValueError for settings of `restore` with which no image at all can be restored."""
    backbone = backbone_of(policy_or_backbone)
    for name, value, allowed in (
        ("solver", solver, ODE_SOLVERS),
        ("align_method", align_method, COLOR_FIXES),
        ("align_to", align_to, get_args(AlignTo)),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(allowed)}")
    if align_to != "lr" and align_method == "nofix":
        raise ValueError(
            f"align_to is {align_to!r}, but align_method 'nofix' takes no colours; choose a method"
        )
    if align_to != "lr" and not backbone.pre_restores:
        raise ValueError(
            f"align_to is 'pre_restored', but backbone '{backbone.name}' has no pre-restorer; use 'lr'"
        )
    if not 0 <= fidelity <= 1:
        raise ValueError(f"fidelity is {fidelity}, expected 0 (most detail) to 1 (most faithful)")
    _check_numbers(
        num_inference_steps=(num_inference_steps, 1), batch_size=(batch_size, 1), tile_size=(tile_size, 1),
        tile_overlap=(tile_overlap, 0), process_size=(process_size, 1),
    )  # fmt: skip
    if isinstance(tile_size, str) and tile_size != "auto":
        raise ValueError(f"tile_size is {tile_size!r}, expected pixels, 'auto' or None")
    if tile_overlap is not None and tile_size is None:
        raise ValueError(f"tile_overlap is {tile_overlap}, but without tile_size there are no tiles")
    if isinstance(tile_size, int):
        unit = tile_unit(backbone, backbone.upscale or 1)
        TilePlan(tile_size, tile_overlap, batch_size).layout(unit, unit, unit)


def _check_numbers(**numbers: tuple[object, int]) -> None:
    """By name: a number, or what says that there is none, and the least it may be."""
    for name, (number, least) in numbers.items():
        if isinstance(number, int) and number < least:
            raise ValueError(f"{name} is {number}, expected {least} or more")


def _check_images(lr: Tensor, keys: Sequence[str]) -> None:
    if lr.ndim != 4 or lr.shape[1] != 3 or 0 in lr.shape or not lr.is_floating_point():
        raise ValueError(
            f"lr is {tuple(lr.shape)} {lr.dtype}, expected (N, 3, h, w) floats in [0, 1], none empty"
        )
    if len(keys) != lr.shape[0]:
        raise ValueError(f"{len(keys)} keys for {lr.shape[0]} LR images")
    low, high = (float(v) for v in lr.aminmax())
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # also catches NaN
        raise ValueError(f"lr spans [{low:.4g}, {high:.4g}], expected [0, 1]")
