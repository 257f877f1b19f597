"""From scores to advantages.  Pure functions of one tensor: a group is an axis, so nothing is communicated.

`decoupled_advantages` normalises every reward inside its group before fusing (LucidNFT, arXiv
2603.05947; the formula is GDPO's, arXiv 2601.05242, section 3).  `scalarised_advantages` sums first and
is the baseline.  Scores are (G, K, M): groups, rollouts, rewards; higher is better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

AdvantageMode = Literal["all", "positive_only", "negative_only", "one_only", "binary"]
LEVEL_WIDTH = 0.25  # width of a bin of the advantage axis when levels are counted
SPREAD_TOLERANCE = 1e-6  # spread below this part of the largest score is rounding, not signal


def check_scores(scores: Tensor, weights: Tensor) -> None:
    """Raise a ValueError unless scores is finite (G, K >= 2, M) and weights (M,)."""
    if scores.ndim != 3:
        raise ValueError(f"scores has shape {tuple(scores.shape)}, expected (G, K, M)")
    if scores.shape[1] < 2:
        raise ValueError(f"group_size is {scores.shape[1]}; a group needs at least 2 rollouts to compare")
    if weights.shape != scores.shape[2:]:
        raise ValueError(f"weights has shape {tuple(weights.shape)} for {scores.shape[2]} rewards")
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("scores holds NaN or infinite values; a reward must raise before it comes to this")


def has_spread(scores: Float[Tensor, "g k *m"]) -> Bool[Tensor, "g *m"]:
    """Whether the K scores of a group differ by more than rounding."""
    largest = scores.abs().amax(dim=1)
    return scores.amax(dim=1) - scores.amin(dim=1) > SPREAD_TOLERANCE * largest


def group_std(scores: Float[Tensor, "g k m"]) -> Float[Tensor, "g m"]:
    """Sample standard deviation (correction 1) over the rollouts of a group."""
    return scores.std(dim=1, correction=1)


def std_floor_of(scores: Float[Tensor, "g k m"], std_floor: float) -> Float[Tensor, " m"]:
    """`std_floor` times each reward's median spread over the groups that have any; 0 when none has."""
    std, spread = group_std(scores), has_spread(scores)
    floors = [
        std[spread[:, m], m].median() if bool(spread[:, m].any()) else std.new_zeros(())
        for m in range(scores.shape[2])
    ]
    return std_floor * torch.stack(floors)


def decoupled_advantages(
    scores: Float[Tensor, "g k m"],
    weights: Float[Tensor, " m"],
    *,
    eps: float = 1e-4,
    whiten: bool = True,
    std_floor: float = 0.0,
) -> Float[Tensor, "g k"]:
    """Normalise each reward in each group, weight, sum over rewards, then whiten over the batch.

        A_m[g, k] = (R_m[g, k] - mean_k R_m[g]) / (max(std_k R_m[g], floor_m) + eps_m)
        S = sum_m w_m A_m;   A = (S - mean S) / (std S + eps)   when whiten

    with sample standard deviations.  eps_m is `eps` times the reward's typical spread, so that rescaling
    a reward changes nothing.  A group without spread in a reward gets zero from that reward; a group
    without spread in all of them gets exactly zero.

    Args:
        std_floor: floor of the divisor as a part of the reward's median group spread: a group whose
            rollouts barely differ is then not blown up to full size.  0 switches it off.

    Raises:
        ValueError: wrong shapes, fewer than 2 rollouts, or scores that are not finite.
    """
    check_scores(scores, weights)
    scores, weights = scores.float(), weights.to(scores.device).float()
    spread = has_spread(scores)
    typical = std_floor_of(scores, 1.0)
    std = torch.maximum(group_std(scores), std_floor * typical)
    centred = scores - scores.mean(dim=1, keepdim=True)
    scale = (std + eps * typical).unsqueeze(1)
    normalised = torch.where(spread.unsqueeze(1), centred / torch.where(scale > 0, scale, 1.0), 0.0)
    fused = (normalised * weights).sum(dim=-1)
    if whiten:
        fused = (fused - fused.mean()) / (fused.std(correction=1) + eps)
    return torch.where(spread.any(dim=1, keepdim=True), fused, 0.0)


def scalarised_advantages(
    scores: Float[Tensor, "g k m"],
    weights: Float[Tensor, " m"],
    *,
    std: Literal["global", "group"] = "global",
    eps: float = 1e-4,
) -> Float[Tensor, "g k"]:
    """The baseline: sum the weighted rewards, centre per group, divide by one spread.

        R = sum_m w_m R_m;   A[g, k] = (R[g, k] - mean_k R[g]) / (std R + eps)

    Args:
        std: "global" divides by the spread of all rollouts of the batch, as the released DiffusionNFT
            does; "group" by the spread inside the group.  Both are population deviations (correction 0).
    """
    check_scores(scores, weights)
    fused = (scores.float() * weights.to(scores.device).float()).sum(dim=-1)
    if std == "global":
        spread = fused.std(correction=0)
    elif std == "group":
        spread = fused.std(dim=1, correction=0, keepdim=True)
    else:
        raise ValueError(f"std is {std!r}, expected 'global' or 'group'")
    centred = fused - fused.mean(dim=1, keepdim=True)
    return torch.where(has_spread(fused).unsqueeze(1), centred / (spread + eps), 0.0)


