"""LoRA adapters as the trained part of a policy: one that is trained, and its lagging copy."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from lucidnft.backbones import adapters
from lucidnft.backbones.adapter_files import read_adapter
from lucidnft.backbones.base import Backbone
from lucidnft.backbones.lora_values import Lora, attach, lora_shapes
from lucidnft.backbones.trainable import CURRENT, OLD, is_lora


class LoraAdapters:
    """`lucidnft.backbones.trainable.Trainable` for two LoRA adapters; the base is the network with both off."""

    kept_bytes = 0  # both adapters are part of the network

    def __init__(
        self,
        backbone: Backbone,
        settings: adapters.LoraSettings,
        *,
        seed: int,
        start: Lora | None = None,
    ) -> None:
        """Attach both with the same values: those of `start`, else of settings.adapter, else drawn from `seed`.

        Raises:
            FileNotFoundError, ValueError: as `adapters.add_adapter`, and as `read_adapter`.
        """
        self.network = backbone.network
        if start is None and settings.adapter is not None:
            stored = read_adapter(settings.adapter, backbone.name)
            stored.check_base(backbone)
            start = stored.lora
        self.shapes = None if start is None else lora_shapes(start)
        targets = lora_targets(backbone, settings.target_modules)
        for adapter in (OLD, CURRENT):  # the last one stays active and trainable
            if start is None:
                adapters.add_adapter(self.network, adapter, settings, targets, seed=seed)
            else:
                attach(self.network, adapter, start)
        self.lerp_old_(0.0)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The factors of the current adapter, without its name in theirs."""
        return adapters.adapter_parameters(self.network, CURRENT)

    @property
    def is_no_change(self) -> bool:
        """Whether the current adapter adds nothing, as at its start."""
        return adapters.is_no_change(self.network, CURRENT)

    @property
    def old_equals_current(self) -> bool:
        """Whether both adapters have the same factors."""
        old = adapters.adapter_parameters(self.network, OLD)
        return all(torch.equal(p, old[n]) for n, p in self.parameters.items())

    def use(self, role: str | None) -> AbstractContextManager[None]:
        """Inside, the network runs with this adapter, or with none."""
        return adapters.use_adapter(self.network, role)

    @property
    def can_fold(self) -> bool:
        """Only into weights in float32; others would round to another policy."""
        return adapters.can_fold(self.network)

    def folded(self, role: str) -> AbstractContextManager[None]:
        """Inside, the adapter is added into the base weights."""
        return adapters.folded_adapter(self.network, role)

    def lerp_old_(self, decay: float) -> None:
        """Interpolate the factors, not their products (as the released DiffusionNFT)."""
        adapters.lerp_adapter_(self.network, OLD, CURRENT, decay)

    def state(self, role: str) -> dict[str, Tensor]:
        """A CPU copy of an adapter's factors."""
        return adapters.adapter_state(self.network, role)

    def load_state_(self, role: str, state: Mapping[str, Tensor]) -> None:
        """Copy saved factors into an adapter.

        Raises:
            ValueError: names or shapes differ, or these are no factors.
        """
        if state and not is_lora(state):
            raise ValueError(
                f"these are {len(state)} parameters of the network itself, as a run with model.train_parameters "
                "trains them, and this policy has a LoRA adapter; set model.train_parameters as in that run"
            )
        adapters.load_adapter_state_(self.network, role, state)


def lora_targets(backbone: Backbone, chosen: tuple[str, ...] | None) -> tuple[str, ...]:
    """Module names for LoRA: a group's name stands for its modules; None or nothing is the backbone's default.

    Raises:
        ValueError: a name is neither a group nor a module.
    """
    groups = backbone.lora_groups
    targets = [t for name in chosen or backbone.lora_modules for t in groups.get(name, (name,))]
    unknown = adapters.unmatched(backbone.network, targets)
    if unknown:
        known = f"the groups {', '.join(groups)} and" if groups else "the"
        raise ValueError(
            f"target_modules {unknown} match no module of {type(backbone.network).__name__}; backbone "
            f"'{backbone.name}' takes {known} names of its modules, like {backbone.lora_modules[0]}"
        )
    return tuple(dict.fromkeys(targets))
