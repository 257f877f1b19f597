"""Loss of a consistency embedder: blind to degradation, sharp about content.

A reconstruction of what arXiv 2603.05947 (v3) describes in words: pools of degraded versions of the same
content, and hard negatives that differ from the original locally.  Two terms, both place by place.
(1) Supervised InfoNCE (Khosla et al., 2020): a place of one pool member attracts the same place of the
other members against places of other contents.  (2) A ranking hinge: a degraded version lies nearer to the
original than to an unfaithful version of it, by a margin in proportion to how unfaithful that place is.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def consistency_loss(
    original: Tensor,
    degraded: Tensor,
    unfaithful: Tensor,
    unfaithfulness: Tensor,
    *,
    temperature: float = 0.1,
    margin: float = 0.6,
    hinge_weight: float = 4.0,
    positive_weight: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of B contents from L2-normalised embeddings at L places.

    original: (B, L, D), of the HR image.
    degraded: (B, P, L, D), of its LR versions.
    unfaithful: (B, Q, L, D), of wrong restorations.
    unfaithfulness: (B, Q, L) in [0, 1], how wrong each place is; 0 asks for nothing there.
    margin: cosine difference asked of a place that is entirely wrong.

    Returns (B,) losses and detached scalars.  The negatives of the InfoNCE term are the other contents of
    the batch (B >= 2); the other terms depend on one content alone.

    Raises:
        ValueError: fewer than two contents.
    """
    contents = original.shape[0]
    if contents < 2:
        raise ValueError(f"consistency_loss needs 2 contents or more to tell apart, got {contents}")
    contrast = _info_nce(original, degraded, temperature)

    kept = (degraded * original[:, None]).sum(dim=-1)  # (B, P, L)
    strayed = torch.einsum("bpld,bqld->bpql", degraded, unfaithful)
    wanted = margin * unfaithfulness[:, None]
    violation = F.relu(wanted - (kept[:, :, None] - strayed)) * (unfaithfulness[:, None] > 0)
    # Squared near zero, so that a nearly kept margin stops pulling; smooth at the hinge.
    hinge = (
        F.huber_loss(violation, torch.zeros_like(violation), reduction="none", delta=0.1).mean(dim=(1, 2, 3))
        * 10
    )
    positive = (1 - kept).mean(dim=(1, 2))

    gaps = (kept[:, :, None] - strayed).mean(dim=-1)
    wrong = unfaithfulness.mean(dim=-1) > 0.02
    right = ((gaps > 0) & wrong[:, None]).sum() / (wrong.sum() * degraded.shape[1]).clamp_min(1)
    logs = {
        "contrast": contrast.mean(),
        "hinge": hinge.mean(),
        "positive_cosine": kept.mean(),
        "unfaithful_cosine": strayed.mean(),
        "hinge_accuracy": right,
    }
    total = contrast + hinge_weight * hinge + positive_weight * positive
    return total, {name: value.detach() for name, value in logs.items()}


def _info_nce(original: Tensor, degraded: Tensor, temperature: float) -> Tensor:
    """(B,) cross entropy of finding the original's place among the places of all contents.

    Other places of the same content are left out: neighbours may well look the same.
    """
    contents, versions, places = degraded.shape[:3]
    similarity = torch.einsum("bpld,cmd->bplcm", degraded, original) / temperature
    own_content = torch.eye(contents, dtype=torch.bool, device=original.device)[:, None, None, :, None]
    same_place = torch.eye(places, dtype=torch.bool, device=original.device)[None, None, :, None, :]
    candidates = similarity.masked_fill(own_content & ~same_place, -torch.inf)
    matched = (degraded * original[:, None]).sum(dim=-1) / temperature
    every = candidates.reshape(contents, versions, places, -1)
    return (every.logsumexp(dim=-1) - matched).mean(dim=(1, 2))
