"""The DiT4SR backbone: latents, conditions, times and guidance; adapters, sampling, weights on disk."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from lucidnft.backbones.adapters import LoraSettings, adapter_parameters
from lucidnft.backbones.base import Backbone
from lucidnft.backbones.dit4sr import DiT4SRBackbone
from lucidnft.backbones.dit4sr_text import TextEmbeddings
from lucidnft.checkpoint import load_tensors, save_tensors
from lucidnft.images import resize
from lucidnft.inference.restore import restore
from lucidnft.policy import Policy, Role
from tests.small_dit4sr import draws, small_dit4sr, small_network, small_text, small_vae

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def backbone() -> DiT4SRBackbone:
    """For tests that change nothing in it."""
    return small_dit4sr(negative=True)


def lr_images(count: int = 2, height: int = 8, width: int = 4, seed: int = 3) -> Tensor:
    return torch.rand((count, 3, height, width), generator=torch.Generator().manual_seed(seed))


TIMES = torch.tensor([0.25, 0.9])
X_T = draws(2, 4, 4, 2)


def test_it_is_a_backbone_with_the_shapes_of_its_parts(backbone: DiT4SRBackbone) -> None:
    assert isinstance(backbone, Backbone)
    assert backbone.latent_spec.grid(48, 16) == (4, 6, 2)
    with pytest.raises(ValueError, match="multiple of 16 px"):
        backbone.encode_condition(lr_images(1, 6, 4), upscale=4)
    with pytest.raises(ValueError, match="176x16 is above the 160 px"):
        backbone.encode_condition(lr_images(1, 44, 4), upscale=4)


@torch.no_grad()
def test_latents_are_the_vaes_shifted_and_scaled() -> None:
    images = lr_images(2, 32, 16)
    vae = small_vae()
    posterior = vae.encode(2 * images - 1).latent_dist
    mean = small_dit4sr(posterior="mean").encode(images)
    torch.testing.assert_close(mean, (posterior.mean - 0.0609) * 1.5305)
    sampled = small_dit4sr().encode(images)
    noise = (sampled - mean) / 1.5305 / posterior.std
    assert float(noise.abs().max()) > 0.5
    assert not torch.allclose(noise[0], noise[1], atol=0.5)  # another image, another draw
    decoded = (vae.decode(posterior.mean).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(small_dit4sr().decode(mean), decoded, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_sample_of_the_posterior_is_standard_normal() -> None:
    images = lr_images(1, 160, 160)
    posterior = small_vae().encode(2 * images - 1).latent_dist
    noise = (small_dit4sr().encode(images) / 1.5305 + 0.0609 - posterior.mean) / posterior.std
    assert abs(float(noise.mean())) < 0.1
    assert float(noise.std()) == pytest.approx(1.0, abs=0.06)


@torch.no_grad()
def test_a_condition_is_that_of_the_enlarged_image_whatever_is_beside_it(backbone: DiT4SRBackbone) -> None:
    lr = lr_images()
    condition = backbone.encode_condition(lr, upscale=4)
    assert {name: tuple(value.shape) for name, value in condition.fields.items()} == {
        "lr_latent": (2, 4, 4, 2), "prompt_embeds": (2, 5, 10), "pooled_prompt_embeds": (2, 7),
        "negative_prompt_embeds": (2, 3, 10), "negative_pooled_prompt_embeds": (2, 7),
    }  # fmt: skip
    mean = small_dit4sr(posterior="mean")
    torch.testing.assert_close(
        mean.encode_condition(lr, upscale=4)["lr_latent"], mean.encode(resize(lr, (32, 16)))
    )
    enlarged = resize(lr, (32, 16))
    assert torch.equal(condition["lr_latent"][:1], backbone.autoencoder.encode(enlarged[:1], keys=lr[:1]))
    assert not torch.allclose(
        condition["lr_latent"], backbone.encode(enlarged), atol=0.1
    )  # keyed by LR pixels
    alone = backbone.encode_condition(lr[1:], upscale=4)
    assert torch.equal(condition["lr_latent"][1:], alone["lr_latent"])
    torch.manual_seed(5)
    assert torch.equal(backbone.encode_condition(lr[1:], upscale=4)["lr_latent"], alone["lr_latent"])


@torch.no_grad()
def test_the_network_sees_a_thousand_times_t_and_its_own_condition(backbone: DiT4SRBackbone) -> None:
    condition = backbone.encode_condition(lr_images(), upscale=4)
    want = backbone.network(
        X_T, condition["lr_latent"], encoder_hidden_states=condition["prompt_embeds"],
        pooled_projections=condition["pooled_prompt_embeds"], timestep=torch.tensor([250.0, 900.0]),
    )  # fmt: skip
    torch.testing.assert_close(backbone.velocity(X_T, TIMES, condition), want)
    with pytest.raises(ValueError, match="not integer timesteps"):
        backbone.velocity(X_T, torch.tensor([250, 900]), condition)
    with pytest.raises(ValueError, match="no other option, got \\['guidance'\\]"):
        backbone.velocity(X_T, TIMES, condition, guidance=2.0)


@torch.no_grad()
def test_guidance_leads_away_from_the_negative_prompt_and_keeps_the_image(backbone: DiT4SRBackbone) -> None:
    condition = backbone.encode_condition(lr_images(), upscale=4)
    prompt = backbone.velocity(X_T, TIMES, condition)
    negative = backbone.network(
        X_T, condition["lr_latent"], encoder_hidden_states=condition["negative_prompt_embeds"],
        pooled_projections=condition["negative_pooled_prompt_embeds"], timestep=1000 * TIMES,
    )  # fmt: skip
    want = negative + 8.0 * (prompt - negative)
    torch.testing.assert_close(
        backbone.velocity(X_T, TIMES, condition, guidance_scale=8.0), want, atol=1e-5, rtol=1e-5
    )
    own = small_dit4sr(negative=True, guidance_scale=8.0)
    torch.testing.assert_close(own.velocity(X_T, TIMES, condition), want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(own.velocity(X_T, TIMES, condition, guidance_scale=1.0), prompt)
    without = small_dit4sr()
    with pytest.raises(ValueError, match="no negative prompt"):
        without.velocity(X_T, TIMES, without.encode_condition(lr_images(), upscale=4), guidance_scale=2.0)
    with pytest.raises(ValueError, match="no negative prompt"):
        small_dit4sr(guidance_scale=2.0)


def test_time_grids_by_name() -> None:
    grids = {
        name: small_dit4sr(time_grid=name).default_time_grid(5, 64, 32)
        for name in ("sd3", "scheduler", "uniform")
    }
    times = torch.linspace(1, 0, 6)
    torch.testing.assert_close(grids["sd3"], 3 * times / (1 + 2 * times))
    torch.testing.assert_close(grids["uniform"], times)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    for steps in (1, 5, 40):
        scheduler.set_timesteps(steps)
        own = small_dit4sr(time_grid="scheduler").default_time_grid(steps, 64, 32)
        torch.testing.assert_close(own, scheduler.sigmas)
    assert torch.equal(small_dit4sr().default_time_grid(5, 64, 64), grids["sd3"])
    with pytest.raises(ValueError, match="num_inference_steps is 0"):
        small_dit4sr(time_grid="scheduler").default_time_grid(0, 64, 64)


@pytest.mark.parametrize(
    ("option", "match"), [("posterior", "sample, mean"), ("time_grid", "sd3, scheduler, uniform")]
)
def test_words_that_name_no_option_are_refused(option: str, match: str) -> None:
    with pytest.raises(ValueError, match=f"{option} is 'other', expected one of {match}"):
        small_dit4sr(**{option: "other"})


def test_a_vae_of_another_model_is_refused() -> None:
    from diffusers import AutoencoderKL

    with pytest.raises(ValueError, match="8 latent channels, the transformer takes 4"):
        DiT4SRBackbone(
            small_network(), AutoencoderKL(latent_channels=8, block_out_channels=(32,)), small_text()
        )


@pytest.mark.parametrize("lr_key", ["noise", "lr"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_reaches_exactly_the_adapter(lr_key: str, checkpointing: bool) -> None:
    policy = moved_policy(small_dit4sr(lr_key))
    policy.backbone.set_gradient_checkpointing(checkpointing)
    assert policy.backbone.network.gradient_checkpointing is checkpointing
    condition = policy.backbone.encode_condition(lr_images(), upscale=4)
    policy(X_T, TIMES, condition).square().mean().backward()
    parts = {"transformer": policy.backbone.network, "vae": policy.backbone.autoencoder.vae}
    with_gradient = {
        id(p)
        for part in parts.values()
        for p in part.parameters()
        if p.grad is not None and bool(p.grad.any())
    }
    assert with_gradient == {id(p) for p in policy.parameters.values()}
    names = {name.split(".lora_")[0] for name in policy.parameters}
    per_block = 7 + (lr_key == "lr")
    # five attentions; text in three, and what it asks for and is answered in the last block is thrown away
    assert len(names) == 5 * per_block + 4 + 4 + 2


def moved_policy(backbone: DiT4SRBackbone) -> Policy:
    policy = Policy(backbone, LoraSettings(lora_rank=2, lora_alpha=4), seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name in ("old", "current"):
            for parameter in adapter_parameters(backbone.network, name).values():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    policy.mark_updated()
    return policy


def test_roles_differ_and_the_reference_is_the_base() -> None:
    backbone = small_dit4sr()
    condition = backbone.encode_condition(lr_images(), upscale=4)
    with torch.no_grad():
        base = backbone.velocity(X_T, TIMES, condition)
    policy = moved_policy(backbone)
    current, old, reference = (policy(X_T, TIMES, condition, role).detach() for role in Role)
    torch.testing.assert_close(reference, base)
    for one, other in ((current, old), (current, base), (old, base)):
        assert float((one - other).abs().max()) > 1e-3
    assert policy.backbone.fingerprint == small_dit4sr().fingerprint  # of the base alone


@pytest.mark.parametrize(("height", "width", "upscale"), [(5, 9, 4), (16, 16, 1)])
def test_images_of_any_size_are_restored(height: int, width: int, upscale: int) -> None:
    policy = moved_policy(small_dit4sr(negative=True, guidance_scale=2.0))
    lr = lr_images(2, height, width)
    options: dict[str, Any] = {"upscale": upscale, "seed": 1, "num_inference_steps": 2}
    sr = restore(policy, lr, **options)
    assert sr.shape == (2, 3, upscale * height, upscale * width)
    alone = restore(policy, lr[1:], keys=["1"], **options)
    torch.testing.assert_close(sr[1:], alone, atol=1e-4, rtol=0)
    assert float((sr[0] - sr[1]).abs().max()) > 0.01
    base = small_dit4sr(negative=True, guidance_scale=2.0)
    assert float((restore(base, lr, **options) - sr).abs().max()) > 1e-3


def test_an_adapter_goes_to_a_file_and_back(tmp_path: Any) -> None:
    policy = moved_policy(small_dit4sr())
    save_tensors(tmp_path / "policy.safetensors", policy.state(Role.CURRENT), {})
    other = Policy(small_dit4sr(), LoraSettings(lora_rank=2, lora_alpha=4), seed=7)
    other.load_state_(
        Role.CURRENT, load_tensors(tmp_path / "policy.safetensors", expected=other.parameters)[0]
    )
    condition = policy.backbone.encode_condition(lr_images(), upscale=4)
    with torch.no_grad():
        assert torch.equal(policy(X_T, TIMES, condition), other(X_T, TIMES, condition))
    with pytest.raises(ValueError, match="missing"):
        Policy(small_dit4sr("noise"), LoraSettings(lora_rank=2), seed=0).load_state_(
            Role.CURRENT, {n: v for n, v in policy.state(Role.CURRENT).items() if ".to_q." not in n}
        )


@torch.no_grad()
def test_bf16_stays_close_and_returns_float32() -> None:
    backbone = small_dit4sr()
    condition = backbone.encode_condition(lr_images(), upscale=4)
    exact = backbone.velocity(X_T, TIMES, condition)
    backbone.autocast_dtype = torch.bfloat16
    rounded = [backbone.velocity(X_T, TIMES, condition)]
    backbone.autocast_dtype = None
    backbone.network.to(torch.bfloat16)
    rounded.append(backbone.velocity(X_T, TIMES, condition))
    for v in rounded:
        assert v.dtype == torch.float32
        assert 0 < float((v - exact).abs().mean()) < 0.05 * float(exact.abs().mean())


def test_empty_text_is_zeros_of_the_published_length() -> None:
    text = TextEmbeddings.empty(10, 7)
    assert {name: tuple(value.shape) for name, value in text.fields().items()} == {
        "prompt_embeds": (154, 10), "pooled_prompt_embeds": (7,),
    }  # fmt: skip
    assert not any(bool(value.any()) for value in text.fields().values())
    assert not text.has_negative
