"""From a name or a config to a reward.  The `type` tags of the config classes are the names.

`REWARD_CONFIGS` is the list that the run configuration joins into its union of rewards.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from lucidnft.rewards.base import Reward
from lucidnft.rewards.clip import ClipSimilarityConfig, ClipTextConfig
from lucidnft.rewards.consistency import LucidConsistencyConfig
from lucidnft.rewards.external import ExternalConfig
from lucidnft.rewards.full_reference import FullReferenceConfig
from lucidnft.rewards.iqa import IQAConfig, metric_names
from lucidnft.rewards.lr_fidelity import LRFidelityConfig
from lucidnft.rewards.quality import QualityNetConfig
from lucidnft.schema import ConfigModel

RewardConfig = (
    IQAConfig
    | FullReferenceConfig
    | ClipSimilarityConfig
    | ClipTextConfig
    | LRFidelityConfig
    | LucidConsistencyConfig
    | QualityNetConfig
    | ExternalConfig
)
REWARD_CONFIGS: tuple[type[ConfigModel], ...] = (
    IQAConfig,
    FullReferenceConfig,
    ClipSimilarityConfig,
    ClipTextConfig,
    LRFidelityConfig,
    LucidConsistencyConfig,
    QualityNetConfig,
    ExternalConfig,
)


def config_class(tag: str) -> type[ConfigModel] | None:
    """The config class of a type tag, or of an outsider's "package.module:ClassName"; None if unknown.

    Raises:
        ValueError: an outsider's module or class cannot be found.
    """
    for candidate in REWARD_CONFIGS:
        if candidate.model_fields["type"].default == tag:
            return candidate
    if ":" not in tag:
        return None
    module_name, _, class_name = tag.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"reward type '{tag}' could not be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, ConfigModel) and hasattr(found, "build")):
        raise ValueError(f"reward type '{tag}' is not a ConfigModel with a build() method")
    return found


def library_names() -> list[str]:
    """The type tags, which are also the names of the library's own rewards."""
    return [str(candidate.model_fields["type"].default) for candidate in REWARD_CONFIGS]


def build_reward(name_or_config: str | Mapping[str, Any] | ConfigModel) -> Reward:
    """A reward from its name, a mapping with a `type`, or a config object.

    A name is a type tag ("lucid_consistency", "quality_net", "lr_fidelity", ...), built with its
    defaults, or any pyiqa metric ("musiq", "fsim", "psnr", ...), built with pyiqa's defaults.

    Raises:
        ValueError: the name is unknown (the nearest ones are listed), or the settings are wrong.
        ImportError: an optional package is missing; the message names the extra.
    """
    if isinstance(name_or_config, str):
        return _build_by_name(name_or_config)
    if isinstance(name_or_config, Mapping):
        return _build_from_mapping(name_or_config)
    build = getattr(name_or_config, "build", None)
    if not isinstance(name_or_config, ConfigModel) or build is None:
        raise ValueError(
            f"build_reward got a {type(name_or_config).__name__}; expected a name, a mapping with 'type', "
            "or a reward config"
        )
    return build()


def check_reward_name(name: str) -> None:
    """Raise a ValueError, with the nearest names, unless `build_reward` knows this name.  Builds nothing."""
    if _is_library_name(name):
        return
    own = [known for known in library_names() if known != "iqa"]  # which names a metric by its settings
    try:
        metrics = metric_names()
    except ImportError as error:
        raise ValueError(_unknown(name, own) + f" (pyiqa metrics are not available: {error})") from error
    if name not in metrics:
        raise ValueError(_unknown(name, [*own, *metrics]))


def _is_library_name(name: str) -> bool:
    return name != "iqa" and config_class(name) is not None


def _build_by_name(name: str) -> Reward:
    check_reward_name(name)
    return _build_from_mapping({"type": name}) if _is_library_name(name) else IQAConfig(metric=name).build()


def _build_from_mapping(settings: Mapping[str, Any]) -> Reward:
    tag = settings.get("type")
    found = config_class(tag) if isinstance(tag, str) else None
    if found is None:
        raise ValueError(_unknown(str(tag), library_names()))
    values = dict(settings)
    if ":" in str(tag):
        values.pop("type")
    try:
        config: Any = found.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc']) or 'settings'}: {problem['msg']} "
            f"(got {problem['input']!r})"
            for problem in error.errors()
        )
        raise ValueError(f"reward '{tag}': {problems}") from error
    return config.build()


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    hint = (
        f"did you mean {', '.join(near)}?"
        if near
        else f"rewards of this library: {', '.join(library_names())}"
    )
    return f"reward '{name}' is unknown; {hint}"
