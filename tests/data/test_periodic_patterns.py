"""Periodic patterns: spread, period, and the faintness that lets a label ignore them."""

import numpy as np
import pytest
import torch

from lucidnft.data.periodic_patterns import FAINT, PERIODS, add_faint_pattern, plane_waves, repeat_tile


@pytest.mark.parametrize("period", PERIODS)
@pytest.mark.parametrize("count", [1, 2])
def test_a_tile_has_unit_spread_no_mean_and_few_frequencies(period, count):
    for seed in range(50):
        tile = plane_waves(np.random.default_rng(seed), period, count=count)
        assert tile.shape == (3, period, period)
        assert float(tile.std(correction=0)) == pytest.approx(1, abs=1e-4)
        assert float(tile.mean(dim=(1, 2)).abs().max()) < 1e-5
        power = torch.fft.fft2(tile).abs().square().sum(dim=0)
        assert int((power > 1e-4 * power.sum()).sum()) <= 2 * count  # a real wave is two conjugate ones


def test_a_tile_repeats_and_is_cut_at_the_border():
    tile = plane_waves(np.random.default_rng(0), 4, count=1)
    field = repeat_tile(tile, 10, 7)
    assert field.shape == (3, 10, 7)
    assert torch.equal(field[:, 4:8, :4], tile)
    assert torch.equal(field[:, 8:, 4:], tile[:, :2, :3])


def test_a_faint_pattern_stays_below_a_step_of_eight_bits_and_varies():
    image = torch.full((3, 32, 32), 0.5)
    spreads = []
    for seed in range(200):
        changed = add_faint_pattern(image, np.random.default_rng(seed)) - image
        spreads.append(float(changed.std(correction=0)))
    carried = [spread for spread in spreads if spread > 0]
    assert 100 < len(carried) < 180
    assert FAINT[0] * 0.99 < min(carried) < 0.0005
    assert 0.002 < max(carried) < FAINT[1] * 1.01
    assert torch.equal(image, torch.full((3, 32, 32), 0.5))


def test_a_faint_pattern_stays_in_range():
    for value in (0.0, 1.0):
        changed = add_faint_pattern(torch.full((3, 16, 16), value), np.random.default_rng(0))
        assert float(changed.min()) >= 0
        assert float(changed.max()) <= 1
