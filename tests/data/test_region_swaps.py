"""Swapped regions: nothing changes outside the mask, no seam, the donor's detail inside, seeded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lucidnft.data.bundled import photograph_paths
from lucidnft.data.region_swaps import (
    draw_swap_mask,
    paste_seamlessly,
    swap_region,
    synthesise_texture,
    visible_swap,
)
from lucidnft.images import read_image
from lucidnft.rng import numpy_generator_for


@pytest.fixture(scope="module")
def image() -> Tensor:
    return read_image(photograph_paths(["chelsea.png"])[0]).rgb[:, 60:156, 100:196]


@pytest.fixture(scope="module")
def donor() -> Tensor:
    return read_image(photograph_paths(["coffee.png"])[0]).rgb[:, 60:156, 100:196]


def square(size: int = 96, low: int = 30, high: int = 60) -> Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[low:high, low:high] = True
    return mask


def generator(key: int = 0) -> np.random.Generator:
    return numpy_generator_for(0, "test/swap", key)


@pytest.mark.parametrize("area", [0.02, 0.1, 0.5])
def test_a_mask_covers_the_asked_area(area: float) -> None:
    masks = [draw_swap_mask(generator(key), 96, 128, area) for key in range(5)]
    for mask in masks:
        assert mask.shape == (96, 128) and abs(float(mask.float().mean()) - area) < 0.01
    assert not torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], draw_swap_mask(generator(0), 96, 128, area))


@pytest.mark.parametrize("filling", ["foreign", "texture", "own"])
def test_nothing_changes_outside_the_mask(image: Tensor, donor: Tensor, filling: str) -> None:
    mask = square()
    swapped = swap_region(image, mask, filling, generator(), donor=donor)  # type: ignore[arg-type]
    assert torch.equal(swapped[:, ~mask], image[:, ~mask])
    assert not torch.equal(swapped[:, mask], image[:, mask])
    assert float(swapped.min()) >= 0 and float(swapped.max()) <= 1
    assert visible_swap(image, swapped, mask) == (filling != "own")


def test_a_constant_pasted_into_a_ramp_becomes_the_ramp() -> None:
    # A linear function is harmonic: the membrane through the rim restores it exactly.
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 40), indexing="ij")
    ramp = (0.2 + 0.3 * rows + 0.4 * columns).expand(3, -1, -1)
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[10:25, 12:30] = True
    pasted = paste_seamlessly(ramp, torch.full_like(ramp, 0.9), mask)
    torch.testing.assert_close(pasted, ramp, atol=1e-5, rtol=0)


def test_the_offset_of_the_donor_does_not_matter(image: Tensor, donor: Tensor) -> None:
    quiet, mask = 0.4 + 0.2 * donor, square()
    first = paste_seamlessly(0.4 + 0.2 * image, quiet, mask)
    second = paste_seamlessly(0.4 + 0.2 * image, quiet + 0.1, mask)
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


def test_inside_a_seamless_paste_the_gradients_are_the_donors(image: Tensor, donor: Tensor) -> None:
    base, content = 0.4 + 0.1 * image, 0.4 + 0.1 * donor  # far from the ends of the range: nothing is clamped
    pasted = paste_seamlessly(base, content, square())
    laplacian = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).expand(3, 1, 3, 3)
    inner = (slice(None), slice(31, 59), slice(31, 59))
    ours, theirs = (
        torch.nn.functional.conv2d(x[None], laplacian, padding=1, groups=3)[0][inner]
        for x in (pasted, content)
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_mask_at_the_border_of_the_image_is_filled(image: Tensor, donor: Tensor) -> None:
    mask = torch.zeros(96, 96, dtype=torch.bool)
    mask[:40, 50:] = True
    pasted = paste_seamlessly(image, donor, mask)
    assert bool(torch.isfinite(pasted).all())
    assert torch.equal(pasted[:, ~mask], image[:, ~mask])
    seam = (pasted[:, 39, 50:] - image[:, 40, 50:]).abs().mean()
    hard = (donor[:, 39, 50:] - image[:, 40, 50:]).abs().mean()
    assert seam < 0.4 * hard


def test_the_border_of_the_image_asks_for_nothing(donor: Tensor) -> None:
    # What lies 0.1 below everywhere is lifted by 0.1 everywhere, to the very edge.
    mask = torch.zeros(96, 96, dtype=torch.bool)
    mask[:40, 50:] = True
    quiet = 0.3 + 0.3 * donor
    torch.testing.assert_close(paste_seamlessly(quiet + 0.1, quiet, mask), quiet + 0.1, atol=1e-5, rtol=0)


def test_synthesised_texture_is_made_of_the_image(image: Tensor) -> None:
    mask = square(low=20, high=70)
    filled = synthesise_texture(image, mask, generator())
    assert torch.equal(filled[:, ~mask], image[:, ~mask])
    assert float(filled[:, mask].min()) >= float(image[:, ~mask].min()) - 1e-6
    assert float(filled[:, mask].max()) <= float(image[:, ~mask].max()) + 1e-6
    assert not torch.equal(filled, synthesise_texture(image, mask, generator(1)))
    flat = torch.full_like(image, 0.25)
    torch.testing.assert_close(synthesise_texture(flat, mask, generator()), flat)


def test_what_cannot_be_swapped_is_refused(image: Tensor) -> None:
    with pytest.raises(ValueError, match="an inside and an outside"):
        paste_seamlessly(image, image, torch.zeros(96, 96, dtype=torch.bool))
    with pytest.raises(ValueError, match="covers 100%"):
        paste_seamlessly(image, image, torch.ones(96, 96, dtype=torch.bool))
    with pytest.raises(ValueError, match="needs a donor of shape"):
        swap_region(image, square(), "foreign", generator())
    with pytest.raises(ValueError, match="choose one of foreign, texture, own"):
        swap_region(image, square(), "other", generator())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="area is 1"):
        draw_swap_mask(generator(), 64, 64, 1.0)
