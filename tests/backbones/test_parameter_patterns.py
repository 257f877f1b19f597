"""Which parameters the patterns of train_parameters choose, and which settings are refused."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from lucidnft.backbones.adapters import LoraSettings
from lucidnft.backbones.trained_parameters import select_parameters
from tests.backbones.small_lucidflux import small_lucidflux
from tests.small_dit4sr import small_dit4sr

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_pattern_is_a_glob_over_whole_names() -> None:
    many = nn.Sequential(*(nn.Linear(1, 1) for _ in range(12)))
    assert list(select_parameters(many, ["0.*"])) == ["0.weight", "0.bias"]  # and not 10.weight
    assert list(select_parameters(many, ["[12].w*", "1?.bias"])) == [
        "1.weight",
        "2.weight",
        "10.bias",
        "11.bias",
    ]
    network = small_lucidflux().network
    names = list(dict(network.named_parameters()))
    modulation = [n for n in names if n.startswith("conditioner.modulation_")]
    assert (
        list(select_parameters(network, ["conditioner.modulation_*"])) == modulation and len(modulation) == 20
    )
    assert list(select_parameters(network, [modulation[3], "conditioner.modulation_lq.*"])) == modulation[:10]
    assert list(select_parameters(network, [names[5]])) == [names[5]]
    control = list(select_parameters(small_dit4sr().network, ["*control*"]))
    assert len(control) == 2 * 5 * 4 + 2 * 3  # four layers in five attentions, a convolution in three MLPs
    with pytest.raises(
        ValueError, match=r"'conditioner.modulaton_\*' matches .*near are: .*conditioner.modulation_l"
    ):
        select_parameters(network, ["*norm*", "conditioner.modulaton_*"])
    with pytest.raises(
        ValueError, match="'modulation_lq' matches no parameter"
    ):  # the part of a name is not a name
        select_parameters(network, ["modulation_lq"])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].weight = nn.Parameter(torch.zeros(2, 2).to(dtype), requires_grad=False)
    assert list(select_parameters(network, ["0.*"])) == ["0.weight", "0.bias"]
    with pytest.raises(ValueError, match=rf"1 parameters .* 1\.weight \({dtype}\); quantised"):
        select_parameters(network, ["*"])


def test_settings_of_lora_beside_it_are_refused() -> None:
    for unread in ({"lora_rank": 8}, {"lora_alpha": 8.0}, {"target_modules": ("conv1",)}):
        with pytest.raises(ValidationError, match=f"remove {next(iter(unread))}, or set"):
            LoraSettings(train_parameters=("*",), **unread)
    with pytest.raises(ValidationError, match="train_parameters is empty"):
        LoraSettings(train_parameters=())
    settings = LoraSettings(train_parameters=("*",))
    assert LoraSettings.model_validate(settings.model_dump(mode="json")) == settings
