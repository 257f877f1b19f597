"""Linear filters on image tensors, reflected at the borders.  Pure torch, differentiable."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian with a standard deviation of `sigma` pixels: (N, C, H, W) -> same shape.

    The kernel reaches 3 sigma, or less where the image is smaller: reflection needs a radius below the side.
    """
    if sigma < 0.05:  # in float32 a kernel this narrow is its middle pixel, and 0 / 0 when narrower still
        return images
    for axis in (2, 3):
        radius = min(math.ceil(3 * sigma), images.shape[axis] - 1)
        offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
        kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
        images = _convolve_axis(images, kernel / kernel.sum(), axis)
    return images


def without_chequer(images: Tensor) -> Tensor:
    """Remove what changes sign from pixel to pixel along both axes: (N, C, H, W) -> same.

    The response is 1 - sin^2(u / 2) sin^2(v / 2) at the frequency (u, v): 0 for a chequer of single pixels, 1
    for stripes and for everything slow.  Images of one pixel a side are returned as they are.
    """
    if min(images.shape[2:]) < 2:
        return images
    curve = torch.tensor([-0.25, 0.5, -0.25], dtype=images.dtype, device=images.device)
    return images - _convolve_axis(_convolve_axis(images, curve, 2), curve, 3)


def box_blur(images: Tensor, radius: int) -> Tensor:
    """Mean over (2 radius + 1)^2 pixels: (N, C, H, W) -> same shape."""
    for axis in (2, 3):
        reach = min(radius, images.shape[axis] - 1)
        kernel = torch.full((2 * reach + 1,), 1 / (2 * reach + 1), dtype=images.dtype, device=images.device)
        images = _convolve_axis(images, kernel, axis)
    return images


def _convolve_axis(images: Tensor, kernel: Tensor, axis: int) -> Tensor:
    radius = kernel.numel() // 2
    vertical = axis == 2
    weight = kernel.view((1, 1, -1, 1) if vertical else (1, 1, 1, -1)).repeat(images.shape[1], 1, 1, 1)
    pad = (0, 0, radius, radius) if vertical else (radius, radius, 0, 0)
    return F.conv2d(F.pad(images, pad, mode="reflect"), weight, groups=images.shape[1])
