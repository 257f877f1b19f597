"""LucidFlux as a backbone: conditions, units, grids, adapters, in miniature."""

import math

import pytest
import torch
from torch.nn import functional as F

from lucidnft.backbones.adapters import LoraSettings, use_adapter
from lucidnft.backbones.base import Backbone
from lucidnft.backbones.lucidflux import LucidFluxBackbone, release_shift
from lucidnft.backbones.lucidflux_encoders import PromptEmbeddings
from lucidnft.checkpoint.fingerprint import sampled_fingerprint
from lucidnft.flow.conversions import interpolate
from lucidnft.images import resize
from lucidnft.policy import Policy, Role
from lucidnft.records import ImageBatch
from tests.backbones.random_tensors import draws, uniforms
from tests.backbones.small_lucidflux import SMALL, small_lucidflux

T = torch.tensor([0.83, 0.31])


@pytest.fixture(scope="module")
def lucidflux():
    return small_lucidflux()


@pytest.fixture(scope="module")
def condition(lucidflux):
    return lucidflux.encode_condition(uniforms(2, 3, 8, 12), upscale=4)


def x_t(count=2, seed=0):
    return draws(count, 16, 4, 6, seed=seed)


def test_it_is_a_backbone(lucidflux):
    assert isinstance(lucidflux, Backbone)
    assert lucidflux.latent_spec.grid(512, 768) == (16, 64, 96)


@torch.no_grad()
def test_latents_are_the_autoencoders_means_shifted_and_scaled_as_flux_does(lucidflux):
    images = uniforms(2, 3, 16, 32)
    mean = lucidflux.encoders.vae.encode(2 * images - 1).latent_dist.mean
    x_0 = lucidflux.encode(images)
    torch.testing.assert_close(x_0, 0.3611 * (mean - 0.1159))
    decoded = lucidflux.encoders.vae.decode(mean).sample
    torch.testing.assert_close(lucidflux.decode(x_0), (decoded / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-5)
    assert lucidflux.decode(100 * x_0).max() <= 1
    with pytest.raises(ValueError, match="24x16 is not a multiple of 16 px"):
        lucidflux.encode(uniforms(1, 3, 24, 16))


def test_decoding_lets_gradients_through(lucidflux):
    x_0 = x_t().requires_grad_()
    lucidflux.decode(x_0).sum().backward()
    assert float(x_0.grad.abs().max()) > 0


@torch.no_grad()
def test_a_condition_holds_both_images_the_image_tokens_and_the_prompt(lucidflux, condition):
    lr = uniforms(2, 3, 8, 12)
    lq = resize(lr, (32, 48))
    pre_restored = lucidflux.encoders.swinir(lq).clamp(0, 1)
    torch.testing.assert_close(condition["lq"], 2 * lq - 1)
    torch.testing.assert_close(condition["pre_restored"], 2 * pre_restored - 1)
    rounded = (pre_restored * 255).round() / 255
    square = F.interpolate(rounded, (16, 16), mode="bilinear", antialias=True, align_corners=False)
    pixels = 2 * (square * 255).round() / 255 - 1
    hidden = lucidflux.encoders.siglip(pixel_values=pixels).last_hidden_state
    connector = lucidflux.encoders.connector
    tokens = connector.redux_down(F.silu(connector.redux_up(hidden)))
    torch.testing.assert_close(condition["siglip"], tokens)
    assert condition["siglip"].shape == (2, 4, 20)
    assert torch.equal(condition["text"][1:], lucidflux.prompt.text)
    assert torch.equal(condition["pooled"][1:], lucidflux.prompt.pooled)


def test_a_group_never_depends_on_its_neighbours(lucidflux, condition):
    alone = lucidflux.encode_condition(uniforms(2, 3, 8, 12)[1:], upscale=4)
    for name, value in alone.fields.items():
        assert torch.equal(value, condition[name][1:]), name
    with torch.no_grad():
        both = lucidflux.velocity(x_t(), T, condition)
        one = lucidflux.velocity(x_t()[1:], T[1:], alone)
    torch.testing.assert_close(both[1:], one, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_velocity_is_the_networks_with_time_in_0_to_1(lucidflux, condition):
    expected = lucidflux.network(x_t(), T, guidance_scale=4.0, **condition.fields)
    assert torch.equal(lucidflux.velocity(x_t(), T, condition), expected)
    other_guidance = small_lucidflux(guidance_scale=3.0).velocity(x_t(), T, condition)
    assert float((other_guidance - expected).abs().max()) > 1e-4


def test_what_does_not_go_together_is_refused(lucidflux, condition):
    with pytest.raises(ValueError, match="takes no options, got .'guidance'"):
        lucidflux.velocity(x_t(), T, condition, guidance=1.0)
    with pytest.raises(ValueError, match="2 latents of 64x48 px"):
        lucidflux.velocity(draws(2, 16, 8, 6), T, condition)
    with pytest.raises(ValueError, match="1 latents .* condition of 2 images"):
        lucidflux.velocity(x_t(1), T[:1], condition)
    with pytest.raises(ValueError, match="8x12 is not a multiple of 16 px"):
        lucidflux.encode_condition(uniforms(1, 3, 8, 12), upscale=1)
    with pytest.raises(ValueError, match="time_grid is 'flow'"):
        small_lucidflux(time_grid="flow")
    wrong = PromptEmbeddings(draws(1, 5, 19), draws(1, 12))
    with pytest.raises(ValueError, match=r"\(1, 5, 19\)"):
        type(lucidflux)(lucidflux.network, lucidflux.encoders, wrong)


def test_the_releases_grid_is_shifted_as_for_64_tokens_at_1024_px(lucidflux):
    assert release_shift(1024, 1024) == pytest.approx(1.596, abs=5e-4)
    assert release_shift(512, 512) == pytest.approx(math.exp(0.5 - 0.65 * 240 / 3840))
    assert release_shift(96, 64) == pytest.approx(math.exp(0.5 - 0.65 * 256 / 3840))  # a length of 0
    grid = lucidflux.default_time_grid(24, 1024, 1024)
    torch.testing.assert_close(grid[:4], torch.tensor([1, 0.973, 0.946, 0.918]), atol=6e-4, rtol=0)
    torch.testing.assert_close(grid[-4:], torch.tensor([0.186, 0.127, 0.065, 0]), atol=6e-4, rtol=0)


def test_flux_s_own_grid_is_the_other_option():
    grid = small_lucidflux(time_grid="flux").default_time_grid(2, 1024, 1024)
    torch.testing.assert_close(grid, torch.tensor([1, 3.158 / 4.158, 0]), atol=1e-4, rtol=0)


def test_lora_goes_to_every_attention_whose_output_counts_and_gradients_reach_nothing_else():
    backbone = small_lucidflux()
    policy = Policy(backbone, LoraSettings(lora_rank=2), seed=0)
    adapted = {name.rsplit(".lora_", 1)[0] for name in policy.parameters}
    assert adapted == set(backbone.lora_modules)
    # 3 double blocks of 8 layers and 1 single block of 3; two branches of 2 blocks, less two unused layers each
    assert len(adapted) == 3 * 8 + 3 + 2 * (2 * 8 - 2)
    with torch.no_grad():
        for name, parameter in policy.parameters.items():
            if ".lora_B." in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1), std=0.1)
    batch = ImageBatch(uniforms(2, 3, 8, 12), keys=("a", "b"), group_ids=(0, 1))
    policy(x_t(), T, policy.encode_condition(batch)).square().mean().backward()
    reached = {n for n, p in backbone.network.named_parameters() if p.grad is not None}
    assert reached == {
        n for n, p in backbone.network.named_parameters() if ".lora_" in n and ".current." in n
    }
    assert all(float(p.grad.abs().max()) > 0 for p in policy.parameters.values())
    assert all(p.grad is None and not p.requires_grad for p in backbone.encoders.parameters())


