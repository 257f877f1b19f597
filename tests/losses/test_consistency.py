"""Consistency loss: closed forms, locality, and what it asks for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lucidnft.losses.consistency import consistency_loss


def random_unit(*shape: int, key: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(key)), dim=-1)


def test_orthogonal_contents_give_the_hand_computed_values() -> None:
    """Two contents, one place: kept cosine 1, the other content 0, the wrong version 0."""
    original = torch.eye(3)[:2, None]
    degraded = original[:, None]
    unfaithful = torch.eye(3)[2].expand(2, 1, 1, 3)
    loss, logs = consistency_loss(
        original, degraded, unfaithful, torch.ones(2, 1, 1), temperature=0.1, margin=0.6
    )
    contrast = math.log1p(math.exp(-10))
    assert logs["hinge"].item() == 0 and logs["positive_cosine"].item() == 1
    assert loss.tolist() == pytest.approx([contrast, contrast], abs=1e-6)


def test_the_hinge_asks_for_a_margin_in_proportion_to_the_damage() -> None:
    original = torch.eye(3)[:2, None]
    same = original[:, None]
    full = consistency_loss(original, same, same, torch.ones(2, 1, 1), margin=0.6)[1]["hinge"].item()
    half = consistency_loss(original, same, same, torch.full((2, 1, 1), 0.5), margin=0.6)[1]["hinge"].item()
    none = consistency_loss(original, same, same, torch.zeros(2, 1, 1), margin=0.6)[1]["hinge"].item()
    assert full == pytest.approx(0.6 - 0.05, abs=1e-5)  # Huber with delta 0.1, over delta
    assert half == pytest.approx(0.3 - 0.05, abs=1e-5)
    assert none == 0


def test_undamaged_places_are_left_alone() -> None:
    original, degraded = random_unit(2, 3, 8, key=1), random_unit(2, 1, 3, 8, key=2)
    unfaithful = random_unit(2, 1, 3, 8, key=3).requires_grad_()
    unfaithfulness = torch.tensor([0.0, 1.0, 0.0]).expand(2, 1, 3)
    consistency_loss(original, degraded, unfaithful, unfaithfulness, margin=3.0)[0].sum().backward()
    assert unfaithful.grad is not None
    assert (unfaithful.grad[:, :, [0, 2]] == 0).all() and (unfaithful.grad[:, :, 1] != 0).any()


def test_places_of_the_same_content_are_no_negatives() -> None:
    """Two identical places in one content cost nothing; the same two in two contents do."""
    one = torch.eye(4)[[0, 0]]
    other = torch.eye(4)[[1, 1]]
    apart = consistency_loss(
        torch.stack((one, other)),
        torch.stack((one, other))[:, None],
        torch.zeros(2, 1, 2, 4),
        torch.zeros(2, 1, 2),
    )[1]["contrast"]
    together = consistency_loss(
        torch.stack((one, one)),
        torch.stack((one, one))[:, None],
        torch.zeros(2, 1, 2, 4),
        torch.zeros(2, 1, 2),
    )[1]["contrast"]
    assert apart.item() < 1e-3
    assert together.item() == pytest.approx(math.log(3), abs=1e-5)


def test_gradients_draw_the_degraded_to_the_original() -> None:
    original = random_unit(3, 2, 8, key=4)
    degraded = random_unit(3, 2, 2, 8, key=5).requires_grad_()
    wrong = random_unit(3, 2, 2, 8, key=6)
    loss, _ = consistency_loss(original, degraded, wrong, torch.full((3, 2, 2), 0.5))
    loss.sum().backward()
    assert degraded.grad is not None
    moved = F.normalize(degraded.detach() - 0.1 * degraded.grad, dim=-1)
    before = (degraded.detach() * original[:, None]).sum(-1)
    assert ((moved * original[:, None]).sum(-1) > before).float().mean() > 0.9


def test_one_content_is_not_enough() -> None:
    with pytest.raises(ValueError, match="2 contents"):
        consistency_loss(
            torch.ones(1, 1, 4), torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1)
        )
