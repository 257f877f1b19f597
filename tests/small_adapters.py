"""Small bases on the disk, and adapters on them with random factors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lucidnft.backbones.adapter_files import POLICY_FORMAT
from lucidnft.backbones.adapters import LoraSettings
from lucidnft.backbones.merged_files import merged_section, write_merged
from lucidnft.checkpoint import save_tensors
from lucidnft.inference.checkpoints import BACKBONE_CONFIGS, BackboneConfig
from lucidnft.policy import Policy, Role
from tests.backbones.small_lucidflux import SMALL as LUCIDFLUX
from tests.backbones.small_lucidflux import small_lucidflux
from tests.small_backbone import small_backbone
from tests.small_dit4sr import small_dit4sr

KINDS = ("tiny", "lucidflux", "dit4sr")
RANK, ALPHA = 2, 3.0


def small_base(folder: Path, kind: str, dtype: str = "float32") -> BackboneConfig:
    """The files of a base under folder/kind, and the settings that build it."""
    torch.set_num_threads(1)  # also for fixtures of a module, which are made before a test's own
    made: Any = {"tiny": small_backbone, "lucidflux": small_lucidflux, "dit4sr": small_dit4sr}[kind]()
    section = {"type": kind, "model_name_or_path": None}
    section |= {"lucidflux": {"dtype": dtype, "architecture": LUCIDFLUX.model_dump()}, "tiny": {}}.get(
        kind, {"dtype": dtype, "lr_key": "lr", "transformer_path": None}
    )
    (folder / kind).mkdir()
    write_merged(folder / kind, made, section)
    return BACKBONE_CONFIGS[kind].model_validate(merged_section(folder / kind))


def scatter_(policy: Policy, seed: int = 0) -> Policy:
    """Random factors, B too, in the current adapter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters.values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return policy


def small_policy(base: BackboneConfig, targets: tuple[str, ...] | None = None) -> Policy:
    settings = LoraSettings(lora_rank=RANK, lora_alpha=ALPHA, target_modules=targets)
    return scatter_(Policy(base.build(), settings, seed=0))


def save_policy(path: Path, policy: Policy, base: BackboneConfig) -> Path:
    """A policy.safetensors as a run leaves it, without the rest of the run."""
    section = {**base.model_dump(mode="json"), "lora_rank": RANK, "lora_alpha": ALPHA}
    targets = sorted({name.rsplit(".lora_", 1)[0] for name in policy.parameters})
    header = {
        "format": POLICY_FORMAT, "backbone": {**section, "target_modules": targets}, "step": 7,
        "base_fingerprint": policy.backbone.fingerprint, "config": {"seed": 0},
    }  # fmt: skip
    save_tensors(path, policy.state(Role.CURRENT), header)
    return path


@torch.no_grad()
def velocity(policy_or_backbone: Any) -> Tensor:
    """Of one fixed input, by the current adapter."""
    backbone = getattr(policy_or_backbone, "backbone", policy_or_backbone)
    generator = torch.Generator().manual_seed(5)
    lr = torch.rand((1, 3, 4, 8), generator=generator)
    x_t = torch.randn((1, *backbone.latent_spec.grid(16, 32)), generator=generator)
    condition = backbone.encode_condition(lr, upscale=4)
    v: Tensor = (
        policy_or_backbone(x_t, torch.tensor([0.6]), condition)
        if isinstance(policy_or_backbone, Policy)
        else backbone.velocity(x_t, torch.tensor([0.6]), condition)
    )
    return v


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference, over the spread of one."""
    return float((one - other).abs().max() / one.std())
