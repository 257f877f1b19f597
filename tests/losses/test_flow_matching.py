"""The flow-matching loss."""

import torch

from lucidnft.losses.flow_matching import flat_region_weight, flow_matching_loss


def test_the_true_velocity_costs_nothing_and_an_offset_its_square():
    generator = torch.Generator().manual_seed(0)
    x_0, noise = (torch.randn((3, 2, 4, 4), generator=generator) for _ in range(2))
    offsets = torch.tensor([0.0, 1.0, -2.0]).view(3, 1, 1, 1)
    loss, logs = flow_matching_loss(noise - x_0 + offsets, x_0=x_0, noise=noise)
    torch.testing.assert_close(loss, torch.tensor([0.0, 1.0, 4.0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(logs["flow_matching"], loss.mean())


def test_a_weight_multiplies_the_squared_error_of_its_position():
    x_0, noise = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    v = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(1, 2, 2, 2)
    weight = torch.tensor([[[[4.0, 0.0], [0.0, 0.0]]]])
    loss, _ = flow_matching_loss(v, x_0=x_0, noise=noise, weight=weight)
    torch.testing.assert_close(loss, torch.tensor([1.0]))


def test_flat_regions_weigh_more_and_the_mean_is_one():
    generator = torch.Generator().manual_seed(0)
    images = torch.full((2, 3, 16, 16), 0.5)
    images[:, :, :, 8:] += 0.2 * torch.randn((2, 1, 16, 8), generator=generator)
    weight = flat_region_weight(images, (32, 32), 1.0)
    assert weight.shape == (2, 1, 32, 32)
    torch.testing.assert_close(weight.mean(dim=(1, 2, 3)), torch.ones(2))
    assert float(weight[..., :8].min()) > 4 * float(weight[..., 24:].max())


def test_an_image_without_contrast_and_exponent_zero_weigh_evenly():
    textured = torch.rand((1, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    for images, exponent in ((torch.ones(1, 3, 8, 8), 1.0), (textured, 0.0)):
        torch.testing.assert_close(flat_region_weight(images, (8, 8), exponent), torch.ones(1, 1, 8, 8))


def test_a_weight_from_the_condition_does_not_move_the_minimum():
    # the best constant prediction per position is the mean target, whatever the weight
    generator = torch.Generator().manual_seed(0)
    x_0, noise = (torch.randn((500, 1, 2, 2), generator=generator) for _ in range(2))
    weight = torch.tensor([[[[3.0, 0.5], [0.25, 0.25]]]])
    v = torch.zeros(1, 1, 2, 2, requires_grad=True)
    loss, _ = flow_matching_loss(
        v.expand(500, -1, -1, -1), x_0=x_0, noise=noise, weight=weight.expand(500, -1, -1, -1)
    )
    (gradient,) = torch.autograd.grad(loss.mean(), v)
    expected = -2 * (noise - x_0).mean(dim=0, keepdim=True) * weight / 4
    torch.testing.assert_close(gradient, expected)
