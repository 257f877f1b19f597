"""Conversions go there and back in float64, and refuse times they would misread."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lucidnft.flow.conversions import (
    interpolate,
    velocity_target,
    velocity_to_noise,
    velocity_to_x0,
    x0_to_velocity,
)


def drawn(seed: int, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 2, 4, 5)
    return (
        torch.randn(shape, generator=generator, dtype=torch.float64),
        torch.randn(shape, generator=generator, dtype=torch.float64),
    )


@given(st.integers(0, 10**6), st.lists(st.floats(0.001, 1.0), min_size=3, max_size=3))
def test_both_ends_come_back_from_the_true_velocity(seed, times):
    x_0, noise = drawn(seed)
    t = torch.tensor(times, dtype=torch.float64)
    x_t, v = interpolate(x_0, noise, t), velocity_target(x_0, noise)
    torch.testing.assert_close(velocity_to_x0(x_t, v, t), x_0, rtol=0, atol=1e-12)
    torch.testing.assert_close(velocity_to_noise(x_t, v, t), noise, rtol=0, atol=1e-12)
    torch.testing.assert_close(x0_to_velocity(x_t, x_0, t), v, rtol=0, atol=1e-9)


def test_ends_of_the_path_are_clean_and_noise():
    x_0, noise = drawn(0)
    assert torch.equal(interpolate(x_0, noise, torch.zeros(3, dtype=torch.float64)), x_0)
    assert torch.equal(interpolate(x_0, noise, torch.ones(3, dtype=torch.float64)), noise)


def test_velocity_is_the_derivative_of_the_path():
    x_0, noise = drawn(1)
    t, h = torch.full((3,), 0.4, dtype=torch.float64), 1e-6
    slope = (interpolate(x_0, noise, t + h) - interpolate(x_0, noise, t - h)) / (2 * h)
    torch.testing.assert_close(slope, velocity_target(x_0, noise), rtol=0, atol=1e-8)


def test_each_sample_has_its_own_time_even_when_batch_equals_width():
    x_0 = torch.zeros(4, 1, 4, 4)
    noise = torch.ones(4, 1, 4, 4)
    t = torch.tensor([0.0, 0.25, 0.5, 1.0])
    x_t = interpolate(x_0, noise, t)
    for sample, time in enumerate(t):
        assert bool((x_t[sample] == time).all())


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("t", "words"),
    [
        (torch.tensor(0.5), "one time per sample"),
        (torch.rand(3, 1), "one time per sample"),
        (torch.rand(2), "one time per sample"),
        (torch.tensor([1, 0, 1]), "not integer timesteps"),
        (torch.tensor([0.1, 500.0, 0.2]), "expected \\[0, 1\\]"),
        (torch.tensor([0.1, float("nan"), 0.2]), "expected \\[0, 1\\]"),
    ],
)
def test_misread_times_are_refused(t, words):
    x = torch.zeros(3, 1, 3, 3)
    with pytest.raises(ValueError, match=words):
        interpolate(x, x, t)


def test_a_clean_prediction_gives_no_velocity_at_time_zero():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="undefined at t = 0"):
        x0_to_velocity(x, x, torch.tensor([0.5, 0.0]))
