"""How synthetic defects draw their parameters and, later, the fields those parameters stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lucidnft.rng import generator_for

Parameters = dict[str, Any]
"""Everything a defect drew, JSON-able; a field of noise is kept as its seed."""


def seed(generator: np.random.Generator) -> int:
    """A seed for `normal`."""
    return int(generator.integers(2**62))


def choice(generator: np.random.Generator, options: tuple[Any, ...]) -> Any:
    """One of the options, each as likely; a plain Python value, unlike numpy's choice."""
    return options[int(generator.integers(len(options)))]


def normal(parameters: Parameters, purpose: str, *shape: int) -> Tensor:
    """Standard normal numbers, the same for the same parameters and purpose."""
    return torch.randn(*shape, generator=generator_for(parameters["seed"], purpose))


def unit_std(field: Tensor) -> Tensor:
    """The field scaled to a standard deviation of 1."""
    return field / field.std(correction=0).clamp_min(1e-6)
