"""The DiffusionNFT loss (arXiv 2509.16117, eq. 9) in the form of the authors' released code.

Departures from the paper's equation, all of them the release's:
- the distance is taken between clean predictions and divided by its own mean absolute value
  (`normalise_x0_error`), which replaces the paper's adaptive weight;
- the policy term is scaled by adv_clip_max / nft_beta;
- the distance to the reference is taken between velocities, unweighted in t.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from lucidnft.flow.conversions import velocity_to_x0


def nft_loss(
    v: Float[Tensor, "b *dims"],
    v_old: Float[Tensor, "b *dims"],
    v_ref: Float[Tensor, "b *dims"] | None,
    *,
    x_0: Float[Tensor, "b *dims"],
    x_t: Float[Tensor, "b *dims"],
    t: Float[Tensor, " b"],
    optimality: Float[Tensor, "b *places"],
    nft_beta: float = 1.0,
    kl_beta: float = 0.0,
    adv_clip_max: float = 5.0,
    normalise_x0_error: bool = True,
) -> tuple[Float[Tensor, " b"], dict[str, Tensor]]:
    """One number per sample: the better a rollout, the more v is drawn to it, the worse, the more pushed away.

        v+ = (1 - beta) v_old + beta v          x+ = x_t - t v+
        v- = (1 + beta) v_old - beta v          x- = x_t - t v-
        L+- = (x+- - x_0)^2 / sg(mean |x+- - x_0|)
        loss = adv_clip_max / beta mean(r L+ + (1 - r) L-) + kl_beta mean (v - v_ref)^2

    Only v carries a gradient.  v_ref may be None when kl_beta is 0.  optimality r is one number per sample
    (B,), or one per place (B, 1, h, w): then every place of a rollout is weighed by its own.

    Raises:
        ValueError: kl_beta is positive and v_ref is missing, or nft_beta is not positive.
    """
    if nft_beta <= 0:
        raise ValueError(f"nft_beta is {nft_beta}, expected a positive number")
    if kl_beta > 0 and v_ref is None:
        raise ValueError(f"kl_beta is {kl_beta} but no reference velocity was given")
    v, v_old = v.float(), v_old.detach().float()
    toward = (1 - nft_beta) * v_old + nft_beta * v
    away = (1 + nft_beta) * v_old - nft_beta * v
    loss_toward = x0_error(velocity_to_x0(x_t, toward, t), x_0, normalise_x0_error)
    loss_away = x0_error(velocity_to_x0(x_t, away, t), x_0, normalise_x0_error)
    r = optimality.float()
    if r.ndim == 1:
        r = r.view(-1, *(1,) * (v.ndim - 1))
    policy = adv_clip_max / nft_beta * (r * loss_toward + (1 - r) * loss_away).flatten(1).mean(dim=1)
    loss = policy
    gap = (v.detach() - v_old).square().mean()
    logs = {"policy": policy.detach().mean(), "old_gap": gap}
    if v_ref is not None:
        kl = (v - v_ref.detach().float()).square().flatten(1).mean(dim=1)
        loss = policy + kl_beta * kl
        logs["kl"] = kl.detach().mean()
    return loss, logs


def x0_error(
    x_0_predicted: Float[Tensor, "b *dims"], x_0: Float[Tensor, "b *dims"], normalise: bool
) -> Float[Tensor, "b *dims"]:
    """Squared errors, divided by the sample's stopped mean absolute error (at least 1e-5) if asked."""
    error = x_0_predicted - x_0.float()
    if not normalise:
        return error.square()
    axes = tuple(range(1, error.ndim))
    scale = error.detach().abs().mean(dim=axes, keepdim=True).clamp_min(1e-5)
    return error.square() / scale
