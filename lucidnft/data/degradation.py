"""LR images made from HR images, with a record of everything that was drawn.

Presets: `realesrgan` (Wang et al. 2021, second order), `light` (the same order with the narrower ranges of
StableSR, SeeSR and later latent models), `bsrgan` (Zhang et al. 2021, shuffled) and `bicubic`.

Departures from the published training code:
- Everything is drawn per image.  Real-ESRGAN draws resize factors and noise types per batch, and mixes
  samples through a pool to make up for it.
- JPEG is a real encoder (Pillow, 4:2:0) at whole-numbered qualities, not a differentiable imitation.
- The HR image is not sharpened (USM off): it is the target of full-reference rewards and of evaluation, and
  on-line pipelines from SeeSR onwards switch it off too.
- BSRGAN's camera-ISP noise, which needs another model, is off, as it normally is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lucidnft.data.degradation_draws import draw_bicubic, draw_bsrgan, draw_second_order
from lucidnft.data.degradation_operations import Operation, apply_operation
from lucidnft.data.degradation_ranges import BSRGAN, LIGHT, REALESRGAN

Preset = Literal["realesrgan", "light", "bsrgan", "bicubic"]


class Degradation:
    """hr (3, H, W) -> lr (3, H/r, W/r), both in [0, 1], lr in 8-bit steps, and the record of the draw."""

    def __init__(self, preset: Preset, upscale: int = 4) -> None:
        """preset: realesrgan, light, bsrgan or bicubic.  upscale: r.  Raises ValueError for others."""
        if preset not in get_args(Preset):
            raise ValueError(f"unknown degradation {preset!r}; choose one of {', '.join(get_args(Preset))}")
        if upscale < 1:
            raise ValueError(f"upscale is {upscale}; a degradation shrinks by a whole number of at least 1")
        self.preset = preset
        self.upscale = upscale

    def __call__(self, hr: Tensor, rng: np.random.Generator) -> tuple[Tensor, dict[str, Any]]:
        """Degrade one image.  The record is JSON-serialisable; `replay` makes the same lr from it.

        Raises:
            ValueError: hr is not (3, H, W) with H and W multiples of upscale.
        """
        if hr.ndim != 3 or hr.shape[0] != 3 or hr.shape[1] % self.upscale or hr.shape[2] % self.upscale:
            raise ValueError(
                f"hr is {tuple(hr.shape)}; expected (3, H, W) with sides that are multiples of {self.upscale}"
            )
        operations = self.draw((hr.shape[1], hr.shape[2]), rng)
        record = {"preset": self.preset, "upscale": self.upscale, "operations": operations}
        return replay(hr, record), record

    def draw(self, hr_size: tuple[int, int], rng: np.random.Generator) -> list[Operation]:
        """The operations, in order, that would degrade an image of this (H, W)."""
        if self.preset == "bicubic":
            return draw_bicubic(hr_size, self.upscale)
        if self.preset == "bsrgan":
            return draw_bsrgan(BSRGAN, hr_size, self.upscale, rng)
        ranges = REALESRGAN if self.preset == "realesrgan" else LIGHT
        return draw_second_order(ranges, hr_size, self.upscale, rng)


def replay(hr: Tensor, record: Mapping[str, Any]) -> Tensor:
    """The lr (3, H/r, W/r) that a recorded draw makes of hr (3, H, W): equal to what was returned with it."""
    operations: Iterable[Operation] = record["operations"]
    image = hr.detach().cpu().float().numpy()
    for operation in operations:
        image = apply_operation(image, operation)
    return torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))


def aligned(record: Mapping[str, Any]) -> dict[str, Any]:
    """The same draw with shot noise that agrees between images wherever they agree: to compare altered copies."""
    operations = [
        {**operation, "aligned": True} if operation["op"] == "poisson_noise" else operation
        for operation in record["operations"]
    ]
    return {**record, "operations": operations}
