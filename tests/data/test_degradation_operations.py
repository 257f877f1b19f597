"""Blur kernels and degradation operations against closed forms and other implementations."""

from __future__ import annotations

import math
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from lucidnft.data.blur_kernels import elliptic_kernel, sinc_kernel
from lucidnft.data.degradation_operations import apply_operation, filter_2d


def test_kernels_sum_to_one_and_have_the_asked_moments():
    for size in (7, 13, 21):
        kernel = elliptic_kernel(size, 0.9, 0.6, 0.7)
        assert kernel.shape == (size, size)
        assert kernel.sum() == pytest.approx(1) and np.allclose(kernel, kernel[::-1, ::-1])
        assert sinc_kernel(size, 2.0).sum() == pytest.approx(1)
    axis = np.arange(41) - 20
    kernel = elliptic_kernel(41, 3.0, 1.5, math.pi / 6)
    covariance = [[(kernel * np.outer(a, b)).sum() for a, b in pair] for pair in _moment_grids(axis)]
    rotation = np.array(
        [[math.cos(math.pi / 6), -math.sin(math.pi / 6)], [math.sin(math.pi / 6), math.cos(math.pi / 6)]]
    )
    expected = rotation @ np.diag([9.0, 2.25]) @ rotation.T
    assert np.allclose(covariance, expected, rtol=1e-3)
    shifted = elliptic_kernel(25, 2.0, 2.0, 0.0, shift=1.5)
    assert (shifted * (np.arange(25) - 12)[:, None]).sum() == pytest.approx(1.5, rel=1e-3)
    plateau, gaussian = (elliptic_kernel(21, 2, 2, 0, shape=s, beta=2.0) for s in ("plateau", "gaussian"))
    assert plateau[10, 11] / plateau[10, 10] > gaussian[10, 11] / gaussian[10, 10]
    generalised = elliptic_kernel(21, 2, 2, 0, shape="generalised", beta=1.0)
    assert np.allclose(generalised, gaussian)
    with pytest.raises(ValueError, match="'box'"):
        elliptic_kernel(7, 1, 1, 0, shape="box")


def _moment_grids(axis: np.ndarray) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Row and column factors of xx, xy, yx, yy."""
    one = np.ones_like(axis)
    return [[(one, axis**2), (axis, axis)], [(axis, axis), (axis**2, one)]]


def test_sinc_kernel_passes_low_and_stops_high_frequencies():
    kernel = sinc_kernel(21, math.pi / 2)
    x = np.arange(21) - 10
    response = [(kernel * np.cos(frequency * x)[None, :]).sum() for frequency in (0.3, 2.8)]
    assert response[0] > 0.9 and abs(response[1]) < 0.1


@pytest.mark.parametrize("shape", [(24, 17), (5, 40), (1, 1), (3, 2)])
def test_filter_is_the_mirrored_convolution(shape):
    rng = np.random.default_rng(0)
    image = rng.random((3, *shape), dtype=np.float32)
    kernel = rng.random((7, 7))
    ours = filter_2d(image, kernel)
    theirs = np.stack([ndimage.convolve(plane.astype(np.float64), kernel, mode="mirror") for plane in image])
    assert ours.shape == image.shape
    assert np.abs(ours - theirs).max() < 1e-4


def test_gaussian_noise_has_the_recorded_strength():
    grey = np.full((3, 200, 200), 0.5, np.float32)
    noisy = apply_operation(grey, {"op": "gaussian_noise", "sigma": 10.0, "grey": False, "noise_seed": 1})
    assert (noisy - grey).std() * 255 == pytest.approx(10, rel=0.02)
    assert abs(np.corrcoef(noisy[0].ravel(), noisy[1].ravel())[0, 1]) < 0.03
    same = apply_operation(grey, {"op": "gaussian_noise", "sigma": 10.0, "grey": True, "noise_seed": 1})
    assert np.array_equal(same[0], same[1])
    mixing = [[1.0, 0, 0], [1.0, 0, 0], [0, 0, 2.0]]
    mixed = apply_operation(
        grey, {"op": "gaussian_noise", "sigma": 10.0, "grey": False, "mixing": mixing, "noise_seed": 1}
    )
    assert np.array_equal(mixed[0], mixed[1])
    assert (mixed[2] - grey[2]).std() * 255 == pytest.approx(20, rel=0.03)


def test_aligned_shot_noise_is_local_and_has_the_same_spread():
    image = np.full((3, 64, 64), 0.1, np.float32) + np.linspace(0, 0.8, 64 * 64, dtype=np.float32).reshape(
        64, 64
    )
    changed = image.copy()
    changed[:, :4, :4] = 0.5
    op = {"op": "poisson_noise", "scale": 1.0, "grey": False, "noise_seed": 3}
    plain, first, second = (
        apply_operation(x, {**op, "aligned": flag})
        for x, flag in ((image, False), (image, True), (changed, True))
    )
    np.testing.assert_array_equal(first[:, 4:], second[:, 4:])
    assert (apply_operation(changed, op)[:, 8:] != plain[:, 8:]).any()
    assert (first - image).std() == pytest.approx((plain - image).std(), rel=0.05)  # 205 levels: 256 photons
    assert abs((first - image).mean()) < 0.002


def test_poisson_noise_has_the_variance_of_its_photon_count():
    # Five grey levels in use: the count is rounded up to 8 photons at full white, variance = value / 8.
    values = [0.2, 0.32, 0.4, 0.52, 0.6]
    image = np.repeat(np.array(values, np.float32), 60)[None, :, None] * np.ones((3, 1, 300), np.float32)
    noisy = apply_operation(image, {"op": "poisson_noise", "scale": 0.1, "grey": False, "noise_seed": 3})
    for band, value in enumerate(values):
        noise = (noisy - image)[:, 60 * band : 60 * band + 60]
        assert noise.var() == pytest.approx(0.01 * value / 8, rel=0.05)
        assert abs(noise.mean()) < 1e-3
    grey = apply_operation(image, {"op": "poisson_noise", "scale": 0.1, "grey": True, "noise_seed": 3})
    assert np.allclose(grey[0], grey[1])


def test_jpeg_is_pillows_with_half_size_chroma():
    slopes = np.linspace(0, 255, 24)[:, None] + np.linspace(0, 255, 40)
    pixels = np.stack([slopes / 2, slopes[::-1] / 2, slopes[:, ::-1] / 3]).round().astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(
        buffer, "JPEG", quality=40, subsampling="4:2:0"
    )
    expected = np.asarray(Image.open(buffer)).transpose(2, 0, 1)
    ours = apply_operation(pixels.astype(np.float32) / 255, {"op": "jpeg", "quality": 40})
    assert np.array_equal(np.round(ours * 255).astype(np.uint8), expected)


def test_strided_blur_keeps_pixels_centred():
    ramp = np.tile(np.arange(64, dtype=np.float32) / 64, (3, 64, 1))
    operation = {"op": "blur_and_stride", "size": 25, "sigma": 1.5, "factor": 4}
    strided = apply_operation(ramp, operation)
    area = apply_operation(
        ramp, {"op": "resize", "height": 16, "width": 16, "mode": "area", "antialias": False}
    )
    assert np.abs(strided - area)[:, 4:12, 4:12].max() < 1e-4
