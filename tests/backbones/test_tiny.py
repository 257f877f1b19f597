"""The tiny backbone: preconditioning in closed form, sizes, locality, weights on disk."""

import pytest
import torch
from torch.nn import functional

from lucidnft.backbones.adapters import use_adapter
from lucidnft.backbones.base import Backbone
from lucidnft.backbones.tiny import (
    COARSE_CELL,
    COARSE_SPREAD,
    LATENT_SCALE,
    TinyBackbone,
    TinyBackboneConfig,
    coarse_velocity_factor,
)
from lucidnft.checkpoint import load_tensors, save_tensors
from lucidnft.flow.conversions import interpolate
from lucidnft.flow.solvers import euler
from tests.small_backbone import moved_policy


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lr_images(count: int = 2, height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.rand((count, 3, height, width), generator=torch.Generator().manual_seed(3))


def test_it_is_a_backbone(backbone):
    assert isinstance(backbone, Backbone)


def test_images_go_to_latents_and_back(backbone):
    images = lr_images(height=16, width=24)
    x_0 = backbone.encode(images)
    assert float(x_0.abs().max()) <= LATENT_SCALE
    torch.testing.assert_close(backbone.decode(x_0), images)
    assert float(backbone.decode(2 * x_0).max()) == 1.0  # clamped


def test_a_network_that_predicts_the_residual_exactly_gives_the_true_velocity(backbone, monkeypatch):
    lr = lr_images()
    condition = backbone.encode_condition(lr)
    residual, noise = (fine(draws(2, 3, 32, 32, seed=seed)) for seed in (0, 1))
    x_0 = residual + LATENT_SCALE * condition["up"]
    t = torch.tensor([0.3, 0.9])
    time = t.view(-1, 1, 1, 1)
    spread = (1 - time) ** 2 + time**2
    y_t = (1 - time) * residual + time * noise
    # EDM's x_0 = c_skip y + c_out F, solved for F
    exact = (residual - (1 - time) / spread * y_t) * spread.sqrt() / time
    monkeypatch.setattr(type(backbone.network), "forward", lambda self, y, t, up, features: exact)
    v = backbone.velocity(interpolate(x_0, noise, t), t, condition)
    torch.testing.assert_close(v, noise - x_0, rtol=1e-4, atol=1e-4)


def fine(x):
    """Without its means over cells: nothing coarse is left."""
    means = functional.avg_pool2d(x, COARSE_CELL)
    return x - functional.interpolate(means, scale_factor=COARSE_CELL, mode="nearest")


@torch.no_grad()
def test_no_weights_can_shift_brightness_or_colour(backbone):
    condition = backbone.encode_condition(lr_images())
    x_t, t = draws(2, 3, 32, 32), torch.tensor([0.3, 0.9])
    before = backbone.velocity(x_t, t, condition)
    backbone.network.out.bias += torch.randn(12, generator=torch.Generator().manual_seed(5))
    change = backbone.velocity(x_t, t, condition) - before
    assert float(change.abs().max()) > 0.1
    torch.testing.assert_close(change.mean(dim=(2, 3)), torch.zeros(2, 3), atol=1e-5, rtol=0)


def test_the_coarse_velocity_is_the_least_squares_one_of_a_normal_residual():
    generator = torch.Generator().manual_seed(0)
    # two orthonormal directions: sample moments are those of the distribution, so the slopes agree exactly
    pixels = torch.linalg.qr(torch.randn(50, 2, generator=generator, dtype=torch.float64)).Q
    residual, noise = COARSE_SPREAD * pixels[:, 0], pixels[:, 1]
    for t in (0.0, 0.02, 0.1, 0.5, 0.95, 1.0):
        y_t, velocity = (1 - t) * residual + t * noise, noise - residual
        slope = float((y_t * velocity).sum() / y_t.square().sum())
        assert float(coarse_velocity_factor(torch.tensor(t))) == pytest.approx(slope, rel=1e-5)


def test_velocity_is_finite_at_both_ends(backbone):
    condition = backbone.encode_condition(lr_images())
    for time in (0.0, 1.0):
        v = backbone.velocity(draws(2, 3, 32, 32), torch.full((2,), time), condition)
        assert bool(torch.isfinite(v).all())


def test_a_sample_depends_on_its_own_image_and_noise_alone(backbone):
    condition = backbone.encode_condition(lr_images(3))
    x_t, t = draws(3, 3, 32, 32), torch.tensor([0.2, 0.5, 0.8])
    together = backbone.velocity(x_t, t, condition)
    alone = backbone.velocity(x_t[1:2], t[1:2], condition.index([1]))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_far_pixels_do_not_change_a_pixel(backbone):
    # no statistics over the image: a crop far from the change restores to the same values
    lr = lr_images(1, 32, 32)
    changed = lr.clone()
    changed[..., 28:, 28:] = 0
    x_t, t = draws(1, 3, 128, 128), torch.tensor([0.5])
    with torch.no_grad():
        v = [backbone.velocity(x_t, t, backbone.encode_condition(image)) for image in (lr, changed)]
    assert torch.equal(v[0][..., :32, :32], v[1][..., :32, :32])
    assert float((v[0] - v[1])[..., 112:, 112:].abs().max()) > 0.1


@pytest.mark.parametrize(("height", "width"), [(2, 2), (2, 14), (10, 6)])
def test_any_even_lr_size_is_restored(backbone, height, width):
    condition = backbone.encode_condition(lr_images(1, height, width))
    shape = backbone.latent_spec.grid(4 * height, 4 * width)
    end = euler(
        lambda x, t: backbone.velocity(x, t, condition), draws(1, *shape), torch.tensor([1.0, 0.5, 0.0])
    )
    assert backbone.decode(end.x_0).shape == (1, 3, 4 * height, 4 * width)


def test_gradient_checkpointing_changes_no_gradient(backbone):
    with torch.no_grad():
        condition = backbone.encode_condition(lr_images())
    grads = []
    for enabled in (False, True):
        backbone.set_gradient_checkpointing(enabled)
        backbone.module.zero_grad()
        backbone.velocity(draws(2, 3, 32, 32), torch.tensor([0.4, 0.6]), condition).square().mean().backward()
        grads.append([p.grad.clone() for p in backbone.network.parameters()])
    for before, after in zip(*grads, strict=True):
        torch.testing.assert_close(before, after)


def test_bf16_autocast_stays_close_and_returns_float32(backbone):
    lr, x_t, t = lr_images(), draws(2, 3, 32, 32), torch.tensor([0.4, 0.6])
    exact = backbone.velocity(x_t, t, backbone.encode_condition(lr))
    backbone.autocast_dtype = torch.bfloat16
    rounded = backbone.velocity(x_t, t, backbone.encode_condition(lr))
    assert rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).abs().mean()) < 0.05 * float(exact.abs().mean())


