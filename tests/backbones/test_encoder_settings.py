"""Settings of the networks around the large backbones: applied by both configs, refused where nothing reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lucidnft.backbones.condition_cache import GIB, DiskStore, MemoryStore
from lucidnft.backbones.dit4sr_config import DiT4SRBackboneConfig
from lucidnft.backbones.encoder_settings import EncoderSettings
from lucidnft.backbones.lucidflux_config import LucidFluxBackboneConfig
from tests.backbones.small_lucidflux import SMALL as SMALL_LUCIDFLUX
from tests.small_dit4sr import save_small_dit4sr, small_dit4sr

pytestmark = pytest.mark.usefixtures("one_thread")


def test_bounds_come_from_the_settings(tmp_path: Path) -> None:
    def bound(**settings: Any) -> int:
        store = EncoderSettings(**settings).set_up(small_dit4sr()).image_conditions.store
        assert isinstance(store, MemoryStore | DiskStore)
        return store.limit_bytes

    disk = {"condition_cache": "disk", "condition_cache_folder": str(tmp_path)}
    assert bound(condition_cache="memory") == 8 * GIB and bound(**disk) == 100 * GIB
    assert bound(condition_cache="memory", condition_cache_gib=0.5) == GIB // 2
    assert bound(**disk, condition_cache_gib=2) == 2 * GIB


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"condition_cache": "disk"}, "disk needs condition_cache_folder"),
        ({"condition_cache_folder": "x"}, "read only with condition_cache: disk, not none"),
        ({"condition_cache": "memory", "condition_cache_folder": "x"}, "disk, not memory"),
        ({"condition_cache_gib": 1.0}, "condition_cache is none"),
        ({"condition_cache": "memory", "condition_cache_gib": 0}, "greater than 0"),
        ({"condition_cache": "ram"}, "'none', 'memory' or 'disk'"),
    ],
)
def test_settings_that_nothing_reads_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        EncoderSettings(**settings)


def test_a_cache_belongs_to_the_run_and_not_to_its_checkpoints(tmp_path: Path) -> None:
    config = LucidFluxBackboneConfig(
        model_name_or_path=None, condition_cache="disk", condition_cache_folder=str(tmp_path),
        condition_cache_gib=1, encoder_offload=True, lora_rank=3,
    )  # fmt: skip
    bare = config.without_cache()
    assert type(bare) is LucidFluxBackboneConfig
    assert bare == LucidFluxBackboneConfig(model_name_or_path=None, encoder_offload=True, lora_rank=3)


def test_both_configs_apply_the_settings(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "condition_cache": "disk", "condition_cache_folder": str(tmp_path / "kept"), "encoder_offload": True,
        "vae_tiling": True, "vae_slicing": True,
    }  # fmt: skip
    lucidflux = LucidFluxBackboneConfig(
        model_name_or_path=None, architecture=SMALL_LUCIDFLUX, dtype="float32", **settings
    )
    dit4sr = DiT4SRBackboneConfig(**save_small_dit4sr(tmp_path), **settings)
    for config in (lucidflux, dit4sr):
        backbone: Any = config.build()
        assert isinstance(backbone.image_conditions.store, DiskStore) and backbone.image_conditions.offload
        assert backbone.vae.use_tiling and backbone.vae.use_slicing
