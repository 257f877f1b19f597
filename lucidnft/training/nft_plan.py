"""The plan of a run of task nft: sizes, chunks and memory, known before the backbone is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from lucidnft.backbones.base import Backbone
from lucidnft.backbones.speed import check_speed, prepare_speed
from lucidnft.checkpoint.required_files import required_files
from lucidnft.data.pools import TrainAndHeldOut
from lucidnft.policy import Policy
from lucidnft.rewards import Reward
from lucidnft.rewards import base as reward_base
from lucidnft.rollout import RolloutConfig, time_grid_of
from lucidnft.training.chunk_sizes import ChunkChoice, choose_chunks, free_bytes
from lucidnft.training.device import prepare_backbone
from lucidnft.training.memory import ImageSizes, RewardMemory, run_memory, skeleton_of
from lucidnft.training.peak_memory import tensor_bytes
from lucidnft.training.plan import batch_plan, describe_memory


@dataclass(frozen=True)
class NFTPlan:
    """What a run will do."""

    rollout: RolloutConfig  # with numbers where the settings say auto
    text: str  # batch plan and memory, to print
    problem: str | None  # why it does not fit in the memory that is free


def planned_backbone(config: Any, device: torch.device) -> Backbone:
    """What a run is planned with: the skeleton of its backbone, or the backbone where its model has no skeleton."""
    skeleton = skeleton_of(config.model, config.train, device)
    return config.model.build(seed=config.seed) if skeleton is None else skeleton


def build_policy(config: Any, planned: Backbone, accelerator: Accelerator) -> Policy:
    """The policy with its weights on the run's device, ready to run fast.

    Raises:
        FileNotFoundError, ImportError, ValueError: weights or packages are missing, damaged, or do not run here.
    """
    check_speed(planned, config.model, accelerator.device)  # before minutes of loading
    backbone = config.model.build(seed=config.seed) if planned.device.type == "meta" else planned
    policy = Policy(prepare_backbone(backbone, config.train, accelerator), config.model, seed=config.seed)
    prepare_speed(policy.backbone, config.model)
    return policy


def policy_header(config: Any, policy: Policy) -> dict[str, Any]:
    """What is written into policy.safetensors beside the step: all that restoring with it needs."""
    shapes = {} if policy.lora_shapes is None else {"lora": policy.lora_shapes}
    return {
        "backbone": config.model.model_dump(mode="json"),
        "base_fingerprint": policy.backbone.fingerprint,
        "config": config.model_dump(mode="json"),
        **shapes,
    }


def settle_plan(
    config: Any,
    planned: Backbone,
    data: TrainAndHeldOut,
    rewards: Mapping[str, Reward],
    accelerator: Accelerator,
) -> RolloutConfig:
    """Print the plan and give the rollout section with its numbers.  Synchronises nothing.

    Raises:
        ValueError: as `plan_nft`, or the run does not fit in the memory that is free.
    """
    where = {"device": accelerator.device, "num_processes": accelerator.num_processes}
    plan = plan_nft(config, planned, data, rewards, **where)
    accelerator.print(plan.text)
    if plan.problem is not None:
        raise ValueError(plan.problem)
    return plan.rollout


def plan_nft(
    config: Any,
    backbone: Backbone,
    data: TrainAndHeldOut | None,
    rewards: Mapping[str, Reward],
    *,
    device: torch.device,
    num_processes: int,
) -> NFTPlan:
    """Plan a run before anything is on its device.

    Args:
        config: a run of task nft.
        backbone: a skeleton, which gets adapters here, or, of a model without one, the backbone itself.
        data: None where it is not there; the plan then is for images of the declared sizes.
        rewards: by name, those that are built.

    Raises:
        ValueError: rollout.chunk_size is auto for a backbone without a skeleton, or the declared sizes are none that
            the backbone can restore.
    """
    sizes = image_sizes(config, backbone, data, num_processes)
    output = (sizes.lr[0] * sizes.upscale, sizes.lr[1] * sizes.upscale)
    known = {n: reward_memory(r, rewards.get(n), device) for n, r in config.rewards.items()}
    unknown = [name for name, memory in known.items() if memory is None]
    found = [memory for memory in known.values() if memory is not None]
    scoring = RewardMemory(sum(m.resident for m in found), max((m.visiting for m in found), default=0))
    if backbone.device.type == "meta":
        memory = run_memory(backbone, config.model, sizes, config.rollout, config.train, config.eval, scoring)
        free = free_bytes(device, num_processes if device.type == "cpu" else 1)
        choice = choose_chunks(memory, config, sizes.images, free, f"on {device}")
        described = f"memory of a process:\n{describe_memory(memory, choice.rollout, unknown)}"
    else:
        config.rollout.chunks  # noqa: B018  refuses auto, for which there is no estimate here
        choice = ChunkChoice(config.rollout, "as set", None)
        described = f"memory: not estimated, {type(config.model).__name__} has no build_skeleton()"
    time_grid = time_grid_of(backbone, config.rollout, *output)
    plan = batch_plan(time_grid, choice, config.train, output, num_processes=num_processes)
    return NFTPlan(choice.rollout, f"batch plan:\n{plan}\n{described}", choice.problem)


def image_sizes(
    config: Any, backbone: Backbone, data: TrainAndHeldOut | None, num_processes: int
) -> ImageSizes:
    """The largest crops there are, or the declared ones."""
    upscale = backbone.upscale or 4
    held_out = config.data.num_val_images if data is None else len(data.held_out)
    crops = () if data is None else getattr(data.train, "buckets", ())
    side = max(crops, default=config.data.crop_size)
    val_side = config.data.val_crop_size
    return ImageSizes(
        upscale=upscale,
        groups=config.rollout.num_groups // num_processes,
        group_size=config.rollout.group_size,
        lr=(side, side),
        held_out=min(held_out, config.eval.max_images or held_out),
        held_out_lr=(val_side, val_side),
    )


def reward_memory(settings: Any, reward: Reward | None, device: torch.device) -> RewardMemory | None:
    """What a reward takes of the run's device, from the reward itself or from the sizes of its files.

    settings: of the reward.  reward: None where it is not built.  None is returned where it cannot be told.
    """
    own = getattr(settings, "device", None)
    if own is not None and not _same(torch.device(own), device):
        return RewardMemory(0, 0)
    size = None if reward is None else weights_of(reward)
    if size is None:
        sizes = [file.size for file in required_files(settings) if file.size is not None]
        if not sizes:
            return None
        size = sum(sizes)
    return RewardMemory(0, size) if getattr(settings, "offload", False) else RewardMemory(size, 0)


def _same(one: torch.device, other: torch.device) -> bool:
    return (one.type, one.index or 0) == (other.type, other.index or 0)


def weights_of(reward: Reward) -> int | None:
    """Bytes of a reward's networks on the run's device; None where they cannot be told.

    0 for one that has nothing to move.
    """
    if type(reward).to is reward_base.Reward.to:  # nothing to move
        return 0
    networks = [value for value in vars(reward).values() if isinstance(value, nn.Module)]
    if not networks:
        return None
    tensors = (t for network in networks for t in (*network.parameters(), *network.buffers()))
    return tensor_bytes(tensors)
