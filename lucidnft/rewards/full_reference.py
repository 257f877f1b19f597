"""Distances to HR (PSNR, SSIM, LPIPS, DISTS, FSIM, ...) with the options that make tables differ.

Papers on real-world super-resolution report PSNR and SSIM on the Y of YCbCr and crop nothing or a few
border pixels; both are named options here, and HR is never resized to fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor

from lucidnft.checkpoint.required_files import RequiredFile
from lucidnft.rewards.base import Reference, Reward
from lucidnft.rewards.iqa import IQAReward, required_hr
from lucidnft.rewards.model_files import pyiqa_files
from lucidnft.schema import ConfigModel

ColorSpace = Literal["rgb", "ycbcr_y"]
# pyiqa metrics that can work on luminance alone, and so obey `color_space`.
HAS_LUMINANCE_MODE = ("psnr", "ssim", "ms_ssim")


def color_options(metric: str, color_space: ColorSpace) -> dict[str, Any]:
    """pyiqa's options for a colour space.

    Raises:
        ValueError: no such colour space, or a metric that has no luminance mode.
    """
    if color_space not in get_args(ColorSpace):
        raise ValueError(f"color_space is {color_space!r}, expected {' or '.join(get_args(ColorSpace))}")
    if metric in HAS_LUMINANCE_MODE:
        luminance = color_space == "ycbcr_y"
        # BT.601 studio-range Y, as in MATLAB's rgb2ycbcr; pyiqa's own default for psnr is YIQ.
        return {"test_y_channel": luminance, **({"color_space": "ycbcr"} if luminance else {})}
    if color_space == "rgb":
        return {}
    raise ValueError(
        f"full_reference metric '{metric}' has no luminance mode; color_space 'ycbcr_y' works with "
        f"{', '.join(HAS_LUMINANCE_MODE)}, use color_space: rgb"
    )


class FullReferenceReward(Reward):
    """A full-reference metric between SR and HR after cropping `crop_border` pixels from every side."""

    OPTIONAL_EXTRA = "iqa"

    def __init__(
        self, metric: str = "psnr", *, crop_border: int = 0, color_space: ColorSpace = "rgb"
    ) -> None:
        """metric: a pyiqa full-reference name.

        Raises:
            ValueError: not a full-reference metric, a negative crop, or a colour space that there is not or not for it.
        """
        if crop_border < 0:
            raise ValueError(f"crop_border is {crop_border}, expected 0 or more pixels")
        if metric in ("psnry", "ssimc"):
            raise ValueError(
                f"'{metric}' hides a colour space in its name; use psnr or ssim with color_space"
            )
        self.crop_border = crop_border
        self._metric = IQAReward(metric, **color_options(metric, color_space))
        card = self._metric.card
        if "hr" not in card.needs:
            raise ValueError(f"'{metric}' needs no reference; name it as an 'iqa' reward instead")
        self.card = replace(
            card,
            name=metric if color_space == "rgb" else f"{metric}_y",
            min_size=card.min_size + 2 * crop_border,
            note=f"{card.note} Colour: {color_space}; {crop_border} px cropped from every side.",
        )

    def reference(
        self,
        lr: Tensor | None,
        hr: Tensor | None,
        prompts: Sequence[str] | None,
        sr_size: tuple[int, int],
    ) -> Reference:
        """The cropped HR images, once per group."""
        whole = required_hr(hr, sr_size, self.card.name)
        return {"hr": self._crop(whole)}

    def score(self, sr: Tensor, reference: Reference) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N,) float32, higher is better."""
        return self._metric.score(self._crop(sr), reference)

    def to(self, device: torch.device | str) -> FullReferenceReward:
        """Move the metric's network."""
        self._metric.to(device)
        return self

    def _crop(self, images: Tensor) -> Tensor:
        border = self.crop_border
        return images[..., border : images.shape[-2] - border, border : images.shape[-1] - border]


class FullReferenceConfig(ConfigModel):
    """Settings of one `FullReferenceReward`."""

    type: Literal["full_reference"] = "full_reference"
    metric: str = "psnr"
    crop_border: int = Field(default=0, ge=0)
    color_space: ColorSpace = "rgb"
    weight: float = 1.0

    def required_files(self) -> tuple[RequiredFile, ...]:
        """The weights of the metric."""
        return pyiqa_files(self.metric)

    def build(self) -> FullReferenceReward:
        """Make the reward."""
        return FullReferenceReward(self.metric, crop_border=self.crop_border, color_space=self.color_space)
