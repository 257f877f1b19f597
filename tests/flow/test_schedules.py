"""Time grids and training-time samplers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lucidnft.flow.schedules import (
    check_time_grid,
    resolution_shift,
    resolution_shifted_time_grid,
    sample_times,
    shifted_time_grid,
    uniform_time_grid,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 60), st.floats(0.1, 10))
def test_grids_fall_from_one_to_zero(num_steps, shift):
    for grid in (uniform_time_grid(num_steps), shifted_time_grid(num_steps, shift)):
        check_time_grid(grid)
        assert grid.shape == (num_steps + 1,)
        assert grid[0] == 1
        assert grid[-1] == 0


def test_shift_of_one_changes_nothing_and_more_moves_towards_noise():
    assert torch.equal(shifted_time_grid(8, 1.0), uniform_time_grid(8))
    assert bool((shifted_time_grid(8, 3.0)[1:-1] > uniform_time_grid(8)[1:-1]).all())
    assert float(shifted_time_grid(2, 3.0)[1]) == pytest.approx(0.75)


def test_flux_shift_at_its_two_published_points():
    assert resolution_shift(256) == pytest.approx(math.exp(0.5))
    assert resolution_shift(4096) == pytest.approx(3.158, abs=1e-3)
    assert resolution_shift(64) == pytest.approx(math.exp(0.4675), rel=1e-4)
    grid = resolution_shifted_time_grid(24, 64)
    assert grid[1:4].tolist() == pytest.approx([0.973, 0.946, 0.918], abs=1e-3)


def test_all_takes_every_grid_time_of_a_sample_once():
    grid = uniform_time_grid(6)
    t = sample_times("all", 50, 6, generator=generator(), time_grid=grid)
    for row in t:
        assert sorted(row.tolist()) == sorted(grid[:-1].tolist())
    assert len({tuple(row.tolist()) for row in t}) > 10  # in an order of its own


def test_all_with_fewer_times_leaves_each_time_out_about_equally_often():
    grid = uniform_time_grid(5)
    t = sample_times("all", 5000, 4, generator=generator(), time_grid=grid)
    shares = torch.stack([(t == time).any(dim=1).float().mean() for time in grid[:-1]])
    assert shares.tolist() == pytest.approx([0.8] * 5, abs=0.03)


def test_grid_draws_one_time_from_each_span():
    grid = uniform_time_grid(10)
    t = sample_times("grid", 200, 2, generator=generator(), time_grid=grid)
    assert set(t.flatten().tolist()) == set(grid[:-1].tolist())
    assert bool(((t > 0.55).sum(dim=1) == 1).all())


@pytest.mark.parametrize("sampling", ["all", "grid"])
def test_grid_times_outside_the_bounds_are_not_drawn(sampling):
    grid = uniform_time_grid(5)
    bounds = {"t_min": float(grid[3]), "t_max": float(grid[1])}
    t = sample_times(sampling, 200, 2, generator=generator(), time_grid=grid, **bounds)
    assert set(t.flatten().tolist()) == set(grid[1:4].tolist())
    with pytest.raises(
        ValueError, match=r"num_train_timesteps is 2 but the grid has 1 times in \[0.001, 0.3\]"
    ):
        sample_times(sampling, 1, 2, generator=generator(), time_grid=grid, t_max=0.3)


def test_stratified_has_one_draw_in_each_span():
    t = sample_times("stratified", 300, 4, generator=generator(), t_min=0.0)
    spans = (t * 4).long().clamp_max(3).sort(dim=1).values
    assert bool((spans == torch.arange(4)).all())
    assert float(t.mean()) == pytest.approx(0.5, abs=0.01)


def test_logit_normal_has_its_median_and_uniform_its_mean():
    t = sample_times("logit_normal", 20000, 1, generator=generator(), logit_mean=-0.5)
    assert float(t.median()) == pytest.approx(1 / (1 + math.exp(0.5)), abs=0.01)
    t = sample_times("uniform", 20000, 1, generator=generator(), t_min=0.2, t_max=0.6)
    assert float(t.mean()) == pytest.approx(0.4, abs=0.01)
    assert float(t.min()) >= 0.2
    assert float(t.max()) <= 0.6


def test_draws_depend_on_the_generator_alone():
    for sampling in ("uniform", "logit_normal", "stratified"):
        first = sample_times(sampling, 3, 2, generator=generator(5))
        torch.manual_seed(99)
        assert torch.equal(first, sample_times(sampling, 3, 2, generator=generator(5)))


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sampling": "all", "num_times": 2}, "pass time_grid"),
        (
            {"sampling": "grid", "num_times": 9, "time_grid": uniform_time_grid(6)},
            r"has 6 times in \[0.001, 1\]",
        ),
        ({"sampling": "normal", "num_times": 1}, "expected all, grid, uniform"),
        ({"sampling": "uniform", "num_times": 1, "t_min": 0.9, "t_max": 0.1}, "t_min"),
    ],
)
def test_impossible_draws_say_what_to_do(arguments, words):
    with pytest.raises(ValueError, match=words):
        sample_times(batch_size=2, generator=generator(), **arguments)


@pytest.mark.parametrize(
    "call", [lambda: uniform_time_grid(0), lambda: shifted_time_grid(4, 0.0), lambda: resolution_shift(0)]
)
def test_meaningless_sizes_are_refused(call):
    with pytest.raises(ValueError, match="expected"):
        call()
