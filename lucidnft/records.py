"""The records that cross package borders.  Read this first.

Axis letters: G groups (LR images) on this rank, K rollouts per group, N = G * K images,
M rewards, C, h, w latent channels and grid, H, W output pixels, S solver steps, r the upscale factor.
A group is an axis and never leaves its rank, so advantages need no ids and no communication.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def flatten_groups(x: Tensor) -> Tensor:
    """(G, K, ...) -> (G*K, ...), group-major."""
    return x.flatten(0, 1)


def split_groups(x: Tensor, group_size: int) -> Tensor:
    """(G*K, ...) -> (G, K, ...), the inverse of `flatten_groups`."""
    split: Tensor = x.unflatten(0, (-1, group_size))
    return split


@dataclass(frozen=True)
class ImageBatch:
    """G low-resolution images of one size, as the data package hands them out."""

    lr: Float[Tensor, "G 3 lr_h lr_w"]  # RGB in [0, 1]; lr_h = H / r
    keys: tuple[str, ...]  # G names, for messages and logs
    group_ids: tuple[int, ...]  # G global group numbers of this step; rollout noise is keyed by them
    upscale: int = 4  # r
    hr: Float[Tensor, "G 3 H W"] | None = None  # RGB in [0, 1], when the reference is known
    prompts: tuple[str, ...] | None = None  # G texts
    metadata: tuple[dict[str, Any], ...] = field(default=())  # G records of drawn degradations

    def __post_init__(self) -> None:
        groups = self.lr.shape[0]
        for name, value in (("keys", self.keys), ("group_ids", self.group_ids)):
            if len(value) != groups:
                raise ValueError(f"ImageBatch.{name} has {len(value)} entries for {groups} LR images")
        if self.hr is not None:
            want = (groups, 3, self.lr.shape[2] * self.upscale, self.lr.shape[3] * self.upscale)
            if tuple(self.hr.shape) != want:
                raise ValueError(
                    f"ImageBatch.hr has shape {tuple(self.hr.shape)}, expected {want} for LR "
                    f"{tuple(self.lr.shape)} at upscale {self.upscale}"
                )

    def to(self, device: torch.device | str) -> ImageBatch:
        """The same batch with its tensors on `device`."""
        hr = None if self.hr is None else self.hr.to(device)
        return replace(self, lr=self.lr.to(device), hr=hr)

    def index(self, groups: Sequence[int]) -> ImageBatch:
        """The groups at these positions, in this order."""
        rows = list(groups)
        return replace(
            self,
            lr=self.lr[rows],
            keys=tuple(self.keys[g] for g in rows),
            group_ids=tuple(self.group_ids[g] for g in rows),
            hr=None if self.hr is None else self.hr[rows],
            prompts=None if self.prompts is None else tuple(self.prompts[g] for g in rows),
            metadata=tuple(self.metadata[g] for g in rows) if self.metadata else (),
        )


@dataclass(frozen=True)
class Condition:
    """Everything a backbone knows about the LR images, stored once per group.

    Only the backbone that made it reads the fields; everybody else indexes, moves and chunks it.
    """

    fields: Mapping[str, Tensor]  # every tensor starts with the same leading axis (G or B)

    def __post_init__(self) -> None:
        sizes = {name: value.shape[0] for name, value in self.fields.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"Condition fields differ in their leading axis: {sizes}")

    def __len__(self) -> int:
        return next(iter(self.fields.values())).shape[0]

    def __getitem__(self, name: str) -> Tensor:
        return self.fields[name]

    def to(self, device: torch.device | str) -> Condition:
        """The same condition on `device`."""
        return Condition({name: value.to(device) for name, value in self.fields.items()})

    def index(self, rows: Tensor | Sequence[int]) -> Condition:
        """Rows picked (with repetition, if wanted) along the leading axis: G -> B."""
        if not isinstance(rows, Tensor):
            rows = torch.as_tensor(list(rows), dtype=torch.long)
        return Condition({n: v.index_select(0, rows.to(v.device)) for n, v in self.fields.items()})


@dataclass(frozen=True)
class Rollout:
    """K restorations of each LR image, before scoring."""

    x_0: Float[Tensor, "G K C h w"]  # clean latents
    condition: Condition  # leading axis G
    time_grid: Float[Tensor, " grid"]  # S + 1 times, decreasing from 1 to 0, the grid that made x_0
    trajectory: Float[Tensor, "G K grid C h w"] | None = None  # kept only when an algorithm asks
    log_probs: Float[Tensor, "G K S"] | None = None  # for stochastic solvers


@dataclass(frozen=True)
class RewardOutput:
    """Scores of all rollouts under all rewards, unweighted and unnormalised."""

    names: tuple[str, ...]  # M reward names, in the order of the last axis
    stacked: Float[Tensor, "G K M"]  # higher is better
    places: Float[Tensor, "G K M h w"] | None = None  # scores of the cells of a grid, when asked for
    degradation_maps: Mapping[str, Float[Tensor, "G K 1 H_map W_map"]] = field(
        default_factory=dict
    )  # by reward

    @property
    def compared(self) -> Tensor:
        """The scores that advantages are made of: of places (G, K, M, h, w) if there are any, else (G, K, M)."""
        return self.stacked if self.places is None else self.places

    def by_name(self) -> dict[str, Tensor]:
        """{reward name: (G, K)}."""
        return {name: self.stacked[..., m] for m, name in enumerate(self.names)}
