"""A backbone of a few thousand parameters, of the very classes that ship."""

import pytest
import torch

from lucidnft.backbones.adapters import LoraSettings, adapter_parameters
from lucidnft.backbones.tiny import TinyBackbone
from lucidnft.backbones.tiny_network import TinyArchitecture
from lucidnft.policy import Policy

SMALL = TinyArchitecture(widths=(8, 12, 16), num_blocks=(1, 1, 1), lr_width=8, num_lr_blocks=1, time_width=16)


def small_backbone(seed: int = 0) -> TinyBackbone:
    """Random weights everywhere: the zero-initialised layers would hide mistakes."""
    made = TinyBackbone.initialise(SMALL, seed=seed)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return TinyBackbone(made.module, SMALL)  # made anew: the fingerprint is taken at the start


@pytest.fixture
def backbone() -> TinyBackbone:
    return small_backbone()


def moved_policy(backbone: TinyBackbone) -> Policy:
    """A policy whose old and current adapters are two different non-zero ones."""
    policy = Policy(backbone, LoraSettings(lora_rank=2, lora_alpha=4), seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name in ("old", "current"):
            for parameter in adapter_parameters(backbone.network, name).values():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    policy.mark_updated()
    return policy
