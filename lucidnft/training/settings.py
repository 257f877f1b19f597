"""The `train:`, `eval:` and `log:` sections of a run file."""

from __future__ import annotations

from functools import partial
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from lucidnft.advantages import advantages_of_places, decoupled_advantages, scalarised_advantages
from lucidnft.algorithms.nft import NFTSettings
from lucidnft.schema import ConfigModel


class OptimizerSettings(ConfigModel):
    """AdamW, its schedule and its average: fields of every `train:` section."""

    max_train_steps: int = Field(default=100, ge=1)  # optimiser-step intervals; for NFT, rollout batches
    learning_rate: float = Field(default=1e-4, gt=0)
    lr_scheduler: Literal["constant", "cosine", "linear"] = "constant"
    lr_warmup_steps: int = Field(default=0, ge=0)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_weight_decay: float = Field(default=1e-4, ge=0)
    adam_epsilon: float = Field(default=1e-8, gt=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    use_ema: bool = True
    ema_decay: float = Field(default=0.9, ge=0, lt=1)
    device: str = "auto"  # auto | cpu | cuda | cuda:1


class BackboneTrainSettings(OptimizerSettings):
    """Of the tasks that train a backbone: precision and memory."""

    mixed_precision: Literal["auto", "no", "bf16"] = (
        "auto"  # auto: bf16 where the hardware multiplies it fast
    )
    gradient_checkpointing: bool = False

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _yaml_no(cls, value: object) -> object:
        return "no" if value is False else value  # YAML reads a bare `no` as false


class SupervisedTrainConfig(OptimizerSettings):
    """`train:` of the supervised tasks."""

    batch_size: int = Field(default=16, ge=1)  # samples per optimiser step over all processes
    per_device_batch_size: int | None = Field(default=None, ge=1)  # micro-batch; null: all at once
    ema_decay: float = Field(default=0.999, ge=0, lt=1)


class FlowMatchingTrainConfig(SupervisedTrainConfig, BackboneTrainSettings):
    """`train:` of task flow_matching."""

    # no all or grid: there is no solver's grid here; stratified: one time in each of batch_size equal spans
    timestep_sampling: Literal["uniform", "logit_normal", "stratified"] = "logit_normal"
    logit_mean: float = 0.0
    logit_std: float = Field(default=1.0, gt=0)
    flat_weighting: float = Field(default=0.0, ge=0)  # exponent of the weight for flat regions; 0 is none


class OldPolicySettings(ConfigModel):
    """Weight kept by the old copy as a function of the step: 0 until flat_steps, then a ramp to max_decay."""

    schedule: Literal["copy", "linear_to_0_5", "delayed_linear_to_0_999", "custom"] = "linear_to_0_5"
    flat_steps: int = Field(default=0, ge=0)  # read only by custom, like the two below
    ramp_rate: float = Field(default=0.001, ge=0)
    max_decay: float = Field(default=0.5, ge=0, le=1)

    @field_validator("flat_steps", "ramp_rate", "max_decay")
    @classmethod
    def _read_by_the_schedule(cls, value: float, info: ValidationInfo) -> float:
        # A run writes its resolved settings with all three numbers, so a default tells nothing of what was
        # asked for.  A schedule that is itself wrong is missing from info.data, and reported alone.
        schedule = info.data.get("schedule", "custom")
        if schedule != "custom" and value != cls.model_fields[str(info.field_name)].default:
            raise ValueError(
                f"is read only with schedule: custom, not with {schedule}; set schedule: custom or remove it"
            )
        return value


class NFTTrainConfig(NFTSettings, BackboneTrainSettings):
    """`train:` of task nft (DiffusionNFT, arXiv 2509.16117): algorithm, optimiser and advantages."""

    advantage_aggregation: Literal["normalize_then_sum", "weighted_sum", "gdpo", "sum"] = "normalize_then_sum"
    global_std: bool = (
        True  # read only by weighted_sum: divide by the spread of all rollouts, not of the group
    )
    whiten_advantages: bool = True  # read only by normalize_then_sum
    advantage_std_floor: float = Field(default=0.1, ge=0)  # of a reward's median group spread
    # Output pixels per side of the places that are compared, each with itself in the group's other rollouts,
    # by the rewards that have a map; null compares whole images, as LucidNFT.
    advantage_cell: int | None = Field(default=None, ge=1)
    old_policy: OldPolicySettings = OldPolicySettings()

    def advantages(self, scores: Tensor, weights: Tensor) -> Tensor:
        """Advantages (G, K) of scores (G, K, M), or (G, K, a, b) of the scores (G, K, M, a, b) of places.

        weights: (M,) of the rewards.
        """
        weights = weights.to(scores.device)
        if self.advantage_aggregation in ("weighted_sum", "sum"):
            std: Literal["global", "group"] = "global" if self.global_std else "group"
            compare = partial(scalarised_advantages, weights=weights, std=std)
        else:
            floor = self.advantage_std_floor
            compare = partial(
                decoupled_advantages, weights=weights, whiten=self.whiten_advantages, std_floor=floor
            )
        return compare(scores) if scores.ndim == 3 else advantages_of_places(scores, compare)


class EvalSchedule(ConfigModel):
    """`eval:` section of the reward tasks."""

    eval_steps: int = Field(default=10, ge=1)  # every this many steps, and at the start and the end


class EvalConfig(EvalSchedule):
    """`eval:` section where there is a backbone: how the held-out images are restored and scored."""

    num_inference_steps: int = Field(default=10, ge=1)
    solver: Literal["euler", "heun", "dpm2"] = "euler"
    seed: int = 1234  # the noise of held-out image i depends on this and on i alone
    batch_size: int = Field(default=8, ge=1)
    max_images: int | None = Field(default=None, ge=1)


class LogConfig(ConfigModel):
    """`log:` section."""

    log_steps: int = Field(default=1, ge=1)
    save_steps: int = Field(default=20, ge=1)
    checkpoints_total_limit: int = Field(default=3, ge=1)
    report_to: Literal["tensorboard", "none"] = "tensorboard"


class GridLogConfig(LogConfig):
    """`log:` section where there is a backbone."""

    num_grid_images: int = Field(default=6, ge=1)  # held-out images in the grids of pictures
