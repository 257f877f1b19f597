"""The contract in the middle: a backbone turns LR images into conditions and latents into velocities.

Solvers, policies, losses and restoration only ever see this.  Time is t in [0, 1] with t = 0 clean
and t = 1 noise; whatever unit the network wants is made inside the backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lucidnft.records import Condition


@dataclass(frozen=True)
class LatentSpec:
    """Shape rules of a backbone's latents."""

    channels: int  # C
    downscale: int  # output pixels per latent cell, per side
    multiple: int  # H and W must be multiples of this many output pixels; callers pad and crop
    longest: int | None = None  # output pixels a side that the network can see at once; None: any number

    def grid(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latent of an H x W image.  Raises ValueError off the multiple."""
        if height % self.multiple or width % self.multiple:
            raise ValueError(
                f"output size {height}x{width} is not a multiple of {self.multiple} px; pad before, crop after"
            )
        return self.channels, height // self.downscale, width // self.downscale


@runtime_checkable
class Backbone(Protocol):
    """A pretrained flow model with its encoders.  Implementations share nothing but this."""

    fingerprint: str  # short hash of the base weights; an adapter refuses another base
    autocast_dtype: torch.dtype | None  # of the network's matrix products; None keeps float32

    @property
    def name(self) -> str:
        """E.g. "tiny"; written into adapter headers."""

    @property
    def latent_spec(self) -> LatentSpec:
        """Shape rules of the latents."""

    @property
    def upscale(self) -> int | None:
        """The fixed factor it was trained for, or None when any works."""

    @property
    def pre_restores(self) -> bool:
        """Whether its conditions hold what a restorer before it made of LR: field "pre_restored" in [-1, 1]."""

    @property
    def module(self) -> nn.Module:
        """Everything with weights, as a supervised task trains it."""

    @property
    def network(self) -> nn.Module:
        """The part that LoRA attaches to."""

    @property
    def lora_modules(self) -> tuple[str, ...]:
        """Names of modules inside `network` that take LoRA by default."""

    @property
    def lora_groups(self) -> Mapping[str, tuple[str, ...]]:
        """Names that stand for several modules in the setting target_modules; may be empty."""

    @property
    def device(self) -> torch.device:
        """Where the network lives."""

    def to(self, device: torch.device | str) -> Backbone:
        """Move it."""

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass, or keep them."""

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> x_0 (B, C, h, w)."""

    def decode(self, x_0: Tensor) -> Tensor:
        """x_0 (B, C, h, w) -> (B, 3, H, W) float32 clamped to [0, 1]."""

    def encode_condition(
        self, lr: Tensor, *, upscale: int, prompts: tuple[str, ...] | None = None
    ) -> Condition:
        """lr (G, 3, H/r, W/r) in [0, 1] -> Condition with leading axis G.  Independent of adapters."""

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition, **options: Any) -> Tensor:
        """x_t (B, C, h, w), t (B,) in [0, 1] -> v = d x_t / d t (B, C, h, w)."""

    @property
    def default_num_steps(self) -> int:
        """Solver steps when nobody says how many."""

    def default_time_grid(self, num_steps: int, height: int, width: int) -> Tensor:
        """(S + 1,) decreasing from 1 to 0: the grid this backbone is meant to be solved on."""
