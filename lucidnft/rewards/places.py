"""Where in an image a reward finds its fault, and a picture of it."""

from __future__ import annotations

import torch
from torch import Tensor

from lucidnft.rewards.base import Reward
from lucidnft.rewards.consistency import LucidConsistency

WINDOWS_PER_SIDE = 8  # of maps by occlusion; they overlap by half
_RED = (1.0, 0.0, 0.0)


def tells_places(reward: Reward) -> bool:
    """Whether `place_scores` works for this reward."""
    return reward.scores_places or isinstance(reward, LucidConsistency)


def by_occlusion(reward: Reward) -> bool:
    """Whether the map is that of `LucidConsistency.explain`: its embedder sees images as a whole."""
    return isinstance(reward, LucidConsistency) and not reward.scores_places


@torch.no_grad()
def place_scores(reward: Reward, lr: Tensor, sr: Tensor) -> Tensor:
    """lr (1, 3, h, w), sr (1, 3, H, W) in [0, 1] -> (h', w') on any grid, on the CPU, higher is better.

    The scores of the reward's own map, or, `by_occlusion`, minus what the score of the whole image would gain if LR
    stood there (0 is best), which costs an embedding per window: minutes for ten images of 512 px with the tiny
    embedder on two cores.

    Raises:
        NotImplementedError: the reward judges an image as a whole.
    """
    if isinstance(reward, LucidConsistency) and by_occlusion(reward):
        window = max(16, max(sr.shape[2:]) // WINDOWS_PER_SIDE)
        return -reward.explain(lr[0], sr[0], window=window).cpu()
    reward.wake()
    reference = reward.reference(lr, None, None, (sr.shape[2], sr.shape[3]))
    scores = reward.score_map(sr, reference)[0].float().cpu()
    reward.rest()
    return scores


def redden(images: Tensor, share: Tensor) -> Tensor:
    """(N, 3, H, W), (H, W) in [0, 1] -> (N, 3, H, W): the share of pure red in every pixel."""
    return images * (1 - share) + share * torch.tensor(_RED).view(1, 3, 1, 1)
