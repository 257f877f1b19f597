"""Exponential moving average of trained parameters, used for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """shadow <- d shadow + (1 - d) parameter with d = min(decay, (1 + n) / (10 + n)) after n updates."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters = dict(parameters)
        self.decay = decay
        self.num_updates = 0
        self.shadow: dict[str, Tensor] = {n: p.detach().clone() for n, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the current parameters."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for name, parameter in self.parameters.items():
            self.shadow[name].lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def load_(self, shadow: Mapping[str, Tensor], num_updates: int) -> None:
        """Put back a saved average."""
        for name, value in self.shadow.items():
            value.copy_(shadow[name])
        self.num_updates = num_updates

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters hold the average; afterwards their own values again."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        try:
            self._write(self.shadow)
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])
