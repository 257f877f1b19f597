"""The run file: which components exist, and strict loading of YAML into typed, frozen settings.

The unions below are the registry: to add a component, write its config class beside it and add it here.
A component outside this package needs no change here: `type: "my_package.module:MyConfig"`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError, field_validator

from lucidnft.backbones.dit4sr_config import DiT4SRBackboneConfig
from lucidnft.backbones.lucidflux_config import LucidFluxBackboneConfig
from lucidnft.backbones.tiny import TinyBackboneConfig
from lucidnft.config_validation import (
    ConfigError,
    one_of,
    problems_of,
    unknown_name,
)
from lucidnft.data.sources import HrFolderConfig, LrFolderConfig, PairedFolderConfig
from lucidnft.rewards.registry import REWARD_CONFIGS, RewardConfig
from lucidnft.rollout import RolloutConfig
from lucidnft.schema import ConfigModel
from lucidnft.training.consistency_task import ConsistencyTaskConfig
from lucidnft.training.head_settings import PairedConfig, PoolsConfig
from lucidnft.training.quality_task import QualityTaskConfig
from lucidnft.training.settings import (
    EvalConfig,
    EvalSchedule,
    FlowMatchingTrainConfig,
    GridLogConfig,
    LogConfig,
    NFTTrainConfig,
    OptimizerSettings,
    SupervisedTrainConfig,
)

Model = Annotated[
    TinyBackboneConfig | LucidFluxBackboneConfig | DiT4SRBackboneConfig,
    *one_of(TinyBackboneConfig, LucidFluxBackboneConfig, DiT4SRBackboneConfig),
]
TrainableBase = Annotated[
    TinyBackboneConfig, *one_of(TinyBackboneConfig)
]  # whose own weights are trained and saved
AnyData = Annotated[
    LrFolderConfig | PairedFolderConfig | HrFolderConfig,
    *one_of(LrFolderConfig, PairedFolderConfig, HrFolderConfig),
]
AnyConsistencyData = Annotated[
    ConsistencyTaskConfig | PairedConfig | PoolsConfig,
    *one_of(ConsistencyTaskConfig, PairedConfig, PoolsConfig),
]
AnyReward = Annotated[RewardConfig, *one_of(*REWARD_CONFIGS)]


class RunConfig(ConfigModel):
    """What every task has; the class of a task adds its own sections."""

    task: Literal["nft", "flow_matching", "quality", "consistency"]
    seed: int = Field(default=0, ge=0)
    output_dir: str = "runs"
    run_name: str = Field(min_length=1)  # the run's files go to output_dir/run_name
    train: OptimizerSettings
    eval: EvalSchedule = EvalSchedule()
    log: LogConfig = LogConfig()


class NFTConfig(RunConfig):
    """Task nft: fine-tune a flow model with rewards (DiffusionNFT)."""

    task: Literal["nft"]
    run_name: str = Field(default="nft", min_length=1)
    model: Model
    data: AnyData
    rollout: RolloutConfig = RolloutConfig()
    rewards: dict[str, AnyReward]
    train: NFTTrainConfig = NFTTrainConfig()
    eval: EvalConfig = EvalConfig()
    log: GridLogConfig = GridLogConfig()

    @field_validator("rewards")
    @classmethod
    def _usable_names(cls, rewards: dict[str, Any]) -> dict[str, Any]:
        if not rewards:
            raise ValueError(
                "task nft learns from rewards and has none; add one, like quality: {type: quality_net}"
            )
        bad = [name for name in rewards if not re.fullmatch(r"[A-Za-z0-9_.+\-]+", name)]
        if bad:
            raise ValueError(f"reward names go into log names: {bad} may have only letters, digits and _.+-")
        return rewards


class FlowMatchingConfig(RunConfig):
    """Task flow_matching: train the base restorer on pairs of HR and degraded images."""

    task: Literal["flow_matching"]
    run_name: str = Field(default="flow_matching", min_length=1)
    model: TrainableBase
    data: AnyData
    train: FlowMatchingTrainConfig = FlowMatchingTrainConfig()
    eval: EvalConfig = EvalConfig()
    log: GridLogConfig = GridLogConfig()

    @field_validator("model")
    @classmethod
    def _no_adapter(cls, model: Any) -> Any:
        if model.adapter is not None:
            raise ValueError(
                "task flow_matching trains the base itself and takes no adapter; remove model.adapter"
            )
        return model

    @field_validator("data")
    @classmethod
    def _with_hr(cls, data: Any) -> Any:
        if isinstance(data, LrFolderConfig):
            raise ValueError(
                "task flow_matching needs HR images but data type lr_folder provides LR only; "
                "use type hr_folder or paired_folder"
            )
        return data


class QualityConfig(RunConfig):
    """Task quality: train the no-reference quality model on photographs and their damaged versions."""

    task: Literal["quality"]
    run_name: str = Field(default="quality", min_length=1)
    data: QualityTaskConfig = QualityTaskConfig()
    train: SupervisedTrainConfig = SupervisedTrainConfig()


class ConsistencyConfig(RunConfig):
    """Task consistency: train the head that compares an SR image with its LR image, or the tiny embedder too."""

    task: Literal["consistency"]
    run_name: str = Field(default="consistency", min_length=1)
    data: AnyConsistencyData = PoolsConfig()
    train: SupervisedTrainConfig = SupervisedTrainConfig()


TASKS: tuple[type[RunConfig], ...] = (NFTConfig, FlowMatchingConfig, QualityConfig, ConsistencyConfig)


_OTHER_NAMES = {  # settings with two names, so that an override by one replaces the file's value under the other
    "rollout.group_size": "rollout.num_generations",
    "rollout.num_generations": "rollout.group_size",
}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run file, apply `key.path=value` overrides in order, resolve interpolations, check everything.

    Returns the config class of the file's task.

    Raises:
        ConfigError: a ValueError that lists every problem at once, each with its path, the value seen and
            the nearest valid name; or says that the file is missing or not YAML, or an override malformed.
    """
    return parse_config(read_values(Path(path), overrides), source=str(path))


