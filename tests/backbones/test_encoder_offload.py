"""Encoders that live on the CPU and visit the run's device only while images are encoded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lucidnft.backbones.condition_cache import MemoryStore
from lucidnft.backbones.image_conditions import ImageConditions
from tests.backbones.large_backbones import BACKBONES, LR, assert_same, backbone_with, counts, encoded
from tests.backbones.random_tensors import uniforms

pytestmark = pytest.mark.usefixtures("one_thread")


class Recorded(nn.Module):
    """An encoder that writes down where it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.moves: list[str] = []

    def to(self, device: Any) -> Recorded:  # type: ignore[override]
        self.moves.append(str(device))
        return self


def recorded(*, offload: bool, cache: bool) -> tuple[ImageConditions, Recorded, list[str]]:
    encoder, seen = Recorded(), []
    conditions = ImageConditions("test", {"encoder": encoder}, dict)
    conditions.offload = offload
    conditions.store = MemoryStore(10**6) if cache else None

    def encode(lr: Tensor) -> dict[str, Tensor]:
        seen.append(encoder.moves[-1] if encoder.moves else "cpu")
        return {"field": 2 * lr}

    conditions.encode = encode  # type: ignore[attr-defined]
    return conditions, encoder, seen


def ask(conditions: Any, rows: slice, device: str = "cpu") -> None:
    conditions.fields(LR[rows], upscale=4, device=torch.device(device), encode=conditions.encode)


def test_offloaded_encoders_visit_only_for_images_that_are_not_kept() -> None:
    conditions, encoder, seen = recorded(offload=True, cache=True)
    conditions.to("meta")
    assert encoder.moves == ["cpu"]
    conditions.at = _renamed(conditions, "cuda:1")  # type: ignore[method-assign]
    ask(conditions, slice(0, 3))
    assert encoder.moves == ["cpu", "cuda:1", "cpu"] and seen == ["cuda:1"] * 3
    ask(conditions, slice(0, 3))
    assert len(encoder.moves) == 3
    ask(conditions, slice(2, 5))
    assert len(encoder.moves) == 5 and len(seen) == 5


def _renamed(conditions: ImageConditions, device: str) -> Any:
    """The region as for another device, which this machine need not have."""
    at = conditions.at
    return lambda asked: at(torch.device(device))


def test_offloaded_encoders_visit_every_time_without_a_cache_and_leave_after_a_fault() -> None:
    conditions, encoder, seen = recorded(offload=True, cache=False)
    ask(conditions, slice(0, 2), "meta")
    ask(conditions, slice(0, 2), "meta")
    assert encoder.moves == ["meta", "cpu"] * 2 and seen == ["meta"] * 4

    def broken(lr: Tensor) -> dict[str, Tensor]:
        raise RuntimeError("out of memory")

    conditions.encode = broken  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="out of memory"):
        ask(conditions, slice(0, 1), "meta")
    assert encoder.moves[-1] == "cpu"


def test_without_offload_encoders_go_where_the_backbone_goes_and_stay() -> None:
    conditions, encoder, seen = recorded(offload=False, cache=False)
    conditions.to("meta")
    ask(conditions, slice(0, 2), "meta")
    assert encoder.moves == ["meta"] and seen == ["meta"] * 2


ENCODERS = {
    "lucidflux": ("encoders.swinir", "encoders.siglip", "encoders.connector"),
    "dit4sr": ("autoencoder.vae.encoder",),
}
DECODERS = {"lucidflux": "encoders.vae", "dit4sr": "autoencoder.vae.decoder"}


def part(backbone: Any, path: str) -> nn.Module:
    for name in path.split("."):
        backbone = getattr(backbone, name)
    return backbone  # type: ignore[no-any-return]


def devices(module: nn.Module) -> set[str]:
    return {value.device.type for value in (*module.parameters(), *module.buffers())}


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("offload", [True, False])
def test_a_backbone_on_another_device_leaves_offloaded_encoders_on_the_cpu(name: str, offload: bool) -> None:
    backbone = backbone_with(name, encoder_offload=offload)
    backbone.to("meta")
    want = {"cpu"} if offload else {"meta"}
    assert [devices(part(backbone, path)) for path in ENCODERS[name]] == [want] * len(ENCODERS[name])
    assert devices(part(backbone, DECODERS[name])) == {"meta"} == devices(backbone.network)


@pytest.mark.parametrize("name", BACKBONES)
def test_encoders_are_frozen_and_offload_changes_no_number(name: str) -> None:
    plain, offloaded = BACKBONES[name](), backbone_with(name, encoder_offload=True)
    offloaded.to("cpu")
    assert_same(encoded(offloaded, 0, 1), encoded(plain, 0, 1))
    images = uniforms(2, 3, 32, 48)
    assert torch.equal(offloaded.encode(images), plain.encode(images))
    assert torch.equal(offloaded.decode(plain.encode(images)), plain.decode(plain.encode(images)))
    for encoder in offloaded.image_conditions.encoders.values():
        assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("name", BACKBONES)
def test_offloaded_encoders_leave_the_memory_of_the_gpu(name: str) -> None:
    backbone = backbone_with(name, encoder_offload=True, condition_cache="memory")
    encoders = backbone.image_conditions.encoders.values()
    size = sum(p.numel() * p.element_size() for e in encoders for p in e.parameters())
    backbone.to("cuda")
    before, within = torch.cuda.memory_allocated(), []
    hook = next(iter(encoders)).register_forward_pre_hook(
        lambda *_: within.append(torch.cuda.memory_allocated())
    )
    condition = encoded(backbone, 0, 1)
    hook.remove()
    assert within and min(within) >= before + size
    kept = sum(v.untyped_storage().nbytes() for v in condition.fields.values())
    del condition
    assert torch.cuda.memory_allocated() - before < size and kept > 0
    fresh = encoded(backbone, 0, 1)
    assert counts(backbone) == (2, 2)
    assert all(v.device.type == "cuda" for v in fresh.fields.values())
    assert devices(next(iter(encoders))) == {"cpu"}
