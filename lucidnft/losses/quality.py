"""Loss of the no-reference quality network: order versions of one content, and place them on a scale.

Three terms.  (1) Pairwise logistic ranking (RankNet; Burges et al., 2005) over versions of the same
content ordered by severity.  (2) A Huber distance of every cell's logit to that of `TOP - SPAN * severity`,
which gives the scores a unit and makes them local; it acts on logits, so a saturated cell is still pulled
back, and TOP below 1 keeps good images off the flat end of the sigmoid.  (3) An anchor across contents: an
undamaged image scores above badly damaged images of other contents, so that the score is not only relative.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TOP = 0.9
SPAN = 0.8
SEVERE = 0.35
"""Mean severity from which a version counts as badly damaged for the anchor."""


def quality_loss(
    quality_logits: Tensor,
    severity_maps: Tensor,
    *,
    distinct: Tensor | None = None,
    temperature: float = 0.05,
    map_weight: float = 1.0,
    anchor_weight: float = 0.3,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of B contents with V versions each; version 0 is undamaged, later ones are ever more severe.

    quality_logits: (B, V, h, w); their sigmoid is the quality map, whose mean is the score.
    severity_maps: (B, V, h, w) in [0, 1].
    distinct: (B, V, V) bool, which pairs of versions differ visibly; only those are ranked.  Default: all.
    temperature: score difference at which the ranking term has lost about two thirds of its slope.

    Returns (B,) losses and detached scalars.  The anchor of a content looks at the other contents of the
    batch; every other term depends on that content alone.
    """
    if quality_logits.shape != severity_maps.shape or quality_logits.ndim != 4:
        raise ValueError(
            f"quality_logits {tuple(quality_logits.shape)} and severity_maps {tuple(severity_maps.shape)} "
            "must both be (B, V, h, w)"
        )
    contents, versions = quality_logits.shape[:2]
    scores = torch.sigmoid(quality_logits).mean(dim=(2, 3))
    ordered = torch.ones(versions, versions, device=scores.device).triu(diagonal=1).bool()
    ranked = ordered.expand(contents, -1, -1) if distinct is None else ordered & distinct
    gaps = scores[:, :, None] - scores[:, None, :]
    rank = (F.softplus(-gaps / temperature) * ranked).sum(dim=(1, 2)) / ranked.sum(dim=(1, 2)).clamp_min(1)

    targets = torch.logit(TOP - SPAN * severity_maps)
    regression = F.huber_loss(quality_logits, targets, reduction="none").mean(dim=(1, 2, 3))

    severe = severity_maps.mean(dim=(2, 3)) > SEVERE
    across = ~torch.eye(contents, dtype=torch.bool, device=scores.device)[:, :, None] & severe[None]
    above = scores[:, 0, None, None] - scores[None]
    anchor = (F.softplus(-above / temperature) * across).sum(dim=(1, 2)) / across.sum(dim=(1, 2)).clamp_min(1)

    right = ((gaps > 0) & ranked).sum() / ranked.sum().clamp_min(1)
    logs = {
        "rank": rank.mean(),
        "map": regression.mean(),
        "anchor": anchor.mean(),
        "rank_accuracy": right,
        "clean_score": scores[:, 0].mean(),
    }
    total = rank + map_weight * regression + anchor_weight * anchor
    return total, {name: value.detach() for name, value in logs.items()}
