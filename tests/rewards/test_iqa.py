"""pyiqa metrics: sign, needs, shapes, and the global generators left alone."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from lucidnft.rewards import IQAReward, build_reward
from lucidnft.rewards.iqa import parse_range

OFFLINE_FULL_REFERENCE = (
    "psnr",
    "psnry",
    "ssim",
    "ssimc",
    "ms_ssim",
    "cw_ssim",
    "fsim",
    "vif",
    "gmsd",
    "nlpd",
    "vsi",
)


@pytest.fixture(scope="module")
def pair(photographs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    hr = photographs[:2]
    noise = torch.randn(hr.shape, generator=torch.Generator().manual_seed(1))
    return hr, (hr + 0.02 * noise).clamp(0, 1), (hr + 0.15 * noise).clamp(0, 1)


@pytest.mark.parametrize("metric", OFFLINE_FULL_REFERENCE)
def test_less_noise_scores_higher_whatever_the_raw_direction(metric: str, pair: tuple[Tensor, ...]) -> None:
    hr, mild, strong = pair
    reward = IQAReward(metric)
    assert reward.card.needs == {"hr"}
    better, worse = reward(mild, hr=hr), reward(strong, hr=hr)
    assert better.shape == (2,) and better.dtype == torch.float32
    assert (better > worse).all()


def test_the_sign_is_flipped_for_the_metrics_pyiqa_calls_lower_better(pair: tuple[Tensor, ...]) -> None:
    hr, mild, _ = pair
    gmsd, psnr = IQAReward("gmsd"), IQAReward("psnr")
    assert gmsd.card.lower_is_better and not psnr.card.lower_is_better
    assert (gmsd(mild, hr=hr) < 0).all() and (psnr(mild, hr=hr) > 0).all()
    raw = gmsd._network(mild, hr)
    assert torch.equal(gmsd(mild, hr=hr), -raw.float())


def test_psnr_is_the_closed_form() -> None:
    hr = torch.full((1, 3, 16, 16), 0.5)
    score = IQAReward("psnr")(hr + 0.1, hr=hr)
    assert score.item() == pytest.approx(20.0, abs=1e-3)


def test_no_reference_metrics_need_nothing_and_are_negated_too(photographs: Tensor) -> None:
    piqe = IQAReward("piqe")
    assert piqe.card.needs == frozenset()
    scores = piqe(photographs[:2])
    assert scores.shape == (2,) and (scores < 0).all()


def test_a_batch_scores_as_its_images_do(pair: tuple[Tensor, ...]) -> None:
    hr, mild, _ = pair
    reward = IQAReward("fsim")
    single = torch.cat([reward(mild[i : i + 1], hr=hr[i : i + 1]) for i in range(2)])
    assert torch.allclose(reward(mild, hr=hr), single, atol=1e-5)


def test_single_image_metrics_are_looped(pair: tuple[Tensor, ...]) -> None:
    hr, mild, _ = pair
    reward = IQAReward("psnr")
    batched = reward(mild, hr=hr)
    sizes = []
    reward._network.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].shape[0]))
    reward._one_by_one = True
    assert torch.allclose(reward(mild, hr=hr), batched, atol=1e-5)
    assert sizes == [1, 1]


def test_the_global_generators_are_left_as_they_were(pair: tuple[Tensor, ...]) -> None:
    hr, mild, _ = pair
    reward = IQAReward("psnr")
    network = reward._network

    class Reseeding(torch.nn.Module):
        def forward(self, *images: Tensor) -> Tensor:
            random.seed(123), np.random.seed(123), torch.manual_seed(123)
            return network(*images)

    reward._network = Reseeding()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()
    reward(mild, hr=hr)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.random.get_rng_state(), before[2])


@pytest.mark.parametrize(
    ("size", "metric", "message"),
    [(8, "ssim", "at least 11 px"), (160, "ms_ssim", "at least 161 px"), (40, "vif", "at least 41 px")],
)
def test_images_below_the_metrics_size_are_refused(size: int, metric: str, message: str) -> None:
    images = torch.rand(1, 3, size, size)
    with pytest.raises(ValueError, match=message):
        IQAReward(metric)(images, hr=images)


def test_missing_reference_and_other_sizes_are_refused() -> None:
    reward = IQAReward("psnr")
    with pytest.raises(ValueError, match="needs hr"):
        reward(torch.rand(1, 3, 16, 16))
    with pytest.raises(ValueError, match="must agree"):
        reward(torch.rand(1, 3, 16, 16), hr=torch.rand(1, 3, 32, 32))


def test_unknown_and_set_metrics_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean"):
        IQAReward("musiqq")
    with pytest.raises(ValueError, match="sets of images"):
        IQAReward("fid")


def test_missing_weights_say_which_metric_which_folder_and_which_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import pyiqa

    def unreachable(*args: object, **options: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(pyiqa, "create_metric", unreachable)
    with pytest.raises(RuntimeError, match=r"'musiq' could not get its weights.*pyiqa \(huggingface.co"):
        IQAReward("musiq")


def test_a_missing_pyiqa_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(ImportError, match=r"lucidnft\[iqa\]"):
        IQAReward("psnr")
    with pytest.raises(ValueError, match=r"lucidnft\[iqa\]"):
        build_reward("musiq")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0, 100", (0.0, 100.0)), ("-2, 2", (-2.0, 2.0)), ("~0, ~40", None), ("0, ~", None), (None, None)],
)
def test_ranges_are_read_only_where_they_are_exact(
    text: str | None, expected: tuple[float, float] | None
) -> None:
    assert parse_range(text) == expected
