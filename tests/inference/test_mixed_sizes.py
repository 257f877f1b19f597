"""Any output size from the large backbones, whatever else is restored with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lucidnft.inference import restore, restore_mixed
from tests.backbones.random_tensors import uniforms
from tests.backbones.small_lucidflux import small_lucidflux
from tests.small_backbone import small_backbone
from tests.small_dit4sr import one_thread, small_dit4sr

__all__ = ["one_thread"]

FAST = {"upscale": 4, "num_inference_steps": 1}


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """In all tests of this module."""


@pytest.fixture(scope="module", params=[small_lucidflux, small_dit4sr], ids=["lucidflux", "dit4sr"])
def backbone(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture(scope="module")
def dit4sr() -> Any:
    return small_dit4sr()


@settings(max_examples=6)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2.5, 4]))
def test_any_size_gives_exactly_the_rounded_size(
    backbone: Any, height: int, width: int, upscale: float
) -> None:
    sr = restore(backbone, uniforms(1, 3, height, width), upscale=upscale, num_inference_steps=1)
    assert sr.shape == (1, 3, max(1, round(height * upscale)), max(1, round(width * upscale)))
    assert bool(torch.isfinite(sr).all())


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (4, 8)])
def test_a_condition_is_the_images_own_and_so_is_the_result(backbone: Any, size: tuple[int, int]) -> None:
    lr = uniforms(3, 3, *size)
    names = ["a", "b", "c"]
    together = restore(backbone, lr, keys=names, **FAST)
    other = torch.cat([1 - lr[:1], lr[1:2], 0.3 * lr[2:]])
    among_others = restore(backbone, other, keys=["x", "b", "y"], **FAST)
    alone = restore(backbone, lr[1:2], keys=["b"], **FAST)
    torch.testing.assert_close(together[1], alone[0], rtol=0, atol=1e-5)
    assert torch.equal(among_others[1], together[1])
    padded = uniforms(3, 3, 4, 8)
    conditions = (
        backbone.encode_condition(padded, upscale=4),
        backbone.encode_condition(padded[1:2], upscale=4),
    )
    for field, value in conditions[0].fields.items():
        assert torch.equal(value[1:2], conditions[1][field]), field


def mixed() -> tuple[list[Tensor], list[str]]:
    sizes = [(3, 5), (1, 1), (3, 5), (7, 2), (1, 1), (3, 5)]
    return [uniforms(3, *size, seed=number) for number, size in enumerate(sizes)], list("abcdef")


def test_mixed_sizes_come_back_in_order_and_are_solved_together(backbone: Any, monkeypatch) -> None:
    images, names = mixed()
    want = [
        restore(backbone, image[None], keys=[n], **FAST)[0] for image, n in zip(images, names, strict=True)
    ]
    batches: list[int] = []
    decode = backbone.decode
    monkeypatch.setattr(backbone, "decode", lambda x_0: batches.append(len(x_0)) or decode(x_0))
    found = restore_mixed(backbone, images, keys=names, **FAST)
    assert [tuple(sr.shape) for sr in found] == [(3, 4 * i.shape[1], 4 * i.shape[2]) for i in images]
    for sr, alone in zip(found, want, strict=True):
        torch.testing.assert_close(sr, alone, rtol=0, atol=1e-5)
    assert sorted(batches) == [1, 2, 3]


def test_mixed_sizes_have_their_place_as_key_and_may_be_none() -> None:
    images, names = mixed()
    backbone = small_backbone()
    numbered = restore_mixed(backbone, images, keys=list("012345"), **FAST)
    assert all(map(torch.equal, restore_mixed(backbone, images, **FAST), numbered))
    assert not torch.equal(restore_mixed(backbone, images, keys=names, **FAST)[0], numbered[0])
    assert restore_mixed(backbone, [], **FAST) == []


def test_what_is_not_a_list_of_images_is_refused_by_name(dit4sr: Any) -> None:
    images, names = mixed()
    with pytest.raises(ValueError, match="2 keys for 6 LR images"):
        restore_mixed(dit4sr, images, keys=names[:2], **FAST)
    with pytest.raises(ValueError, match=r"LR image 'b' is \(1, 3, 2, 2\), expected \(3, h, w\)"):
        restore_mixed(dit4sr, [images[0], torch.zeros(1, 3, 2, 2)], keys=["a", "b"], **FAST)


def test_sizes_that_a_backbone_cannot_do_are_one_message(dit4sr: Any) -> None:
    with pytest.raises(ValueError, match="176x16 is above the 160 px per side .*smaller upscale"):
        restore(dit4sr, uniforms(1, 3, 41, 2), **FAST)
    for backbone in (small_lucidflux(), dit4sr):
        with pytest.raises(ValueError, match="8x12 is not a multiple of 16 px; pad before, crop after"):
            backbone.encode_condition(uniforms(1, 3, 2, 3), upscale=4)
