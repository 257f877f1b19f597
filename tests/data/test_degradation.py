"""Degradations: what is drawn, from which ranges, and that the record repeats it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lucidnft.data.degradation import Degradation, replay
from lucidnft.data.degradation_operations import apply_operation
from lucidnft.images import resize
from lucidnft.rng import numpy_generator_for

PRESETS = ("realesrgan", "light", "bsrgan", "bicubic")
RANDOM_PRESETS = PRESETS[:3]


def smooth_image(height: int, width: int) -> torch.Tensor:
    """A picture with slopes and one edge, (3, H, W) in [0, 1]."""
    y = torch.linspace(0, 1, height)[:, None].expand(height, width)
    x = torch.linspace(0, 1, width).expand(height, width)
    return torch.stack([0.2 + 0.6 * x, 0.8 - 0.5 * y, 0.3 + 0.4 * (x > 0.5)])


def draws(preset: str, count: int = 400, size: tuple[int, int] = (64, 96)) -> list[list[dict]]:
    degradation = Degradation(preset)
    return [degradation.draw(size, numpy_generator_for(0, "test", preset, i)) for i in range(count)]


def of_kind(operations: list[dict], kind: str) -> list[dict]:
    return [op for op in operations if op["op"] == kind]


@settings(max_examples=40, deadline=None)
@given(
    preset=st.sampled_from(PRESETS),
    upscale=st.sampled_from([1, 2, 3, 4]),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    seed=st.integers(0, 10**6),
)
def test_size_range_determinism_and_replay(preset, upscale, rows, columns, seed):
    hr = smooth_image(rows * upscale, columns * upscale)
    before = hr.clone()
    degradation = Degradation(preset, upscale)
    lr, record = degradation(hr, np.random.default_rng(seed))
    assert lr.shape == (3, rows, columns) and lr.dtype == torch.float32
    assert lr.min() >= 0 and lr.max() <= 1
    assert torch.allclose(lr * 255, (lr * 255).round(), atol=1e-4)
    again, _ = degradation(hr, np.random.default_rng(seed))
    assert torch.equal(lr, again)
    assert torch.equal(replay(hr, json.loads(json.dumps(record))), lr)
    assert torch.equal(hr, before)


@pytest.mark.parametrize("preset", RANDOM_PRESETS)
def test_different_seeds_differ(preset):
    hr = smooth_image(64, 64)
    outputs = [Degradation(preset)(hr, np.random.default_rng(seed))[0] for seed in range(4)]
    assert all(not torch.equal(outputs[i], outputs[j]) for i in range(4) for j in range(i))


def test_bicubic_is_the_antialiased_resize_in_8_bits():
    hr = torch.rand(3, 40, 28, generator=torch.Generator().manual_seed(0))
    lr, record = Degradation("bicubic")(hr, np.random.default_rng(0))
    assert torch.equal(lr, (resize(hr[None], (10, 7))[0] * 255).round() / 255)
    assert [op["op"] for op in record["operations"]] == ["resize", "round"]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="'medium'.*realesrgan, light, bsrgan, bicubic"):
        Degradation("medium")
    with pytest.raises(ValueError, match="upscale is 0"):
        Degradation("light", 0)
    with pytest.raises(ValueError, match=r"\(3, 42, 40\).*multiples of 4"):
        Degradation("light")(torch.rand(3, 42, 40), np.random.default_rng(0))
    with pytest.raises(ValueError, match="'sharpen'"):
        apply_operation(np.zeros((3, 4, 4), np.float32), {"op": "sharpen"})


# first stage then second: resize factors, Gaussian sigma, Poisson scale, JPEG quality, kernel sigma
SECOND_ORDER_TABLE = {
    "realesrgan": (
        ((0.15, 1.5), (1, 30), (0.05, 3.0), (30, 95), (0.2, 3.0)),
        ((0.3, 1.2), (1, 25), (0.05, 2.5), (30, 95), (0.2, 1.5)),
    ),
    "light": (
        ((0.3, 1.5), (1, 15), (0.05, 2.0), (60, 95), (0.2, 1.5)),
        ((0.6, 1.2), (1, 12), (0.05, 1.0), (60, 100), (0.2, 1.0)),
    ),
}
BLUR_2_PROBABILITY = {"realesrgan": 0.8, "light": 0.5}


def within(values: list[float], low: float, high: float) -> None:
    """All inside, and together covering most of the interval."""
    assert low <= min(values) and max(values) <= high
    assert min(values) < low + 0.1 * (high - low) and max(values) > high - 0.1 * (high - low)


@pytest.mark.parametrize("preset", SECOND_ORDER_TABLE)
def test_second_order_draws_fill_the_documented_ranges(preset):
    first_jpeg = [next(i for i, op in enumerate(d) if op["op"] == "jpeg") for d in draws(preset)]
    stages = [(d[:i], d[i + 1 :], d[i]) for d, i in zip(draws(preset), first_jpeg, strict=True)]
    for stage, (factors, gaussian, poisson, quality, sigma) in enumerate(SECOND_ORDER_TABLE[preset]):
        operations = [op for parts in stages for op in parts[stage]]
        resizes = [op for op in operations if "factor" in op]
        within([op["factor"] for op in resizes], *factors)
        # The first stage resizes relative to the HR size, the second relative to the LR size.
        height, width = ((64, 96), (16, 24))[stage]
        assert all(op["height"] == int(height * op["factor"]) for op in resizes)
        assert all(op["width"] == int(width * op["factor"]) for op in resizes)
        for op in [parts[stage][0] for parts in stages if parts[stage][0]["op"] == "sinc"]:
            assert (math.pi / 3 if op["size"] < 13 else math.pi / 5) <= op["cutoff"] <= math.pi
        within([op["sigma"] for op in of_kind(operations, "gaussian_noise")], *gaussian)
        within([op["scale"] for op in of_kind(operations, "poisson_noise")], *poisson)
        jpegs = [parts[2] for parts in stages] if stage == 0 else of_kind(operations, "jpeg")
        assert len(jpegs) == len(stages)
        within([op["quality"] for op in jpegs], *quality)
        blurs = of_kind(operations, "blur")
        within([op[axis] for op in blurs for axis in ("sigma_x", "sigma_y")], *sigma)
        assert {op["size"] for op in blurs} == {7, 9, 11, 13, 15, 17, 19, 21}
        assert {op["mode"] for op in of_kind(operations, "resize")} == {"area", "bilinear", "bicubic"}
        beta = {"realesrgan": (0.5, 4.0, 2.0), "light": (0.5, 2.0, 1.5)}[preset]
        for op in blurs:
            low, high = {
                "gaussian": (1, 1),
                "generalised": (beta[0], beta[1]),
                "plateau": (1, beta[2]),
            }[op["shape"]]
            assert low <= op["beta"] <= high and -math.pi <= op["rotation"] <= math.pi


@pytest.mark.parametrize("preset", SECOND_ORDER_TABLE)
def test_second_order_probabilities(preset):
    count = 2000
    records = draws(preset, count)

    def close(occurrences: int, probability: float) -> None:
        assert abs(occurrences / count - probability) < 4 * math.sqrt(probability * (1 - probability) / count)

    directions = [next(op["factor"] for op in d if "factor" in op) for d in records]
    close(sum(f > 1 for f in directions), 0.2)
    close(sum(f < 1 for f in directions), 0.7)
    noises = [of_kind(d, "gaussian_noise") + of_kind(d, "poisson_noise") for d in records]
    assert all(len(pair) == 2 for pair in noises)
    for stage in (0, 1):
        close(sum(_noises(d)[stage]["op"] == "gaussian_noise" for d in records), 0.5)
        close(sum(_noises(d)[stage]["grey"] for d in records), 0.4)
    close(sum(d[0]["op"] == "sinc" for d in records), 0.1)
    second = [d[[op["op"] for op in d].index("jpeg") + 1] for d in records]
    close(sum(op["op"] in ("blur", "sinc") for op in second), BLUR_2_PROBABILITY[preset])
    endings = [[op["op"] for op in d[d.index(_noises(d)[1]) + 1 :]] for d in records]
    assert {tuple(e) for e in endings} == {
        ("resize", "sinc", "jpeg", "round"),
        ("resize", "jpeg", "round"),
        ("jpeg", "resize", "sinc", "round"),
        ("jpeg", "resize", "round"),
    }
    close(sum(e[0] == "jpeg" for e in endings), 0.5)
    close(sum("sinc" in e for e in endings), 0.8)
    finals = [op for d in records for op in d[d.index(_noises(d)[1]) + 1 :] if op["op"] == "sinc"]
    within([op["cutoff"] for op in finals], math.pi / 3, math.pi)


def _noises(operations: list[dict]) -> list[dict]:
    return [op for op in operations if op["op"].endswith("_noise")]


def test_bsrgan_order_and_ranges():
    count = 1500
    records = draws("bsrgan", count, (64, 64))
    halved = 0
    orders = set()
    for operations in records:
        names = [op["op"] for op in operations]
        halved += operations[0].get("height") == 32 and "factor" not in operations[0]
        assert names.count("blur") == 2 and names.count("gaussian_noise") == 1
        assert names[-2:] == ["jpeg", "round"] and 1 <= names.count("jpeg") <= 2
        shrink = [i for i, op in enumerate(operations) if "factor" in op]
        final = max(i for i, op in enumerate(operations) if op["op"] == "resize" and "factor" not in op)
        assert len(shrink) == 1 and shrink[0] < final
        assert (operations[final]["height"], operations[final]["width"]) == (16, 16)
        orders.add(tuple(names))
    assert abs(halved / count - 0.25) < 0.05
    assert len(orders) > 100
    everything = [op for operations in records for op in operations]
    within([op["quality"] for op in of_kind(everything, "jpeg")], 30, 95)
    within([op["sigma"] for op in of_kind(everything, "gaussian_noise")], 2, 25)
    assert {op["size"] for op in of_kind(everything, "blur")} == set(range(7, 26, 2))
    assert max(max(op["sigma_x"], op["sigma_y"]) ** 2 for op in of_kind(everything, "blur")) <= 8
    within([op["sigma"] for op in of_kind(everything, "blur_and_stride")], 0.1, 2.4)
    within([op["factor"] for op in of_kind(everything, "resize") if "factor" in op], 1 / 8, 1)
    assert abs(len(of_kind(everything, "blur_and_stride")) / count - 0.25) < 0.05
    kinds = [("mixing" in op, op["grey"]) for op in of_kind(everything, "gaussian_noise")]
    assert abs(kinds.count((True, False)) / count - 0.2) < 0.05
    assert abs(kinds.count((False, True)) / count - 0.4) < 0.05


@pytest.mark.parametrize("preset", RANDOM_PRESETS)
def test_degraded_images_stay_in_place_and_in_tone(preset):
    """Over many draws, the mean LR image is the plain down-sampling: no shift, no drift in brightness."""
    hr = smooth_image(64, 64)
    small = resize(hr[None], (16, 16))[0]
    mean = torch.stack(
        [Degradation(preset)(hr, numpy_generator_for(1, "test", i))[0] for i in range(100)]
    ).mean(0)
    assert (mean - small).abs().mean() < 0.03
    edge = mean[2].mean(0)
    crossing = (edge < 0.5).sum().item()
    assert abs(crossing - 8) <= 1
