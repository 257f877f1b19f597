"""Which device and which precision a run uses."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator

from lucidnft.backbones.base import Backbone
from lucidnft.inference.device import choose_device
from lucidnft.training.settings import BackboneTrainSettings


def build_accelerator(device: str) -> Accelerator:
    """An Accelerator on the asked device; with `auto`, whatever accelerate finds.

    Raises:
        ValueError: another name, or a CUDA device that torch does not see.
    """
    kind = choose_device(device, setting="train.device=").type
    # accelerate joins processes over the CPU only when it is told that there is nothing else
    accelerator = Accelerator(cpu=kind == "cpu")
    if accelerator.num_processes == 1 and _several_were_asked_for():
        accelerator.print(
            "warning: accelerate launch was asked for several processes but has started one, as it does where it "
            "sees no GPUs; add --multi_gpu, which starts them on CPUs too: accelerate launch --multi_gpu "
            "--num_processes N train.py ..."
        )
    if ":" in device and accelerator.num_processes > 1:
        raise ValueError(
            f"train.device={device} names one device, but {accelerator.num_processes} processes run"
        )
    if ":" in device:
        accelerator.state.device = torch.device(device)
    return accelerator


def _several_were_asked_for() -> bool:
    """accelerate's launcher for a single process leaves an address to meet at only when more were wanted."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ


def autocast_dtype(settings: BackboneTrainSettings, device: torch.device) -> torch.dtype | None:
    """bfloat16 or None (float32).

    `auto` takes bf16 on CUDA, and on a CPU only where it has tile instructions for it: elsewhere bf16
    products are emulated and several times slower than float32.
    """
    if settings.mixed_precision == "bf16":
        return torch.bfloat16
    if settings.mixed_precision == "no":
        return None
    if device.type == "cuda":
        return torch.bfloat16
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return torch.bfloat16 if has_tiles is not None and has_tiles() else None


def prepare_backbone(
    backbone: Backbone, settings: BackboneTrainSettings, accelerator: Accelerator
) -> Backbone:
    """Move a backbone to the run's device and give it the run's precision and memory settings."""
    backbone.to(accelerator.device)
    backbone.autocast_dtype = autocast_dtype(settings, accelerator.device)
    backbone.set_gradient_checkpointing(settings.gradient_checkpointing)
    return backbone
