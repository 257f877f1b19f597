"""The two large backbones in miniature, with settings for their encoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lucidnft.backbones.encoder_settings import EncoderSettings
from lucidnft.records import Condition
from tests.backbones.random_tensors import uniforms
from tests.backbones.small_lucidflux import small_lucidflux
from tests.small_dit4sr import small_dit4sr

BACKBONES: dict[str, Callable[..., Any]] = {"lucidflux": small_lucidflux, "dit4sr": small_dit4sr}
LR = uniforms(5, 3, 8, 12)


def backbone_with(name: str, folder: Path | None = None, **settings: Any) -> Any:
    kind = {} if folder is None else {"condition_cache": "disk", "condition_cache_folder": str(folder)}
    return EncoderSettings(**kind, **settings).set_up(BACKBONES[name]())


def encoded(backbone: Any, *rows: int, upscale: int = 4) -> Condition:
    condition: Condition = backbone.encode_condition(LR[list(rows)], upscale=upscale)
    return condition


def counts(backbone: Any) -> tuple[int, int]:
    found = backbone.image_conditions.take_counts()
    return found["condition_cache_hits"], found["condition_cache_misses"]


def assert_same(found: Condition, want: Condition) -> None:
    assert found.fields.keys() == want.fields.keys()
    for name, value in want.fields.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name
