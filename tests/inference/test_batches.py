"""An image's pixels do not depend on which others are restored with it, to the last bit."""

import pytest
import torch

from lucidnft.backbones.tiny import TinyBackbone
from lucidnft.inference import restore
from tests.backbones.random_tensors import uniforms


@pytest.fixture(scope="module")
def tiny():
    return TinyBackbone.from_pretrained()


# below about 80 output pixels a side torch gives an image alone to other kernels
@pytest.mark.parametrize("align_method", ["nofix", "wavelet", "adain"])
def test_a_batch_gives_the_bits_of_each_image_alone(tiny, align_method):
    lr, names = uniforms(3, 3, 33, 26), ["a", "b", "c"]
    options = {"align_method": align_method, "num_inference_steps": 1}
    together = restore(tiny, lr, keys=names, batch_size=3, **options)
    for number in (0, 2):
        alone = restore(tiny, lr[number : number + 1], keys=names[number : number + 1], **options)
        assert torch.equal(together[number], alone[0])


def test_tiles_give_the_same_bits_however_many_go_at_once(tiny):
    lr = uniforms(1, 3, 24, 60)
    options = {"tile_size": 96, "num_inference_steps": 1}
    one = restore(tiny, lr, batch_size=1, **options)
    assert torch.equal(restore(tiny, lr, batch_size=4, **options), one)