def parse_config(values: Any, *, source: str = "config") -> RunConfig:
    """Plain values, as in a checkpoint's header, to a config.  Raises ConfigError as `load_config`."""
    chosen = _task_class(values)
    if chosen is None:
        task = values.get("task") if isinstance(values, dict) else None
        problems = [f"task: {unknown_name(task, _task_names()) if task is not None else _missing_task()}"]
    else:
        try:
            return chosen.model_validate(values)
        except ValidationError as error:
            problems = [_name_other_tasks(p, chosen) for p in problems_of(error, values, _task_class)]
    listed = "".join(f"\n  {problem}" for problem in problems)
    raise ConfigError(f"{len(problems)} problem(s) in {source}:{listed}")


def base_section(path: str | Path) -> Any:
    """The `model:` section of a run file.  Raises ConfigError as `load_config`, or when its task has none."""
    config = load_config(path)
    if not isinstance(config, (NFTConfig, FlowMatchingConfig)):
        raise ConfigError(f"{path} is of task {config.task}, which has no model: section")
    return config.model


def dump_config(config: RunConfig) -> str:
    """YAML with every setting written out, which `load_config` reads back to an equal config."""
    values = _without_interpolation(config.model_dump(mode="json"))
    return OmegaConf.to_yaml(OmegaConf.create(values))


def read_values(path: Path, overrides: Sequence[str]) -> Any:
    """The plain values of a YAML file with `key.path=value` overrides, interpolations resolved.  Raises ConfigError."""
    if not path.is_file():
        what = "is a folder, expected a YAML file" if path.is_dir() else "does not exist"
        raise ConfigError(f"config file {path} {what}")
    try:
        tree = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException, OSError) as error:
        raise ConfigError(f"{path} is not valid YAML: {_one_line(error)}") from error
    if not OmegaConf.is_dict(tree):
        raise ConfigError(f"{path} holds a list or a single value, expected key: value lines")
    _apply_overrides(tree, overrides, path)
    try:
        return OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        message = str(error).splitlines()[0]
        raise ConfigError(f"1 problem(s) in {path}:\n  {error.full_key}: {message}") from error


def _apply_overrides(tree: Any, overrides: Sequence[str], path: Path) -> None:
    """Write overrides over the file's values, in order, each over the other name of its setting too."""
    given: list[str] = []
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not all(part.strip() for part in key.split(".")):
            raise ConfigError(
                f"override {override!r} is not of the form key.path=value, like train.max_train_steps=50"
            )
        names = [key.strip()]
        other = _OTHER_NAMES.get(names[0])
        # What an earlier override said under the other name stays, so that two that differ are refused.
        if other and not any(f"{other}.".startswith(f"{earlier}.") for earlier in given):
            names.append(other)
        try:
            parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]), resolve=False)
            for name in names:
                OmegaConf.update(tree, name, parsed["value"], merge=False, force_add=True)
        except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
            raise ConfigError(
                f"override {override!r} cannot be applied to {path}: {_one_line(error)}"
            ) from error
        given.append(names[0])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _task_names() -> list[str]:
    return [get_args(task.model_fields["task"].annotation)[0] for task in TASKS]


def _missing_task() -> str:
    return f"missing; expected one of {', '.join(_task_names())}"


def _task_class(values: Any) -> type[RunConfig] | None:
    task = values.get("task") if isinstance(values, dict) else None
    return next((c for name, c in zip(_task_names(), TASKS, strict=True) if name == task), None)


def _name_other_tasks(problem: str, chosen: type[RunConfig]) -> str:
    """For a section that exists, but in another task, say so instead of calling it unknown."""
    key, _, sentence = problem.partition(": ")
    others = [
        n for n, c in zip(_task_names(), TASKS, strict=True) if c is not chosen and key in c.model_fields
    ]
    if not others or not sentence.startswith("unknown key"):
        return problem
    task = get_args(chosen.model_fields["task"].annotation)[0]
    return f"{key}: task {task} has no such section (only {', '.join(others)}); remove it or change the task"


def _without_interpolation(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_interpolation(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_interpolation(item) for item in value]
    if isinstance(value, str):
        # OmegaConf: a backslash before ${ escapes it, and backslashes before that are doubled.
        return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
    return value
