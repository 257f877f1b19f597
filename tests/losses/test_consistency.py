"""Consistency loss: closed forms, locality, and what it asks for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lucidnft.losses.consistency import alignment_loss, consistency_loss


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


def test_a_wrong_version_is_compared_with_its_counterpart() -> None:
    original, degraded = random_unit(2, 3, 8, key=1), random_unit(2, 2, 3, 8, key=2)
    unfaithful, counterpart = random_unit(2, 4, 3, 8, key=3), random_unit(2, 4, 3, 8, key=4)
    damage = torch.ones(2, 4, 3)
    loss, logs = consistency_loss(original, degraded, unfaithful, damage, margin=0.0, counterpart=counterpart)
    ahead = torch.einsum("bpld,bqld->bpql", degraded, counterpart - unfaithful)
    assert float(logs["hinge_accuracy"]) == pytest.approx(float((ahead.mean(dim=-1) > 0).float().mean()))
    # one that strays no farther than its counterpart does costs the margin; against the original it need not
    same = consistency_loss(original, degraded, unfaithful, damage, margin=0.6, counterpart=unfaithful)[1]
    assert float(same["hinge"]) == pytest.approx(0.6 - 0.05, abs=1e-5)
    plain = consistency_loss(original, degraded, unfaithful, damage, margin=0.6)[1]
    repeated = original[:, None].expand(-1, 4, -1, -1)
    as_original = consistency_loss(original, degraded, unfaithful, damage, margin=0.6, counterpart=repeated)[
        1
    ]
    assert float(as_original["hinge"]) == pytest.approx(float(plain["hinge"]), abs=1e-6)


def test_alignment_by_cosine_is_one_minus_the_cosine() -> None:
    lr, hr = random_unit(3, 2, 8, key=1), random_unit(3, 2, 8, key=2)
    loss, logs = alignment_loss(lr, hr, kind="cosine")
    expected = 1 - (lr * hr).sum(dim=-1).mean(dim=1)
    torch.testing.assert_close(loss, expected)
    assert float(logs["positive_cosine"]) == pytest.approx(1 - float(expected.mean()), abs=1e-6)
    constant = torch.ones(3, 2, 8) / 8**0.5  # what a head can collapse to
    assert float(alignment_loss(constant, constant, kind="cosine")[0].abs().max()) < 1e-6


def test_alignment_by_info_nce_has_its_closed_form_and_punishes_a_collapse() -> None:
    apart = torch.eye(4)[:2, None]
    loss, _ = alignment_loss(apart, apart, kind="info_nce", temperature=0.1)
    assert loss.tolist() == pytest.approx([math.log1p(math.exp(-10))] * 2, abs=1e-6)
    constant = torch.ones(2, 1, 4) / 2
    collapsed, _ = alignment_loss(constant, constant, kind="info_nce")
    assert collapsed.tolist() == pytest.approx([math.log(2)] * 2, abs=1e-6)
    with pytest.raises(ValueError, match="2 pairs or more"):
        alignment_loss(constant[:1], constant[:1], kind="info_nce")


def test_the_spread_term_in_closed_form_and_blind_to_scale() -> None:
    axes = torch.eye(4)
    original = axes[:2, None]

    def pool(*cosines: float) -> Tensor:
        rows = [
            torch.stack([c * axes[i] + (1 - c * c) ** 0.5 * axes[i + 2] for c in cosines]) for i in range(2)
        ]
        return torch.stack(rows)[:, :, None]

    def spread(original: Tensor, degraded: Tensor) -> float:
        zeros = torch.zeros(2, 1, 1, original.shape[-1])
        arguments = (original, degraded, zeros, torch.zeros(2, 1, 1))
        with_it = consistency_loss(*arguments, spread_weight=2.0)[0]
        return float((with_it - consistency_loss(*arguments)[0])[0]) / 2

    assert spread(original, pool(0.9, 0.7)) == pytest.approx(0.2 / 2**0.5 / 0.8, rel=1e-5)
    assert spread(original, pool(0.8, 0.8)) == pytest.approx(0, abs=1e-6)
    # a large common part of all embeddings brings every score near 1 and changes nothing
    common = torch.ones(1)

    def lifted(x: Tensor) -> Tensor:
        return F.normalize(torch.cat((3 * common.expand(*x.shape[:-1], 1), x), dim=-1), dim=-1)

    assert spread(lifted(original), lifted(pool(0.9, 0.7))) == pytest.approx(0.2 / 2**0.5 / 0.8, rel=1e-5)
    with pytest.raises(ValueError, match="one degraded version"):
        spread(original, pool(0.9))