@torch.no_grad()
def test_the_reference_is_the_base_with_adapters_off(condition):
    backbone = small_lucidflux()
    before = backbone.velocity(x_t(), T, condition)
    policy = Policy(backbone, LoraSettings(lora_rank=2), seed=0)
    for parameter in policy.parameters.values():
        parameter.add_(0.1)
    off = {"rtol": 1e-5, "atol": 1e-5}  # matrix products on a CPU round by where a tensor lies in memory
    torch.testing.assert_close(policy(x_t(), T, condition, Role.REFERENCE), before, **off)
    torch.testing.assert_close(policy(x_t(), T, condition, Role.OLD), before, **off)
    assert float((policy(x_t(), T, condition) - before).abs().max()) > 1e-3
    with use_adapter(backbone.network, None):
        torch.testing.assert_close(backbone.velocity(x_t(), T, condition), before, **off)


def test_a_few_steps_of_flow_matching_lower_the_loss(condition):
    backbone = small_lucidflux()
    policy = Policy(backbone, LoraSettings(lora_rank=4), seed=0)
    optimizer = torch.optim.Adam(policy.parameters.values(), lr=1e-2)
    x_0, noise = 0.5 * draws(2, 16, 4, 6, seed=3), draws(2, 16, 4, 6, seed=4)
    losses = []
    for _ in range(6):
        v = policy(interpolate(x_0, noise, T), T, condition)
        loss = (v - (noise - x_0)).square().mean()
        losses.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


def test_gradient_checkpointing_changes_no_gradient(condition):
    backbone, grads, calls = small_lucidflux(), [], []
    branch = backbone.network.conditioner.condition_ldr.transformer_blocks[0]
    branch.register_forward_pre_hook(lambda *args: calls.append(torch.is_grad_enabled()))
    for enabled in (False, True):
        backbone.set_gradient_checkpointing(enabled)
        backbone.network.zero_grad()
        backbone.velocity(x_t(), T, condition).square().mean().backward()
        grads.append(
            {n: p.grad.clone() for n, p in backbone.network.named_parameters() if p.grad is not None}
        )
    assert len(calls) == 3  # recomputed in the second backward pass
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)


@torch.no_grad()
def test_half_precision_stays_close_and_returns_float32(lucidflux, condition):
    exact = lucidflux.velocity(x_t(), T, condition)
    rounded = small_lucidflux(autocast_dtype=torch.bfloat16).velocity(x_t(), T, condition)
    halved = small_lucidflux()
    halved.network.bfloat16()
    for other in (rounded, halved.velocity(x_t(), T, condition)):
        assert other.dtype == torch.float32
        assert 0 < float((other - exact).abs().mean()) < 0.1 * float(exact.abs().mean())


def test_the_fingerprint_tells_weights_names_and_shapes_apart():
    values = draws(100, 100)
    base = sampled_fingerprint({"a": values})
    assert sampled_fingerprint({"a": values.bfloat16()}) == base
    others = [{"a": 1.01 * values}, {"b": values}, {"a": values.flatten()}, {}]
    assert base not in {sampled_fingerprint(other) for other in others}
    first, other = (LucidFluxBackbone.initialise(SMALL, seed=seed).fingerprint for seed in (0, 1))
    assert first != other
    assert first == LucidFluxBackbone.initialise(SMALL, seed=0).fingerprint
