"""The DiffusionNFT loss against values and gradients worked out by hand."""

import pytest
import torch

from lucidnft.losses.nft import nft_loss


def inputs(seed: int = 0, batch: int = 4):
    generator = torch.Generator().manual_seed(seed)
    x_0, noise, v, v_old, v_ref = (torch.randn((batch, 3, 5, 5), generator=generator) for _ in range(5))
    t = torch.rand(batch, generator=generator) * 0.8 + 0.1
    x_t = (1 - t).view(-1, 1, 1, 1) * x_0 + t.view(-1, 1, 1, 1) * noise
    r = torch.rand(batch, generator=generator)
    return {"v": v, "v_old": v_old, "v_ref": v_ref, "x_0": x_0, "x_t": x_t, "t": t, "optimality": r}


def call(values, **options):
    values = dict(values)
    return nft_loss(values.pop("v"), values.pop("v_old"), values.pop("v_ref"), **values, **options)


def test_restated_from_the_released_form():
    given = inputs()
    loss, logs = call(given, nft_beta=0.3, kl_beta=0.02, adv_clip_max=4.0)
    t = given["t"].view(-1, 1, 1, 1)
    for i in range(4):
        parts = []
        for sign in (1, -1):
            mixed = (1 - sign * 0.3) * given["v_old"] + sign * 0.3 * given["v"]
            x = (given["x_t"] - t * mixed)[i]
            scale = (x - given["x_0"][i]).abs().mean()
            parts.append(((x - given["x_0"][i]) ** 2).mean() / scale)
        r = given["optimality"][i]
        kl = ((given["v"] - given["v_ref"])[i] ** 2).mean()
        expected = 4.0 / 0.3 * (r * parts[0] + (1 - r) * parts[1]) + 0.02 * kl
        torch.testing.assert_close(loss[i], expected, rtol=1e-5, atol=1e-6)
    assert float(logs["kl"]) > 0


def test_equal_policies_give_the_plain_error_whatever_the_optimality():
    given = inputs()
    given["v_old"] = given["v"].clone()
    t = given["t"].view(-1, 1, 1, 1)
    error = given["x_t"] - t * given["v"] - given["x_0"]
    expected = 5.0 * error.square().flatten(1).mean(1)
    loss, logs = call(given, normalise_x0_error=False)
    torch.testing.assert_close(loss, expected)
    assert float(logs["old_gap"]) == 0


@pytest.mark.parametrize("normalise", [True, False])
def test_gradient_pulls_to_good_samples_and_pushes_from_bad_ones(normalise):
    given = inputs()
    given["v_old"] = given["v"].clone()
    target = (given["x_t"] - given["x_0"]) / given["t"].view(-1, 1, 1, 1)  # velocity that hits x_0
    for r, sign in ((1.0, 1), (0.0, -1)):
        v = given["v"].clone().requires_grad_()
        loss, _ = call({**given, "v": v, "optimality": torch.full((4,), r)}, normalise_x0_error=normalise)
        (gradient,) = torch.autograd.grad(loss.sum(), v)
        towards = (-gradient * (target - given["v"])).flatten(1).sum(1)
        assert bool((sign * towards > 0).all())


def test_average_rollout_pulls_nowhere_when_the_policies_agree():
    given = inputs()
    given["v_old"] = given["v"].clone()
    v = given["v"].clone().requires_grad_()
    loss, _ = call({**given, "v": v, "optimality": torch.full((4,), 0.5)})
    (gradient,) = torch.autograd.grad(loss.sum(), v)
    assert float(gradient.abs().max()) < 1e-6


def test_minimiser_without_normalisation_is_the_one_derived_in_theory():
    # r = 0.5 + A / (2 c): the optimum is v_old - (A / (c beta)) (v_old - v_target)
    given = inputs()
    advantage, clip, beta = 2.0, 5.0, 0.5
    target = (given["x_t"] - given["x_0"]) / given["t"].view(-1, 1, 1, 1)
    best = given["v_old"] - advantage / (clip * beta) * (given["v_old"] - target)
    v = best.clone().requires_grad_()
    loss, _ = call(
        {**given, "v": v, "optimality": torch.full((4,), 0.5 + advantage / (2 * clip))},
        nft_beta=beta,
        normalise_x0_error=False,
    )
    (gradient,) = torch.autograd.grad(loss.sum(), v)
    assert float(gradient.abs().max()) < 1e-5


def test_samples_do_not_touch_each_other():
    given = inputs()
    before, _ = call(given, kl_beta=0.1)
    changed = {k: v.clone() for k, v in given.items()}
    for value in changed.values():
        value[3] = value[3] * 0.5
    after, _ = call(changed, kl_beta=0.1)
    assert torch.equal(before[:3], after[:3])
    assert float(before[3]) != float(after[3])


def test_only_the_current_velocity_carries_a_gradient():
    given = inputs()
    leaves = {k: given[k].clone().requires_grad_() for k in ("v", "v_old", "v_ref")}
    loss, _ = call({**given, **leaves}, kl_beta=0.1)
    loss.sum().backward()
    assert leaves["v"].grad is not None
    assert leaves["v_old"].grad is None
    assert leaves["v_ref"].grad is None


def test_distance_to_the_reference_alone():
    given = inputs()
    without, _ = call(given)
    loss, logs = call(given, kl_beta=0.5)
    kl = (given["v"] - given["v_ref"]).square().flatten(1).mean(1)
    torch.testing.assert_close(loss - without, 0.5 * kl, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logs["kl"], kl.mean())


def test_missing_reference_and_zero_beta_are_refused():
    given = inputs()
    with pytest.raises(ValueError, match="no reference velocity"):
        call({**given, "v_ref": None}, kl_beta=0.1)
    with pytest.raises(ValueError, match="nft_beta"):
        call(given, nft_beta=0.0)


def test_the_same_optimality_everywhere_is_the_optimality_of_the_sample():
    given = inputs()
    everywhere = given["optimality"].view(-1, 1, 1, 1).expand(-1, 1, 5, 5)
    loss, _ = call({**given, "optimality": everywhere}, kl_beta=0.1)
    torch.testing.assert_close(loss, call(given, kl_beta=0.1)[0])


def test_every_place_is_pulled_or_pushed_by_its_own_optimality():
    given = inputs()
    given["v_old"] = given["v"].clone()
    target = (given["x_t"] - given["x_0"]) / given["t"].view(-1, 1, 1, 1)
    v = given["v"].clone().requires_grad_()
    r = torch.full((4, 1, 5, 5), 0.5)
    r[..., 0], r[..., 4] = 1.0, 0.0
    loss, _ = call({**given, "v": v, "optimality": r})
    (gradient,) = torch.autograd.grad(loss.sum(), v)
    towards = -gradient * (target - given["v"])
    assert bool((towards[..., 0] > 0).all()) and bool((towards[..., 4] < 0).all())
    assert float(gradient[..., 1:4].abs().max()) < 1e-6
