"""Properties of advantages: what they ignore, what they must not ignore, and hand-worked values."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lucidnft.advantages import (
    advantage_health,
    advantages_of_places,
    decoupled_advantages,
    optimality,
    places_as_groups,
    scalarised_advantages,
    select_advantages,
)


def scores_of(seed: int, groups: int = 4, group_size: int = 6, rewards: int = 3) -> torch.Tensor:
    return torch.randn((groups, group_size, rewards), generator=torch.Generator().manual_seed(seed))


WEIGHTS = torch.tensor([1.0, 0.5, 2.0])


def test_one_reward_by_hand():
    scores = torch.tensor([[[1.0], [2.0], [3.0]]])
    advantages = decoupled_advantages(scores, torch.ones(1), whiten=False, eps=0.0)
    torch.testing.assert_close(advantages, torch.tensor([[-1.0, 0.0, 1.0]]))


def test_two_rewards_are_each_normalised_before_they_are_summed():
    # the second reward spreads a thousand times as far and disagrees on the last two rollouts
    scores = torch.tensor([[[0.1, 0.0], [0.2, 2000.0], [0.3, 1000.0]]])
    advantages = decoupled_advantages(scores, torch.tensor([1.0, 3.0]), whiten=False, eps=0.0)
    torch.testing.assert_close(advantages, torch.tensor([[-4.0, 3.0, 1.0]]), rtol=1e-5, atol=1e-5)


@given(st.integers(0, 10**6), st.booleans())
def test_every_group_has_mean_zero(seed, whiten):
    advantages = decoupled_advantages(scores_of(seed), WEIGHTS, whiten=whiten)
    assert float(advantages.mean(dim=1).abs().max()) < 1e-5


@given(st.integers(0, 10**6), st.floats(0.01, 100), st.floats(-50, 50), st.integers(0, 2))
def test_rescaling_or_shifting_a_reward_changes_nothing(seed, scale, shift, which):
    scores = scores_of(seed).double()
    changed = scores.clone()
    changed[..., which] = changed[..., which] * scale + shift
    before = decoupled_advantages(scores, WEIGHTS)
    torch.testing.assert_close(decoupled_advantages(changed, WEIGHTS), before, rtol=0, atol=2e-2)
    if abs(shift) < 10 * scale:  # float32 keeps the digits
        torch.testing.assert_close(decoupled_advantages(changed, WEIGHTS), before, rtol=0, atol=1e-3)


def test_rescaling_a_reward_does_change_the_scalarised_baseline():
    scores = scores_of(3)
    changed = scores * torch.tensor([100.0, 1.0, 1.0])
    for std in ("global", "group"):
        before = scalarised_advantages(scores, WEIGHTS, std=std)
        after = scalarised_advantages(changed, WEIGHTS, std=std)
        assert float((before - after).abs().max()) > 0.3


@given(st.integers(0, 10**6), st.permutations(range(6)))
def test_permuting_rollouts_permutes_advantages(seed, order):
    scores = scores_of(seed)
    order = list(order)
    torch.testing.assert_close(
        decoupled_advantages(scores[:, order], WEIGHTS), decoupled_advantages(scores, WEIGHTS)[:, order]
    )


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4, -3.3])
def test_a_group_of_equal_scores_gets_exactly_zero(value):
    scores = scores_of(0)
    scores[1] = value
    for advantages in (
        decoupled_advantages(scores, WEIGHTS),
        decoupled_advantages(scores, WEIGHTS, whiten=False, std_floor=0.1),
        scalarised_advantages(scores, WEIGHTS),
        scalarised_advantages(scores, WEIGHTS, std="group"),
    ):
        assert bool((advantages[1] == 0).all())
        assert bool((advantages[0] != 0).all())


def test_no_spread_anywhere_gives_zero_everywhere():
    assert bool((decoupled_advantages(torch.full((3, 4, 2), 0.7), torch.ones(2)) == 0).all())


def test_a_reward_without_spread_leaves_the_others_as_they_are():
    scores = scores_of(1)
    scores[..., 2] = 0.25
    alone = decoupled_advantages(scores[..., :2], WEIGHTS[:2])
    torch.testing.assert_close(decoupled_advantages(scores, WEIGHTS), alone)


def test_whitening_gives_the_batch_unit_spread():
    advantages = decoupled_advantages(scores_of(5, groups=8), WEIGHTS)
    assert float(advantages.std()) == pytest.approx(1.0, abs=1e-3)


def test_the_floor_keeps_a_nearly_flat_group_small():
    scores = scores_of(2, groups=5, rewards=1)
    scores[0] *= 1e-3
    free = decoupled_advantages(scores, torch.ones(1), whiten=False)
    floored = decoupled_advantages(scores, torch.ones(1), whiten=False, std_floor=0.1)
    assert float(free[0].abs().max()) > 0.5
    assert float(floored[0].abs().max()) < 0.05
    torch.testing.assert_close(floored[1:], free[1:])
    health = advantage_health(scores, floored, std_floor=0.1)
    assert health.floor_hits == (1,)


def test_global_baseline_by_hand():
    scores = torch.tensor([[[0.0], [2.0]], [[10.0], [14.0]]])
    spread = scores.std(correction=0)
    expected = torch.tensor([[-1.0, 1.0], [-2.0, 2.0]]) / spread
    torch.testing.assert_close(scalarised_advantages(scores, torch.ones(1), eps=0.0), expected)
    grouped = scalarised_advantages(scores, torch.ones(1), std="group", eps=0.0)
    torch.testing.assert_close(grouped, torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]))


def test_optimality_by_hand():
    advantages = torch.tensor([-9.0, -5.0, -2.5, 0.0, 1.0, 5.0, 9.0])
    expected = torch.tensor([0.0, 0.0, 0.25, 0.5, 0.6, 1.0, 1.0])
    torch.testing.assert_close(optimality(advantages), expected)
    torch.testing.assert_close(optimality(advantages, 1.0), torch.tensor([0.0, 0, 0, 0.5, 1, 1, 1]))


@pytest.mark.usefixtures("unchecked_shapes")
def test_modes():
    advantages = torch.tensor([[-2.0, 0.0, 3.0]])
    expected = {
        "all": [-2.0, 0, 3],
        "positive_only": [0.0, 0, 3],
        "negative_only": [-2.0, 0, 0],
        "one_only": [0.0, 0, 1],
        "binary": [-1.0, 0, 1],
    }
    for mode, values in expected.items():
        assert select_advantages(advantages, mode).tolist() == [values]
    with pytest.raises(ValueError, match="adv_mode is 'some'"):
        select_advantages(advantages, "some")


def test_health_by_hand():
    scores = torch.zeros(2, 3, 2)
    scores[0, :, 0] = torch.tensor([0.0, 1.0, 4.0])
    scores[0, :, 1] = torch.tensor([0.0, 0.0, 1.0])
    advantages = torch.tensor([[-1.0, 0.1, 0.9], [0.0, 0.0, 0.0]])
    health = advantage_health(scores, advantages)
    assert health.zero_spread_groups == (1, 1)
    assert health.distinct_levels == pytest.approx((3 + 1) / 2)
    assert health.pair_gap == pytest.approx((1.9 + 0.0) / 2)  # rollouts 0 and 2 differ most
    assert health.scalars(("a", "b"))["advantage/zero_spread_groups/b"] == 1.0


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("scores", "weights", "words"),
    [
        (torch.zeros(2, 3), torch.ones(3), "expected \\(G, K, M\\)"),
        (torch.zeros(2, 1, 3), torch.ones(3), "at least 2 rollouts"),
        (torch.zeros(2, 3, 3), torch.ones(2), "for 3 rewards"),
        (torch.full((2, 3, 1), float("nan")), torch.ones(1), "NaN or infinite"),
    ],
)
def test_unusable_scores_are_refused(scores, weights, words):
    for function in (decoupled_advantages, scalarised_advantages):
        with pytest.raises(ValueError, match=words):
            function(scores, weights)


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4))
def test_a_place_is_compared_with_itself_in_the_other_rollouts_alone(seed, height, width):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn((2, 5, 3, height, width), generator=generator)
    advantages = advantages_of_places(scores, lambda s: decoupled_advantages(s, WEIGHTS, whiten=False))
    assert advantages.shape == (2, 5, height, width)
    g, row, column = seed % 2, seed % height, seed % width
    alone = decoupled_advantages(scores[g : g + 1, :, :, row, column], WEIGHTS, whiten=False)
    # eps is a part of a spread typical of the whole batch, so that the two differ by about it
    torch.testing.assert_close(advantages[g, :, row, column], alone[0], rtol=2e-2, atol=2e-3)


def test_one_place_is_the_whole_image():
    scores = scores_of(2)
    as_places = places_as_groups(scores[..., None, None])
    torch.testing.assert_close(as_places, scores)
    on_a_grid = advantages_of_places(scores[..., None, None], lambda s: s[..., 0])
    torch.testing.assert_close(on_a_grid[..., 0, 0], scores[..., 0])
