"""Time grids for solving and time samplers for training.

A grid holds S + 1 decreasing times from 1 (noise) to 0 (clean).  A sampler draws T training times per
sample.  Both work in float32 on the CPU; draws come from the generator that is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

TimeSampling = Literal["all", "grid", "uniform", "logit_normal", "stratified"]


def shift_time(t: Tensor, shift: float) -> Tensor:
    """Move times towards noise by a factor: t' = s t / (1 + (s - 1) t)  (SD3, arXiv 2403.03206, eq. 23)."""
    if shift <= 0:
        raise ValueError(f"shift is {shift}, expected a positive factor (1.0 leaves the grid uniform)")
    return shift * t / (1 + (shift - 1) * t)


def uniform_time_grid(num_steps: int) -> Float[Tensor, " s_plus_1"]:
    """S equal steps from 1 to 0."""
    if num_steps < 1:
        raise ValueError(f"num_inference_steps is {num_steps}, expected at least 1")
    return torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64).float()


def shifted_time_grid(num_steps: int, shift: float) -> Float[Tensor, " s_plus_1"]:
    """A uniform grid moved towards noise by `shift`; below 1 it spends its steps near the clean end."""
    # in float64, or rounding moves the ends off 1 and 0
    return shift_time(uniform_time_grid(num_steps).double(), shift).float()


def resolution_shift(
    num_tokens: int,
    *,
    base_tokens: int = 256,
    max_tokens: int = 4096,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
) -> float:
    """FLUX's shift factor exp(mu), mu linear in the number of latent tokens (0.5 at 256, 1.15 at 4096)."""
    if num_tokens < 1:
        raise ValueError(f"num_tokens is {num_tokens}, expected at least 1")
    slope = (max_shift - base_shift) / (max_tokens - base_tokens)
    return math.exp(base_shift + slope * (num_tokens - base_tokens))


def resolution_shifted_time_grid(num_steps: int, num_tokens: int) -> Float[Tensor, " s_plus_1"]:
    """The FLUX grid for an image of `num_tokens` latent tokens."""
    return shifted_time_grid(num_steps, resolution_shift(num_tokens))


def check_time_grid(time_grid: Tensor) -> None:
    """Raise a ValueError unless the grid is one-dimensional and strictly decreasing within [0, 1]."""
    values = time_grid.tolist() if time_grid.ndim == 1 else []
    falling = all(a > b for a, b in pairwise(values))
    if len(values) < 2 or not falling or values[0] > 1 or values[-1] < 0:
        raise ValueError(
            "time_grid must be strictly decreasing within [0, 1] with at least two entries, "
            f"got {values or tuple(time_grid.shape)}"
        )


def sample_times(
    sampling: TimeSampling,
    batch_size: int,
    num_times: int,
    *,
    generator: torch.Generator,
    time_grid: Tensor | None = None,
    t_min: float = 1e-3,
    t_max: float = 1.0,
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
) -> Float[Tensor, "b t"]:
    """Training times (B, T), T per sample, in random order along T.

    sampling:
        all           every time of `time_grid` in [t_min, t_max] once (T must be their number, or fewer: the
                      first T of a random permutation per sample, as DiffusionNFT does)
        grid          T distinct times of the grid in [t_min, t_max], one from each of T equal spans of it
        uniform       independent, uniform in [t_min, t_max]
        logit_normal  independent, sigmoid(logit_mean + logit_std * normal), clamped to [t_min, t_max]
        stratified    one uniform draw from each of T equal spans of [t_min, t_max]

    Raises:
        ValueError: a grid is needed and missing, or T exceeds its times.
    """
    if not 0 <= t_min < t_max <= 1:
        raise ValueError(f"t_min {t_min} and t_max {t_max} must satisfy 0 <= t_min < t_max <= 1")
    shape = (batch_size, num_times)
    order = torch.rand(shape, generator=generator).argsort(dim=1)
    if sampling in ("all", "grid"):
        points = grid_points(time_grid, num_times, sampling, t_min, t_max)
        if sampling == "all":
            ranks = torch.rand(batch_size, len(points), generator=generator).argsort(dim=1)
            return points[ranks[:, :num_times]]
        edges = torch.linspace(0, len(points), num_times + 1).round()
        width = edges[1:] - edges[:-1]
        rows = (edges[:-1] + torch.rand(shape, generator=generator) * width).long()
        return points[rows.minimum((edges[1:] - 1).long())].gather(1, order)
    if sampling == "logit_normal":
        t = torch.sigmoid(logit_mean + logit_std * torch.randn(shape, generator=generator))
        return t.clamp(t_min, t_max)
    draws: dict[str, Callable[[], Tensor]] = {
        "uniform": lambda: torch.rand(shape, generator=generator),
        "stratified": lambda: (
            (torch.arange(num_times) + torch.rand(shape, generator=generator)) / num_times
        ).gather(1, order),
    }
    if sampling not in draws:
        raise ValueError(
            f"timestep_sampling is {sampling!r}, expected all, grid, uniform, logit_normal or stratified"
        )
    return t_min + (t_max - t_min) * draws[sampling]()


def grid_points(
    time_grid: Tensor | None, num_times: int, sampling: str, t_min: float = 0.0, t_max: float = 1.0
) -> Tensor:
    """The grid's times above 0 and in [t_min, t_max], checked against the number of times wanted."""
    if time_grid is None:
        raise ValueError(f"timestep_sampling={sampling} draws from the solver's grid; pass time_grid")
    points = time_grid[(time_grid > 0) & (time_grid >= t_min) & (time_grid <= t_max)].float().cpu()
    if num_times > len(points):
        raise ValueError(
            f"num_train_timesteps is {num_times} but the grid has {len(points)} times in [{t_min:g}, {t_max:g}] "
            "above 0; lower it, widen t_min and t_max, raise rollout.num_inference_steps, or use "
            "timestep_sampling=stratified"
        )
    return points
