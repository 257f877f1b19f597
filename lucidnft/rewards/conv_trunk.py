"""The convolutional trunk that the small shipped networks share: no normalisation, cost linear in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lucidnft.filters import without_chequer

FIRST_CELL = 4
"""Pixels per side of a cell of the first level: pixels become channels before any convolution is paid for."""


class ResidualBlock(nn.Module):
    """x + convolution(silu(convolution(silu(x)))), starting near the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        # Without normalisation, starting near the identity keeps the activations of deep stacks in range.
        keep_variance_(self.first)
        nn.init.normal_(self.second.weight, std=0.3 / (9 * width) ** 0.5)
        if self.second.bias is not None:
            nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class ConvTrunk(nn.Module):
    """Features of an image at 1/4, 1/8, 1/16, ... of its size."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int]) -> None:
        """widths: channels per level; depths: residual blocks per level."""
        super().__init__()
        self.stem = nn.Conv2d(6 * FIRST_CELL**2, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(depth)))
            for width, depth in zip(widths, depths, strict=True)
        )
        self.reductions = nn.ModuleList(
            nn.Conv2d(before, after, 2, stride=2) for before, after in pairwise(widths)
        )
        for layer in (self.stem, *self.reductions):
            keep_variance_(layer)

    def features(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) in [0, 1] -> one (N, width, H'/2^(level+2), W'/2^(level+2)) per level.

        H' and W' are H and W padded to what the deepest level needs.
        """
        multiple = FIRST_CELL * 2 ** (len(self.stages) - 1)
        # No degradation and no camera makes a chequer of single pixels, so a network would answer to it as it
        # likes: one step of 255 on a soft image would be paid 0.2 of quality, 0.1 steps cost a grey one 0.01
        # of consistency.  Pixel shuffles do make them.
        padded = pad_to_multiple(without_chequer(images), multiple)
        # Detail on its own, compressed: faint noise counts beside strong edges, which a plain image hides.
        detail = padded - F.avg_pool2d(padded, 5, stride=1, padding=2, count_include_pad=False)
        both = torch.cat(((padded - 0.5) * 4, torch.asinh(detail * 100)), dim=1)
        x = self.stem(F.pixel_unshuffle(both, FIRST_CELL))
        levels = []
        for index, stage in enumerate(self.stages):
            x = stage(x if index == 0 else self.reductions[index - 1](x))
            levels.append(x)
        return levels


def keep_variance_(layer: nn.Conv2d) -> None:
    """He initialisation: torch's default shrinks the signal at every layer, and nothing here rescales it."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Reflect (repeat, where the image is too small to reflect) at the right and bottom: (N, C, H', W')."""
    height, width = images.shape[2:]
    bottom, right = -height % multiple, -width % multiple
    if bottom == 0 and right == 0:
        return images
    mode = "reflect" if bottom < height and right < width else "replicate"
    return F.pad(images, (0, right, 0, bottom), mode=mode)
