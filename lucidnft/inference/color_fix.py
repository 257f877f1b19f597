"""Give a restored image the colours of its input: wavelet or AdaIN transfer.

Both take images of one size, the restored one (content) and the up-sampled LR image (style), and are
applied once to the whole image, in float.  Results may overshoot [0, 1] a little: clamp after.
"""

from __future__ import annotations

from collections.abc import Callable
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
    return content - _low_band(content) + _low_band(style)


def adain_color_fix(content: Tensor, style: Tensor) -> Tensor:
    """Content with the per-channel mean and standard deviation of style: (N, 3, H, W) in [0, 1] -> same shape.

    Global (arXiv 1703.06868, eq. 8): contrast changes too, and a colour error that varies over the image stays.

    Raises:
        ValueError: shapes differ or are not (N, 3, H, W).
    """
    _check_pair(content, style)
    content_mean, content_std = _channel_statistics(content)
    style_mean, style_std = _channel_statistics(style)
    return (content - content_mean) / content_std * style_std + style_mean


COLOR_FIXES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "nofix": lambda content, style: content,
    "wavelet": wavelet_color_fix,
    "adain": adain_color_fix,
}
"""By the names that `align_method` takes."""


def _low_band(images: Tensor) -> Tensor:
    # A plane at a time: a large image's intermediate results would be several times its size, and a batch would
    # round differently from an image alone.
    planes = [_low_band_of_plane(plane) for plane in images.flatten(0, 1)[:, None].split(1)]
    return torch.cat(planes).view_as(images)


def _low_band_of_plane(images: Tensor) -> Tensor:
    taps = images.new_tensor([0.25, 0.5, 0.25])
    for level in range(NUM_LEVELS):
        dilation = 2**level
        padded = F.pad(images, (dilation, dilation, dilation, dilation), mode="replicate")
        images = F.conv2d(padded, taps.view(1, 1, 3, 1), dilation=dilation)
        images = F.conv2d(images, taps.view(1, 1, 1, 3), dilation=dilation)
    return images


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
