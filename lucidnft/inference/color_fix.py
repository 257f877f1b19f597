"""Give a restored image the colours of its input: wavelet or AdaIN transfer.

Both take images of one size, the restored one (content) and the up-sampled LR image (style), and are
applied once to the whole image, in float.  Results may overshoot [0, 1] a little: clamp after.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

AlignMethod = Literal["nofix", "wavelet", "adain"]

NUM_LEVELS = 5
VARIANCE_FLOOR = 1e-5  # keeps flat images finite; part of the published AdaIN (arXiv 1703.06868)


def wavelet_color_fix(content: Tensor, style: Tensor) -> Tensor:
    """Fine detail of content on the coarse colours of style: (N, 3, H, W) in [0, 1], twice -> same shape.

    The low band is five levels of an undecimated (a trous) wavelet with the binomial kernel (1, 2, 1) / 4:
    63 px wide, standard deviation about 13 px.  Coarse errors of style, such as blotches, come along.

    Raises:
        ValueError: shapes differ or are not (N, 3, H, W).
    """
    _check_pair(content, style)
    fixed = torch.empty_like(content)
    # A plane at a time: a large image's intermediate results would be several times its size, and a batch would
    # round differently from an image alone.
    for place in product(range(content.shape[0]), range(content.shape[1])):
        of_content, of_style = (_low_band(images[place][None, None])[0, 0] for images in (content, style))
        torch.sub(content[place], of_content, out=fixed[place]).add_(of_style)
    return fixed


def adain_color_fix(content: Tensor, style: Tensor) -> Tensor:
    """Content with the per-channel mean and standard deviation of style: (N, 3, H, W) in [0, 1] -> same shape.

    Global (arXiv 1703.06868, eq. 8): contrast changes too, and a colour error that varies over the image stays.

    Raises:
        ValueError: shapes differ or are not (N, 3, H, W).
    """
    _check_pair(content, style)
    content_mean, content_std = _channel_statistics(content)
    style_mean, style_std = _channel_statistics(style)
    return (content - content_mean).div_(content_std).mul_(style_std).add_(style_mean)


COLOR_FIXES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "nofix": lambda content, style: content,
    "wavelet": wavelet_color_fix,
    "adain": adain_color_fix,
}
"""By the names that `align_method` takes."""


def _low_band(images: Tensor) -> Tensor:
    for level in range(NUM_LEVELS):
        images = _smoothed(_smoothed(images, 2**level, 2), 2**level, 3)
    return images


def _smoothed(images: Tensor, distance: int, dim: int) -> Tensor:
    """(1, 2, 1) / 4 along one axis, its taps `distance` apart.  Sums: a dilated convolution of one channel takes ten
    times as long on a CPU."""
    ends = (distance, distance)
    padded = F.pad(images, (0, 0, *ends) if dim == 2 else (*ends, 0, 0), mode="replicate")
    size = images.shape[dim]
    sides = padded.narrow(dim, 0, size) + padded.narrow(dim, 2 * distance, size)
    return sides.mul_(0.25).add_(images, alpha=0.5)


def _channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    # The published form divides by H * W - 1, which a single pixel does not survive.
    correction = 1 if images.shape[2] * images.shape[3] > 1 else 0
    variance, mean = torch.var_mean(images, dim=(2, 3), correction=correction, keepdim=True)
    return mean, (variance + VARIANCE_FLOOR).sqrt()


def _check_pair(content: Tensor, style: Tensor) -> None:
    if content.ndim != 4 or content.shape[1] != 3 or content.shape != style.shape:
        raise ValueError(
            f"color fix: content is {tuple(content.shape)}, style {tuple(style.shape)}; both should be one "
            "(N, 3, H, W): resize the LR image to the restored one's size"
        )
