"""Names and configs to rewards."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from lucidnft.rewards import (
    IQAReward,
    LRFidelity,
    LucidConsistency,
    QualityNet,
    Reward,
    RewardCard,
    build_reward,
)
from lucidnft.rewards.base import Reference
from lucidnft.rewards.full_reference import FullReferenceConfig, FullReferenceReward
from lucidnft.rewards.registry import REWARD_CONFIGS, RewardConfig
from lucidnft.schema import ConfigModel


class BrightnessReward(Reward):
    card = RewardCard(name="brightness")

    def score(self, sr: Tensor, reference: Reference) -> Tensor:
        return sr.mean(dim=(1, 2, 3))


class BrightnessConfig(ConfigModel):
    type: Literal["brightness"] = "brightness"
    weight: float = 1.0

    def build(self) -> BrightnessReward:
        return BrightnessReward()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lr_fidelity", LRFidelity),
        ("quality_net", QualityNet),
        ("lucid_consistency", LucidConsistency),
        ("full_reference", FullReferenceReward),
        ("fsim", IQAReward),
        ("psnr", IQAReward),
    ],
)
def test_names_build_their_reward(name: str, kind: type[Reward]) -> None:
    reward = build_reward(name)
    assert type(reward) is kind
    assert reward.card.name == ("psnr" if name == "full_reference" else name)


def test_mappings_and_config_objects_build_the_same() -> None:
    from_mapping = build_reward({"type": "full_reference", "metric": "psnr", "crop_border": 4})
    from_config = build_reward(FullReferenceConfig(metric="psnr", crop_border=4))
    assert isinstance(from_mapping, FullReferenceReward) and isinstance(from_config, FullReferenceReward)
    assert from_mapping.crop_border == from_config.crop_border == 4


def test_a_reward_from_outside_is_built_by_its_path() -> None:
    module = BrightnessConfig.__module__
    import sys

    assert module in sys.modules
    reward = build_reward({"type": f"{module}:BrightnessConfig", "weight": 2.0})
    assert reward(torch.full((2, 3, 8, 8), 0.25)).tolist() == [0.25, 0.25]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("lucid_consistencyy", "did you mean lucid_consistency"),
        ("fsimm", "did you mean fsim"),
        ("iqa", "'iqa' is unknown"),
        ({"type": "iqaa", "metric": "fsim"}, "did you mean iqa"),
        ({"metric": "fsim"}, "'None' is unknown"),
        ({"type": "lr_fidelity", "blur": 1.0}, r"blur: Extra inputs are not permitted \(got 1.0\)"),
        ({"type": "lr_fidelity", "blur_sigma": -1.0}, "blur_sigma"),
        ({"type": "full_reference", "color_space": "lab"}, "color_space"),
        ({"type": "nowhere.to.be_found:Config"}, "could not be imported"),
        ({"type": "math:pi"}, "is not a ConfigModel"),
        (3.5, "got a float"),
    ],
)
def test_wrong_names_and_settings_are_refused(wanted: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_reward(wanted)  # type: ignore[arg-type]


def test_the_union_and_the_list_agree_and_every_config_has_a_weight() -> None:
    assert set(RewardConfig.__args__) == set(REWARD_CONFIGS)
    for config in REWARD_CONFIGS:
        assert config.model_fields["weight"].default == 1.0
        assert callable(config.build)  # type: ignore[attr-defined]
