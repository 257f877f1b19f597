"""What evaluating a supervised task gives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Evaluation:
    """What a task finds on its held-out data."""

    metrics: dict[str, float]
    pictures: Tensor | None = None  # (R, C, 3, H, W) in [0, 1]: R images in C versions
    captions: tuple[str, ...] = ()  # C
