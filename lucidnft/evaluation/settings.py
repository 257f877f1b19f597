"""Settings of an evaluation, as in configs/eval/*.yaml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from lucidnft.config_validation import ConfigError, one_of, problems_of
from lucidnft.evaluation.protocols import PROTOCOLS, Protocol, ProtocolName
from lucidnft.rewards.registry import REWARD_CONFIGS, RewardConfig
from lucidnft.schema import ConfigModel

AnyReward = Annotated[RewardConfig, *one_of(*REWARD_CONFIGS)]

_NAME = re.compile(r"[A-Za-z0-9_.+\- ]*[A-Za-z0-9_+\-]")


class RestoreRun(ConfigModel):
    """A method that is run first: the checkpoint restores the LR folder, as sample.py does."""

    checkpoint: str = "base"  # as sample.py --checkpoint
    model_name_or_path: str | None = None
    base_config: str | None = None  # as sample.py --base_config: a run file whose model: section is the base
    upscale: float = Field(default=4.0, gt=0)
    seed: int = 0
    num_inference_steps: int | None = Field(default=None, ge=1)  # null: the model's own number
    solver: Literal["euler", "heun", "dpm2"] = "euler"
    align_method: Literal["wavelet", "adain", "nofix"] = "nofix"

    @model_validator(mode="after")
    def _one_base(self) -> RestoreRun:
        if self.base_config is not None and self.model_name_or_path is not None:
            raise ValueError(
                f"base_config ({self.base_config}) says where the base is, so leave model_name_or_path out"
            )
        return self


class EvaluationConfig(ConfigModel):
    """One benchmark, the methods that are compared on it, and the metrics."""

    benchmark: str = Field(min_length=1)  # its name in tables
    protocol: ProtocolName = "stablesr_crop"
    lr: str | None = None  # folder of low-resolution inputs
    hr: str | None = None  # folder of references; null where none exist
    lr_suffix: str = (
        ""  # what names in lr have behind the stem, as x4 in 0801x4.png; files without it are left out
    )
    hr_suffix: str = ""  # the same of hr
    methods: dict[str, str] = {}  # name -> folder of restored images
    sr_suffix: dict[str, str] = {}  # name of a method -> what its file names have behind the stem, as _result
    run: dict[str, RestoreRun] = {}  # name -> checkpoint that restores the lr folder first
    baseline: str | None = None  # method that the others are compared with
    metrics: tuple[str, ...] | None = None  # names of pyiqa metrics and rewards; null: those of the protocol
    rewards: dict[str, AnyReward] = {}  # name -> a reward with settings of its own, as in a run file
    output_dir: str = Field(min_length=1)
    workers: int = Field(default=0, ge=0)  # processes; 0: one for each core (at most 8) or GPU
    device: str = "auto"  # auto, cpu, cuda or cuda:<index>

    @property
    def conventions(self) -> Protocol:
        """The protocol itself."""
        return PROTOCOLS[self.protocol]

    @property
    def benchmark_folders(self) -> dict[str, Path]:
        """The folders of the benchmark that are given, by side: hr, lr."""
        given = {"hr": self.hr, "lr": self.lr}
        return {side: Path(path) for side, path in given.items() if path is not None}

    @property
    def benchmark_suffixes(self) -> dict[str, str]:
        """What names in those folders have behind the stem."""
        return {"hr": self.hr_suffix, "lr": self.lr_suffix}

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Every metric, in the order of the tables."""
        if self.metrics is not None:
            return (*self.metrics, *self.rewards)
        return (*self.conventions.metrics, *self.rewards)

    @property
    def method_names(self) -> tuple[str, ...]:
        """Every method, in the order of the tables; the baseline comes first."""
        names = (*self.methods, *self.run)
        return (*(n for n in names if n == self.baseline), *(n for n in names if n != self.baseline))

    @field_validator("methods", "run", "rewards")
    @classmethod
    def _usable_names(cls, sections: dict[str, Any]) -> dict[str, Any]:
        bad = [name for name in sections if not _NAME.fullmatch(name)]
        if bad:
            raise ValueError(
                f"names go into tables and file names: {bad} may have only letters, digits, blanks and _.+-"
            )
        return sections

    @field_validator("rewards")
    @classmethod
    def _no_weights(cls, rewards: dict[str, Any]) -> dict[str, Any]:
        weighted = [name for name, section in rewards.items() if getattr(section, "weight", 1.0) != 1.0]
        if weighted:
            raise ValueError(f"weight has no effect in an evaluation; remove it from {', '.join(weighted)}")
        return rewards

    @model_validator(mode="after")
    def _consistent(self) -> EvaluationConfig:
        names = [*self.methods, *self.run]
        twice = sorted({name for name in names if names.count(name) > 1})
        repeated = sorted({name for name in self.metric_names if self.metric_names.count(name) > 1})
        unknown = [name for name in self.sr_suffix if name not in self.methods]
        problems = [
            (
                bool(unknown),
                f"sr_suffix is for folders of methods, which {', '.join(unknown)} is not; they are: "
                f"{', '.join(self.methods) or 'none'}; what run restores is named as in lr, so give lr_suffix",
            ),
            (bool(self.lr_suffix) and self.lr is None, "lr_suffix is given, but lr is not set"),
            (bool(self.hr_suffix) and self.hr is None, "hr_suffix is given, but hr is not set"),
            (
                self.lr is not None and (self.lr, self.lr_suffix) == (self.hr, self.hr_suffix),
                "lr and hr are the same files; give lr_suffix and hr_suffix where names tell them apart, as "
                "lr_suffix=_LR4 hr_suffix=_HR",
            ),
            (
                not names,
                "no method to evaluate: add methods: {name: folder}, or run: {name: {checkpoint: ...}}",
            ),
            (bool(twice), f"{', '.join(twice)}: both in methods and in run; rename one"),
            (bool(repeated), f"{', '.join(repeated)}: asked for twice; name a metric once"),
            (not self.metric_names, "no metric; name some, or leave metrics out for those of the protocol"),
            (bool(self.run) and self.lr is None, "run restores the LR images, but lr is not set"),
            (
                self.baseline is not None and self.baseline not in names,
                f"baseline '{self.baseline}' is not one of the methods: {', '.join(names)}",
            ),
        ]
        found = [message for wrong, message in problems if wrong]
        if found:
            raise ValueError("; ".join(found))
        return self


def parse_evaluation(values: Any, *, source: str) -> EvaluationConfig:
    """Plain values to settings.  Raises ConfigError, a ValueError that lists every problem."""
    try:
        return EvaluationConfig.model_validate(values)
    except ValidationError as error:
        problems = problems_of(error, values, lambda _: EvaluationConfig)
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise ConfigError(f"{len(problems)} problem(s) in {source}:{listed}") from error


def check_folders(config: EvaluationConfig) -> None:
    """Raise a ValueError that lists every folder of the settings that does not exist."""
    given = {"lr": config.lr, "hr": config.hr, **{f"methods.{n}": p for n, p in config.methods.items()}}
    wrong = [f"{key}: {path}" for key, path in given.items() if path is not None and not Path(path).is_dir()]
    if wrong:
        raise ValueError(
            f"not a folder: {'; '.join(wrong)}. The remarks in the config say where a benchmark's files come from; "
            "give your own place as key=folder"
        )
