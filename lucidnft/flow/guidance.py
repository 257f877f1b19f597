"""Classifier-free guidance as a wrapper: velocity functions in, velocity function out."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

VelocityFunction = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, ...), t (B,)) -> v (B, ...)."""


def classifier_free_guidance(
    conditional: VelocityFunction, unconditional: VelocityFunction, guidance_scale: float
) -> VelocityFunction:
    """v = v_uncond + s (v_cond - v_uncond)  (arXiv 2207.12598, eq. 6, in velocities).

    At s = 1 the conditional function itself is returned: no second network call is made.
    """
    if guidance_scale == 1.0:
        return conditional

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        v_uncond = unconditional(x_t, t)
        return v_uncond + guidance_scale * (conditional(x_t, t) - v_uncond)

    return guided
