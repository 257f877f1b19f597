"""Peaks of live storages: the same with and without values, and linear in what attention attends to."""

import gc

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lucidnft.backbones.lucidflux import LucidFluxBackbone
from lucidnft.backbones.precision import autocast_region
from lucidnft.backbones.tiny import TinyBackboneConfig
from lucidnft.policy import Policy
from lucidnft.training.peak_memory import backward, measure, tensor_bytes
from tests.backbones.small_lucidflux import SMALL
from tests.small_dit4sr import one_thread, small_dit4sr  # noqa: F401  a fixture

pytestmark = pytest.mark.usefixtures("one_thread")

MEGABYTE = 4 * 512 * 512  # of a (512, 512) float32 tensor
META = torch.device("meta")


def matrix() -> torch.Tensor:
    return torch.empty(512, 512, device="meta")


def test_temporaries_count_while_they_are_there_and_views_never():
    given = matrix()

    def region() -> torch.Tensor:
        kept = given + 1
        (kept * 2).t().mul_(3)  # one at a time
        given.t().add_(kept)  # in what was there before
        return kept.view(-1)

    measured = measure(region)
    assert (measured.peak, measured.kept) == (2 * MEGABYTE, MEGABYTE)


def test_a_backward_pass_holds_what_was_saved_and_checkpointing_makes_it_again():
    layers = nn.ModuleList(nn.Linear(512, 512, bias=False) for _ in range(8)).to("meta").requires_grad_(False)
    x = matrix().requires_grad_()

    def peak(checkpointing: bool) -> int:
        def region() -> None:
            h = x
            for pair in (layers[i : i + 2] for i in range(0, 8, 2)):
                block = nn.Sequential(pair[0], nn.GELU(), pair[1], nn.GELU())
                h = (
                    torch.utils.checkpoint.checkpoint(block, h, use_reentrant=False)
                    if checkpointing
                    else block(h)
                )
            backward(h.sum())

        x.grad = None
        return measure(region).peak

    # eight inputs of GELUs and a moving gradient, or four inputs of blocks and the two of one block
    assert peak(False) > 8 * MEGABYTE
    assert 4 * MEGABYTE < peak(True) < 8 * MEGABYTE


@pytest.mark.parametrize("tokens", [256, 1024])
def test_attention_never_holds_its_matrix(tokens):
    def peak(count: int) -> int:
        q, k, v = (torch.empty(1, 2, count, 32, device="meta", requires_grad=True) for _ in range(3))
        return measure(lambda: backward(F.scaled_dot_product_attention(q, k, v).sum())).peak

    assert peak(2 * tokens) == pytest.approx(2 * peak(tokens), rel=0.01)


def test_autocast_on_the_meta_device_gives_the_dtypes_of_cuda():
    x, w = matrix(), matrix().to(torch.bfloat16)
    with autocast_region(META, torch.bfloat16):
        product = F.linear(x, w)
        assert (product @ product.t()).dtype == product.dtype == torch.bfloat16
        assert F.layer_norm(product, (512,)).dtype == product.softmax(-1).dtype == torch.float32
        assert (product + 1).dtype == torch.bfloat16
    with autocast_region(META, None):
        assert F.linear(x, x).dtype == torch.float32


def peaks(backbone, device: str, size: int, checkpointing: bool) -> list[int]:
    """Of the condition, a pass without gradient, one with, and decoding, on the real or on the meta device."""
    backbone.to(device)
    backbone.set_gradient_checkpointing(checkpointing)
    with torch.device(device):
        policy = Policy(backbone, TinyBackboneConfig(lora_rank=2), seed=0)
    for parameter in policy.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    lr = torch.zeros(2, 3, size // 4, size // 4, device=device)
    x = torch.zeros(2, *backbone.latent_spec.grid(size, size), device=device)
    t = torch.full((2,), 0.5, device=device)

    @torch.no_grad()
    def encode():
        return backbone.encode_condition(lr, upscale=4)

    condition = encode()

    @torch.no_grad()
    def solve():
        return policy(x, t, condition)

    @torch.no_grad()
    def decode():
        return backbone.decode(x)

    gc.collect()
    regions = (encode, solve, lambda: backward(policy(x, t, condition).square().mean()), decode)
    return [measure(region).peak for region in regions]


BACKBONES = {
    "tiny": lambda: TinyBackboneConfig().build(),
    "lucidflux": lambda: LucidFluxBackbone.initialise(SMALL),
    "dit4sr": lambda: small_dit4sr(posterior="mean"),
}


@pytest.mark.parametrize(("name", "checkpointing"), [("tiny", False), ("lucidflux", True), ("dit4sr", True)])
def test_a_skeleton_has_the_peaks_of_the_real_network(name, checkpointing):
    real, skeleton = (peaks(BACKBONES[name](), device, 64, checkpointing) for device in ("cpu", "meta"))
    for found, true in zip(skeleton, real, strict=True):
        assert found == pytest.approx(true, rel=0.1), (skeleton, real)


def test_bytes_of_weights_that_share_a_storage_count_once():
    weight = matrix()
    assert tensor_bytes([weight, weight.t(), matrix().to(torch.bfloat16)]) == MEGABYTE + MEGABYTE // 2
