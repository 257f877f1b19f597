"""Guards against closed forms and against pyiqa with the field's settings."""

from __future__ import annotations

import math

import pytest
import torch

from lucidnft.rng import generator_for
from lucidnft.training.guards import Guards, psnr_y, radial_log_spectrum, spectral_distance, ssim_y


def pair(noise=0.05, size=(48, 40)):
    generator = generator_for(0, "guards")
    coarse = torch.rand((2, 3, 6, 5), generator=generator)
    hr = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    return (hr + noise * torch.randn(hr.shape, generator=generator)).clamp(0, 1), hr


def test_psnr_y_of_a_constant_shift_by_hand():
    black = torch.zeros(1, 3, 8, 8)  # Y is 16; grey of g has Y = 16 + 219 g
    assert psnr_y(black + 20 / 219, black).item() == pytest.approx(-20 * math.log10(20 / 255), abs=1e-3)


@pytest.mark.parametrize(("metric", "ours"), [("psnr", lambda a, b: psnr_y(a, b).tolist()), ("ssim", ssim_y)])
def test_psnr_and_ssim_agree_with_pyiqa_on_y(metric, ours):
    pyiqa = pytest.importorskip("pyiqa")
    theirs = pyiqa.create_metric(metric, test_y_channel=True, color_space="ycbcr", device="cpu")
    sr, hr = pair()
    assert ours(sr, hr) == pytest.approx(theirs(sr, hr).flatten().tolist(), rel=1e-5)


def test_spectrum_of_a_wave_lies_in_the_ring_of_its_frequency():
    x = torch.arange(64)
    wave = 0.5 + 0.3 * torch.cos(2 * math.pi * 0.25 * x).expand(1, 3, 64, 64)
    assert radial_log_spectrum(wave)[0].argmax().item() == 8  # 0.25 of 0.5, in 16 rings


def test_spectral_distance_is_zero_for_equal_images_and_log_of_the_power_ratio_for_scaled_contrast():
    _, hr = pair()
    textured = hr + 0.1 * torch.randn(hr.shape, generator=generator_for(0, "texture"))
    assert spectral_distance(textured, textured).tolist() == [0.0, 0.0]
    halved = textured.mean(dim=(2, 3), keepdim=True) + 0.5 * (
        textured - textured.mean(dim=(2, 3), keepdim=True)
    )
    assert spectral_distance(halved, textured).tolist() == pytest.approx([math.log(4)] * 2, rel=1e-3)


def test_guards_measure_what_a_saved_file_would_hold():
    sr, hr = pair()
    below_a_step = sr + 0.2 / 255 * torch.sign(torch.round(sr * 255) - sr * 255)  # rounds to the same file
    guards = Guards()
    assert guards.of_batch(below_a_step, hr) == guards.of_batch(sr, hr)
    assert guards.of_batch(sr + 1 / 255, hr) != guards.of_batch(sr, hr)
