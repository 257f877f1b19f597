"""The flow-matching loss."""

import torch

from lucidnft.losses.flow_matching import flow_matching_loss


def test_the_true_velocity_costs_nothing_and_an_offset_its_square():
    generator = torch.Generator().manual_seed(0)
    x_0, noise = (torch.randn((3, 2, 4, 4), generator=generator) for _ in range(2))
    offsets = torch.tensor([0.0, 1.0, -2.0]).view(3, 1, 1, 1)
    loss, logs = flow_matching_loss(noise - x_0 + offsets, x_0=x_0, noise=noise)
    torch.testing.assert_close(loss, torch.tensor([0.0, 1.0, 4.0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(logs["flow_matching"], loss.mean())
