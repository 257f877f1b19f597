"""Restoring in memory: sizes, padding, noise, roles, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lucidnft.flow.solvers import euler
from lucidnft.images import resize
from lucidnft.inference import restore, wavelet_color_fix
from lucidnft.inference.restore import keyed_noise, output_size, pad_to_multiple
from lucidnft.policy import Role
from lucidnft.rng import generator_for
from tests.small_backbone import moved_policy, small_backbone


def lr_images(count: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(3))


@settings(max_examples=12)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([None, 4, 4.0, 2.5, 1, 0.3, 6]))
def test_any_size_gives_exactly_the_rounded_size_in_range(height, width, upscale):
    sr = restore(small_backbone(), lr_images(1, height, width), upscale=upscale, num_inference_steps=1)
    factor = upscale or 4
    assert sr.shape == (1, 3, max(1, round(height * factor)), max(1, round(width * factor)))
    assert sr.dtype == torch.float32 and sr.min() >= 0 and sr.max() <= 1


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 9))
def test_padding_keeps_the_image_and_mirrors_it(height, width, multiple):
    images = lr_images(1, height, width)
    padded = pad_to_multiple(images, multiple)
    assert padded.shape[2] % multiple == 0 and padded.shape[2] - height < multiple
    assert padded.shape[3] % multiple == 0 and padded.shape[3] - width < multiple
    assert torch.equal(padded[:, :, :height, :width], images)
    for i in range(height, padded.shape[2]):
        mirrored = padded[:, :, 2 * (height - 1) - i] if 2 * (height - 1) >= i else None
        if mirrored is not None:
            assert torch.equal(padded[:, :, i], mirrored)
    if height == 1:
        assert torch.equal(padded, padded[:, :, :1].expand_as(padded))


def test_a_long_extension_reflects_again_and_again():
    row = torch.tensor([0.0, 1.0, 2.0]).view(1, 1, 1, 3)
    assert pad_to_multiple(row, 11)[0, 0, 0].tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2]


def test_an_even_image_is_solved_exactly_as_the_parts_say(backbone):
    lr = lr_images(1, 6, 4)
    sr = restore(backbone, lr, seed=7, keys=["a"], num_inference_steps=3)
    condition = backbone.encode_condition(lr)
    noise = torch.randn(3, 24, 16, generator=generator_for(7, "restore", "a"))[None]
    grid = backbone.default_time_grid(3, 24, 16)
    with torch.no_grad():
        expected = backbone.decode(euler(lambda x, t: backbone.velocity(x, t, condition), noise, grid).x_0)
    torch.testing.assert_close(sr, expected, atol=1e-6, rtol=0)


def test_the_crop_leaves_the_upper_left_corner_of_the_padded_restoration(backbone):
    lr = lr_images(1, 5, 3)
    padded = restore(backbone, pad_to_multiple(lr, 2), num_inference_steps=2)
    assert padded.shape[2:] == (24, 16)
    torch.testing.assert_close(restore(backbone, lr, num_inference_steps=2), padded[:, :, :20, :12])


def test_noise_depends_on_seed_and_key_only(backbone):
    lr = lr_images(1, 4, 4).expand(3, -1, -1, -1)
    sr = restore(backbone, lr, keys=["a", "b", "a"], batch_size=2, num_inference_steps=2)
    torch.testing.assert_close(sr[0], sr[2], atol=1e-6, rtol=0)
    assert (sr[0] - sr[1]).abs().max() > 1e-3
    alone = restore(backbone, lr[:1], keys=["b"], num_inference_steps=2)
    torch.testing.assert_close(alone[0], sr[1], atol=1e-6, rtol=0)
    other_seed = restore(backbone, lr[:1], keys=["b"], seed=1, num_inference_steps=2)
    assert (other_seed - alone).abs().max() > 1e-3


def test_keys_default_to_positions(backbone):
    lr = lr_images(2, 2, 2)
    named = restore(backbone, lr, keys=["0", "1"], num_inference_steps=1)
    assert torch.equal(restore(backbone, lr, num_inference_steps=1), named)


def test_own_noise_is_taken(backbone):
    asked = []

    def noise_fn(shape, seed, key):
        asked.append((shape, seed, key))
        return torch.zeros(shape)

    lr = lr_images(1, 3, 4)
    quiet = restore(backbone, lr, seed=5, keys=["k"], noise_fn=noise_fn, num_inference_steps=1)
    assert asked == [((3, 16, 16), 5, "k")]
    assert (quiet - restore(backbone, lr, seed=5, keys=["k"], num_inference_steps=1)).abs().max() > 1e-3
    assert keyed_noise((3, 2, 2), 0, "k").shape == (3, 2, 2)


def test_a_policy_is_used_in_its_current_role(backbone):
    policy = moved_policy(backbone)
    lr = lr_images(1, 4, 4)
    before = restore(policy, lr, num_inference_steps=2)
    policy.load_state_(Role.OLD, {n: torch.zeros_like(v) for n, v in policy.state(Role.OLD).items()})
    assert torch.equal(restore(policy, lr, num_inference_steps=2), before)
    policy.load_state_(Role.CURRENT, {n: torch.zeros_like(v) for n, v in policy.state(Role.CURRENT).items()})
    base = restore(small_backbone(), lr, num_inference_steps=2)
    assert (before - base).abs().max() > 1e-3
    torch.testing.assert_close(restore(policy, lr, num_inference_steps=2), base, atol=1e-6, rtol=0)


def test_another_factor_is_a_resize_of_the_native_result(backbone):
    lr = lr_images(1, 5, 4)
    native = restore(backbone, lr, num_inference_steps=1)
    assert torch.equal(restore(backbone, lr, upscale=1.5, num_inference_steps=1), resize(native, (8, 6)))
    assert output_size(5, 4, 1.5) == (8, 6)


def test_colour_fix_takes_the_up_sampled_lr_as_style(backbone):
    lr = lr_images(1, 5, 4)
    plain = restore(backbone, lr, num_inference_steps=1)
    fixed = restore(backbone, lr, num_inference_steps=1, align_method="wavelet")
    assert torch.equal(fixed, wavelet_color_fix(plain, resize(lr, (20, 16))).clamp(0, 1))
    assert (fixed - plain).abs().max() > 1e-3


def test_no_gradient_is_kept_and_none_is_switched_off(backbone):
    assert not restore(backbone, lr_images(1, 2, 2), num_inference_steps=1).requires_grad
    assert torch.is_grad_enabled()
    assert all(p.requires_grad for p in backbone.module.parameters())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverged_network_is_an_error_that_names_the_image(backbone, bad):
    with torch.no_grad():
        next(iter(backbone.network.stem.parameters())).fill_(bad)
    with pytest.raises(ValueError, match=r"not finite \('cat', 'dog'\).*earlier"):
        restore(backbone, lr_images(2, 2, 2), keys=["cat", "dog"], num_inference_steps=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"upscale": 0}, "upscale is 0"),
        ({"upscale": float("nan")}, "upscale is nan"),
        ({"solver": "eulr"}, "solver is 'eulr', expected one of euler"),
        ({"align_method": "lab"}, "align_method is 'lab'.*wavelet"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"keys": ["a", "b"]}, "2 keys for 1"),
    ],
)
def test_arguments_out_of_range_are_refused(backbone, arguments, message):
    with pytest.raises(ValueError, match=message):
        restore(backbone, lr_images(1, 2, 2), **arguments)


@pytest.mark.parametrize(
    "lr",
    [
        torch.rand(3, 4, 4),
        torch.rand(1, 1, 4, 4),
        torch.rand(1, 3, 0, 4),
        torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
        torch.full((1, 3, 4, 4), 255.0),
        torch.full((1, 3, 4, 4), float("nan")),
    ],
)
def test_what_is_not_an_image_is_refused(backbone, lr):
    with pytest.raises(ValueError, match="expected"):
        restore(backbone, lr)


class FreeBackbone:
    """A backbone for any whole factor, which is what `upscale=None` on a backbone stands for."""

    name = "free"
    upscale = None

    def __init__(self, backbone):
        self.asked = []
        self.inner = backbone
        self.module, self.latent_spec = backbone.module, backbone.latent_spec
        self.velocity, self.decode, self.device = backbone.velocity, backbone.decode, backbone.device
        self.default_time_grid = backbone.default_time_grid
        self.default_num_steps = backbone.default_num_steps

    def encode_condition(self, lr, *, upscale, prompts=None):
        self.asked.append(upscale)
        return self.inner.encode_condition(
            resize(lr, (lr.shape[2] * upscale // 4, lr.shape[3] * upscale // 4))
        )


def test_a_backbone_without_a_factor_restores_at_the_next_whole_one(backbone):
    free = FreeBackbone(backbone)
    assert restore(free, lr_images(1, 8, 8), upscale=2.5, num_inference_steps=1).shape == (1, 3, 20, 20)
    assert free.asked == [3]
    with pytest.raises(ValueError, match="'free' has no upscale factor.*pass upscale"):
        restore(free, lr_images(1, 8, 8))


def test_infinities_are_an_error_and_not_a_white_image(backbone):
    free = FreeBackbone(backbone)
    free.velocity = lambda x_t, t, condition: torch.full_like(
        x_t, float("-inf")
    )  # decode would clamp it to 1
    with pytest.raises(ValueError, match="not finite"):
        restore(free, lr_images(1, 2, 2), upscale=4, num_inference_steps=1)
