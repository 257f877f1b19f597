"""Rewards: images in, scores out, higher is better.

Every reward is importable from here; the module that holds it is loaded on first use, and the heavy
packages behind some of them (pyiqa, open_clip) only when one is built.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lucidnft.rewards.base import Reward, RewardCard, RewardSuite
    from lucidnft.rewards.clip import ClipSimilarity, ClipText
    from lucidnft.rewards.consistency import LucidConsistency
    from lucidnft.rewards.external import ExternalReward
    from lucidnft.rewards.full_reference import FullReferenceReward
    from lucidnft.rewards.iqa import IQAReward
    from lucidnft.rewards.lr_fidelity import LRFidelity
    from lucidnft.rewards.projection_head import ProjectionHead
    from lucidnft.rewards.quality import QualityNet
    from lucidnft.rewards.registry import build_reward

_HOMES = {
    "ClipSimilarity": "clip",
    "ClipText": "clip",
    "ExternalReward": "external",
    "FullReferenceReward": "full_reference",
    "IQAReward": "iqa",
    "LRFidelity": "lr_fidelity",
    "LucidConsistency": "consistency",
    "ProjectionHead": "projection_head",
    "QualityNet": "quality",
    "Reward": "base",
    "RewardCard": "base",
    "RewardSuite": "base",
    "build_reward": "registry",
}

__all__ = [
    "ClipSimilarity",
    "ClipText",
    "ExternalReward",
    "FullReferenceReward",
    "IQAReward",
    "LRFidelity",
    "LucidConsistency",
    "ProjectionHead",
    "QualityNet",
    "Reward",
    "RewardCard",
    "RewardSuite",
    "build_reward",
]


def __getattr__(name: str) -> Any:
    """Load the module of a reward when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lucidnft.rewards' has no attribute '{name}'")
    return getattr(importlib.import_module(f"lucidnft.rewards.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
