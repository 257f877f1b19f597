"""Tiles: they cover, they overlap, their weights never vanish and sum to 1."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lucidnft.inference.tiling import TileLayout, tile_starts


@st.composite
def layouts(draw):
    tile = draw(st.integers(1, 12))
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    return height, width, TileLayout.cover(height, width, tile, draw(st.integers(0, tile - 1)))


@given(st.integers(1, 200), st.integers(1, 60), st.data())
def test_the_fewest_tiles_cover_and_overlap_enough(length, tile, data):
    overlap = data.draw(st.integers(0, tile - 1))
    starts = tile_starts(length, tile, overlap)
    if tile >= length:
        assert starts == (0,)
        return
    assert starts[0] == 0 and starts[-1] == length - tile
    steps = [b - a for a, b in zip(starts, starts[1:], strict=False)]
    assert max(steps) <= tile - overlap and min(steps) >= 1
    assert max(steps) - min(steps) <= 1  # evenly spread
    assert (len(starts) - 1) * (tile - overlap) < length - overlap  # one tile fewer would not reach


@given(layouts(), st.integers(1, 3))
def test_weights_are_above_zero_and_sum_to_one(drawn, cells):
    height, width, layout = drawn
    total = torch.zeros(2, height * cells, width * cells)
    for tile in layout.tiles(cells):
        assert tile.row_weights.min() > 0 and tile.column_weights.min() > 0
        tile.add_(total, torch.ones(2, layout.height * cells, layout.width * cells))
    torch.testing.assert_close(total, torch.ones_like(total))
    assert len(layout.tiles(cells)) == len(layout)
    assert layout.is_whole == (layout.height == height and layout.width == width)


@given(layouts())
def test_what_is_cut_and_put_together_is_the_image(drawn):
    height, width, layout = drawn
    image = torch.rand(1, 3, 2 * height, 2 * width, generator=torch.Generator().manual_seed(0))
    total = torch.zeros_like(image)
    for tile in layout.tiles(2):
        tile.add_(total, tile.cut(image))
    torch.testing.assert_close(total, image)


def test_weights_fade_smoothly_towards_a_neighbour_and_not_at_the_image_border():
    first, last = TileLayout.cover(1, 24, 16, 8).tiles(1)
    assert torch.equal(first.column_weights[:8], torch.ones(8))
    ramp = first.column_weights[8:]
    assert (ramp.diff() < 0).all() and ramp[0] > 0.98 and ramp[-1] < 0.02
    torch.testing.assert_close(ramp, last.column_weights[:8].flip(0))
    assert torch.equal(last.column_weights[8:], torch.ones(8))


@pytest.mark.parametrize(("tile", "overlap"), [(0, 0), (4, 4), (4, -1)])
def test_tiles_that_cannot_step_are_refused(tile, overlap):
    with pytest.raises(ValueError, match=rf"tiles of {tile} units cannot overlap by {overlap}"):
        TileLayout.cover(9, 9, tile, overlap)
