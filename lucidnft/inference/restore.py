"""From LR images in memory to restored images of exactly the size asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from lucidnft.backbones.base import Backbone
from lucidnft.flow.solvers import ODE_SOLVERS
from lucidnft.images import resize
from lucidnft.inference.color_fix import COLOR_FIXES, AlignMethod
from lucidnft.policy import Policy, Role
from lucidnft.records import Condition
from lucidnft.rng import generator_for

NoiseFunction = Callable[[tuple[int, int, int], int, str], Tensor]
"""(shape (C, h, w), seed, key) -> the standard normal start of one image's solve."""


def keyed_noise(shape: tuple[int, int, int], seed: int, key: str) -> Tensor:
    """Noise that depends on (seed, key, shape) alone: not on the batch, nor on the place in a folder."""
    return torch.randn(shape, generator=generator_for(seed, "restore", key))


@torch.no_grad()
def restore(
    policy_or_backbone: Policy | Backbone,
    lr: Tensor,
    *,
    upscale: float | None = None,
    seed: int = 0,
    keys: Sequence[str] | None = None,
    num_inference_steps: int | None = None,
    solver: str = "euler",
    align_method: AlignMethod = "nofix",
    batch_size: int = 8,
    noise_fn: NoiseFunction = keyed_noise,
) -> Tensor:
    """Restore LR images of one size: (N, 3, h, w) in [0, 1] -> (N, 3, round(h * upscale), round(w * upscale)).

    Any size from 1 x 1 works: the LR image is extended at its right and lower edge by reflection to what
    the backbone takes, and the surplus is cropped off.  A backbone with a factor of its own always
    restores at that factor; for another `upscale` the result is then resized (antialiased bicubic).

    Args:
        policy_or_backbone: a policy is used in its current role, a backbone as it is.
        upscale: output size over input size; None takes the backbone's own factor.
        keys: N names that key the noise, together with `seed`; default "0" .. "N-1".
        num_inference_steps: solver steps; None takes the backbone's own number.
        solver: "euler", "heun" or "dpm2".
        align_method: colour transfer from the up-sampled LR image, see `color_fix`.
        batch_size: images solved at a time; bounds memory.
        noise_fn: how one image's noise is drawn.

    Returns:
        float32 in [0, 1], on the device of the backbone.

    Raises:
        ValueError: an argument is out of range, or the result is not finite (the image is named).
    """
    backbone = policy_or_backbone.backbone if isinstance(policy_or_backbone, Policy) else policy_or_backbone
    num_inference_steps = backbone.default_num_steps if num_inference_steps is None else num_inference_steps
    _check_settings(num_inference_steps, solver, align_method, batch_size)
    keys = [str(i) for i in range(lr.shape[0])] if keys is None else list(keys)
    _check_images(lr, keys)
    native, upscale = _factors(backbone, upscale)
    lr = lr.float().to(next(backbone.module.parameters()).device)
    size = output_size(lr.shape[2], lr.shape[3], upscale)
    parts = []
    for start in range(0, lr.shape[0], batch_size):
        part, part_keys = lr[start : start + batch_size], keys[start : start + batch_size]
        height, width = part.shape[2] * native, part.shape[3] * native
        padded = pad_to_multiple(
            part, backbone.latent_spec.multiple // math.gcd(backbone.latent_spec.multiple, native)
        )
        shape = backbone.latent_spec.grid(padded.shape[2] * native, padded.shape[3] * native)
        noise = torch.stack([noise_fn(shape, seed, key) for key in part_keys]).to(part.device)
        x_0 = _solve(policy_or_backbone, padded, noise, native, num_inference_steps, solver)
        _check_finite(x_0, part_keys)
        sr = resize(backbone.decode(x_0)[:, :, :height, :width], size)
        sr = COLOR_FIXES[align_method](sr, resize(part, size)).clamp(0, 1)
        _check_finite(sr, part_keys)
        parts.append(sr)
    return torch.cat(parts)


