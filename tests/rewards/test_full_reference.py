"""Crop and colour space are what they say."""

from __future__ import annotations

import pytest
import torch

from lucidnft.rewards import FullReferenceReward


def test_the_border_is_left_out() -> None:
    hr = torch.full((1, 3, 32, 32), 0.5)
    sr = hr.clone()
    sr[:, :, :4] = 1.0
    assert FullReferenceReward("psnr", crop_border=4)(sr, hr=hr).item() == pytest.approx(80, abs=0.1)
    assert FullReferenceReward("psnr", crop_border=3)(sr, hr=hr).item() < 40


def test_luminance_is_bt601_studio_range() -> None:
    """Y of YCbCr spans 16 to 235: an error of 0.1 in all channels is 0.1 * 219 / 255 in Y."""
    hr = torch.full((1, 3, 32, 32), 0.5)
    sr = hr + 0.1
    expected = 20 - 20 * torch.log10(torch.tensor(219 / 255)).item()
    score = FullReferenceReward("psnr", color_space="ycbcr_y")(sr, hr=hr).item()
    assert score == pytest.approx(expected, abs=0.05)
    assert FullReferenceReward("psnr")(sr, hr=hr).item() == pytest.approx(20, abs=1e-3)


def test_luminance_ignores_a_change_of_colour_alone() -> None:
    hr = torch.full((1, 3, 32, 32), 0.5)
    sr = hr.clone()
    sr[:, 0] += 0.1 / 65.481 * 24.966  # red up, blue down by as much luminance
    sr[:, 2] -= 0.1
    on_luminance = FullReferenceReward("psnr", color_space="ycbcr_y")(sr, hr=hr).item()
    assert on_luminance > 50 > FullReferenceReward("psnr")(sr, hr=hr).item()


def test_the_card_names_the_colour_space_and_counts_the_crop() -> None:
    card = FullReferenceReward("ssim", crop_border=4, color_space="ycbcr_y").card
    assert card.name == "ssim_y" and card.min_size == 11 + 8 and card.needs == {"hr"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "fsim", "color_space": "ycbcr_y"}, "no luminance mode"),
        ({"metric": "psnr", "color_space": "ycbcr"}, "color_space is 'ycbcr', expected rgb or ycbcr_y"),
        ({"metric": "psnry"}, "use psnr or ssim"),
        ({"metric": "piqe"}, "needs no reference"),
        ({"metric": "psnr", "crop_border": -1}, "crop_border is -1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FullReferenceReward(**options)  # type: ignore[arg-type]


def test_hr_is_never_resized() -> None:
    reward = FullReferenceReward("psnr")
    with pytest.raises(ValueError, match="nothing is resized"):
        reward.reference(None, torch.rand(1, 3, 16, 16), None, (32, 32))
