"""Quality loss: closed forms and direction of its gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lucidnft.losses.quality import SPAN, TOP, quality_loss


def maps(*values: float) -> Tensor:
    """(1, V, 2, 2) constant maps."""
    return torch.tensor(values).view(1, -1, 1, 1).expand(1, -1, 2, 2).clone()


def test_equal_scores_cost_ln_two_and_perfect_logits_cost_no_regression() -> None:
    severity = maps(0.0, 0.0, 0.0)
    loss, logs = quality_loss(torch.logit(maps(TOP, TOP, TOP)), severity, anchor_weight=0.0)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-5)
    assert logs["map"].item() == pytest.approx(0, abs=1e-6)
    exact = torch.logit(TOP - SPAN * maps(0.0, 0.5, 1.0))
    assert quality_loss(exact, maps(0.0, 0.5, 1.0))[1]["map"].item() == pytest.approx(0, abs=1e-6)


def test_the_rank_term_is_the_pairwise_logistic_loss() -> None:
    scores = (0.8, 0.7)
    _, logs = quality_loss(torch.logit(maps(*scores)), maps(0.0, 0.2), temperature=0.05)
    assert logs["rank"].item() == pytest.approx(math.log1p(math.exp(-0.1 / 0.05)), abs=1e-4)
    assert logs["rank_accuracy"].item() == 1.0
    assert quality_loss(torch.logit(maps(0.7, 0.8)), maps(0.0, 0.2))[1]["rank_accuracy"].item() == 0.0


def test_gradients_raise_the_undamaged_and_lower_the_damaged() -> None:
    logits = torch.zeros(1, 3, 2, 2, requires_grad=True)
    loss, _ = quality_loss(logits, maps(0.0, 0.4, 0.8), map_weight=0.0, anchor_weight=0.0)
    loss.sum().backward()
    assert logits.grad is not None
    assert (logits.grad[:, 0] < 0).all() and (logits.grad[:, 2] > 0).all()


def test_a_saturated_map_is_still_pulled_back() -> None:
    logits = torch.full((1, 2, 2, 2), 60.0, requires_grad=True)
    quality_loss(logits, maps(0.0, 1.0))[0].sum().backward()
    assert logits.grad is not None and (logits.grad > 0.05).all()


def test_indistinct_pairs_are_not_ranked() -> None:
    distinct = torch.zeros(1, 2, 2, dtype=torch.bool)
    _, logs = quality_loss(torch.logit(maps(0.2, 0.8)), maps(0.0, 0.1), distinct=distinct)
    assert logs["rank"].item() == 0


def test_the_anchor_looks_at_severe_versions_of_other_contents_only() -> None:
    logits = torch.logit(torch.cat((maps(0.6, 0.5), maps(0.9, 0.7))))
    severity = torch.cat((maps(0.0, 0.1), maps(0.0, 0.9)))
    _, logs = quality_loss(logits, severity, temperature=0.05)
    only = math.log1p(math.exp(-(0.6 - 0.7) / 0.05))
    assert logs["anchor"].item() == pytest.approx(only / 2, rel=1e-4)


def test_contents_are_independent_apart_from_the_anchor() -> None:
    logits, severity = torch.randn(3, 4, 2, 2), torch.rand(3, 4, 2, 2)
    changed = logits.clone()
    changed[2] += 1
    before, _ = quality_loss(logits, severity, anchor_weight=0.0)
    after, _ = quality_loss(changed, severity, anchor_weight=0.0)
    assert torch.equal(before[:2], after[:2]) and before[2] != after[2]
    assert before.shape == (3,)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="must both be"):
        quality_loss(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 3))
