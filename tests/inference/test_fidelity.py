"""The trade between detail and faithfulness: a later start, nearer to the input."""

import pytest
import torch

from lucidnft.backbones.tiny import TinyBackbone
from lucidnft.data.bundled import photograph_folder
from lucidnft.images import read_image, resize
from lucidnft.inference import restore
from lucidnft.inference.tiled_images import T_FAITHFUL, start_time


def crop(name):
    """A held-out photograph's 96 x 96 middle at half its size."""
    rgb = read_image(photograph_folder() / name).rgb[None]
    rgb = resize(rgb, (rgb.shape[2] // 2, rgb.shape[3] // 2))
    top, left = (side // 2 - 48 for side in rgb.shape[2:])
    return rgb[:, :, top : top + 96, left : left + 96]


def test_the_start_falls_from_pure_noise_to_almost_none():
    assert start_time(0.0) == 1.0 and start_time(1.0) == pytest.approx(T_FAITHFUL)
    assert start_time(0.25) > start_time(0.75)


def test_none_is_the_solve_from_noise_and_all_is_nearly_the_input(backbone):
    lr = resize(crop("chelsea.png"), (8, 8))
    plain = restore(backbone, lr, num_inference_steps=2)
    assert torch.equal(restore(backbone, lr, num_inference_steps=2, fidelity=0.0), plain)
    close = restore(backbone, lr, num_inference_steps=2, fidelity=1.0)
    up = resize(lr, (32, 32))
    assert (close - up).abs().mean() < 0.2 * (plain - up).abs().mean()


def test_more_fidelity_is_closer_to_the_truth_and_less_sharp():
    backbone = TinyBackbone.from_pretrained()
    hr = torch.cat([crop("chelsea.png"), crop("camera.png"), crop("rocket.jpg")])
    lr = resize(hr, (24, 24))
    errors, details = [], []
    for fidelity in (0.0, 0.3, 0.6, 1.0):
        sr = restore(backbone, lr, fidelity=fidelity)
        errors.append(float((sr - hr).square().mean()))
        details.append(float(sr.diff(dim=3).abs().mean() + sr.diff(dim=2).abs().mean()))
    assert errors == sorted(errors, reverse=True) and errors[0] > 1.1 * errors[-1]
    assert details == sorted(details, reverse=True) and details[0] > 1.1 * details[-1]
