"""What a policy asks of the part of a backbone that is trained, whatever that part is.

Two kinds exist: LoRA adapters (`lora`) and a chosen sub-set of the network's own parameters (`trained_parameters`).
Both keep two sets of values beside the base: one that is trained and a copy that lags behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn

CURRENT = "current"
OLD = "old"


class Trainable(Protocol):
    """The trained part.  A role is CURRENT, OLD, or None: the base, without anything that was learned."""

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """{name: parameter} that the optimiser moves, in a fixed order; all float32."""

    @property
    def kept_bytes(self) -> int:
        """Bytes of the values that are kept outside the network."""

    @property
    def is_no_change(self) -> bool:
        """Whether CURRENT is the base, exactly."""

    @property
    def old_equals_current(self) -> bool:
        """Whether OLD and CURRENT have the same values, exactly."""

    def use(self, role: str | None) -> AbstractContextManager[None]:
        """Inside, the network runs in this role.  Afterwards all is as before, also after an exception."""

    @property
    def can_fold(self) -> bool:
        """Whether `folded` computes the same as `use`, but for float32 rounding."""

    def folded(self, role: str) -> AbstractContextManager[None]:
        """As `use`, for many passes without gradients: what the role adds to the base is worked out once."""

    def lerp_old_(self, decay: float) -> None:
        """OLD <- decay * OLD + (1 - decay) * CURRENT, value by value.

        Raises:
            ValueError: a decay outside [0, 1].
        """

    def state(self, role: str) -> dict[str, Tensor]:
        """A CPU copy of CURRENT or OLD under the names of `parameters`, ready to save."""

    def load_state_(self, role: str, state: Mapping[str, Tensor]) -> None:
        """Copy saved values into CURRENT or OLD.

        Raises:
            ValueError: names or shapes differ, or the values are those of the other kind.
        """


def check_decay(decay: float) -> None:
    """Raise a ValueError unless it is a weight of an average."""
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay is {decay}, expected between 0 (copy) and 1 (keep)")


def is_lora(names: Iterable[str]) -> bool:
    """Are these the names of the factors of a LoRA adapter?"""
    return any(".lora_" in name for name in names)
