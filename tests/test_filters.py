"""Blurs: unit gain, known spread, any size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lucidnft.filters import box_blur, gaussian_blur, without_chequer


@given(sigma=st.floats(0, 20), height=st.integers(1, 12), width=st.integers(1, 12))
def test_constants_are_kept_at_any_size(sigma: float, height: int, width: int) -> None:
    images = torch.full((1, 2, height, width), 0.3)
    assert torch.allclose(gaussian_blur(images, sigma), images, atol=1e-5)
    assert torch.allclose(box_blur(images, int(sigma)), images, atol=1e-5)
    assert torch.allclose(without_chequer(images), images, atol=1e-5)


def test_the_spread_of_a_point_is_sigma() -> None:
    point = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    point[..., 20, 20] = 1
    spread = gaussian_blur(point, 2.0)[0, 0]
    offsets = torch.arange(41, dtype=torch.float64) - 20
    assert float(spread.sum()) == pytest.approx(1)
    assert float((spread.sum(dim=1) * offsets**2).sum()) == pytest.approx(4.0, abs=0.12)
    assert torch.allclose(spread, spread.T)


def test_a_box_is_the_mean_of_its_pixels() -> None:
    images = torch.rand(1, 3, 9, 9)
    assert torch.allclose(box_blur(images, 2)[..., 4, 4], images[..., 2:7, 2:7].mean(dim=(2, 3)), atol=1e-6)


def test_a_chequer_goes_and_stripes_and_slow_waves_stay() -> None:
    column, row = torch.arange(16.0), torch.arange(16.0)[:, None]
    chequer = ((-1) ** (row + column))[None, None]
    assert float(without_chequer(chequer).abs().max()) < 1e-6
    for kept in ((-1) ** column + 0 * row, (-1) ** row + 0 * column, torch.cos(column) + 0 * row):
        assert torch.allclose(without_chequer(kept[None, None]), kept, atol=1e-6)
    both = (torch.cos(torch.pi * column / 2) * torch.cos(torch.pi * row / 2))[None, None]
    assert torch.allclose(without_chequer(both)[..., :-1, :-1], 0.75 * both[..., :-1, :-1], atol=1e-6)


def test_no_sigma_is_the_identity() -> None:
    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(gaussian_blur(images, 0.0), images)
