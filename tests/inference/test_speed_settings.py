"""Precision and compilation of a network that only restores."""

import pytest
import torch

from lucidnft.inference import restore
from lucidnft.inference.speed_settings import prepare_for_restoring
from tests.backbones.random_tensors import uniforms
from tests.small_backbone import moved_policy, small_backbone


def test_bf16_is_near_float32_and_auto_on_a_cpu_is_float32(backbone):
    policy, lr = moved_policy(backbone), uniforms(1, 3, 8, 12)
    exact = restore(policy, lr, num_inference_steps=2)
    prepare_for_restoring(policy, dtype="bf16")
    assert backbone.autocast_dtype is torch.bfloat16
    rounded = restore(policy, lr, num_inference_steps=2)
    assert rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).abs().max()) < 4 / 255
    prepare_for_restoring(policy, dtype="auto")
    assert torch.equal(restore(policy, lr, num_inference_steps=2), exact)


def test_what_the_device_cannot_do_is_refused(backbone, monkeypatch):
    for options, message in (
        ({"dtype": "int8"}, "dtype is 'int8', expected one of auto, fp32, bf16, fp16"),
        ({"dtype": "fp16"}, "fp16 is for GPUs"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare_for_restoring(backbone, **options)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler.*without --compile"):
        prepare_for_restoring(backbone, compile=True)


@pytest.mark.parametrize(("name", "dtype"), [("dit4sr", torch.bfloat16), ("tiny", None)])
def test_auto_on_a_gpu_is_bf16_for_all_but_the_tiny_backbone(monkeypatch, name, dtype):
    class OnGpu:
        device, autocast_dtype = torch.device("cuda"), None

    OnGpu.name = name
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    on_gpu = OnGpu()
    prepare_for_restoring(on_gpu)
    assert on_gpu.autocast_dtype is dtype


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_image():
    backbone, lr = small_backbone(), uniforms(1, 3, 16, 24)
    eager = restore(backbone, lr, tile_size=64, num_inference_steps=2)
    prepare_for_restoring(backbone, compile=True)
    torch.testing.assert_close(
        restore(backbone, lr, tile_size=64, num_inference_steps=2), eager, atol=1e-5, rtol=0
    )
