"""Integrators from noise (t = 1) to clean (t = 0).

Every solver takes (velocity, x, time_grid) and returns a Solution.  `velocity(x_t, t)` sees x_t (B, ...)
and t (B,) float32.  Solvers know nothing of models, guidance or conditions: wrap the velocity function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from lucidnft.flow.conversions import velocity_to_noise, velocity_to_x0
from lucidnft.flow.guidance import VelocityFunction
from lucidnft.flow.schedules import check_time_grid

NoiseFunction = Callable[[int, Tensor], Tensor]
"""(step index, tensor to imitate) -> standard normal of its shape, dtype and device."""


@dataclass(frozen=True)
class Solution:
    """The end of a solve, and what was kept on the way."""

    x_0: Tensor  # (B, ...) the state at the last time of the grid
    trajectory: Tensor | None = None  # (B, S + 1, ...) states at every time of the grid
    log_probs: Tensor | None = None  # (B, S) log-density per element of each stochastic step


def times_like(t: float, x: Tensor) -> Tensor:
    """A scalar time as the (B,) float32 vector that velocity functions take."""
    return torch.full((x.shape[0],), t, dtype=torch.float32, device=x.device)


def solution(states: list[Tensor], keep: bool, log_probs: list[Tensor] | None = None) -> Solution:
    """Assemble a Solution from the states kept."""
    return Solution(
        x_0=states[-1],
        trajectory=torch.stack(states, dim=1) if keep else None,
        log_probs=None if log_probs is None else torch.stack(log_probs, dim=1),
    )


def euler(
    velocity: VelocityFunction, x: Tensor, time_grid: Tensor, *, keep_trajectory: bool = False
) -> Solution:
    """First order, one call per step: x <- x + (t_next - t) v."""
    check_time_grid(time_grid)
    times = time_grid.tolist()
    states = [x]
    for t, t_next in pairwise(times):
        x = x + (t_next - t) * velocity(x, times_like(t, x))
        states = [*states, x] if keep_trajectory else [x]
    return solution(states, keep_trajectory)


def heun(
    velocity: VelocityFunction, x: Tensor, time_grid: Tensor, *, keep_trajectory: bool = False
) -> Solution:
    """Second order, two calls per step but one on the last when it ends at t = 0 (EDM, arXiv 2206.00364, alg. 1).

    Networks that predict x_0 give no velocity at t = 0, so the last step stays first order.
    """
    check_time_grid(time_grid)
    times = time_grid.tolist()
    states = [x]
    for t, t_next in pairwise(times):
        v = velocity(x, times_like(t, x))
        ahead = x + (t_next - t) * v
        if t_next > 0:
            ahead = x + (t_next - t) * 0.5 * (v + velocity(ahead, times_like(t_next, x)))
        x = ahead
        states = [*states, x] if keep_trajectory else [x]
    return solution(states, keep_trajectory)


def dpm2(
    velocity: VelocityFunction, x: Tensor, time_grid: Tensor, *, keep_trajectory: bool = False
) -> Solution:
    """DPM-Solver++ 2M in half-log-SNR lambda = log((1 - t) / t), one call per step (arXiv 2211.01095, alg. 2).

    Where lambda is infinite (t = 1 or t = 0) the step is first order, as is the step after t = 1.
    """
    check_time_grid(time_grid)
    times = time_grid.tolist()
    states, x0_before, h_before = [x], None, math.inf
    for t, t_next in pairwise(times):
        x0 = velocity_to_x0(x, velocity(x, times_like(t, x)), times_like(t, x))
        at_ends = t >= 1 or t_next <= 0
        h = math.inf if at_ends else math.log((1 - t_next) * t / ((1 - t) * t_next))
        direction = x0
        if x0_before is not None and not at_ends and math.isfinite(h_before):
            direction = x0 + h / (2 * h_before) * (x0 - x0_before)
        # sigma ratio keeps the noise part, the rest moves to the prediction; exact at both ends
        ratio = t_next / t
        x = ratio * x + ((1 - t_next) - ratio * (1 - t)) * direction
        states = [*states, x] if keep_trajectory else [x]
        x0_before, h_before = x0, h
    return solution(states, keep_trajectory)


@dataclass(frozen=True)
class GaussianStep:
    """The transition density of one stochastic step: normal(mean, std) per element."""

    mean: Tensor  # (B, ...)
    std: Tensor  # (B,)

    def log_prob(self, x_next: Tensor) -> Tensor:
        """Mean over elements of log normal(x_next; mean, std) -> (B,), as Flow-GRPO averages it."""
        std = self.std.view(-1, *([1] * (x_next.ndim - 1)))
        density = -0.5 * ((x_next - self.mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)
        return density.flatten(1).mean(dim=1)


def euler_maruyama_step(
    x: Float[Tensor, "b *dims"],
    v: Float[Tensor, "b *dims"],
    t: Float[Tensor, " b"],
    t_next: Float[Tensor, " b"],
    eta: float,
) -> GaussianStep:
    """One step of the SDE with the flow's marginals (Flow-GRPO, arXiv 2505.05470, eq. 9).

    dx = [v + g^2 / (2 t) noise_hat] dt + g dw with noise_hat = x + (1 - t) v and g = eta sqrt(t / (1 - t)).
    At t = 1, where g is infinite, g is taken at t_next.
    """
    shape = (-1, *([1] * (x.ndim - 1)))
    t_for_g = torch.where(t >= 1, t_next, t)
    g_squared = eta**2 * t_for_g / (1 - t_for_g).clamp_min(1e-6)
    dt = t_next - t
    drift = v + (g_squared / (2 * t)).view(shape) * velocity_to_noise(x, v, t)
    return GaussianStep(mean=x + dt.view(shape) * drift, std=(g_squared * -dt).sqrt())


def euler_maruyama(
    velocity: VelocityFunction,
    x: Tensor,
    time_grid: Tensor,
    *,
    eta: float,
    noise: NoiseFunction,
    keep_trajectory: bool = False,
) -> Solution:
    """Stochastic Euler with log-probabilities; eta = 0 is exactly `euler` and has none.

    Args:
        eta: strength of the noise, 0 to about 1.
        noise: draws the standard normal of each step.

    Raises:
        ValueError: eta is negative, or is above 0 on a grid of the one step from t = 1 to t = 0.
    """
    check_time_grid(time_grid)
    if eta < 0:
        raise ValueError(f"eta is {eta}, expected 0 (deterministic) or more")
    if eta == 0:
        return euler(velocity, x, time_grid, keep_trajectory=keep_trajectory)
    times = time_grid.tolist()
    if times[0] >= 1 and times[1] <= 0:
        # g is infinite at t = 1 and 0 at t = 0: no finite spread is left for the step, nor a density
        raise ValueError(
            f"time_grid {times} goes from noise to image in one step, which has no log-probability with "
            f"eta {eta}: euler_maruyama needs at least 2 steps; raise num_inference_steps or set eta to 0"
        )
    states, log_probs = [x], []
    for index, (t, t_next) in enumerate(pairwise(times)):
        now, after = times_like(t, x), times_like(t_next, x)
        step = euler_maruyama_step(x, velocity(x, now), now, after, eta)
        x = step.mean + step.std.view(-1, *([1] * (x.ndim - 1))) * noise(index, x)
        log_probs.append(step.log_prob(x))
        states = [*states, x] if keep_trajectory else [x]
    return solution(states, keep_trajectory, log_probs)


ODE_SOLVERS = {"euler": euler, "heun": heun, "dpm2": dpm2}
