"""A reward as an outsider writes it: a class and its config, named in the run file by import path."""

from typing import Literal

from lucidnft.rewards import Reward, RewardCard
from lucidnft.schema import ConfigModel


class Contrast(Reward):
    """Spread of the pixels."""

    card = RewardCard(name="contrast")

    def score(self, sr, reference):
        return sr.flatten(1).std(dim=1)


class ContrastConfig(ConfigModel):
    type: Literal["contrast"] = "contrast"
    weight: float = 1.0

    def build(self) -> Contrast:
        return Contrast()


class Breaks(Reward):
    """Finite for some calls, then not."""

    card = RewardCard(name="breaks")

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def score(self, sr, reference):
        self.calls -= 1
        return sr.flatten(1).std(dim=1) / (1.0 if self.calls >= 0 else 0.0)


class BreaksConfig(ConfigModel):
    type: Literal["breaks"] = "breaks"
    weight: float = 1.0
    calls: int

    def build(self) -> Breaks:
        return Breaks(self.calls)
