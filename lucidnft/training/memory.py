"""How much memory a reinforcement run needs, part by part and phase by phase, known before any weight is loaded.

The run's own code is run on a skeleton: the backbone on the meta device (`lucidnft.training.peak_memory`).  What the
libraries take for themselves, the kernels while they run, and the rewards come on top.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lucidnft.algorithms.nft import NFT, NFTMinibatch
from lucidnft.backbones import quantization
from lucidnft.backbones.base import Backbone
from lucidnft.backbones.image_conditions import EncodesImages
from lucidnft.backbones.precision import autocast_region
from lucidnft.backbones.quantization import Quantize, quantisable_layers
from lucidnft.flow.solvers import ODE_SOLVERS
from lucidnft.policy import Policy, Role
from lucidnft.records import Condition, ImageBatch
from lucidnft.rollout import RolloutConfig, time_grid_of
from lucidnft.schema import ConfigModel
from lucidnft.training.device import autocast_dtype
from lucidnft.training.held_out import restore_batch
from lucidnft.training.peak_memory import Measured, backward, measure, tensor_bytes
from lucidnft.training.settings import EvalConfig, NFTTrainConfig

TRAINED = "trained values and their copy"
TRAINING = "their gradients, optimiser, average"


@dataclass(frozen=True)
class Line:
    """Bytes that grow with a number of images."""

    fixed: int
    each: int

    def __call__(self, count: int) -> int:
        return self.fixed + self.each * count

    @classmethod
    def through(cls, bytes_of: Callable[[int], int]) -> Line:
        """The line through what one and two images take."""
        one, two = bytes_of(1), bytes_of(2)
        return cls(max(0, 2 * one - two), two - one)


@dataclass(frozen=True)
class ImageSizes:
    """What is restored on one process: numbers and LR sizes of images."""

    upscale: int
    groups: int  # LR images per step
    group_size: int
    lr: tuple[int, int]  # (height, width)
    held_out: int  # LR images that are restored by every evaluation
    held_out_lr: tuple[int, int]

    @property
    def images(self) -> int:
        """Rollouts per step."""
        return self.groups * self.group_size


@dataclass(frozen=True)
class RewardMemory:
    """Bytes of the rewards' weights on the run's device."""

    resident: int  # there for the whole run
    visiting: int  # there while scores are made


@dataclass(frozen=True)
class RunMemory:
    """Bytes of one process."""

    parts: dict[str, int]  # there for the whole run
    condition: Line  # of G groups, while it is made
    kept_condition: int
    latents: int  # of all rollouts
    images: int  # decoded, of all rollouts
    rollout: Line  # of a chunk that is solved
    decode: Line  # of a chunk that is decoded
    backward: int
    evaluate: int
    groups: int
    encoders: int = 0  # of the parts, those that are there only while conditions are made
    scoring: int = 0  # beside the parts, while rewards score

    def phases(self, chunk_size: int, decode_chunk_size: int) -> dict[str, int]:
        """Peak of each phase of a step, with all that is there besides."""
        held = sum(self.parts.values()) - self.encoders
        step = held + self.kept_condition + self.latents
        return {
            "condition": held + self.encoders + self.condition(self.groups),
            "rollout": step + self.rollout(chunk_size),
            # the parts and the whole that they are joined to are there together for a moment
            "decode": step + self.images + max(self.images, self.decode(decode_chunk_size)),
            "reward": step + self.images + self.scoring,
            "optimise": step + self.images + self.backward,
            "evaluate": held + max(self.encoders + self.evaluate, self.scoring),
        }


def weight_bytes(part: nn.Module, quantize: Quantize = "none") -> int:
    """Bytes of a part of a backbone as it lies on the device, without adapters.

    quantize: what becomes of the full weights of `part`.
    """
    weights = {id(v): v for name, v in part.named_parameters() if ".lora_" not in name}
    rounded = 0
    if quantize != "none":
        for layer in quantisable_layers(part).values():
            weight = weights.pop(id(layer.weight))
            rounded += quantization.weight_bytes((weight.shape[0], weight.shape[1]), quantize)
    return rounded + tensor_bytes([*weights.values(), *part.buffers()])


def skeleton_of(model: ConfigModel, train: NFTTrainConfig, device: torch.device) -> Backbone | None:
    """The backbone without values, as `prepare_backbone` would set it up on `device`; None if it has no skeleton."""
    build = getattr(model, "build_skeleton", None)
    if build is None:
        return None
    skeleton: Backbone = build()
    skeleton.autocast_dtype = autocast_dtype(train, device)
    skeleton.set_gradient_checkpointing(train.gradient_checkpointing)
    return skeleton


def run_memory(
    skeleton: Backbone,
    settings: Any,
    sizes: ImageSizes,
    rollout: RolloutConfig,
    train: NFTTrainConfig,
    evaluation: EvalConfig,
    rewards: RewardMemory | None = None,
) -> RunMemory:
    """The memory of a run of task nft.  Adds adapters to the skeleton.

    settings: the `model:` section, for its LoRA.
    """
    rewards = rewards or RewardMemory(0, 0)
    quantize: Quantize = getattr(settings, "quantize", "none")
    parts = {name: weight_bytes(part, quantize) for name, part in _parts(skeleton).items()}
    with torch.device("meta"):
        policy = Policy(skeleton, settings, seed=0)
    trained = tensor_bytes(policy.parameters.values())
    output = (sizes.lr[0] * sizes.upscale, sizes.lr[1] * sizes.upscale)
    latent = skeleton.latent_spec.grid(*output)
    image = 3 * output[0] * output[1] * 4
    held_out = 3 * sizes.held_out_lr[0] * sizes.held_out_lr[1] * sizes.upscale**2 * 4
    parts |= {
        TRAINED: 2 * trained,
        TRAINING: (4 if train.use_ema else 3) * trained,
        "held-out images of the base": sizes.held_out * held_out,
        "rewards": rewards.resident,
    }
    conditions = {n: _condition_measured(policy, sizes, n) for n in (1, 2)}
    one = conditions[1].result
    num_times = NFT(train, seed=0).num_times(time_grid_of(skeleton, rollout, *output))
    per_step = -(-sizes.images // train.gradient_steps_per_epoch)
    samples = min(train.per_device_batch_size, per_step) * num_times
    return RunMemory(
        parts=parts,
        condition=Line.through(lambda n: conditions[n].peak),
        kept_condition=Line.through(lambda n: conditions[n].kept)(sizes.groups),
        latents=sizes.images * 4 * latent[0] * latent[1] * latent[2],
        images=sizes.images * image,
        rollout=Line.through(lambda n: _solve_peak(policy, one, latent, rollout, n)),
        decode=Line.through(lambda n: _decode_peak(skeleton, latent, n)),
        backward=_backward_peak(policy, one, latent, train, samples),
        evaluate=_evaluation_peak(policy, sizes, evaluation) + sizes.held_out * held_out,
        groups=sizes.groups,
        encoders=_offloaded(skeleton, settings),
        scoring=rewards.visiting,
    )


def _offloaded(skeleton: Backbone, settings: Any) -> int:
    """Bytes of the image encoders that only visit the device."""
    if not (getattr(settings, "encoder_offload", False) and isinstance(skeleton, EncodesImages)):
        return 0
    return sum(weight_bytes(encoder) for encoder in skeleton.image_conditions.encoders.values())


def _parts(backbone: Backbone) -> dict[str, nn.Module]:
    return getattr(backbone, "parts", {"backbone": backbone.module})


def _condition_measured(policy: Policy, sizes: ImageSizes, count: int) -> Measured[Condition]:
    batch = _lr_batch(sizes.lr, count, sizes.upscale)
    return measure(lambda: policy.encode_condition(batch))


def _lr_batch(size: tuple[int, int], count: int, upscale: int) -> ImageBatch:
    names = tuple(str(i) for i in range(count))
    return ImageBatch(torch.empty(count, 3, *size, device="meta"), names, tuple(range(count)), upscale)


@torch.no_grad()
def _solve_peak(
    policy: Policy, condition: Condition, latent: tuple[int, int, int], rollout: RolloutConfig, count: int
) -> int:
    grid = torch.linspace(1.0, 0.0, _few_steps(rollout.solver) + 1)

    def solve() -> Tensor:
        rows = condition.index([0] * count)
        x = torch.empty(count, *latent, device="meta")
        with policy.folded(Role.OLD):
            solved = ODE_SOLVERS[rollout.solver](lambda x_t, t: policy(x_t, t, rows, Role.OLD), x, grid)
        return solved.x_0

    return measure(solve).peak


def _few_steps(solver: str) -> int:
    """Steps after which a solve needs no more memory: one, or two where it remembers the step before."""
    return 1 if solver == "euler" else 2


@torch.no_grad()
def _decode_peak(backbone: Backbone, latent: tuple[int, int, int], count: int) -> int:
    x_0 = torch.empty(count, *latent, device="meta")
    return measure(lambda: backbone.decode(x_0)).peak


class _TrainedPass:
    """A policy of which only the passes with a gradient are made; the others, which need less, give a velocity."""

    old_equals_current = False

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition, role: Role) -> Tensor:
        return self.policy(x_t, t, condition) if role is Role.CURRENT else torch.empty_like(x_t)


def _backward_peak(
    policy: Policy, condition: Condition, latent: tuple[int, int, int], train: NFTTrainConfig, samples: int
) -> int:
    for parameter in policy.parameters.values():
        parameter.grad = torch.empty_like(parameter)  # counted with the optimiser
    algorithm = NFT(train, seed=0)
    passes: Any = _TrainedPass(policy)

    def optimise() -> None:
        x_0, noise = (torch.empty(samples, *latent, device="meta") for _ in range(2))
        vector = torch.empty(samples, device="meta")
        mini = NFTMinibatch(x_0, noise, vector, condition.index([0] * samples), vector, 1.0, True)
        losses, _ = algorithm.loss(passes, mini)
        loss = losses.mean()
        with autocast_region(torch.device("meta"), policy.backbone.autocast_dtype):
            backward(loss)

    return measure(optimise).peak


def _evaluation_peak(policy: Policy, sizes: ImageSizes, evaluation: EvalConfig) -> int:
    count = min(sizes.held_out, 8)  # HeldOut.batches gives so many at a time
    batch = _lr_batch(sizes.held_out_lr, count, sizes.upscale)
    few_steps = evaluation.model_copy(update={"num_inference_steps": _few_steps(evaluation.solver)})

    def restore() -> Tensor:
        with torch.no_grad(), policy.folded(Role.CURRENT):
            return restore_batch(
                lambda x_t, t, condition: policy(x_t, t, condition, Role.CURRENT),
                policy.backbone,
                batch,
                few_steps,
            )

    return measure(restore).peak
