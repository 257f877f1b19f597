"""Drawing degradations: ranges and a generator in, a list of operations with their parameters out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lucidnft.data.degradation_operations import Operation
from lucidnft.data.degradation_ranges import BsrganRanges, KernelRanges, SecondOrderRanges, StageRanges

_RESIZE_MODES = ("area", "bilinear", "bicubic")
_KERNEL_SHAPES = ("gaussian", "gaussian", "generalised", "generalised", "plateau", "plateau")
_ROUND: Operation = {"op": "round"}


def draw_bicubic(hr_size: tuple[int, int], upscale: int) -> list[Operation]:
    """Antialiased bicubic down-sampling; nothing random."""
    size = (hr_size[0] // upscale, hr_size[1] // upscale)
    return [_resize_to(size, "bicubic", antialias=True), dict(_ROUND)]


def draw_second_order(
    ranges: SecondOrderRanges, hr_size: tuple[int, int], upscale: int, rng: np.random.Generator
) -> list[Operation]:
    """Real-ESRGAN: blur, resize, noise, JPEG, then the same again with the end in one of two orders."""
    lr_size = (hr_size[0] // upscale, hr_size[1] // upscale)
    operations = _draw_stage(ranges.first, hr_size, rng)
    operations.append(_draw_jpeg(ranges.first.jpeg_quality, rng))
    operations += _draw_stage(ranges.second, lr_size, rng)
    ending = [_resize_to(lr_size, _choice(_RESIZE_MODES, rng))]
    if rng.random() < ranges.final_sinc_probability:
        size = _odd_size(ranges.final_sinc_sizes, rng)
        ending.append({"op": "sinc", "size": size, "cutoff": _uniform((math.pi / 3, math.pi), rng)})
    jpeg = _draw_jpeg(ranges.second.jpeg_quality, rng)
    operations += [*ending, jpeg] if rng.random() < 0.5 else [jpeg, *ending]
    return [*operations, dict(_ROUND)]


def _draw_stage(ranges: StageRanges, size: tuple[int, int], rng: np.random.Generator) -> list[Operation]:
    """Blur, resize relative to `size`, noise."""
    operations = []
    if rng.random() < ranges.blur_probability:
        operations.append(_draw_kernel(ranges.kernel, rng))
    direction = rng.choice(3, p=ranges.resize_probabilities)
    low, high = ((1.0, ranges.resize[1]), (ranges.resize[0], 1.0), (1.0, 1.0))[direction]
    factor = _uniform((low, high), rng)
    target = (max(1, int(size[0] * factor)), max(1, int(size[1] * factor)))
    operations.append(_resize_to(target, _choice(_RESIZE_MODES, rng), factor=factor))
    gaussian = rng.random() < ranges.gaussian_probability
    strength: dict[str, Any] = (
        {"op": "gaussian_noise", "sigma": _uniform(ranges.gaussian_sigma, rng)}
        if gaussian
        else {"op": "poisson_noise", "scale": _uniform(ranges.poisson_scale, rng)}
    )
    grey = bool(rng.random() < ranges.grey_noise_probability)
    operations.append({**strength, "grey": grey, "noise_seed": _noise_seed(rng)})
    return operations


def _draw_kernel(ranges: KernelRanges, rng: np.random.Generator) -> Operation:
    size = _odd_size(ranges.sizes, rng)
    if rng.random() < ranges.sinc_probability:
        lowest = math.pi / 3 if size < 13 else math.pi / 5
        return {"op": "sinc", "size": size, "cutoff": _uniform((lowest, math.pi), rng)}
    kind = int(rng.choice(6, p=ranges.shape_probabilities))
    shape, isotropic = _KERNEL_SHAPES[kind], kind % 2 == 0
    sigma_x = _uniform(ranges.sigma, rng)
    sigma_y = sigma_x if isotropic else _uniform(ranges.sigma, rng)
    rotation = 0.0 if isotropic else _uniform((-math.pi, math.pi), rng)
    beta = 1.0
    if shape != "gaussian":
        low, high = ranges.generalised_beta if shape == "generalised" else ranges.plateau_beta
        beta = _uniform((low, 1.0) if rng.random() < 0.5 else (1.0, high), rng)
    return _blur(size, sigma_x, sigma_y, rotation, shape, beta)


def draw_bsrgan(
    ranges: BsrganRanges, hr_size: tuple[int, int], upscale: int, rng: np.random.Generator
) -> list[Operation]:
    """BSRGAN: two blurs, two down-samplings (in order), noise and JPEG, shuffled; then JPEG once more."""
    operations: list[Operation] = []
    size, scale = hr_size, upscale
    if upscale == 4 and rng.random() < ranges.initial_halving_probability:
        size, scale = (hr_size[0] // 2, hr_size[1] // 2), 2
        plain = rng.random() < 0.5
        mode = _choice(_RESIZE_MODES, rng) if plain else "bicubic"
        operations.append(_resize_to(size, mode, antialias=not plain))
    order = [int(i) for i in rng.permutation(6)]
    first, second = order.index(2), order.index(3)
    if first > second:
        order[first], order[second] = order[second], order[first]
    for step in order:
        if step in (0, 1):
            operations.append(_draw_bsrgan_blur(ranges, scale, rng))
        elif step == 2:
            operations += _draw_bsrgan_downsample(ranges, size, scale, rng)
        elif step == 3:
            lr_size = (hr_size[0] // upscale, hr_size[1] // upscale)
            operations += [_resize_to(lr_size, _choice(_RESIZE_MODES, rng)), {"op": "clip"}]
        elif step == 4:
            operations.append(_draw_bsrgan_noise(ranges, rng))
        elif rng.random() < ranges.jpeg_probability:
            operations.append(_draw_jpeg(ranges.jpeg_quality, rng))
    return [*operations, _draw_jpeg(ranges.jpeg_quality, rng), dict(_ROUND)]


def _draw_bsrgan_blur(ranges: BsrganRanges, scale: int, rng: np.random.Generator) -> Operation:
    size = _odd_size(ranges.blur_sizes, rng)
    if rng.random() < 0.5:
        highest = ranges.anisotropic_variance_offset + scale
        variances = [_uniform((ranges.smallest_variance, highest), rng) for _ in range(2)]
        rotation = _uniform((0.0, math.pi), rng)
        return _blur(size, math.sqrt(variances[0]), math.sqrt(variances[1]), rotation)
    offset, slope = ranges.isotropic_sigma
    sigma = _uniform((math.sqrt(ranges.smallest_variance), offset + slope * scale), rng)
    return _blur(size, sigma, sigma, 0.0)


def _draw_bsrgan_downsample(
    ranges: BsrganRanges, size: tuple[int, int], scale: int, rng: np.random.Generator
) -> list[Operation]:
    if rng.random() < ranges.plain_resize_probability:
        factor = 1 / _uniform((1.0, 2.0 * scale), rng)
        target = (max(1, int(size[0] * factor)), max(1, int(size[1] * factor)))
        shrink: Operation = _resize_to(target, _choice(_RESIZE_MODES, rng), factor=factor)
    else:
        low, slope = ranges.stride_sigma
        sigma = _uniform((low, max(low, slope * scale)), rng)
        shrink = {"op": "blur_and_stride", "size": 25, "sigma": sigma, "factor": scale}
    return [shrink, {"op": "clip"}]


def _draw_bsrgan_noise(ranges: BsrganRanges, rng: np.random.Generator) -> Operation:
    low, high = ranges.noise_levels
    level = int(rng.integers(low, high + 1))
    kind = ("colour", "grey", "correlated")[int(rng.choice(3, p=ranges.noise_kinds))]
    noise: Operation = {"op": "gaussian_noise", "sigma": float(level), "grey": kind == "grey"}
    if kind == "correlated":
        # |U' D U| with a random rotation U and variances D, at BSRGAN's fixed strength of the upper level.
        rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        covariance = np.abs(rotation.T @ np.diag(rng.random(3)) @ rotation)
        values, vectors = np.linalg.eigh(covariance)
        mixing = vectors * np.sqrt(np.clip(values, 0, None))
        noise |= {"sigma": float(high), "mixing": mixing.tolist()}
    return noise | {"noise_seed": _noise_seed(rng)}


def _blur(
    size: int, sigma_x: float, sigma_y: float, rotation: float, shape: str = "gaussian", beta: float = 1.0
) -> Operation:
    return {
        "op": "blur", "shape": shape, "size": size, "sigma_x": sigma_x, "sigma_y": sigma_y,
        "rotation": rotation, "beta": beta,
    }  # fmt: skip


def _resize_to(
    size: tuple[int, int], mode: str, *, antialias: bool = False, factor: float | None = None
) -> Operation:
    record: Operation = {
        "op": "resize", "height": size[0], "width": size[1], "mode": mode, "antialias": antialias,
    }  # fmt: skip
    return record if factor is None else record | {"factor": factor}


def _draw_jpeg(quality: tuple[int, int], rng: np.random.Generator) -> Operation:
    return {"op": "jpeg", "quality": int(rng.integers(quality[0], quality[1] + 1))}


def _odd_size(sizes: tuple[int, int], rng: np.random.Generator) -> int:
    return int(rng.integers(sizes[0] // 2, sizes[1] // 2 + 1)) * 2 + 1


def _uniform(interval: tuple[float, float], rng: np.random.Generator) -> float:
    return float(rng.uniform(*interval))


def _choice(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _noise_seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**53))  # exact in any JSON reader
