"""Minibatches of DiffusionNFT, and that every skipped network pass changes nothing."""

from collections import Counter

import pytest
import torch

from lucidnft.algorithms.nft import NFT, old_policy_decay
from lucidnft.losses.nft import nft_loss
from lucidnft.policy import Role
from lucidnft.records import ImageBatch
from lucidnft.rollout import RolloutConfig, generate_rollout
from lucidnft.training.settings import NFTTrainConfig
from tests.small_backbone import backbone, moved_policy

__all__ = ["backbone"]

CONFIG = RolloutConfig(num_groups=2, group_size=3, num_inference_steps=4)


@pytest.fixture
def policy(backbone):
    return moved_policy(backbone)


@pytest.fixture
def rollout(policy):
    lr = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    batch = ImageBatch(lr=lr, keys=("a", "b"), group_ids=(4, 5))
    condition = policy.encode_condition(batch)
    return generate_rollout(policy, condition, (4, 5), CONFIG, seed=0, step=0, size=(32, 32))


ADVANTAGES = torch.tensor([[1.0, -1.0, 0.0], [2.0, -9.0, 7.0]])


def minis(rollout, **settings):
    train = NFTTrainConfig.model_validate({"num_train_timesteps": 2, "timestep_sampling": "grid", **settings})
    return NFT(train, seed=0), list(NFT(train, seed=0).minibatches(rollout, ADVANTAGES, (4, 5), 0))


def test_every_rollout_is_trained_once_at_t_times_with_its_own_condition_and_optimality(rollout):
    _, batches = minis(rollout, per_device_batch_size=4)
    seen = Counter()
    for mini in batches:
        for i in range(len(mini.t)):
            match = (rollout.x_0 == mini.x_0[i]).flatten(2).all(dim=2).nonzero()
            assert len(match) == 1
            g, k = match[0].tolist()
            assert torch.equal(mini.condition["up"][i], rollout.condition["up"][g])
            expected = 0.5 + ADVANTAGES[g, k].clamp(-5, 5) / 10
            torch.testing.assert_close(mini.optimality[i], expected)
            seen[g, k] += 1
    assert seen == {(g, k): 2 for g in range(2) for k in range(3)}


def test_advantages_of_places_cover_them_and_only_them(rollout):
    places = torch.zeros((2, 3, 2, 4))  # a 32 px image in cells of 16 x 8 px
    places[1, 2, 0, 3] = 5.0
    train = NFTTrainConfig.model_validate({"num_train_timesteps": 2, "timestep_sampling": "grid"})
    (mini,) = NFT(train, seed=0).minibatches(rollout, places, (4, 5), 0)
    assert mini.optimality.shape == (12, 1, 32, 32)
    expected = torch.full((1, 32, 32), 0.5)
    expected[:, :16, 24:] = 1.0
    for x_0, optimality in zip(mini.x_0, mini.optimality, strict=True):
        favoured = torch.equal(x_0, rollout.x_0[1, 2])
        assert torch.equal(optimality, expected if favoured else torch.full((1, 32, 32), 0.5))


