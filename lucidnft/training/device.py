"""Which device and which precision a run uses."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from lucidnft.backbones.base import Backbone
from lucidnft.training.settings import OptimizerSettings


def build_accelerator(device: str) -> Accelerator:
    """An Accelerator on the asked device; with `auto`, whatever accelerate finds.

    Raises:
        ValueError: a CUDA device is asked for and there is none.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"train.device is {device!r} but torch sees no CUDA device; set train.device=cpu or auto, "
            "or install a CUDA build of torch and check nvidia-smi"
        )
    if device not in ("auto", "cpu") and not device.startswith("cuda"):
        raise ValueError(f"train.device is {device!r}, expected auto, cpu, cuda or cuda:<index>")
    accelerator = Accelerator(cpu=device == "cpu")
    if ":" in device and accelerator.num_processes > 1:
        raise ValueError(
            f"train.device={device} names one device, but {accelerator.num_processes} processes run"
        )
    if ":" in device:
        accelerator.state.device = torch.device(device)
    return accelerator


def autocast_dtype(settings: OptimizerSettings, device: torch.device) -> torch.dtype | None:
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


def prepare_backbone(backbone: Backbone, settings: OptimizerSettings, accelerator: Accelerator) -> Backbone:
    """Move a backbone to the run's device and give it the run's precision and memory settings."""
    backbone.to(accelerator.device)
    backbone.autocast_dtype = autocast_dtype(settings, accelerator.device)
    backbone.set_gradient_checkpointing(settings.gradient_checkpointing)
    return backbone
