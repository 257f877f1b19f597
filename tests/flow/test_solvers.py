"""Solvers against the exact flow of Gaussian data, where the velocity is known in closed form.

With x_0 ~ N(m, s^2) the marginal at t is N((1-t) m, S(t)^2), S^2 = (1-t)^2 s^2 + t^2, and the ODE carries
x_1 to x_0 = m + s x_1.
"""

import math

import pytest
import torch

from lucidnft.flow.guidance import classifier_free_guidance
from lucidnft.flow.schedules import shifted_time_grid, uniform_time_grid
from lucidnft.flow.solvers import dpm2, euler, euler_maruyama, euler_maruyama_step, heun

MEAN, STD = 1.5, 0.4


def gaussian_velocity(x, t):
    """E[noise - x_0 | x_t] for Gaussian data."""
    time = t.double().view(-1, 1)
    variance = (1 - time) ** 2 * STD**2 + time**2
    centred = x - (1 - time) * MEAN
    x_0 = MEAN + (1 - time) * STD**2 / variance * centred
    noise = time / variance * centred
    return noise - x_0


def starts() -> torch.Tensor:
    return torch.linspace(-2, 2, 9, dtype=torch.float64).view(9, 1)


def error_of(solver, num_steps, t_max=1.0, t_min=0.0):
    grid = t_max + (t_min - t_max) * torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    spread = {t: math.sqrt((1 - t) ** 2 * STD**2 + t**2) for t in (t_max, t_min)}
    x = (1 - t_max) * MEAN + spread[t_max] * starts()
    exact = (1 - t_min) * MEAN + spread[t_min] * starts()
    return float((solver(gaussian_velocity, x, grid).x_0 - exact).abs().max())


def order_of(solver, **ends):
    return math.log2(error_of(solver, 64, **ends) / error_of(solver, 128, **ends))


def test_euler_is_first_order():
    assert order_of(euler) == pytest.approx(1.0, abs=0.05)


def test_heun_is_second_order_when_both_velocities_exist():
    assert order_of(heun, t_min=0.05) == pytest.approx(2.0, abs=0.1)


def test_dpm2_is_second_order_between_the_ends():
    assert order_of(dpm2, t_max=0.95, t_min=0.05) == pytest.approx(2.0, abs=0.1)


def test_dpm2_beats_euler_at_equal_calls():
    assert error_of(dpm2, 10) < 0.5 * error_of(euler, 10)


def test_dpm2_solves_a_point_mass_exactly_from_pure_noise():
    def to_point(x, t):  # x_0 = 0.7 whatever x_t
        return (x - 0.7) / t.double().view(-1, 1)

    for num_steps in (1, 2, 5):
        grid = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
        end = dpm2(to_point, starts(), grid).x_0
        torch.testing.assert_close(end, torch.full_like(end, 0.7), rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.3, 0.7])
def test_stochastic_steps_keep_the_marginals(eta):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20000, 1, generator=generator, dtype=torch.float64)

    def noise(step, like):
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    end = euler_maruyama(gaussian_velocity, x, uniform_time_grid(200), eta=eta, noise=noise).x_0
    assert float(end.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(end.std()) == pytest.approx(STD, abs=0.02)


def test_no_noise_is_euler_exactly():
    grid = uniform_time_grid(7)
    stochastic = euler_maruyama(gaussian_velocity, starts(), grid, eta=0.0, noise=lambda s, x: x)
    assert torch.equal(stochastic.x_0, euler(gaussian_velocity, starts(), grid).x_0)
    assert stochastic.log_probs is None


def test_log_prob_is_that_of_the_step_taken():
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    t, t_next = torch.full((5,), 0.6), torch.full((5,), 0.5)
    step = euler_maruyama_step(x, 2 * x, t, t_next, 0.7)
    sample = step.mean + 0.3
    by_torch = torch.distributions.Normal(step.mean, step.std.view(-1, 1)).log_prob(sample).mean(dim=1)
    torch.testing.assert_close(step.log_prob(sample), by_torch)
    g_squared = 0.7**2 * 0.6 / 0.4
    torch.testing.assert_close(step.std, torch.full((5,), math.sqrt(g_squared * 0.1)))


def test_trajectory_and_log_probs_have_one_entry_per_time_and_step():
    def noise(step, like):
        return torch.full_like(like, float(step))

    kept = euler_maruyama(
        gaussian_velocity, starts(), uniform_time_grid(4), eta=0.5, noise=noise, keep_trajectory=True
    )
    assert kept.trajectory.shape == (9, 5, 1)
    assert kept.log_probs.shape == (9, 4)
    assert torch.equal(kept.trajectory[:, -1], kept.x_0)
    assert torch.equal(kept.trajectory[:, 0], starts())
    assert bool(torch.isfinite(kept.log_probs).all())


def noise_of_step(step, like):
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(step), dtype=like.dtype)


def test_one_stochastic_step_from_noise_to_image_is_refused():
    with pytest.raises(ValueError, match=r"\[1\.0, 0\.0\].*eta 0\.7.*needs at least 2 steps"):
        euler_maruyama(gaussian_velocity, starts(), uniform_time_grid(1), eta=0.7, noise=noise_of_step)
    still = euler_maruyama(gaussian_velocity, starts(), uniform_time_grid(1), eta=0.0, noise=noise_of_step)
    assert bool(still.x_0.isfinite().all())


@pytest.mark.parametrize(
    "grid",
    [
        *(uniform_time_grid(n) for n in (2, 3, 10, 50)),
        *(shifted_time_grid(n, shift) for n in (2, 10) for shift in (0.3, 3.0)),
        torch.tensor([0.9, 0.0]),
        torch.tensor([1.0, 0.2]),
    ],
)
def test_log_probs_are_finite_on_every_other_grid(grid):
    x = starts().float()
    solved = euler_maruyama(
        lambda x, t: gaussian_velocity(x, t).float(), x, grid, eta=0.7, noise=noise_of_step
    )
    assert solved.log_probs.shape == (9, len(grid) - 1)
    assert solved.log_probs.isfinite().all()


@pytest.mark.parametrize("solver", [euler, heun, dpm2])
@pytest.mark.parametrize("grid", [[1.0, 0.5, 0.5, 0.0], [0.0, 1.0], [1.0], [1.2, 0.0], [[1.0, 0.0]]])
def test_grids_that_do_not_fall_are_refused(solver, grid):
    with pytest.raises(ValueError, match="strictly decreasing"):
        solver(gaussian_velocity, starts(), torch.tensor(grid))


def test_calls_per_step():
    calls = []

    def counting(x, t):
        calls.append(float(t[0]))
        return gaussian_velocity(x, t)

    for solver, expected in ((euler, 5), (dpm2, 5), (heun, 9)):
        calls.clear()
        solver(counting, starts(), uniform_time_grid(5))
        assert len(calls) == expected
        assert min(calls) > 0  # no network is asked for a velocity at t = 0


def test_guidance_extrapolates_and_costs_nothing_at_one():
    def conditional(x, t):
        return x + 1

    def unconditional(x, t):
        return x

    x, t = torch.zeros(2, 3), torch.full((2,), 0.5)
    assert classifier_free_guidance(conditional, unconditional, 1.0) is conditional
    guided = classifier_free_guidance(conditional, unconditional, 4.0)
    assert torch.equal(guided(x, t), torch.full((2, 3), 4.0))