def test_weights_come_back_from_disk(backbone, tmp_path):
    backbone.save_pretrained(tmp_path / "w.safetensors", trained_on="nothing")
    loaded = TinyBackboneConfig(model_name_or_path=str(tmp_path / "w.safetensors")).build()
    assert loaded.fingerprint == backbone.fingerprint
    assert loaded.architecture == backbone.architecture
    condition = backbone.encode_condition(lr_images())
    x_t, t = draws(2, 3, 32, 32), torch.tensor([0.4, 0.6])
    assert torch.equal(backbone.velocity(x_t, t, condition), loaded.velocity(x_t, t, condition))


def test_damaged_weights_say_what_is_missing(backbone, tmp_path):
    backbone.save_pretrained(tmp_path / "w.safetensors")
    tensors, header = load_tensors(tmp_path / "w.safetensors")
    tensors.pop("trunk.out.weight")
    save_tensors(tmp_path / "w.safetensors", tensors, header)
    with pytest.raises(ValueError, match=r"trunk\.out\.weight"):
        TinyBackbone.from_pretrained(tmp_path / "w.safetensors")
    save_tensors(tmp_path / "other.safetensors", tensors, {"format": "something"})
    with pytest.raises(ValueError, match="not a tiny backbone"):
        TinyBackbone.from_pretrained(tmp_path / "other.safetensors")


def test_misuse_is_refused(backbone):
    with pytest.raises(ValueError, match="restores x4, asked for x2"):
        backbone.encode_condition(lr_images(), upscale=2)
    with pytest.raises(ValueError, match="not a multiple of 8 px"):
        backbone.encode_condition(lr_images(1, 7, 8))
    condition = backbone.encode_condition(lr_images())
    with pytest.raises(ValueError, match="takes no options"):
        backbone.velocity(draws(2, 3, 32, 32), torch.rand(2), condition, guidance_scale=3)


def test_fresh_weights_depend_on_the_seed_alone():
    architecture = TinyBackbone.initialise(seed=0).architecture
    torch.manual_seed(5)
    first = TinyBackbone.initialise(architecture, seed=7)
    torch.manual_seed(6)
    state = torch.random.get_rng_state()
    assert first.fingerprint == TinyBackbone.initialise(architecture, seed=7).fingerprint
    assert first.fingerprint != TinyBackbone.initialise(architecture, seed=8).fingerprint
    assert torch.equal(state, torch.random.get_rng_state())


def test_size_is_within_the_promised_range():
    count = sum(p.numel() for p in TinyBackbone.initialise().module.parameters())
    assert 3e6 < count < 10e6


@pytest.mark.parametrize("adapter", [None, "current"])
def test_nothing_in_a_constant_image_says_where_its_border_is(backbone, adapter):
    # edges are repeated, never padded with zeros, for a layer and for its adapter alike
    moved_policy(backbone)
    block = backbone.network.middle[0]
    x, time = draws(1, 16, 1, 1).expand(-1, -1, 6, 6), draws(1, 16, seed=1)
    with torch.no_grad(), use_adapter(backbone.network, adapter):
        out = block(x, time)
    torch.testing.assert_close(out, out[..., 3:4, 3:4].expand(-1, -1, 6, 6))
    assert not torch.equal(out, x)


def test_the_default_grid_is_the_same_at_every_size_and_starts_with_one_long_step(backbone):
    grid = backbone.default_time_grid(4, 96, 96)
    assert torch.equal(grid, backbone.default_time_grid(4, 512, 384))
    torch.testing.assert_close(grid, torch.tensor([1.0, 9 / 19, 3 / 13, 1 / 11, 0.0]))
