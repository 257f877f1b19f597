"""Output sizes: exact, and never a distortion that nobody asked for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lucidnft.inference import restore
from lucidnft.inference.sizes import asked_size
from tests.small_backbone import small_backbone

SIDES = st.integers(1, 5000)


@given(SIDES, SIDES, SIDES)
def test_one_side_is_exact_and_the_other_follows_the_shape(height, width, asked):
    to_height, to_width = asked_size(height, width, to_width=asked)
    assert to_width == asked and (abs(to_height - height * asked / width) <= 0.5 or to_height == 1)
    to_height, to_width = asked_size(height, width, to_height=asked)
    assert to_height == asked and (abs(to_width - width * asked / height) <= 0.5 or to_width == 1)


@given(SIDES, SIDES, SIDES, SIDES)
def test_inside_never_leaves_the_box_and_touches_it(height, width, to_height, to_width):
    inside = asked_size(height, width, to_height=to_height, to_width=to_width, fit="inside")
    assert inside[0] <= to_height and inside[1] <= to_width
    assert inside[0] == to_height or inside[1] == to_width
    stretched = asked_size(height, width, to_height=to_height, to_width=to_width, fit="stretch")
    assert stretched == (to_height, to_width)


@given(SIDES, SIDES, st.sampled_from([1, 2, 3, 4, 2.5]))
def test_a_pair_of_the_image_s_own_shape_needs_no_decision(height, width, factor):
    pair = round(height * factor), max(1, round(width * round(height * factor) / height))
    assert asked_size(height, width, to_height=pair[0], to_width=pair[1]) == pair


def test_a_pair_that_distorts_is_refused_with_the_ways_out():
    with pytest.raises(
        ValueError, match=r"64x64 would distort an image of 20x10 px.*inside \(which gives 64x32\)"
    ):
        asked_size(10, 20, to_height=64, to_width=64)
    for sides in ({}, {"to_width": 0}, {"to_height": -3, "to_width": 4}):
        with pytest.raises(ValueError, match="neither|expected 1 pixel"):
            asked_size(10, 20, **sides)


@settings(max_examples=12)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40))
def test_the_output_has_exactly_the_size_asked_for(height, width, to_height, to_width):
    lr = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    sr = restore(small_backbone(), lr, size=(to_height, to_width), num_inference_steps=1)
    assert sr.shape == (1, 3, to_height, to_width)
    assert sr.min() >= 0 and sr.max() <= 1


def test_size_and_factor_together_are_refused_as_is_an_empty_size():
    lr = torch.zeros(1, 3, 2, 2)
    with pytest.raises(ValueError, match="both upscale .2. and size"):
        restore(small_backbone(), lr, size=(4, 4), upscale=2)
    with pytest.raises(ValueError, match="size is .0, 4."):
        restore(small_backbone(), lr, size=(0, 4))


def test_small_images_are_enlarged_for_the_backbone_and_keep_the_size_asked_for():
    lr = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    shapes = []

    def noise_fn(shape, seed, key):
        shapes.append(shape)
        return torch.zeros(shape)

    for process_size in (None, 16, 17, 32):
        sr = restore(
            small_backbone(), lr, process_size=process_size, noise_fn=noise_fn, num_inference_steps=1
        )
        assert sr.shape == (1, 3, 16, 24)
    assert shapes == [(3, 16, 24), (3, 16, 24), (3, 24, 32), (3, 32, 48)]