def output_size(height: int, width: int, upscale: float) -> tuple[int, int]:
    """(H, W) of a restored h x w image: each side rounded, and at least one pixel."""
    return max(1, round(height * upscale)), max(1, round(width * upscale))


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """(N, C, H, W) extended right and down by reflection until both sides are multiples.

    An extension longer than the image reflects again and again; a side of one pixel repeats it.
    """
    rows = _reflected(images.shape[2], multiple).to(images.device)
    columns = _reflected(images.shape[3], multiple).to(images.device)
    return images.index_select(2, rows).index_select(3, columns)


def _reflected(size: int, multiple: int) -> Tensor:
    positions = torch.arange(math.ceil(size / multiple) * multiple)
    if size == 1:
        return torch.zeros_like(positions)
    period = 2 * (size - 1)
    folded = positions % period
    return torch.minimum(folded, period - folded)


def _solve(
    policy_or_backbone: Policy | Backbone,
    lr: Tensor,
    noise: Tensor,
    upscale: int,
    num_inference_steps: int,
    solver: str,
) -> Tensor:
    """x_0 (B, C, h, w) of padded LR images."""
    region: AbstractContextManager[None] = nullcontext()
    if isinstance(policy_or_backbone, Policy):
        policy, backbone = policy_or_backbone, policy_or_backbone.backbone
        region = policy.folded(Role.CURRENT)

        def velocity_of(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
            return policy(x_t, t, condition, Role.CURRENT)

    else:
        backbone = policy_or_backbone
        velocity_of = backbone.velocity
    condition = backbone.encode_condition(lr, upscale=upscale)
    grid = backbone.default_time_grid(num_inference_steps, lr.shape[2] * upscale, lr.shape[3] * upscale)
    with region:
        return ODE_SOLVERS[solver](lambda x_t, t: velocity_of(x_t, t, condition), noise, grid).x_0


def _factors(backbone: Backbone, upscale: float | None) -> tuple[int, float]:
    """The whole factor to restore at, and the factor of the output."""
    if upscale is None:
        upscale = backbone.upscale
    if upscale is None:
        raise ValueError(f"backbone '{backbone.name}' has no upscale factor of its own; pass upscale, e.g. 4")
    if isinstance(upscale, bool) or not (math.isfinite(upscale) and upscale > 0):
        raise ValueError(f"upscale is {upscale}, expected a number above 0")
    return backbone.upscale or max(1, math.ceil(upscale)), upscale


def _check_settings(num_inference_steps: int, solver: str, align_method: str, batch_size: int) -> None:
    for name, value, allowed in (
        ("solver", solver, ODE_SOLVERS),
        ("align_method", align_method, COLOR_FIXES),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(allowed)}")
    for name, number in (("num_inference_steps", num_inference_steps), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name} is {number}, expected 1 or more")


def _check_images(lr: Tensor, keys: Sequence[str]) -> None:
    if lr.ndim != 4 or lr.shape[1] != 3 or 0 in lr.shape or not lr.is_floating_point():
        raise ValueError(
            f"lr is {tuple(lr.shape)} {lr.dtype}, expected (N, 3, h, w) floats in [0, 1], none empty"
        )
    if len(keys) != lr.shape[0]:
        raise ValueError(f"{len(keys)} keys for {lr.shape[0]} LR images")
    low, high = (float(v) for v in lr.aminmax())
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # also catches NaN
        raise ValueError(f"lr spans [{low:.4g}, {high:.4g}], expected [0, 1]")


def _check_finite(values: Tensor, keys: Sequence[str]) -> None:
    bad = (~torch.isfinite(values).flatten(1).all(dim=1)).nonzero().flatten().tolist()
    if bad:
        names = ", ".join(repr(keys[i]) for i in bad[:3])
        raise ValueError(
            f"the restoration of {len(bad)} image(s) is not finite ({names}): the checkpoint has diverged or is "
            "damaged; use an earlier one"
        )
