"""The trade between detail and faithfulness: from one draw to the average of all."""

import pytest
import torch

from lucidnft.backbones.tiny import TinyBackbone
from lucidnft.data.bundled import photograph_folder
from lucidnft.images import read_image, resize
from lucidnft.inference import restore
from lucidnft.inference.restore import keyed_noise


def crop(name):
    """A held-out photograph's 96 x 96 middle at half its size: (1, 3, 96, 96)."""
    rgb = read_image(photograph_folder() / name).rgb[None]
    rgb = resize(rgb, (rgb.shape[2] // 2, rgb.shape[3] // 2))
    top, left = (side // 2 - 48 for side in rgb.shape[2:])
    return rgb[:, :, top : top + 96, left : left + 96]


@pytest.mark.parametrize("solver", ["euler", "dpm2"])
def test_none_is_the_draw_and_all_is_the_mean_of_one_step_from_the_noise_and_its_opposite(backbone, solver):
    lr = resize(crop("chelsea.png"), (8, 8))
    options = {"solver": solver, "num_inference_steps": 3}
    draw = restore(backbone, lr, **options)
    assert torch.equal(restore(backbone, lr, fidelity=0.0, **options), draw)
    condition = backbone.encode_condition(lr)
    noise = keyed_noise((3, 32, 32), 0, "0")[None]
    with torch.no_grad():
        steps = [x - backbone.velocity(x, torch.ones(1), condition) for x in (noise, -noise)]
    average = backbone.decode((steps[0] + steps[1]) / 2)
    torch.testing.assert_close(restore(backbone, lr, fidelity=1.0, **options), average, atol=1e-6, rtol=0)
    assert (average - draw).abs().max() > 1e-3
    half = restore(backbone, lr, fidelity=0.5, tile_size=16, **options)
    ends = [restore(backbone, lr, fidelity=f, tile_size=16, **options) for f in (0.0, 1.0)]
    inside = (ends[0] > 0) & (ends[0] < 1) & (ends[1] > 0) & (ends[1] < 1)
    torch.testing.assert_close(half[inside], (0.5 * ends[0] + 0.5 * ends[1])[inside], atol=1e-5, rtol=0)


def test_more_fidelity_is_closer_to_the_truth_and_less_sharp():
    backbone = TinyBackbone.from_pretrained()
    hr = torch.cat([crop("chelsea.png"), crop("camera.png"), crop("rocket.jpg")])[:, :, :64, :64]
    lr = resize(hr, (16, 16))
    errors, details = [], []
    for fidelity in (0.0, 0.5, 1.0):
        sr = restore(backbone, lr, fidelity=fidelity)
        errors.append((sr - hr).square().mean(dim=(1, 2, 3)))
        details.append(sr.diff(dim=3).abs().mean(dim=(1, 2, 3)) + sr.diff(dim=2).abs().mean(dim=(1, 2, 3)))
    for falling in (torch.stack(errors), torch.stack(details)):
        assert (falling.diff(dim=0) < 0).all(), falling  # for each photograph
