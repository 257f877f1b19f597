"""What a reward is, and the suite that scores rollouts with several of them.

A reward looks at restored images and returns one number per image, higher is better.  The work that
depends on the LR image, the HR image or the prompt alone happens once per group in `reference`; only
`score` runs for every rollout.  Normalising and weighting rewards is not done here: see
`lucidnft.advantages`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lucidnft.records import ImageBatch, RewardOutput, flatten_groups, split_groups

Reference = Mapping[str, Tensor]
"""Per-group features of LR, HR or prompt: every tensor starts with the group axis G."""


@dataclass(frozen=True)
class RewardCard:
    """Facts about a reward that tables and checks need."""

    name: str
    needs: frozenset[str] = frozenset()  # any of "lr", "hr", "prompt"
    lower_is_better: bool = False  # direction of the RAW number; scores are always higher-is-better
    value_range: tuple[float, float] | None = None  # range of the returned score, where known
    min_size: int = 1  # smallest side of an image it can score, in pixels
    note: str = ""  # one sentence: what it measures; licence if it restricts use


class Reward(ABC):
    """A callable score.  Subclasses set `card` and implement `score` (and `reference` if they need LR or HR)."""

    card: RewardCard
    OPTIONAL_EXTRA: ClassVar[str | None] = None  # pip extra that installs what this reward imports

    def reference(
        self,
        lr: Tensor | None,
        hr: Tensor | None,
        prompts: Sequence[str] | None,
        sr_size: tuple[int, int],
    ) -> Reference:
        """Features of G conditions, computed once per group; `sr_size` is the (H, W) of the images to score.

        lr is (G, 3, H/r, W/r) and hr (G, 3, H, W), float32 in [0, 1].  The default keeps nothing.
        """
        return {}

    @abstractmethod
    def score(self, sr: Tensor, reference: Reference) -> Tensor:
        """(N, 3, H, W) in [0, 1] and the reference rows of the same N images -> (N,) float32, higher is better."""

    @property
    def scores_places(self) -> bool:
        """Whether this reward also says where an image is good: whether it has a `score_map`."""
        return type(self).score_map is not Reward.score_map

    def score_map(self, sr: Tensor, reference: Reference) -> Tensor:
        """(N, 3, H, W) -> (N, h, w) scores of the places of an image, whose mean is its score, on any grid.

        Raises:
            NotImplementedError: this reward judges an image as a whole.
        """
        raise NotImplementedError(f"reward '{self.card.name}' judges an image as a whole, it has no map")

    def to(self, device: torch.device | str) -> Reward:
        """Move the networks of this reward; the default has none."""
        return self

    def wake(self) -> None:  # noqa: B027  most rewards stay where they are
        """Called before a batch is scored; a reward that waits elsewhere comes to its device."""

    def rest(self) -> None:  # noqa: B027
        """Called after a batch was scored; a reward may leave its device to others."""

    @torch.no_grad()
    def __call__(
        self,
        sr: Tensor,
        lr: Tensor | None = None,
        hr: Tensor | None = None,
        prompt: str | Sequence[str] | None = None,
    ) -> Tensor:
        """Score N images: sr (N, 3, H, W) in [0, 1] -> (N,) float32, higher is better.

        lr, hr and prompt, where given, have one entry per image.

        Raises:
            ValueError: a needed input is missing, shapes disagree, values lie outside [0, 1], or the
                score is not finite.
        """
        check_images(sr, "sr", self.card.name)
        prompts = [prompt] * sr.shape[0] if isinstance(prompt, str) else prompt
        given = {"lr": lr, "hr": hr, "prompt": prompts}
        for need in sorted(self.card.needs):
            if given[need] is None:
                raise ValueError(f"reward '{self.card.name}' needs {need}: pass reward(sr, {need}=...)")
        for name, images in (("lr", lr), ("hr", hr)):
            if images is not None:
                check_images(images, name, self.card.name)
                if images.shape[0] != sr.shape[0]:
                    raise ValueError(
                        f"reward '{self.card.name}': {name} holds {images.shape[0]} images, sr {sr.shape[0]}"
                    )
        size = (sr.shape[2], sr.shape[3])
        check_size(self.card, size)
        if hr is not None and "hr" in self.card.needs and hr.shape != sr.shape:
            raise ValueError(
                f"reward '{self.card.name}': hr has shape {tuple(hr.shape)}, sr {tuple(sr.shape)}; they must agree"
            )
        self.wake()
        scores = self.score(sr, self.reference(lr, hr, prompts, size)).float().reshape(-1)
        self.rest()
        check_scores(scores, sr.shape[0], self.card.name, [str(i) for i in range(sr.shape[0])])
        return scores


def check_images(images: Tensor, what: str, reward: str) -> None:
    """Raise a ValueError unless images is (N, 3, H, W) floating point within [0, 1]."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"reward '{reward}': {what} has shape {tuple(images.shape)}, expected (N, 3, H, W)")
    if not images.is_floating_point():
        raise ValueError(f"reward '{reward}': {what} is {images.dtype}, expected float32 in [0, 1]")
    low, high = (float(v) for v in images.aminmax())
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # also catches NaN
        raise ValueError(f"reward '{reward}': {what} spans [{low:.4g}, {high:.4g}], expected [0, 1]")


