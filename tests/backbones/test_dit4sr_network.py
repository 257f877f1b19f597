"""The DiT4SR network against its equations, against SD3 where there is no LR stream, and its names at full size."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import JointAttnProcessor2_0
from torch import Tensor
from torch.nn import functional as F

from lucidnft.backbones.dit4sr_network import DiT4SRNetwork
from tests.backbones.dit4sr_equations import Equations
from tests.backbones.dit4sr_names import FIXTURE, full_size_names
from tests.small_dit4sr import SMALL, draws, small_network

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = {
    "encoder_hidden_states": draws(2, 5, 10, seed=3),
    "pooled_projections": draws(2, 7, seed=4),
    "timestep": torch.tensor([30.0, 871.5]),
}


def latents(height: int = 8, width: int = 8) -> tuple[Tensor, Tensor]:
    return draws(2, 4, height, width, seed=1), draws(2, 4, height, width, seed=2)


def same_sd3(network: DiT4SRNetwork) -> SD3Transformer2DModel:
    """diffusers' own transformer with the weights that both have."""
    sd3 = SD3Transformer2DModel(**SMALL)
    sd3.load_state_dict({name: network.state_dict()[name] for name in sd3.state_dict()})
    return sd3


@pytest.mark.parametrize("lr_key", ["noise", "lr"])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 14), (12, 2)])
@torch.no_grad()
def test_a_pass_equals_the_published_equations(lr_key: str, height: int, width: int) -> None:
    for scale in (1.0, 1.2):
        network = small_network(lr_key, control_scale=scale)
        x_t, lr = latents(height, width)
        want = Equations(network.state_dict(), SMALL, lr_key, scale).velocity(x_t, lr, *TEXT.values())
        torch.testing.assert_close(network(x_t, lr, **TEXT), want, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_scale_and_key_are_the_inference_scale_by_default_and_never_assumed() -> None:
    x_t, lr = latents()
    default = DiT4SRNetwork(lr_key="lr", **SMALL)
    default.load_state_dict(small_network().state_dict())
    assert torch.equal(default(x_t, lr, **TEXT), small_network(control_scale=1.2)(x_t, lr, **TEXT))
    with pytest.raises(TypeError, match="lr_key"):
        DiT4SRNetwork(**SMALL)
    with pytest.raises(ValueError, match="lr_key is 'r1', expected one of noise, lr"):
        DiT4SRNetwork(lr_key="r1", **SMALL)
    with pytest.raises(ValueError, match="qk_norm"):
        DiT4SRNetwork(lr_key="lr", **{**SMALL, "qk_norm": None})


@torch.no_grad()
def test_without_an_lr_stream_it_is_sd3() -> None:
    network = small_network()
    x_t, lr = latents(4, 10)
    network(*latents(8, 8), **TEXT)  # what ran before leaves nothing behind
    want = same_sd3(network)(x_t, return_dict=False, **TEXT)[0]
    assert torch.equal(network(x_t, None, **TEXT), want)
    assert not torch.allclose(network(x_t, lr, **TEXT), want, atol=0.01)


class SilentKeys(JointAttnProcessor2_0):
    """diffusers' attention of SD3, with as many more keys as there are image tokens, all without a value."""

    def __init__(self, lr_key: str) -> None:
        super().__init__()
        self.lr_key = lr_key

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        length, attend = hidden_states.shape[1], F.scaled_dot_product_attention

        def with_more_keys(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
            again = attn.norm_k(key[:, :, :length])
            more = again if self.lr_key == "noise" else torch.zeros_like(again)
            keys = torch.cat([key, more], dim=2)
            return attend(query, keys, F.pad(value, (0, 0, 0, length)), **options)

        F.scaled_dot_product_attention = with_more_keys
        try:
            return super().__call__(attn, hidden_states, *args, **kwargs)
        finally:
            F.scaled_dot_product_attention = attend


@pytest.mark.parametrize("lr_key", ["noise", "lr"])
@torch.no_grad()
def test_with_zero_control_it_is_sd3_but_for_keys_that_say_nothing(lr_key: str) -> None:
    network = small_network(lr_key)
    for name, parameter in network.named_parameters():
        if "_control" in name and "to_out" not in name or "control_conv" in name:
            parameter.zero_()
    x_t, lr = latents()
    v = network(x_t, lr, **TEXT)
    sd3 = same_sd3(network)
    assert not torch.allclose(v, sd3(x_t, return_dict=False, **TEXT)[0], atol=1e-3)
    sd3.set_attn_processor(SilentKeys(lr_key))
    torch.testing.assert_close(v, sd3(x_t, return_dict=False, **TEXT)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network(x_t, -3 * lr, **TEXT), v, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_sample_depends_on_its_own_row_alone() -> None:
    network = small_network()
    x_t, lr = latents()
    alone = network(x_t[1:], lr[1:], **{name: value[1:] for name, value in TEXT.items()})
    torch.testing.assert_close(network(x_t, lr, **TEXT)[1:], alone, atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_changes_no_gradient_whatever_size_ran_in_between() -> None:
    network = small_network()
    grads = []
    for enabled in (False, True):
        network.enable_gradient_checkpointing() if enabled else network.disable_gradient_checkpointing()
        network.zero_grad()
        out = network(*latents(4, 8), **TEXT)
        with torch.no_grad():
            network(*latents(8, 4), **TEXT)
        out.square().mean().backward()
        grads.append({name: p.grad for name, p in network.named_parameters()})
    idle = {name for name, grad in grads[0].items() if grad is None}
    assert {name.split(".attn2.")[1].split(".")[0] for name in idle} == {
        "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "norm_added_q", "norm_added_k",
    }  # fmt: skip
    for name in grads[0].keys() - idle:
        torch.testing.assert_close(grads[0][name], grads[1][name])


def test_recomputing_is_what_checkpointing_does(monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_network()
    calls = []
    forward = type(network.transformer_blocks[0].ff).forward
    monkeypatch.setattr(
        type(network.transformer_blocks[0].ff), "forward",
        lambda self, x: calls.append(self) or forward(self, x),
    )  # fmt: skip
    for enabled, count in ((False, 3), (True, 6)):
        network.enable_gradient_checkpointing() if enabled else network.disable_gradient_checkpointing()
        calls.clear()
        network(*latents(), **TEXT).mean().backward()
        assert len(calls) == count


def test_latents_that_would_be_cut_at_a_wrong_place_are_refused() -> None:
    network = small_network()
    with pytest.raises(ValueError, match=r"\(2, 4, 8, 8\) and LR latents \(2, 4, 8, 12\)"):
        network(latents()[0], latents(8, 12)[1], **TEXT)
    with pytest.raises(ValueError, match="multiples of the patch, 2"):
        network(*latents(7, 8), **TEXT)


def test_names_and_shapes_at_full_size_are_those_of_the_fixture() -> None:
    names = full_size_names()
    assert names == json.loads(FIXTURE.read_text())
    del names["pos_embed.pos_embed"]
    assert round(sum(torch.Size(shape).numel() for shape in names.values()) / 1e9, 2) == 2.72  # as reported
