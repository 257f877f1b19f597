"""One backbone seen in three roles: the trained policy, its lagging copy that samples, and the base weights.

Roles differ only in which LoRA adapter is active, or in the values of the parameters that are trained without LoRA;
of everything else there is one set of weights in memory.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lucidnft.backbones.adapters import LoraSettings
from lucidnft.backbones.base import Backbone
from lucidnft.backbones.image_conditions import EncodesImages
from lucidnft.backbones.lora import LoraAdapters
from lucidnft.backbones.lora_values import Lora
from lucidnft.backbones.trainable import CURRENT, OLD, Trainable
from lucidnft.backbones.trained_parameters import TrainedParameters
from lucidnft.records import Condition, ImageBatch


class Role(enum.Enum):
    """CURRENT is trained, OLD is its lagging copy that makes the rollouts, REFERENCE is the base."""

    CURRENT = CURRENT
    OLD = OLD
    REFERENCE = None


class Policy:
    """A backbone whose current and old role start equal; calling it gives a velocity."""

    def __init__(
        self, backbone: Backbone, settings: LoraSettings, *, seed: int, start: Lora | None = None
    ) -> None:
        """Attach LoRA adapters, or with settings.train_parameters make those parameters the trained ones.

        start: the adapter that both roles begin with; None reads that of settings.adapter, or makes a new one.

        Raises:
            ValueError: modules or parameters that the settings name are not there, or cannot be trained.
            FileNotFoundError, ValueError: settings.adapter is not there, damaged, or of another backbone or base.
        """
        self.backbone = backbone
        self.trainable: Trainable
        if settings.train_parameters is None:
            self.trainable = LoraAdapters(backbone, settings, seed=seed, start=start)
        else:
            self.trainable = TrainedParameters(backbone.network, settings.train_parameters)
        self.old_equals_current = True
        self._folded: Role | None = None

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name."""
        return self.trainable.parameters

    @property
    def lora_shapes(self) -> dict[str, list[float]] | None:
        """{module: [rank, alpha]} of an adapter that was started from another; None where the settings say it."""
        return self.trainable.shapes if isinstance(self.trainable, LoraAdapters) else None

    @property
    def is_reference(self) -> bool:
        """Whether the trained policy still is the reference, exactly: nothing has been learned yet."""
        return self.trainable.is_no_change

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
        with torch.no_grad(), self.trainable.use(role.value):
            return self.backbone.velocity(x_t, t, condition, **options)

    @contextmanager
    def folded(self, role: Role) -> Iterator[None]:
        """A region of many passes of one role without gradients, in which a pass costs what the base costs.

        It changes nothing for LoRA on base weights that are not float32, nor inside a region of the same role: a
        long run may fold once around all its images.

        Raises:
            RuntimeError: another role is folded in already.
        """
        if self._folded not in (None, role):
            raise RuntimeError(f"{role} cannot be folded in while {self._folded} is")
        if self._folded is role or role is Role.REFERENCE or not self.trainable.can_fold:
            yield
            return
        with torch.no_grad(), self.trainable.folded(role.value):
            self._folded = role
            try:
                yield
            finally:
                self._folded = None

    @torch.no_grad()
    def encode_condition(self, batch: ImageBatch) -> Condition:
        """Condition of G LR images; the same for every role."""
        return self.backbone.encode_condition(batch.lr, upscale=batch.upscale, prompts=batch.prompts)

    def take_cache_counts(self) -> dict[str, int]:
        """Hits and misses of the backbone's condition cache since the last call; nothing without one."""
        return (
            self.backbone.image_conditions.take_counts() if isinstance(self.backbone, EncodesImages) else {}
        )

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
        """old <- decay * old + (1 - decay) * current, on the LoRA factors or on the trained parameters."""
        self.trainable.lerp_old_(decay)
        self.old_equals_current = self.old_equals_current or decay == 0.0

    def state(self, role: Role) -> dict[str, Tensor]:
        """A CPU copy of a role's adapter or trained parameters."""
        if role is Role.REFERENCE:
            raise ValueError("the reference has no adapter to save")
        return self.trainable.state(role.value)

    def load_state_(self, role: Role, state: dict[str, Tensor]) -> None:
        """Copy a saved adapter or saved parameters into a role.  Raises ValueError when they do not fit."""
        if role is Role.REFERENCE:
            raise ValueError("the reference has no adapter to load")
        self.trainable.load_state_(role.value, state)
        self.old_equals_current = self.trainable.old_equals_current
