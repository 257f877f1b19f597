"""Supervised flow matching (arXiv 2210.02747; rectified flow, arXiv 2209.03003)."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lucidnft.flow.conversions import velocity_target

FLAT_FLOOR = 0.02  # in [0, 1]: contrast below this, about 5 grey levels, counts as flat
CONTRAST_WINDOW = 5  # pixels of the weighted grid's source image


def flow_matching_loss(
    v: Float[Tensor, "b *dims"],
    *,
    x_0: Float[Tensor, "b *dims"],
    noise: Float[Tensor, "b *dims"],
    weight: Float[Tensor, "b 1 h w"] | None = None,
) -> tuple[Float[Tensor, " b"], dict[str, Tensor]]:
    """Mean over elements of |v - (noise - x_0)|^2, one number per sample, no weighting in t.

    v is the predicted velocity at x_t = (1 - t) x_0 + t noise.  weight, of mean 1, is per position.
    """
    squared = (v.float() - velocity_target(x_0, noise).float()).square()
    if weight is not None:
        squared = squared * weight
    loss = squared.flatten(1).mean(dim=1)
    return loss, {"flow_matching": loss.detach().mean()}


def flat_region_weight(
    images: Float[Tensor, "b 3 H W"], size: tuple[int, int], exponent: float
) -> Float[Tensor, "b 1 h w"]:
    """Weights (contrast + 0.02)^-exponent at `size`, mean 1 per image; contrast is the local spread of grey.

    In a sky the velocity's target is small, so an unweighted loss spends the network on texture and leaves
    noise in the sky.  Computed from the condition alone (LR images in [0, 1]), a weight changes where the
    network is exact first, not what it converges to: the mean of the target given x_t, t and the LR image.
    """
    grey = images.float().mean(dim=1, keepdim=True)
    pad = CONTRAST_WINDOW // 2
    padded = F.pad(grey, (pad, pad, pad, pad), mode="replicate")
    mean, square = (F.avg_pool2d(g, CONTRAST_WINDOW, stride=1) for g in (padded, padded.square()))
    contrast = (square - mean.square()).clamp(min=0).sqrt()
    weight = F.interpolate((contrast + FLAT_FLOOR).pow(-exponent), size=size, mode="nearest")
    return weight / weight.mean(dim=(1, 2, 3), keepdim=True)