def check_size(card: RewardCard, size: tuple[int, int]) -> None:
    """Raise a ValueError when the images are smaller than the reward can score."""
    if min(size) < card.min_size:
        raise ValueError(
            f"reward '{card.name}' scores images of at least {card.min_size} px a side, got {size[0]}x{size[1]}; "
            "use larger crops or another reward"
        )


def check_scores(scores: Tensor, expected: int, reward: str, keys: Sequence[str]) -> None:
    """Raise a ValueError naming reward and image unless there are `expected` finite scores."""
    if scores.numel() != expected:
        raise ValueError(f"reward '{reward}' returned {scores.numel()} scores for {expected} images")
    bad = (~torch.isfinite(scores)).nonzero().flatten().tolist()
    if bad:
        shown = ", ".join(f"{keys[i]} = {float(scores[i])}" for i in bad[:3])
        raise ValueError(
            f"reward '{reward}' is not finite for {len(bad)} of {expected} images ({shown}); "
            "remove the reward or the image"
        )


class RewardSuite:
    """The named, ordered set of rewards of a run."""

    def __init__(self, rewards: Mapping[str, Reward], *, chunk_size: int = 16) -> None:
        """chunk_size: images scored per call of a reward, bounding memory."""
        if not rewards:
            raise ValueError("a run needs at least one reward; add one under 'rewards:'")
        self.rewards = dict(rewards)
        self.chunk_size = chunk_size

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.rewards)

    def check_needs(self, provides: frozenset[str] | set[str], data_name: str) -> None:
        """Raise a ValueError at start when the data cannot feed a reward."""
        for name, reward in self.rewards.items():
            missing = sorted(reward.card.needs - set(provides))
            if missing:
                raise ValueError(
                    f"reward '{name}' needs {' and '.join(missing)} but data '{data_name}' provides "
                    f"{', '.join(sorted(provides))} only; remove the reward or use a dataset that has it"
                )

    def check_places(self, cell: int | None) -> None:
        """Raise a ValueError at start when places are to be compared and no reward tells them apart."""
        if cell is not None and not any(reward.scores_places for reward in self.rewards.values()):
            raise ValueError(
                f"train.advantage_cell is {cell} but no reward of this run ({', '.join(self.names)}) says where "
                "an image is good; set train.advantage_cell=null or add a reward with a map"
            )

    def to(self, device: torch.device | str) -> RewardSuite:
        """Move every reward."""
        for reward in self.rewards.values():
            reward.to(device)
        return self

    @torch.no_grad()
    def score(self, images: Tensor, batch: ImageBatch, *, cell: int | None = None) -> RewardOutput:
        """Score rollouts: images (G, K, 3, H, W) in [0, 1] -> stacked (G, K, M), higher is better.

        cell: pixels per side of the places to be scored as well; a reward that judges images as a whole
            gives every place the image's score.

        Raises:
            ValueError: a score is not finite; the message names the reward and the image.
        """
        groups, group_size = images.shape[:2]
        size = (images.shape[3], images.shape[4])
        flat = flatten_groups(images)
        rows = torch.arange(groups).repeat_interleave(group_size)
        keys = [f"{batch.keys[g]} (rollout {k})" for g in range(groups) for k in range(group_size)]
        grid = None if cell is None else (max(1, size[0] // cell), max(1, size[1] // cell))
        columns, maps = [], []  # maps stays empty without a grid
        for name, reward in self.rewards.items():
            check_size(reward.card, size)
            reward.wake()
            reference = reward.reference(batch.lr, batch.hr, batch.prompts, size)
            parts = []
            for start in range(0, flat.shape[0], self.chunk_size):
                part = slice(start, start + self.chunk_size)
                rows_of_part = {n: v[rows[part].to(v.device)] for n, v in reference.items()}
                # Only this part is copied: whole candidates of a large image fill much of the memory.
                sr = flat[part].float().clamp(0, 1)
                parts.append(score_part(reward, sr, rows_of_part, grid))
            reward.rest()
            scores = torch.cat([scores for scores, _ in parts]).to(flat.device)
            check_scores(scores, flat.shape[0], name, keys)
            columns.append(split_groups(scores, group_size))
            if grid is not None:
                maps.append(
                    split_groups(
                        torch.cat([places.to(flat.device) for _, places in parts if places is not None]),
                        group_size,
                    )
                )
        places = torch.stack(maps, dim=2) if maps else None
        return RewardOutput(names=self.names, stacked=torch.stack(columns, dim=-1), places=places)


def score_part(
    reward: Reward, sr: Tensor, reference: Reference, grid: tuple[int, int] | None
) -> tuple[Tensor, Tensor | None]:
    """Scores (N,) and, when a grid is asked for, scores of its places (N, h, w)."""
    if grid is not None and reward.scores_places:
        places = reward.score_map(sr, reference).float()
        return places.mean(dim=(1, 2)), F.adaptive_avg_pool2d(places, grid)
    scores = reward.score(sr, reference).float().reshape(-1)
    return scores, None if grid is None else scores[:, None, None].expand(-1, *grid)
