"""From the name of a metric to something that scores one image, and a name for exactly what it computes.

A table's numbers have the metric's own direction (LPIPS: lower is better); rewards inside are higher-is-better.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

import lucidnft
from lucidnft.checkpoint.fingerprint import sampled_fingerprint
from lucidnft.config_validation import unknown_name
from lucidnft.environment import package_versions
from lucidnft.evaluation.pairing import file_digest
from lucidnft.evaluation.protocols import PROTOCOL_METRICS, Protocol
from lucidnft.evaluation.settings import EvaluationConfig
from lucidnft.rewards.base import Reward
from lucidnft.rewards.full_reference import FullReferenceConfig
from lucidnft.rewards.iqa import IQAConfig, metric_names
from lucidnft.rewards.registry import config_class, library_names
from lucidnft.rng import PreservedGlobalRng, derived_seed
from lucidnft.schema import ConfigModel

SCORING_VERSION = 1
"""Part of every cached score's name: raise it when the code between a file and its score changes."""

SCORING_PACKAGES = ("torch", "torchvision", "pyiqa", "timm", "transformers", "open_clip_torch", "openai-clip")
"""Whose versions are part of it too: those that hold networks of metrics, or prepare their images."""

NEED_SETTINGS = ("iqa", "full_reference", "external")
"""Types of rewards that mean nothing by their name alone."""


@dataclass(frozen=True)
class MetricSpec:
    """A metric by its settings; small, so that it can be sent to another process."""

    name: str
    settings: ConfigModel


@dataclass(frozen=True)
class UnavailableMetric:
    """A metric that was asked for and cannot be computed here."""

    name: str
    reason: str
    wanted: str | None  # the file it needs, and where it is looked for; None where that is not known

    def line(self) -> str:
        """As it is printed."""
        return f"{self.name}: not available: {self.reason}" + (
            f" (needs {self.wanted})" if self.wanted else ""
        )


@dataclass(frozen=True)
class Metric:
    """A metric that is loaded."""

    name: str
    reward: Reward
    identity: str  # hash of everything its scores depend on, but the images
    facts: dict[str, Any]  # what identity is made of, for people

    @property
    def lower_is_better(self) -> bool:
        return self.reward.card.lower_is_better

    @property
    def needs(self) -> frozenset[str]:
        """Any of "lr", "hr", "prompt"."""
        return self.reward.card.needs

    def value(self, key: str, sr: Tensor, lr: Tensor | None, hr: Tensor | None) -> float:
        """The metric's own number for one image (1, 3, H, W), to 9 digits, which tell all float32 apart.

        key stands for the image and seeds what a metric draws.

        Raises:
            ValueError: a needed image is missing, sizes do not fit, or the score is not finite.
        """
        with PreservedGlobalRng():
            torch.manual_seed(derived_seed(0, "evaluation", self.name, key))
            score = float(self.reward(sr, lr=lr, hr=hr))
        return float(f"{-score if self.lower_is_better else score:.9g}")

    def info(self) -> MetricInfo:
        """The same without what computes it."""
        return MetricInfo(
            self.name, self.lower_is_better, self.needs, {"identity": self.identity, **self.facts}
        )


@dataclass(frozen=True)
class MetricInfo:
    """What plans and tables need to know of a metric; small, so that it can be sent from another process."""

    name: str
    lower_is_better: bool
    needs: frozenset[str]
    facts: dict[str, Any]

    @property
    def identity(self) -> str:
        """Hash of everything its scores depend on, but the images."""
        return str(self.facts["identity"])


def metric_specs(config: EvaluationConfig) -> list[MetricSpec]:
    """The metrics of an evaluation, in the order of its tables."""
    names = config.metrics if config.metrics is not None else config.conventions.metrics
    specs = [MetricSpec(name, settings_of(name, config.conventions)) for name in names]
    return specs + [MetricSpec(name, reward) for name, reward in config.rewards.items()]


def settings_of(name: str, protocol: Protocol) -> ConfigModel:
    """The settings a name stands for: a reward of the library by its type, else a pyiqa metric."""
    if name in PROTOCOL_METRICS:
        return FullReferenceConfig(
            metric=name, color_space=protocol.color_space, crop_border=protocol.crop_border
        )
    found = config_class(name) if name in library_names() and name not in NEED_SETTINGS else None
    return IQAConfig(metric=name) if found is None else found.model_validate({"type": name})


