"""Which device a restoration runs on."""

from __future__ import annotations

import gc

import torch

from lucidnft.backbones.base import Backbone
from lucidnft.policy import Policy


def choose_device(name: str, *, setting: str = "--device ") -> torch.device:
    """auto (a GPU where there is one), cpu, cuda or cuda:<index>.

    setting: what the user writes before the name, for messages.

    Raises:
        ValueError: another name, or a GPU that torch does not see.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, colon, index = name.partition(":")
    if name != "cpu" and (kind != "cuda" or (colon and not index.isdecimal())):
        raise ValueError(f"'{setting}{name}': expected auto, cpu, cuda or cuda:<index>")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"'{setting}{name}': torch sees {torch.cuda.device_count()} CUDA devices; use {setting}cpu or "
            f"{setting}auto, or install a CUDA build of torch and check nvidia-smi"
        )
    return torch.device(name)


def move_to(policy_or_backbone: Policy | Backbone, device: torch.device) -> Policy | Backbone:
    """Move the weights, base and adapters; returns the same object."""
    backbone = policy_or_backbone.backbone if isinstance(policy_or_backbone, Policy) else policy_or_backbone
    backbone.to(device)
    return policy_or_backbone


def give_back_memory(device: torch.device) -> None:
    """Free what no name holds any more, so that other processes and libraries can have it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
