"""Tiling and slicing of the VAE: slicing changes nothing, tiling what is larger than a part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lucidnft.backbones.encoder_settings import EncoderSettings
from tests.backbones.random_tensors import uniforms
from tests.backbones.small_lucidflux import small_lucidflux
from tests.small_dit4sr import small_dit4sr

pytestmark = pytest.mark.usefixtures("one_thread")
BACKBONES: dict[str, Callable[..., Any]] = {"lucidflux": small_lucidflux, "dit4sr": small_dit4sr}


def latents(backbone: Any, height: int, width: int) -> Tensor:
    found: Tensor = backbone.encode(uniforms(3, 3, height, width))
    return found


@pytest.mark.parametrize("name", BACKBONES)
def test_slicing_takes_one_image_at_a_time_and_changes_no_more_than_rounding(name: str) -> None:
    plain, sliced = BACKBONES[name](), EncoderSettings(vae_slicing=True).set_up(BACKBONES[name]())
    sizes: list[int] = []
    for network in (sliced.vae.encoder, sliced.vae.decoder):
        network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    x_0 = latents(plain, 32, 48)
    torch.testing.assert_close(latents(sliced, 32, 48), x_0, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(sliced.decode(x_0), plain.decode(x_0), rtol=1e-5, atol=1e-5)
    assert sizes == [1] * 6


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_tiling_changes_larger_images_and_those_only(name: str) -> None:
    plain, tiled = BACKBONES[name](), EncoderSettings(vae_tiling=True).set_up(BACKBONES[name]())
    side = plain.vae.config.sample_size  # 32; 1024 in the released VAEs
    small, large = latents(plain, side, side), latents(plain, 2 * side, side)
    assert torch.equal(latents(tiled, side, side), small)
    assert torch.equal(tiled.decode(small), plain.decode(small))
    found, pixels, want = latents(tiled, 2 * side, side), tiled.decode(large), plain.decode(large)
    assert found.shape == large.shape and pixels.shape == want.shape
    assert float((found - large).abs().max()) > 1e-4
    assert float((pixels - want).abs().max()) > 1e-4
