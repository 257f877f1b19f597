"""Supervised flow matching (arXiv 2210.02747; rectified flow, arXiv 2209.03003)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from lucidnft.flow.conversions import velocity_target


def flow_matching_loss(
    v: Float[Tensor, "b *dims"],
    *,
    x_0: Float[Tensor, "b *dims"],
    noise: Float[Tensor, "b *dims"],
) -> tuple[Float[Tensor, " b"], dict[str, Tensor]]:
    """Mean over elements of |v - (noise - x_0)|^2, one number per sample, no weighting in t.

    v is the predicted velocity at x_t = (1 - t) x_0 + t noise.
    """
    loss = (v.float() - velocity_target(x_0, noise).float()).square().flatten(1).mean(dim=1)
    return loss, {"flow_matching": loss.detach().mean()}
