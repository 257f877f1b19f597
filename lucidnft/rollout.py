"""K restorations of each LR image by the old policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import AliasChoices, Field, ValidationInfo, field_validator, model_validator
from torch import Tensor

from lucidnft.backbones.base import Backbone
from lucidnft.flow.schedules import shifted_time_grid
from lucidnft.flow.solvers import ODE_SOLVERS
from lucidnft.policy import Policy, Role
from lucidnft.records import Condition, Rollout
from lucidnft.rng import generator_for
from lucidnft.schema import ConfigModel


class RolloutConfig(ConfigModel):
    """`rollout:` section of a run."""

    num_groups: int = Field(default=6, ge=1)  # LR images per step over all processes
    group_size: int = Field(  # K restorations of each; `num_generations` is accepted too
        default=8, ge=1, validation_alias=AliasChoices("group_size", "num_generations")
    )
    num_inference_steps: int = Field(default=6, ge=1)
    solver: Literal["euler", "heun", "dpm2"] = "euler"
    shift: float | None = Field(default=None, gt=0)  # of the time grid; null takes the backbone's own grid
    chunk_size: int | Literal["auto"] = 16  # rollouts solved at a time; auto: as many as fit in free memory
    decode_chunk_size: int | Literal["auto"] | None = None  # and decoded; null: as many as are solved

    @field_validator("chunk_size", "decode_chunk_size", mode="before")
    @classmethod
    def _number_or_auto(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic would report a wrong value once for each of the kinds it could be
        null = value is None and info.field_name == "decode_chunk_size"
        if null or value == "auto" or (isinstance(value, int) and value >= 1):
            return value
        raise ValueError("expected a number of rollouts, 1 or more, or auto")

    @property
    def chunks(self) -> tuple[int, int]:
        """How many rollouts are solved and how many are decoded at a time.

        Raises:
            ValueError: one of them is auto, for which a run puts a number when it starts.
        """
        decode = self.chunk_size if self.decode_chunk_size is None else self.decode_chunk_size
        if self.chunk_size == "auto" or decode == "auto":
            raise ValueError(
                "rollout.chunk_size or rollout.decode_chunk_size is auto; outside of train.py give a number"
            )
        return self.chunk_size, decode

    @model_validator(mode="before")
    @classmethod
    def _same_size_twice(cls, values: Any) -> Any:
        # load_config writes an override under both names; two values stay, and are refused as any extra key
        if isinstance(values, Mapping) and "group_size" in values:
            same = values.get("num_generations") == values["group_size"]
            return {k: v for k, v in values.items() if not (same and k == "num_generations")}
        return values


def rollout_time_grid(policy: Policy, config: RolloutConfig, height: int, width: int) -> Tensor:
    """(S + 1,) the grid of the rollouts, which is also the one that trained times come from."""
    return time_grid_of(policy.backbone, config, height, width)


def time_grid_of(backbone: Backbone, config: RolloutConfig, height: int, width: int) -> Tensor:
    """The same, of a backbone that no policy has taken yet."""
    if config.shift is not None:
        return shifted_time_grid(config.num_inference_steps, config.shift)
    return backbone.default_time_grid(config.num_inference_steps, height, width)


@torch.no_grad()
def generate_rollout(
    policy: Policy,
    condition: Condition,
    group_ids: Sequence[int],
    config: RolloutConfig,
    *,
    seed: int,
    step: int,
    size: tuple[int, int],
) -> Rollout:
    """Restore each of G conditions K times from fresh noise with the old policy.

    The noise of a group is keyed by (seed, step, its global number), so it does not depend on how
    groups are spread over processes or on the chunk size.

    Args:
        size: (H, W) in output pixels.

    Returns:
        Rollout with x_0 (G, K, C, h, w).
    """
    latent = policy.backbone.latent_spec.grid(*size)
    shape = (config.group_size, *latent)
    noise = torch.stack(
        [torch.randn(shape, generator=generator_for(seed, "rollout", step, g)) for g in group_ids]
    ).flatten(0, 1)
    rows = torch.arange(len(group_ids)).repeat_interleave(config.group_size)
    device = next(policy.backbone.network.parameters()).device
    time_grid = rollout_time_grid(policy, config, *size)
    solve = ODE_SOLVERS[config.solver]
    solved = []
    chunk_size, _ = config.chunks
    with policy.folded(Role.OLD):
        for start in range(0, len(rows), chunk_size):
            part = slice(start, start + chunk_size)
            rows_of_part = condition.index(rows[part])

            def velocity(x_t: Tensor, t: Tensor, rows_of_part: Condition = rows_of_part) -> Tensor:
                return policy(x_t, t, rows_of_part, Role.OLD)

            solved.append(solve(velocity, noise[part].to(device), time_grid).x_0)
    x_0 = torch.cat(solved).unflatten(0, (len(group_ids), config.group_size))
    return Rollout(x_0=x_0, condition=condition, time_grid=time_grid)
