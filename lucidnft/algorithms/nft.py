"""DiffusionNFT on rollouts (arXiv 2509.16117): forward-process updates from clean samples and their optimality.

Departures from the released training script, none of which changes the update:
- the old pass is skipped when the old policy equals the current one: its value is then the stopped
  gradient of the current prediction;
- the reference pass is skipped when kl_beta is 0;
- the T training times of a rollout go through the network in one call;
- the condition is stored once per group and looked up;
- times and noise are functions of (seed, step, group, rollout), not of a generator's history.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from lucidnft.advantages import AdvantageMode, optimality, select_advantages
from lucidnft.flow.conversions import interpolate
from lucidnft.flow.schedules import TimeSampling, grid_points, sample_times
from lucidnft.losses.nft import nft_loss
from lucidnft.policy import Policy, Role
from lucidnft.records import Condition, Rollout
from lucidnft.rng import generator_for
from lucidnft.schema import ConfigModel


class NFTSettings(ConfigModel):
    """Knobs of the algorithm; part of the `train:` section of task nft."""

    per_device_batch_size: int = Field(default=8, ge=1)  # rollouts per backward pass
    gradient_steps_per_epoch: int = Field(default=1, ge=1)  # optimiser steps per rollout batch
    num_train_timesteps: int | None = Field(
        default=None, ge=1
    )  # T per rollout; null: all of the grid but one
    timestep_sampling: TimeSampling = "all"
    t_min: float = Field(default=1e-3, ge=0, lt=1)  # times nearer to the image are not trained ...
    t_max: float = Field(default=1.0, gt=0, le=1)  # ... and neither are times nearer to noise
    nft_beta: float = Field(default=1.0, gt=0)  # interpolation strength of the implicit policies
    kl_beta: float = Field(default=1e-4, ge=0)  # weight of the distance to the reference
    adv_clip_max: float = Field(default=5.0, gt=0)
    adv_mode: AdvantageMode = "all"
    normalise_x0_error: bool = True
    share_draws_in_group: bool = False  # one training time and noise for all rollouts of an LR image

    @model_validator(mode="after")
    def some_times_are_trained(self) -> NFTSettings:
        """t_min lies below t_max."""
        if self.t_min >= self.t_max:
            raise ValueError(f"t_min is {self.t_min}, not below t_max {self.t_max}: no time is trained")
        return self


@dataclass(frozen=True)
class NFTMinibatch:
    """B = rollouts x T samples of one backward pass, and its place in the accumulation."""

    x_0: Tensor  # (B, C, h, w)
    noise: Tensor  # (B, C, h, w)
    t: Tensor  # (B,)
    condition: Condition  # B rows
    optimality: Tensor  # (B,), or (B, 1, h, w) with advantages per place
    share: float  # part of the optimiser step's mean loss that this minibatch stands for
    closes_step: bool  # the optimiser steps after this minibatch


class NFT:
    """Rollouts and advantages to minibatches, minibatches to losses."""

    solver_kinds = frozenset({"ode"})

    def __init__(self, settings: NFTSettings, *, seed: int) -> None:
        self.settings = settings
        self.seed = seed

    def num_times(self, time_grid: Tensor) -> int:
        """T: the number asked for, or all of the grid's trained times but one, as the release (at least one).

        Raises:
            ValueError: the times are drawn from the grid, and fewer than T of it lie in [t_min, t_max].
        """
        settings = self.settings
        bounds = (settings.timestep_sampling, settings.t_min, settings.t_max)
        num_times = settings.num_train_timesteps
        if num_times is None:
            num_times = max(1, len(grid_points(time_grid, 0, *bounds)) - 1)
        if settings.timestep_sampling in ("all", "grid"):
            grid_points(time_grid, num_times, *bounds)
        return num_times

    def minibatches(
        self, rollout: Rollout, advantages: Tensor, group_ids: tuple[int, ...], step: int
    ) -> Iterator[NFTMinibatch]:
        """Shuffled (g, k) pairs with their times and noise, `per_device_batch_size` rollouts at a time.

        advantages: (G, K), or (G, K, a, b) on a grid over the image.  The pairs are cut into
        `gradient_steps_per_epoch` optimiser steps.
        """
        groups, group_size = advantages.shape[:2]
        settings = self.settings
        r = optimality(select_advantages(advantages, settings.adv_mode), settings.adv_clip_max).flatten(0, 1)
        if r.ndim > 1:
            r = F.interpolate(r[:, None], size=rollout.x_0.shape[-2:], mode="nearest")
        times, noises = self.draws(rollout, group_ids, step)
        x_0 = rollout.x_0.flatten(0, 1)
        order = torch.randperm(
            groups * group_size, generator=generator_for(self.seed, "shuffle", step, *group_ids[:1])
        )
        for pairs in order.tensor_split(min(settings.gradient_steps_per_epoch, len(order))):
            parts = pairs.split(settings.per_device_batch_size)
            for index, part in enumerate(parts):
                t = times[part].to(x_0.device)  # (b, T)
                num_times = t.shape[1]
                repeated = part.repeat_interleave(num_times)
                yield NFTMinibatch(
                    x_0=x_0[repeated],
                    noise=noises[part].flatten(0, 1).to(x_0.device),
                    t=t.flatten(),
                    condition=rollout.condition.index(repeated // group_size),
                    optimality=r[repeated].to(x_0.device),
                    share=len(part) / len(pairs),
                    closes_step=index == len(parts) - 1,
                )

    def draws(self, rollout: Rollout, group_ids: tuple[int, ...], step: int) -> tuple[Tensor, Tensor]:
        """Training times (G*K, T) and noise (G*K, T, C, h, w) of a step, keyed by group.

        Drawn for every rollout, or with `share_draws_in_group` once per group: each rollout's draws have the
        same distribution either way, so the expected gradient is the same.  Shared, what the gradient terms
        of a group have in common cancels because its advantages sum to about zero: less variance.
        """
        num_times = self.num_times(rollout.time_grid)
        group_size, latent = rollout.x_0.shape[1], rollout.x_0.shape[2:]
        draws, copies = (1, group_size) if self.settings.share_draws_in_group else (group_size, 1)
        times, noises = [], []
        for group in group_ids:
            generator = generator_for(self.seed, "optimise", step, group)
            drawn = sample_times(
                self.settings.timestep_sampling, draws, num_times,
                generator=generator, time_grid=rollout.time_grid,
                t_min=self.settings.t_min, t_max=self.settings.t_max,
            )  # fmt: skip
            times.append(drawn.repeat(copies, 1))
            noise = torch.randn((draws, num_times, *latent), generator=generator)
            noises.append(noise.repeat(copies, 1, 1, 1, 1))
        return torch.cat(times), torch.cat(noises)

    def loss(self, policy: Policy, mini: NFTMinibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """(B,) losses with gradient, and scalars to log."""
        settings = self.settings
        x_t = interpolate(mini.x_0, mini.noise, mini.t)
        v_ref = policy(x_t, mini.t, mini.condition, Role.REFERENCE) if settings.kl_beta > 0 else None
        v_old = None
        if not policy.old_equals_current:
            v_old = policy(x_t, mini.t, mini.condition, Role.OLD)
        v = policy(x_t, mini.t, mini.condition, Role.CURRENT)
        return nft_loss(
            v,
            v.detach() if v_old is None else v_old,
            v_ref,
            x_0=mini.x_0,
            x_t=x_t,
            t=mini.t,
            optimality=mini.optimality,
            nft_beta=settings.nft_beta,
            kl_beta=settings.kl_beta,
            adv_clip_max=settings.adv_clip_max,
            normalise_x0_error=settings.normalise_x0_error,
        )


def old_policy_decay(
    schedule: str, step: int, *, flat_steps: int = 0, ramp_rate: float = 0.001, max_decay: float = 0.5
) -> float:
    """Weight the old policy keeps at its update after `step` optimiser steps.

    copy: always 0.  linear_to_0_5: min(0.001 s, 0.5), the release's default (decay type 1).
    delayed_linear_to_0_999: 0 for 75 steps, then min(0.0075 (s - 75), 0.999) (type 2).
    custom: 0 for flat_steps, then min(ramp_rate (s - flat_steps), max_decay).
    """
    presets = {
        "copy": (0, 0.0, 0.0),
        "linear_to_0_5": (0, 0.001, 0.5),
        "delayed_linear_to_0_999": (75, 0.0075, 0.999),
        "custom": (flat_steps, ramp_rate, max_decay),
    }
    if schedule not in presets:
        raise ValueError(f"old_policy.schedule is {schedule!r}, expected one of {', '.join(presets)}")
    flat, rate, ceiling = presets[schedule]
    return 0.0 if step < flat else min(rate * (step - flat), ceiling)