def check_names(names: Iterable[str]) -> None:
    """Raise a ValueError for names that are neither a reward of the library nor a metric of pyiqa.

    Without pyiqa its names are not known; its metrics are then unavailable, which building them says.
    """
    own = [name for name in library_names() if name not in NEED_SETTINGS]
    others = [name for name in names if name not in own]
    try:
        known = metric_names() if others else []
    except ImportError:
        return
    unknown = [name for name in others if name not in known]
    if unknown:
        raise ValueError(
            "; ".join(f"metric {unknown_name(name, [*own, *known])}" for name in unknown)
            + ". A reward with settings of its own goes under rewards: in a config of python -m lucidnft.evaluation"
        )


def build_metric(spec: MetricSpec, device: str) -> Metric | UnavailableMetric:
    """Load a metric on a device; one that cannot be loaded says why, and which file it needs."""
    build: Any = spec.settings.build  # type: ignore[attr-defined]  # every reward config has it
    try:
        reward: Reward = build()
        facts = facts_of(spec, reward, device)
        reward.to(device)
    except Exception as error:  # metrics are others' code, and a damaged weight file raises anything
        return _unavailable(spec.name, error)
    return Metric(spec.name, reward, identity_of(facts), facts)


def facts_of(spec: MetricSpec, reward: Reward, device: str) -> dict[str, Any]:
    """What the scores depend on: settings, weights, and the versions of the code that computes them."""
    settings = spec.settings.model_dump(mode="json")
    return {
        "metric": spec.name,
        "class": f"{type(spec.settings).__module__}:{type(spec.settings).__qualname__}",
        "settings": {key: value for key, value in settings.items() if key != "weight"},
        "direction": "lower" if reward.card.lower_is_better else "higher",
        "weights": weights_of(reward),
        "files": {text: file_digest(Path(text)) for text in sorted(_texts(settings)) if _is_file(text)},
        "scoring": SCORING_VERSION,
        "lucidnft": lucidnft.__version__,
        "packages": package_versions(SCORING_PACKAGES),
        "device": device.partition(":")[0],
    }


def identity_of(facts: dict[str, Any]) -> str:
    """Hash of what `facts_of` gives."""
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


def weights_of(reward: Reward) -> dict[str, str]:
    """Fingerprints of the networks that a reward holds."""
    return {f"{i}": sampled_fingerprint(m.state_dict()) for i, m in enumerate(_networks(reward))}


def _unavailable(name: str, error: Exception) -> UnavailableMetric:
    wanted, damaged = wanted_file(error), damaged_file(error)
    cause = error if wanted is None and damaged is None else error.__cause__ or error
    reason = str(cause).split("\n")[0]
    if not isinstance(cause, (ImportError, OSError, RuntimeError, ValueError)) or not reason:
        reason = f"{type(cause).__name__}: {reason}"
    if wanted is not None:
        return UnavailableMetric(name, f"its weights could not be fetched ({reason})", wanted)
    if damaged is not None:
        reason = f"its weights could not be loaded ({reason})"
        return UnavailableMetric(name, reason, f"{damaged} whole; delete it and it is fetched again")
    return UnavailableMetric(name, reason, None)


def damaged_file(error: BaseException | None) -> str | None:
    """The weight file on which loading failed, from the calls the error passed through; None if there was none."""
    while error is not None:
        for names in _locals_of(error.__traceback__):
            path = names.get("model_path")
            if isinstance(path, str) and _is_file(path):
                return path
        error = error.__cause__ or error.__context__
    return None


def wanted_file(error: BaseException | None) -> str | None:
    """The file a failed download was for, from the calls the error passed through; None if it was no download."""
    while error is not None:
        for names in _locals_of(error.__traceback__):
            url, place = names.get("url"), names.get("cached_file")
            if isinstance(url, str) and isinstance(place, str):
                return f"{url} as {place}"
            if isinstance(url, str) and url.startswith("https://"):
                return url
            repository, file = names.get("repo_id"), names.get("filename")
            if isinstance(repository, str) and isinstance(file, str):
                return f"{file} of {repository} on huggingface.co"
        error = error.__cause__ or error.__context__
    return None


def _locals_of(traceback: TracebackType | None) -> Iterator[dict[str, Any]]:
    while traceback is not None:
        yield traceback.tb_frame.f_locals
        traceback = traceback.tb_next


def _networks(holder: object, depth: int = 2) -> list[nn.Module]:
    """Networks that a reward holds, or that something it holds does."""
    found: list[nn.Module] = []
    for value in vars(holder).values():
        if isinstance(value, nn.Module):
            found.append(value)
        elif depth > 1 and type(value).__module__.startswith("lucidnft.") and hasattr(value, "__dict__"):
            found += _networks(value, depth - 1)
    return found


def _texts(value: Any) -> set[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return {text for item in value for text in _texts(item)}
    return {value} if isinstance(value, str) else set()


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long, or with a null byte: not a path
        return False