def places_as_groups(place_scores: Float[Tensor, "g k m h w"]) -> Float[Tensor, "places k m"]:
    """Every place of an image as a group of its own: its K rollouts there are compared with each other.

    For one number per image, a rollout good on the left and bad on the right is average everywhere, and
    learns nothing; place by place it learns both (docs/one_step.md has what that is worth).
    """
    return place_scores.permute(0, 3, 4, 1, 2).flatten(0, 2)


def advantages_of_places(
    place_scores: Float[Tensor, "g k m h w"], compare: Callable[[Tensor], Tensor]
) -> Float[Tensor, "g k h w"]:
    """Advantages of every place, by a `compare` that takes (groups, K, M) to (groups, K)."""
    flat = compare(places_as_groups(place_scores))
    advantages: Tensor = flat.unflatten(0, (-1, *place_scores.shape[3:])).permute(0, 3, 1, 2)
    return advantages


def select_advantages(
    advantages: Float[Tensor, "g k *places"], adv_mode: AdvantageMode = "all"
) -> Float[Tensor, "g k *places"]:
    """DiffusionNFT's advantage modes: keep all, one sign, 1 for positive and 0 otherwise, or the sign alone."""
    modes = {
        "all": advantages,
        "positive_only": advantages.clamp_min(0),
        "negative_only": advantages.clamp_max(0),
        "one_only": (advantages > 0).to(advantages.dtype),
        "binary": advantages.sign(),
    }
    if adv_mode not in modes:
        raise ValueError(f"adv_mode is {adv_mode!r}, expected one of {', '.join(modes)}")
    return modes[adv_mode]


def optimality(advantages: Tensor, adv_clip_max: float = 5.0) -> Tensor:
    """Probability of being optimal, r = 0.5 + clip(A, -c, c) / (2 c), in [0, 1] (DiffusionNFT, section 3.2)."""
    if adv_clip_max <= 0:
        raise ValueError(f"adv_clip_max is {adv_clip_max}, expected a positive number")
    return (0.5 + advantages.clamp(-adv_clip_max, adv_clip_max) / (2 * adv_clip_max)).clamp(0, 1)


@dataclass(frozen=True)
class AdvantageHealth:
    """Signs that the advantages still tell rollouts apart."""

    distinct_levels: float  # occupied bins of width 0.25 on the advantage axis, mean over groups
    pair_gap: float  # |dA| of the pair of rollouts whose rewards differ most, mean over groups
    zero_spread_groups: tuple[int, ...]  # per reward: groups whose K scores are all equal
    floor_hits: tuple[int, ...]  # per reward: groups whose spread lies below the floor
    std: float  # of all advantages

    def scalars(self, names: tuple[str, ...]) -> dict[str, float]:
        """Flat log entries under `advantage/`."""
        flat = {
            "advantage/distinct_levels": self.distinct_levels,
            "advantage/pair_gap": self.pair_gap,
            "advantage/std": self.std,
        }
        for name, zeros, hits in zip(names, self.zero_spread_groups, self.floor_hits, strict=True):
            flat[f"advantage/zero_spread_groups/{name}"] = float(zeros)
            flat[f"advantage/floor_hits/{name}"] = float(hits)
        return flat


def advantage_health(
    scores: Float[Tensor, "g k m"], advantages: Float[Tensor, "g k"], *, std_floor: float = 0.0
) -> AdvantageHealth:
    """Health of a batch of advantages.

    The pair of a group is the one with the largest L1 distance between reward vectors, each reward
    measured in its own typical group spread (the construction that reproduces LucidNFT's analysis figure).
    """
    scores = scores.float()
    spread = has_spread(scores)
    typical = std_floor_of(scores, 1.0)
    scaled = scores / torch.where(typical > 0, typical, 1.0)
    distance = (scaled.unsqueeze(1) - scaled.unsqueeze(2)).abs().sum(dim=-1)  # (G, K, K)
    gaps = (advantages.unsqueeze(1) - advantages.unsqueeze(2)).abs()
    pair = distance.flatten(1).argmax(dim=1, keepdim=True)
    levels = [len(torch.unique((row / LEVEL_WIDTH).floor())) for row in advantages.cpu()]
    below = spread & (group_std(scores) < std_floor * typical)
    return AdvantageHealth(
        distinct_levels=sum(levels) / len(levels),
        pair_gap=float(gaps.flatten(1).gather(1, pair).mean()),
        zero_spread_groups=tuple((~spread).sum(dim=0).tolist()),
        floor_hits=tuple(below.sum(dim=0).tolist()),
        std=float(advantages.std(correction=0)),
    )