@pytest.mark.parametrize(
    ("per_device", "steps", "sizes"), [(6, 1, [6]), (4, 1, [4, 2]), (2, 2, [2, 1, 2, 1]), (8, 6, [1] * 6)]
)
def test_cuts_into_minibatches_and_optimiser_steps(rollout, per_device, steps, sizes):
    _, batches = minis(rollout, per_device_batch_size=per_device, gradient_steps_per_epoch=steps)
    assert [len(m.t) // 2 for m in batches] == sizes
    assert sum(m.closes_step for m in batches) == steps
    assert sum(m.share for m in batches) == pytest.approx(steps)


def test_accumulated_gradient_does_not_depend_on_the_micro_batch(policy, rollout):
    grads = []
    for per_device in (6, 4, 1):
        algorithm, batches = minis(rollout, per_device_batch_size=per_device, kl_beta=0.1)
        for parameter in policy.parameters.values():
            parameter.grad = None
        for mini in batches:
            losses, _ = algorithm.loss(policy, mini)
            (losses.mean() * mini.share).backward()
        grads.append(torch.cat([p.grad.flatten() for p in policy.parameters.values()]))
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(grads[2], grads[0], rtol=1e-3, atol=1e-5)


def test_draws_are_keyed_by_group_and_not_by_the_company_it_keeps(rollout):
    algorithm, _ = minis(rollout)
    times, noise = algorithm.draws(rollout, (4, 5), 3)
    lone_times, lone_noise = algorithm.draws(rollout, (5,), 3)
    assert torch.equal(times[3:], lone_times)
    assert torch.equal(noise[3:], lone_noise)
    assert not torch.equal(algorithm.draws(rollout, (4, 5), 4)[1], noise)


def test_all_but_one_time_by_default(rollout):
    _, batches = minis(rollout, num_train_timesteps=None, timestep_sampling="all")
    assert sum(len(m.t) for m in batches) == 6 * 3
    assert set(torch.cat([m.t for m in batches]).tolist()) <= set(rollout.time_grid[:-1].tolist())


def test_times_outside_the_bounds_are_not_trained(rollout):
    bounds = {"t_min": float(rollout.time_grid[2]), "t_max": float(rollout.time_grid[1])}
    algorithm, batches = minis(rollout, num_train_timesteps=None, timestep_sampling="all", **bounds)
    assert algorithm.num_times(rollout.time_grid) == 1  # of two
    assert set(torch.cat([m.t for m in batches]).tolist()) == set(rollout.time_grid[1:3].tolist())


def test_asking_for_more_times_than_there_are_is_refused_before_a_draw(rollout):
    settings = NFTTrainConfig(num_train_timesteps=2, timestep_sampling="grid", t_max=0.05)
    with pytest.raises(
        ValueError, match=r"num_train_timesteps is 2 but the grid has \d times in \[0.001, 0.05\]"
    ):
        NFT(settings, seed=0).num_times(rollout.time_grid)
    between = settings.model_copy(update={"timestep_sampling": "uniform"})
    assert NFT(between, seed=0).num_times(rollout.time_grid) == 2


def test_bounds_of_the_trained_times_that_leave_none_are_refused():
    with pytest.raises(ValueError, match="t_min is 0.8, not below t_max 0.5"):
        NFTTrainConfig(t_min=0.8, t_max=0.5)


def unskipped_loss(policy, mini, settings):
    """The published step: three passes each, whatever the settings."""
    x_t = (1 - mini.t.view(-1, 1, 1, 1)) * mini.x_0 + mini.t.view(-1, 1, 1, 1) * mini.noise
    v_old = policy(x_t, mini.t, mini.condition, Role.OLD)
    v_ref = policy(x_t, mini.t, mini.condition, Role.REFERENCE)
    v = policy(x_t, mini.t, mini.condition, Role.CURRENT)
    return nft_loss(
        v, v_old, v_ref, x_0=mini.x_0, x_t=x_t, t=mini.t, optimality=mini.optimality,
        nft_beta=settings.nft_beta, kl_beta=settings.kl_beta, adv_clip_max=settings.adv_clip_max,
    )[0]  # fmt: skip


@pytest.mark.parametrize("kl_beta", [0.0, 0.1])
@pytest.mark.parametrize("equal", [True, False])
def test_skipped_passes_change_neither_loss_nor_gradient(policy, rollout, kl_beta, equal):
    if equal:
        policy.update_old(0.0)
    algorithm, batches = minis(rollout, kl_beta=kl_beta, nft_beta=0.5)
    parameters = list(policy.parameters.values())
    roles = []
    original = policy.backbone.velocity

    def counting(*arguments, **options):
        roles.append(torch.is_grad_enabled())
        return original(*arguments, **options)

    policy.backbone.velocity = counting
    losses, _ = algorithm.loss(policy, batches[0])
    assert len(roles) == 1 + (kl_beta > 0) + (not equal)
    gradient = torch.autograd.grad(losses.sum(), parameters)
    expected = unskipped_loss(policy, batches[0], algorithm.settings)
    torch.testing.assert_close(losses, expected, rtol=0, atol=0)
    for ours, theirs in zip(gradient, torch.autograd.grad(expected.sum(), parameters), strict=True):
        assert torch.equal(ours, theirs)


def test_times_in_one_call_give_what_one_call_per_time_gives(policy, rollout):
    algorithm, batches = minis(rollout, per_device_batch_size=6)
    mini = batches[0]
    x_t = (1 - mini.t.view(-1, 1, 1, 1)) * mini.x_0 + mini.t.view(-1, 1, 1, 1) * mini.noise
    together = policy(x_t, mini.t, mini.condition, Role.OLD)
    for first in (0, 1):
        rows = torch.arange(first, len(mini.t), 2)
        apart = policy(x_t[rows], mini.t[rows], mini.condition.index(rows), Role.OLD)
        torch.testing.assert_close(apart, together[rows], rtol=1e-4, atol=1e-5)


def test_old_policy_schedules():
    assert [old_policy_decay("copy", s) for s in (0, 10, 1000)] == [0.0, 0.0, 0.0]
    assert [old_policy_decay("linear_to_0_5", s) for s in (0, 100, 900)] == [0.0, 0.1, 0.5]
    delayed = [old_policy_decay("delayed_linear_to_0_999", s) for s in (0, 74, 75, 115, 1000)]
    assert delayed == pytest.approx([0, 0, 0, 0.3, 0.999])
    custom = [
        old_policy_decay("custom", s, flat_steps=2, ramp_rate=0.1, max_decay=0.25) for s in (1, 2, 4, 9)
    ]
    assert custom == pytest.approx([0, 0, 0.2, 0.25])
    with pytest.raises(ValueError, match="expected one of copy"):
        old_policy_decay("cosine", 0)


def test_shared_draws_are_one_per_group(rollout):
    algorithm, _ = minis(rollout, share_draws_in_group=True)
    times, noise = algorithm.draws(rollout, (4, 5), 3)
    assert times.shape == (6, 2) and noise.shape[:2] == (6, 2)
    for group in (slice(0, 3), slice(3, 6)):
        assert torch.equal(times[group], times[group][:1].expand(3, -1))
        assert torch.equal(noise[group], noise[group][:1].expand(3, *noise.shape[1:]))
    assert not torch.equal(noise[0], noise[3])
    assert torch.equal(algorithm.draws(rollout, (5,), 3)[1], noise[3:])


def test_shared_draws_lower_the_variance_of_the_gradient(policy, rollout):
    policy.update_old(0.0)
    spread = {}
    for shared in (False, True):
        settings = NFTTrainConfig(
            num_train_timesteps=1, timestep_sampling="grid", share_draws_in_group=shared
        )
        algorithm, grads = NFT(settings, seed=0), []
        for step in range(12):
            for mini in algorithm.minibatches(rollout, torch.tensor([[1.0, -1.0, 0.0]] * 2), (4, 5), step):
                for parameter in policy.parameters.values():
                    parameter.grad = None
                algorithm.loss(policy, mini)[0].mean().backward()
                grads.append(torch.cat([p.grad.flatten() for p in policy.parameters.values()]))
        spread[shared] = float(torch.stack(grads).var(dim=0).sum())
    assert spread[True] < 0.7 * spread[False]
