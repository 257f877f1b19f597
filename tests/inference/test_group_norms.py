"""Group norms of tiles under the statistics of the whole image."""

import torch

from lucidnft.inference.group_norms import GivenGroupNorms, RecordedGroupNorms
from tests.small_decoder import Normed


def test_given_statistics_are_those_of_the_recorded_image():
    network = Normed()
    image = torch.rand(1, 3, 24, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.norm.weight.copy_(torch.linspace(0.5, 2, 8))
        network.norm.bias.copy_(torch.linspace(-1, 1, 8))
        with RecordedGroupNorms() as recorded:
            expected = network(image)
        assert len(recorded.statistics) == 2
        with GivenGroupNorms(recorded.statistics):
            again = network(image)
        torch.testing.assert_close(again, expected, atol=1e-5, rtol=1e-5)
        with GivenGroupNorms(recorded.statistics):
            part = network(image[:, :, :12])
        torch.testing.assert_close(part[:, :, :9], expected[:, :, :9], atol=1e-5, rtol=1e-5)
        assert (network(image[:, :, :12]) - part)[:, :, :9].abs().max() > 0.05


@torch.no_grad()
def test_given_statistics_are_not_rounded_to_bfloat16():
    norm = torch.nn.GroupNorm(2, 8).to(torch.bfloat16)
    norm.weight.copy_(torch.linspace(0.51, 2.3, 8))
    image = torch.randn(1, 8, 32, 32, generator=torch.Generator().manual_seed(0)).add(3).to(torch.bfloat16)
    with RecordedGroupNorms() as recorded:
        expected = norm(image)
    with GivenGroupNorms(recorded.statistics):
        given = norm(image)
    assert given.dtype == torch.bfloat16
    # rounded, the shift alone is off by up to 2^-8 of itself, for every pixel
    assert (given.double() - expected.double()).mean(dim=(2, 3)).abs().max() < 2e-4
