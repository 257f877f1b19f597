"""Conversions between clean latents, noise and velocity on the straight path.

One convention everywhere: t = 0 is clean, t = 1 is noise, x_t = (1 - t) x_0 + t noise and
v = d x_t / d t = noise - x_0 (rectified flow; DiffusionNFT, arXiv 2509.16117, section 2).
t is always a vector of length B, one time per sample; a scalar or a broadcastable shape is refused,
because (B,) against (B, C, H, W) would silently multiply along the width when B equals W.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def expand_time(t: Tensor, x: Tensor) -> Tensor:
    """t (B,) -> (B, 1, ..., 1) for a tensor x (B, ...).

    Raises:
        ValueError: t is not a floating-point vector with one entry per sample, or, for CPU tensors,
            lies outside [0, 1] (on an accelerator the values are not read: it would synchronise).
    """
    if t.ndim != 1 or t.shape[0] != x.shape[0]:
        raise ValueError(f"t has shape {tuple(t.shape)}, expected ({x.shape[0]},): one time per sample")
    if not t.is_floating_point():
        raise ValueError(f"t is {t.dtype}; times are floating point in [0, 1], not integer timesteps")
    if t.device.type == "cpu" and t.numel():
        low, high = (float(v) for v in t.aminmax())
        if not (low >= 0.0 and high <= 1.0):
            raise ValueError(f"t spans [{low:.6g}, {high:.6g}], expected [0, 1] (0 clean, 1 noise)")
    return t.view(-1, *([1] * (x.ndim - 1)))


def interpolate(
    x_0: Float[Tensor, "b *dims"], noise: Float[Tensor, "b *dims"], t: Float[Tensor, " b"]
) -> Float[Tensor, "b *dims"]:
    """The point of the path: x_t = (1 - t) x_0 + t noise."""
    time = expand_time(t, x_0)
    return (1 - time) * x_0 + time * noise


def velocity_target(
    x_0: Float[Tensor, "b *dims"], noise: Float[Tensor, "b *dims"]
) -> Float[Tensor, "b *dims"]:
    """The velocity of the path, v = noise - x_0, the same at every t."""
    return noise - x_0


def velocity_to_x0(
    x_t: Float[Tensor, "b *dims"], v: Float[Tensor, "b *dims"], t: Float[Tensor, " b"]
) -> Float[Tensor, "b *dims"]:
    """The clean end: x_0 = x_t - t v."""
    return x_t - expand_time(t, x_t) * v


def velocity_to_noise(
    x_t: Float[Tensor, "b *dims"], v: Float[Tensor, "b *dims"], t: Float[Tensor, " b"]
) -> Float[Tensor, "b *dims"]:
    """The noise end: noise = x_t + (1 - t) v."""
    return x_t + (1 - expand_time(t, x_t)) * v


def x0_to_velocity(
    x_t: Float[Tensor, "b *dims"], x_0: Float[Tensor, "b *dims"], t: Float[Tensor, " b"]
) -> Float[Tensor, "b *dims"]:
    """v = (x_t - x_0) / t.

    Raises:
        ValueError: some t is 0 (CPU tensors), where a clean prediction does not determine a velocity.
    """
    time = expand_time(t, x_t)
    if t.device.type == "cpu" and bool((t == 0).any()):
        raise ValueError("x0_to_velocity is undefined at t = 0; solve down to a positive last time")
    return (x_t - x_0) / time
