"""LRFidelity: range, direction, and no pay for writing the noise of LR back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lucidnft.images import resize
from lucidnft.rewards import LRFidelity


@pytest.mark.parametrize("blur_sigma", [0.0, 2.0])
def test_a_faithful_image_scores_zero_and_the_worst_minus_one(blur_sigma: float) -> None:
    reward = LRFidelity(blur_sigma=blur_sigma)
    assert reward(torch.ones(1, 3, 32, 32), lr=torch.ones(1, 3, 8, 8)).item() == pytest.approx(0, abs=1e-6)
    assert reward(torch.ones(1, 3, 32, 32), lr=torch.zeros(1, 3, 8, 8)).item() == pytest.approx(-1, abs=1e-6)


@given(offset=st.floats(-0.2, 0.2), sigma=st.floats(0, 4))
def test_a_constant_offset_costs_its_size(offset: float, sigma: float) -> None:
    lr = torch.full((1, 3, 6, 9), 0.5)
    score = LRFidelity(blur_sigma=sigma)(torch.full((1, 3, 24, 36), 0.5 + offset), lr=lr)
    assert score.item() == pytest.approx(-abs(offset), abs=1e-5)


def test_the_map_has_the_score_as_its_mean_and_shows_where_sr_is_wrong() -> None:
    reward, lr = LRFidelity(blur_sigma=0.5), torch.full((1, 3, 8, 8), 0.5)
    sr = torch.full((1, 3, 32, 32), 0.5)
    sr[..., :8, :8] = 0.9
    reference = reward.reference(lr, None, None, (32, 32))
    places = reward.score_map(sr, reference)
    assert places.shape == (1, 8, 8) and places.argmin() == 0
    assert places[0, 5:, 5:].max() > -1e-4 and places[0, 0, 0] < -0.2
    assert torch.allclose(places.mean(dim=(1, 2)), reward.score(sr, reference))


def test_the_photograph_beats_shifted_and_tinted_versions(photographs: Tensor) -> None:
    lr = resize(photographs, (48, 48))
    reward = LRFidelity()
    best = reward(photographs, lr=lr)
    assert (best > -0.001).all()
    assert (reward(photographs.roll(8, dims=3), lr=lr) < best - 0.01).all()
    tinted = (photographs * torch.tensor([1.1, 1.0, 0.9]).view(3, 1, 1)).clamp(0, 1)
    assert (reward(tinted, lr=lr) < best - 0.01).all()


def test_writing_the_noise_of_lr_back_gains_almost_nothing(photographs: Tensor) -> None:
    clean = resize(photographs, (48, 48))
    noise = 0.08 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    noisy = (clean + noise).clamp(0, 1)
    copied = resize(noisy, (192, 192))
    gain = (LRFidelity()(copied, lr=noisy) - LRFidelity()(photographs, lr=noisy)).mean()
    plain = LRFidelity(blur_sigma=0)
    naive_gain = (plain(copied, lr=noisy) - plain(photographs, lr=noisy)).mean()
    assert gain < 0.3 * naive_gain


def test_gradient_reaches_sr() -> None:
    sr = torch.rand(2, 3, 16, 16, requires_grad=True)
    reward = LRFidelity()
    reward.score(sr, reward.reference(torch.rand(2, 3, 4, 4), None, None, (16, 16))).sum().backward()
    assert sr.grad is not None and sr.grad.abs().sum() > 0


def test_one_pixel_lr_and_equal_sizes_work() -> None:
    assert LRFidelity()(
        torch.full((1, 3, 4, 4), 0.5), lr=torch.full((1, 3, 1, 1), 0.25)
    ).item() == pytest.approx(-0.25)
    assert LRFidelity()(torch.ones(1, 3, 8, 8), lr=torch.ones(1, 3, 8, 8)).item() == pytest.approx(
        0, abs=1e-6
    )


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="were lr and sr exchanged"):
        LRFidelity()(torch.rand(1, 3, 8, 8), lr=torch.rand(1, 3, 32, 32))
    with pytest.raises(ValueError, match="needs lr"):
        LRFidelity()(torch.rand(1, 3, 8, 8))
    for sigma in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="blur_sigma"):
            LRFidelity(blur_sigma=sigma)
