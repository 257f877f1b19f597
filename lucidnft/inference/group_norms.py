"""One set of group-norm statistics for all parts of an image.

A group norm subtracts a mean over the whole image.  An autoencoder that sees a tile subtracts the tile's, so flat
tiles come out with another contrast and tint than their neighbours, however wide they overlap.  Here every group norm
gets its statistics from elsewhere instead, e.g. from one pass over a small version of the whole image, so that all
tiles go through one and the same function.  Which networks hold group norms does not matter: the calls are counted, in
the order they come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Statistics = tuple[Tensor, Tensor]
"""Mean and variance, each (1, groups, 1)."""


class RecordedGroupNorms(TorchFunctionMode):
    """Inside, every call of group_norm leaves the statistics of its first image in `statistics`."""

    def __init__(self) -> None:
        super().__init__()
        self.statistics: list[Statistics] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is F.group_norm:
            images, num_groups = args[:2]
            grouped = images[:1].float().reshape(1, num_groups, -1)
            variance, mean = torch.var_mean(grouped, dim=2, correction=0, keepdim=True)
            self.statistics.append((mean, variance))
        return func(*args, **(kwargs or {}))


class GivenGroupNorms(TorchFunctionMode):
    """Inside, the n-th call of group_norm takes the n-th statistics instead of its input's own."""

    def __init__(self, statistics: list[Statistics]) -> None:
        super().__init__()
        self._left = iter(statistics)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is F.group_norm:
            given = next(self._left, None)
            if given is None:
                raise RuntimeError(
                    "a tile needs more group norms than what their statistics were recorded from"
                )
            mean, variance = given
            return _normalise(mean, variance, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def pooled(parts: Sequence[list[Statistics]]) -> list[Statistics]:
    """The statistics of parts of one size, each call's, as those of all parts together."""
    together = []
    for call in zip(*parts, strict=True):
        means = torch.stack([mean for mean, _ in call])
        variances = torch.stack([variance for _, variance in call])
        together.append((means.mean(dim=0), variances.mean(dim=0) + means.var(dim=0, correction=0)))
    return together


def _normalise(
    mean: Tensor,
    variance: Tensor,
    images: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Group norm with given statistics: a scale and a shift per channel."""
    channels = images.shape[1]
    scale = (variance + eps).rsqrt().expand(1, num_groups, channels // num_groups).reshape(channels)
    shift = -mean.expand(1, num_groups, channels // num_groups).reshape(channels) * scale
    if weight is not None:
        scale, shift = scale * weight, shift * weight
    if bias is not None:
        shift = shift + bias
    shape = (1, channels, *(1 for _ in images.shape[2:]))
    shift, scale = shift.view(shape), scale.view(shape)
    if images.dtype == torch.float32:
        return torch.addcmul(shift, images, scale)
    # in float32, as the norm itself is: a rounded scale or shift is one error for all of a tile.  Group by group: all
    # activations in float32 would be the largest thing in memory
    normalised = torch.empty_like(images)
    size = channels // num_groups
    for first in range(0, channels, size):
        span = slice(first, first + size)
        normalised[:, span] = torch.addcmul(shift[:, span], images[:, span].float(), scale[:, span])
    return normalised
