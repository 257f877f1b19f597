"""Conditions of both large backbones: kept or fresh they are the same bits, and any change is a miss."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lucidnft.backbones import image_conditions
from lucidnft.backbones.adapters import LoraSettings
from lucidnft.backbones.encoder_settings import EncoderSettings
from lucidnft.policy import Policy
from tests.backbones.large_backbones import BACKBONES, LR, assert_same, backbone_with, counts, encoded
from tests.small_backbone import small_backbone
from tests.small_dit4sr import small_dit4sr

pytestmark = pytest.mark.usefixtures("one_thread")
ENCODERS = {"lucidflux": {"swinir", "siglip", "connector"}, "dit4sr": {"encoder"}}
STORED = {"lucidflux": {"pre_restored", "siglip"}, "dit4sr": {"lr_latent"}}


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_kept_and_fresh_conditions_are_the_same_bits(name: str, where: str, tmp_path: Path) -> None:
    fresh = encoded(BACKBONES[name](), 0, 1, 2, 1)
    backbone = backbone_with(
        name,
        tmp_path if where == "disk" else None,
        **({"condition_cache": where} if where == "memory" else {}),
    )
    assert_same(encoded(backbone, 2, 0), fresh.index([2, 0]))
    assert counts(backbone) == (0, 2)
    condition = encoded(backbone, 0, 1, 2, 1)
    assert_same(condition, fresh)
    assert counts(backbone) == (3, 1)  # an image that comes twice in a batch is encoded once
    for value in condition.fields.values():
        value.fill_(-7.0) if value.is_contiguous() else None
    assert_same(encoded(backbone, 2, 1), fresh.index([2, 1]))
    assert counts(backbone) == (2, 0)
    if where == "disk":
        again = backbone_with(name, tmp_path)
        assert_same(encoded(again, 0, 1, 2, 1), fresh)
        assert counts(again) == (4, 0)
        assert len(list(tmp_path.rglob("*.safetensors"))) == 3


@pytest.mark.parametrize("name", BACKBONES)
def test_only_what_the_image_decides_is_kept_and_nothing_that_a_resize_gives(name: str) -> None:
    backbone = backbone_with(name, condition_cache="memory")
    condition = encoded(backbone, 0)
    (kept,) = backbone.image_conditions.store._kept.values()
    assert kept.keys() == STORED[name]
    assert all(kept[n].dtype == condition[n].dtype for n in kept)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_damaged_file_is_encoded_again(name: str, tmp_path: Path) -> None:
    fresh = encoded(backbone_with(name, tmp_path), 0)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-50])
    backbone = backbone_with(name, tmp_path)
    with pytest.warns(UserWarning, match="computed again"):
        assert_same(encoded(backbone, 0), fresh)
    assert counts(backbone) == (0, 1)
    assert_same(encoded(backbone, 0), fresh)
    assert counts(backbone) == (1, 0)


def other_upscale(backbone: Any, lr: Tensor) -> tuple[Tensor, int]:
    return lr, 8


def other_pixel(backbone: Any, lr: Tensor) -> tuple[Tensor, int]:
    changed = lr.clone()
    changed[0, 1, 2, 3] += 1e-6
    return changed, 4


def other_shape(backbone: Any, lr: Tensor) -> tuple[Tensor, int]:
    return lr.reshape(1, 3, 12, 8), 4


def other_dtype(backbone: Any, lr: Tensor) -> tuple[Tensor, int]:
    for encoder in backbone.image_conditions.encoders.values():
        nn.Module.to(encoder, torch.float64)
    return lr, 4


def other_code(backbone: Any, lr: Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, int]:
    monkeypatch.setattr(image_conditions, "PREPROCESSING_VERSION", 99)
    return lr, 4


def other_library(backbone: Any, lr: Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, int]:
    monkeypatch.setattr(image_conditions, "version", lambda name: f"{version(name)}{name == 'diffusers'}")
    return lr, 4


def other_device(backbone: Any, lr: Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, int]:
    monkeypatch.setattr(image_conditions, "_kind", lambda device: "another GPU")
    return lr, 4


def other_backbone(backbone: Any, lr: Tensor) -> tuple[Tensor, int]:
    backbone.image_conditions.backbone = "another"
    return lr, 4


CHANGES: tuple[Callable[..., tuple[Tensor, int]], ...] = (
    other_upscale, other_pixel, other_shape, other_dtype, other_code, other_library, other_device, other_backbone
)  # fmt: skip


@pytest.mark.parametrize("name", BACKBONES)
def test_any_change_of_image_or_preprocessing_is_a_miss(name: str, tmp_path: Path) -> None:
    encoded(backbone_with(name, tmp_path), 0)
    for change in CHANGES:
        backbone = backbone_with(name, tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            lr, upscale = change(*(backbone, LR[:1], patch)[: change.__code__.co_argcount])
            backbone.encode_condition(lr, upscale=upscale)
        assert counts(backbone) == (0, 1), change.__name__


@pytest.mark.parametrize("name", BACKBONES)
def test_a_change_of_any_encoder_is_a_miss(name: str, tmp_path: Path) -> None:
    first = backbone_with(name, tmp_path)
    encoded(first, 0)
    assert set(first.image_conditions.encoders) == ENCODERS[name]
    for encoder in ENCODERS[name]:
        backbone = backbone_with(name, tmp_path)
        with torch.no_grad():
            parameter = next(backbone.image_conditions.encoders[encoder].parameters())
            parameter.view(-1)[0] += 1.0
        encoded(backbone, 0)
        assert counts(backbone) == (0, 1), encoder


def test_options_of_the_encoders_are_part_of_the_key(tmp_path: Path) -> None:
    made: list[Any] = []
    for posterior, tiling in itertools.product(("sample", "mean"), (False, True)):
        backbone = EncoderSettings(
            condition_cache="disk", condition_cache_folder=str(tmp_path), vae_tiling=tiling
        ).set_up(small_dit4sr(posterior=posterior))
        encoded(backbone, 0)
        made.append(counts(backbone))
    assert made == [(0, 1)] * 4
    backbone = backbone_with("lucidflux", tmp_path)
    encoded(backbone, 0)
    for field, value in (("num_attention_heads", 4), ("_attn_implementation", "eager")):
        setattr(backbone.encoders.siglip.config, field, value)  # weights do not tell them
        encoded(backbone, 0)
        assert counts(backbone)[1] == 1 + (field == "num_attention_heads"), field


def test_where_weights_were_loaded_from_is_not_part_of_the_key(tmp_path: Path) -> None:
    encoded(backbone_with("lucidflux", tmp_path), 0)
    encoded(backbone_with("dit4sr", tmp_path), 0)
    for name in BACKBONES:
        backbone = backbone_with(name, tmp_path, vae_slicing=True, encoder_offload=True)
        backbone.vae.register_to_config(_name_or_path="/somewhere/else")
        if name == "lucidflux":
            backbone.encoders.siglip.config._name_or_path = "/somewhere/else"
        encoded(backbone, 0)
        assert counts(backbone) == (1, 0), name


def test_a_change_of_preprocessing_must_raise_its_version() -> None:
    """If this fails, files kept by earlier versions would be wrong: raise PREPROCESSING_VERSION, then renew it."""
    means = {}
    for name in BACKBONES:
        backbone = BACKBONES[name]()
        for encoder in backbone.image_conditions.encoders.values():
            drawn_(encoder)  # what libraries draw at the start differs between their versions
        fields = encoded(backbone, 0, 1)
        means |= {f"{name} {field}": float(fields[field].double().abs().mean()) for field in STORED[name]}
    assert image_conditions.PREPROCESSING_VERSION == 1
    assert means == pytest.approx(PINNED, rel=1e-4)


@torch.no_grad()
def drawn_(network: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


PINNED = {
    "lucidflux pre_restored": 0.1452860918491044,
    "lucidflux siglip": 0.048332739307079466,
    "dit4sr lr_latent": 1.181704012133802,
}


def test_a_policy_hands_over_the_counts() -> None:
    backbone = backbone_with("dit4sr", condition_cache="memory")
    policy = Policy(backbone, LoraSettings(lora_rank=1), seed=0)
    encoded(backbone, 0, 1)
    assert policy.take_cache_counts() == {"condition_cache_hits": 0, "condition_cache_misses": 2}
    encoded(backbone, 0)
    assert policy.take_cache_counts() == {"condition_cache_hits": 1, "condition_cache_misses": 0}
    assert Policy(small_dit4sr(), LoraSettings(lora_rank=1), seed=0).take_cache_counts() == {}
    assert Policy(small_backbone(), LoraSettings(lora_rank=1), seed=0).take_cache_counts() == {}
