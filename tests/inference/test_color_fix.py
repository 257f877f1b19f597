"""Colour transfer against what can be said in closed form."""

import pytest
import torch
import torch.nn.functional as F

from lucidnft.inference import adain_color_fix, wavelet_color_fix
from lucidnft.inference.color_fix import COLOR_FIXES

FIXES = [wavelet_color_fix, adain_color_fix]


def photograph(height: int = 40, width: int = 56, *, seed: int = 0) -> torch.Tensor:
    draw = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    return 0.2 + 0.5 * draw


@pytest.mark.parametrize("fix", FIXES)
def test_content_with_its_own_colours_stays_as_it_is(fix):
    content = photograph()
    torch.testing.assert_close(fix(content, content.clone()), content, atol=1e-6, rtol=0)


@pytest.mark.parametrize("fix", FIXES)
def test_a_constant_colour_offset_is_removed(fix):
    style = photograph()
    offset = torch.tensor([0.2, -0.1, 0.05]).view(1, 3, 1, 1)
    torch.testing.assert_close(fix(style + offset, style), style, atol=1e-6, rtol=0)


@pytest.mark.parametrize("fix", FIXES)
def test_a_flat_style_gives_its_colour_to_the_mean_of_a_flat_content(fix):
    style = torch.tensor([0.1, 0.5, 0.9]).view(1, 3, 1, 1).expand(1, 3, 9, 7)
    fixed = fix(torch.full((1, 3, 9, 7), 0.3), style)
    torch.testing.assert_close(fixed, style, atol=1e-6, rtol=0)


@pytest.mark.parametrize("fix", FIXES)
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (65, 1)])
def test_tiny_images_give_finite_results_of_their_size(fix, size):
    fixed = fix(torch.rand(1, 3, *size), torch.rand(1, 3, *size))
    assert fixed.shape == (1, 3, *size)
    assert torch.isfinite(fixed).all()


def test_one_pixel_takes_the_colour_of_the_style():
    style = torch.tensor([0.1, 0.5, 0.9]).view(1, 3, 1, 1)
    for fix in FIXES:
        torch.testing.assert_close(fix(torch.full((1, 3, 1, 1), 0.7), style), style, atol=1e-6, rtol=0)


def test_wavelet_keeps_detail_and_adain_keeps_only_its_shape():
    content = photograph()
    stretched = content.mean((2, 3), keepdim=True) + 2 * (content - content.mean((2, 3), keepdim=True))
    torch.testing.assert_close(adain_color_fix(content, stretched), stretched, atol=1e-3, rtol=0)
    detail = content.clone()
    detail[..., ::2, ::2] += 0.1
    assert (wavelet_color_fix(detail, content) - detail).abs().max() < 0.05  # the checker survives
    assert (wavelet_color_fix(detail, content) - content)[..., 10:-10, 10:-10].abs().max() > 0.05


def test_the_low_band_is_five_levels_of_the_binomial_kernel():
    impulse = torch.zeros(1, 3, 101, 101)
    impulse[..., 50, 50] = 1.0
    low = wavelet_color_fix(torch.zeros_like(impulse), impulse)[0, 0]
    kernel = torch.ones(1)
    for level in range(5):
        taps = torch.zeros(2 * 2**level + 1)
        taps[[0, 2**level, 2 * 2**level]] = torch.tensor([0.25, 0.5, 0.25])
        kernel = F.conv1d(kernel[None, None], taps.flip(0)[None, None], padding=len(taps) - 1)[0, 0]
    assert len(kernel) == 63
    expected = torch.zeros(101)
    expected[50 - 31 : 50 + 32] = kernel
    torch.testing.assert_close(low, expected[:, None] * expected[None], atol=1e-7, rtol=1e-5)


def test_images_of_two_sizes_are_refused():
    for fix in FIXES:
        with pytest.raises(ValueError, match=r"content is \(1, 3, 8, 8\), style \(1, 3, 2, 2\).*resize"):
            fix(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 2, 2))


def test_nofix_is_the_content_itself():
    content = photograph()
    assert COLOR_FIXES["nofix"](content, torch.zeros_like(content)) is content
