"""One backbone seen in three roles: the trained policy, its lagging copy that samples, and the base weights.

Roles differ only in which LoRA adapter is active; there is one set of base weights in memory.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lucidnft.backbones import adapters
from lucidnft.backbones.base import Backbone
from lucidnft.records import Condition, ImageBatch


class Role(enum.Enum):
    """CURRENT is trained, OLD is its lagging copy that makes the rollouts, REFERENCE has no adapter."""

    CURRENT = "current"
    OLD = "old"
    REFERENCE = None


class Policy:
    """A backbone with two adapters of equal start; calling it gives a velocity."""

    def __init__(self, backbone: Backbone, settings: adapters.LoraSettings, *, seed: int) -> None:
        self.backbone = backbone
        targets = settings.target_modules or backbone.lora_modules
        for role in (Role.OLD, Role.CURRENT):  # the last one stays active and trainable
            adapters.add_adapter(backbone.network, role.value, settings, targets, seed=seed)
        adapters.lerp_adapter_(backbone.network, Role.OLD.value, Role.CURRENT.value, 0.0)
        self.old_equals_current = True
        self._folded: Role | None = None

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name: those of the current adapter."""
        return adapters.adapter_parameters(self.backbone.network, Role.CURRENT.value)

    @property
    def is_reference(self) -> bool:
        """Whether the trained policy still is the reference, exactly: nothing has been learned yet."""
        return adapters.is_no_change(self.backbone.network, Role.CURRENT.value)

    def __call__(
        self, x_t: Tensor, t: Tensor, condition: Condition, role: Role = Role.CURRENT, **options: Any
    ) -> Tensor:
        """x_t (B, C, h, w), t (B,), condition of B rows -> v (B, C, h, w).  Only CURRENT carries a gradient."""
        if self._folded is not None:
            if role is not self._folded or torch.is_grad_enabled():
                raise RuntimeError(
                    f"only {self._folded} without gradients can be called while it is folded in"
                )
            return self.backbone.velocity(x_t, t, condition, **options)
        if role is Role.CURRENT:
            return self.backbone.velocity(x_t, t, condition, **options)
        with torch.no_grad(), adapters.use_adapter(self.backbone.network, role.value):
            return self.backbone.velocity(x_t, t, condition, **options)

    @contextmanager
    def folded(self, role: Role) -> Iterator[None]:
        """A region of many passes of one role without gradients, in which its adapter costs nothing.

        Where the base weights are not float32 it changes nothing.
        """
        if role is Role.REFERENCE or not adapters.can_fold(self.backbone.network):
            yield
            return
        with torch.no_grad(), adapters.folded_adapter(self.backbone.network, role.value):
            self._folded = role
            try:
                yield
            finally:
                self._folded = None

    @torch.no_grad()
    def encode_condition(self, batch: ImageBatch) -> Condition:
        """Condition of G LR images; the same for every role."""
        return self.backbone.encode_condition(batch.lr, upscale=batch.upscale, prompts=batch.prompts)

    @torch.no_grad()
    def decode(self, x_0: Tensor, *, chunk_size: int = 16) -> Tensor:
        """x_0 (G, K, C, h, w) -> images (G, K, 3, H, W) in [0, 1], `chunk_size` at a time."""
        flat = x_0.flatten(0, 1)
        images = torch.cat([self.backbone.decode(part) for part in flat.split(chunk_size)])
        return images.unflatten(0, x_0.shape[:2])

    def mark_updated(self) -> None:
        """To be called after every optimiser step: the old policy no longer equals the current one."""
        self.old_equals_current = False

    def update_old(self, decay: float) -> None:
        """old <- decay * old + (1 - decay) * current, on the LoRA factors (as the released DiffusionNFT)."""
        adapters.lerp_adapter_(self.backbone.network, Role.OLD.value, Role.CURRENT.value, decay)
        self.old_equals_current = self.old_equals_current or decay == 0.0

    def state(self, role: Role) -> dict[str, Tensor]:
        """A CPU copy of a role's adapter."""
        if role is Role.REFERENCE:
            raise ValueError("the reference has no adapter to save")
        return adapters.adapter_state(self.backbone.network, role.value)

    def load_state_(self, role: Role, state: dict[str, Tensor]) -> None:
        """Copy a saved adapter into a role.  Raises ValueError when it does not fit."""
        if role is Role.REFERENCE:
            raise ValueError("the reference has no adapter to load")
        adapters.load_adapter_state_(self.backbone.network, role.value, state)
        old = adapters.adapter_parameters(self.backbone.network, Role.OLD.value)
        self.old_equals_current = all(torch.equal(p, old[n]) for n, p in self.parameters.items())
