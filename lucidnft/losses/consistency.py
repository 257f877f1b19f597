"""Loss of a consistency embedder: blind to degradation, sharp about content.

A reconstruction of what arXiv 2603.05947 (v3) describes in words: pools of degraded versions of the same
content, and hard negatives that differ from the original locally.  Two terms, both place by place.
(1) Supervised InfoNCE (Khosla et al., 2020): a place of one pool member attracts the same place of the
other members against places of other contents.  (2) A ranking hinge: a degraded version lies nearer to the
original than to an unfaithful version of it, by a margin in proportion to how unfaithful that place is.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def consistency_loss(
    original: Tensor,
    degraded: Tensor,
    unfaithful: Tensor,
    unfaithfulness: Tensor,
    *,
    counterpart: Tensor | None = None,
    temperature: float = 0.1,
    margin: float = 0.6,
    hinge_weight: float = 4.0,
    positive_weight: float = 1.0,
    spread_weight: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of B contents from L2-normalised embeddings at L places.

    original: (B, L, D), of the HR image.
    degraded: (B, P, L, D), of its LR versions.
    unfaithful: (B, Q, L, D), of wrong restorations.
    unfaithfulness: (B, Q, L) in [0, 1], how wrong each place is; 0 asks for nothing there.
    counterpart: (B, Q, L, D), what each wrong restoration is compared with; default the original.
    margin: cosine difference asked of a place that is entirely wrong.
    spread_weight: of the standard deviation of the score over the P >= 2 degraded versions, in units of the
        batch's gap between true and mismatched pairs (without which scores would only have to shrink).

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
    if counterpart is None:
        ahead = kept[:, :, None] - strayed  # (B, P, Q, L)
    else:
        ahead = torch.einsum("bpld,bqld->bpql", degraded, counterpart) - strayed
    hinge = _hinge(wanted, ahead)
    positive = (1 - kept).mean(dim=(1, 2))

    wrong = unfaithfulness.mean(dim=-1) > 0.02
    found = ((ahead.mean(dim=-1) > 0) & wrong[:, None]).sum()
    logs = {
        "contrast": contrast.mean(),
        "hinge": hinge.mean(),
        "positive_cosine": kept.mean(),
        "unfaithful_cosine": strayed.mean(),
        "hinge_accuracy": found / (wrong.sum() * degraded.shape[1]).clamp_min(1),
    }
    total = contrast + hinge_weight * hinge + positive_weight * positive
    if spread_weight:
        spread = _relative_spread(original, degraded)
        logs["spread"] = spread.mean()
        total = total + spread_weight * spread
    return total, {name: value.detach() for name, value in logs.items()}


def _hinge(wanted: Tensor, ahead: Tensor) -> Tensor:
    """(B,) Huber loss of what ahead (B, P, Q, L) lacks of wanted (B, 1, Q, L); 0 where nothing is wanted.

    Squared near zero, so that a nearly kept margin stops pulling; smooth at the hinge.
    """
    lacking = F.relu(wanted - ahead) * (wanted > 0)
    loss = F.huber_loss(lacking, torch.zeros_like(lacking), reduction="none", delta=0.1)
    return loss.mean(dim=(1, 2, 3)) * 10


def _relative_spread(original: Tensor, degraded: Tensor) -> Tensor:
    """(B,) standard deviation over P of the score with the own original, over mean own minus mean other score."""
    if degraded.shape[1] < 2:
        raise ValueError("spread_weight is above 0, but a pool has one degraded version: nothing can spread")
    table = torch.einsum("bpld,cld->bpc", degraded, original) / degraded.shape[2]
    own = table.diagonal(dim1=0, dim2=2).T  # (B, P)
    others = table.sum(dim=2) - own
    gap = own.mean() - others.mean() / (len(original) - 1)
    return own.std(dim=1) / gap.clamp_min(1e-3)


def alignment_loss(
    lr: Tensor, hr: Tensor, *, kind: Literal["cosine", "info_nce"], temperature: float = 0.1
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of B LR-HR pairs, L2-normalised embeddings (B, L, D) each; (B,) losses and detached scalars.

    cosine: 1 - cosine, the least that arXiv 2603.05947 (v1) can be read to do; a head that maps everything to one
    vector has a loss of 0.  info_nce: find the own HR image among those of the batch, place by place.

    Raises:
        ValueError: info_nce with fewer than two pairs.
    """
    kept = (lr * hr).sum(dim=-1)
    if kind == "cosine":
        loss = (1 - kept).mean(dim=1)
    elif lr.shape[0] < 2:
        raise ValueError(f"info_nce needs 2 pairs or more to tell apart, got {lr.shape[0]}")
    else:
        loss = _info_nce(hr, lr[:, None], temperature)
    return loss, {"positive_cosine": kept.mean().detach()}


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
