"""Several restorations of one image, and which of them to keep.

The candidates of an image are a group: every reward is normalised within it and the weighted sum decides, as
in training (`lucidnft.advantages`).  So a reward counts by its weight, whatever its scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lucidnft.advantages import decoupled_advantages
from lucidnft.records import ImageBatch
from lucidnft.rewards.base import Reward, RewardSuite, check_size
from lucidnft.rewards.registry import build_reward, check_reward_name
from lucidnft.rng import PreservedGlobalRng, derived_seed

PIXELS_AT_A_TIME = 2**22
"""Output pixels that a reward sees in one call, or one candidate if that is larger; bounds memory."""


@dataclass(frozen=True)
class Choice:
    """Which of N candidates was chosen, and why."""

    index: int
    scores: dict[str, list[float]]  # by reward, of every candidate; higher is better
    advantages: list[float]  # of every candidate, in standard deviations of the group; the largest is chosen


def parse_choice(text: str) -> dict[str, float]:
    """Weights by reward, of "lucid_consistency=2,musiq": names that `build_reward` knows, 1 where none is given.

    Nothing is built.  Raises a ValueError that lists every problem: a name is unknown or stands twice, a weight is not
    a number above 0.
    """
    weights: dict[str, float] = {}
    problems = []
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        try:
            if not name:
                raise ValueError(f"a name is missing in {text!r}; write rewards as name,name=weight")
            check_reward_name(name)
            if name in weights:
                raise ValueError(
                    f"reward '{name}' stands twice; name it once, with the weight it should have"
                )
            weights[name] = _weight(name, number) if equals else 1.0
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError(f"select_by: {'; '.join(problems)}")
    return weights


def _weight(name: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise ValueError(f"the weight of '{name}' is {text!r}, expected a number above 0")
    return weight


def build_candidates(text: str, num_samples: int, device: torch.device | str = "cpu") -> Candidates:
    """`Candidates` from "lucid_consistency=2,musiq"; the rewards are loaded and moved to the device.

    Raises:
        ValueError: as `parse_choice` and `Candidates`, or rewards that cannot be loaded: a package or weights are
            missing.  Each says why itself; all are listed.
    """
    weights = parse_choice(text)
    rewards: dict[str, Reward] = {}
    problems = []
    for name in weights:
        try:
            rewards[name] = build_reward(name)
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            problems.append(f"{error}")
    if problems:
        raise ValueError(f"select_by: {'; '.join(problems)}")
    return Candidates(rewards, weights, num_samples=num_samples, device=device)


class Candidates:
    """Draws N candidates by their noise and says which one the rewards prefer."""

    def __init__(
        self,
        rewards: Mapping[str, Reward],
        weights: Mapping[str, float],
        *,
        num_samples: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """rewards, weights: by the same names; device: where the rewards compute.

        Raises:
            ValueError: num_samples is below 1, names differ, or a reward needs what restoring does not have.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples is {num_samples}, expected 1 or more")
        if list(rewards) != list(weights):
            raise ValueError(f"rewards are {', '.join(rewards)}, but weights are of {', '.join(weights)}")
        lacking = {name: sorted(reward.card.needs - {"lr"}) for name, reward in rewards.items()}
        refused = [f"'{name}' needs {' and '.join(needs)}" for name, needs in lacking.items() if needs]
        if refused:
            raise ValueError(
                f"select_by: reward {'; reward '.join(refused)}; candidates have nothing but the input image beside "
                "them: choose rewards like lucid_consistency, quality_net, lr_fidelity or musiq"
            )
        self.num_samples = num_samples
        self.weights = dict(weights)
        self._rewards = RewardSuite(rewards).to(device).rewards

    def keys(self, key: str) -> list[str]:
        """The N keys of an image's noise: its own, so that candidate 0 is the plain restoration, then "<key>#1", ...

        They do not depend on N: with more candidates the first ones stay what they were.
        """
        return [key, *(f"{key}#{index}" for index in range(1, self.num_samples))]

    def check_size(self, size: tuple[int, int]) -> None:
        """Raise a ValueError when outputs of (H, W) are smaller than a reward can score.

        Choosing without that reward would sort the images of one folder by different rules, so the image fails.
        """
        for name, reward in self._rewards.items():
            try:
                check_size(reward.card, size)
            except ValueError as error:
                raise ValueError(f"{error}; or choose without '{name}', or enlarge more") from error

    def choose(self, lr: Tensor, candidates: Tensor, *, key: str = "the image") -> Choice:
        """The best of N candidates (N, 3, H, W) of lr (3, h, w), all in [0, 1]; the first of equals.

        They may lie on another device than the rewards, which take a few at a time.  key names the image in messages.

        Raises:
            ValueError: the shapes are wrong, the candidates are too small for a reward, or a score is not finite.
        """
        if lr.ndim != 3 or candidates.ndim != 4 or len(candidates) != self.num_samples:
            raise ValueError(
                f"lr is {tuple(lr.shape)} and candidates {tuple(candidates.shape)}, expected (3, h, w) and "
                f"({self.num_samples}, 3, H, W)"
            )
        size = (candidates.shape[2], candidates.shape[3])
        self.check_size(size)
        suite = RewardSuite(self._rewards, chunk_size=max(1, PIXELS_AT_A_TIME // (size[0] * size[1])))
        with PreservedGlobalRng():
            torch.manual_seed(derived_seed(0, "candidates"))  # some metrics draw: the choice stays repeatable
            scores = suite.score(candidates[None], ImageBatch(lr[None], (key,), (0,))).stacked.cpu()
        if self.num_samples == 1:
            advantages = [0.0]
        else:
            weights = torch.tensor(list(self.weights.values()))
            advantages = decoupled_advantages(scores, weights)[0].tolist()
        return Choice(
            index=max(range(self.num_samples), key=advantages.__getitem__),  # max keeps the first of equals
            scores={name: scores[0, :, m].tolist() for m, name in enumerate(suite.names)},
            advantages=advantages,
        )
