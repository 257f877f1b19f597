"""What a run will do, said before it starts: batch plan, memory, and reasons why it could not learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lucidnft.algorithms.nft import NFT
from lucidnft.rollout import RolloutConfig
from lucidnft.training.chunk_sizes import ChunkChoice, gib
from lucidnft.training.memory import RunMemory
from lucidnft.training.settings import NFTTrainConfig
from lucidnft.training.supervised_trainer import SupervisedTrainer


def check_can_learn(
    rollout: RolloutConfig, train: NFTTrainConfig, weights: Sequence[float], *, num_processes: int
) -> None:
    """Raise one ValueError that lists every setting with which the policy cannot improve."""
    problems = []
    if rollout.group_size < 2:
        problems.append(
            f"rollout.group_size is {rollout.group_size}: advantages compare the rollouts of one LR image, "
            "so a group needs at least 2 (8 to 24 are usual)"
        )
    if rollout.num_groups % num_processes:
        problems.append(
            f"rollout.num_groups is {rollout.num_groups}, not a multiple of {num_processes} processes: "
            "a group never leaves its process"
        )
    pairs = rollout.num_groups * rollout.group_size // num_processes
    if train.gradient_steps_per_epoch > pairs:
        problems.append(
            f"train.gradient_steps_per_epoch is {train.gradient_steps_per_epoch} for {pairs} rollouts per process"
        )
    if not any(weights):
        problems.append("every reward has weight 0")
    if (
        train.timestep_sampling in ("all", "grid")
        and (train.num_train_timesteps or 1) > rollout.num_inference_steps
    ):
        problems.append(
            f"train.num_train_timesteps is {train.num_train_timesteps} but timestep_sampling="
            f"{train.timestep_sampling} draws from the {rollout.num_inference_steps} times of the rollout's grid"
        )
    if problems:
        raise ValueError("this run cannot learn:\n  " + "\n  ".join(problems))


def batch_plan(
    time_grid: Tensor,
    choice: ChunkChoice,
    train: NFTTrainConfig,
    output: tuple[int, int],
    *,
    num_processes: int,
) -> str:
    """How many images, network calls and optimiser steps one step takes, as lines to print.

    output: (height, width) of the restored images.
    """
    rollout = choice.rollout
    chunk_size, decode_chunk_size = rollout.chunks
    share = rollout.num_groups // num_processes
    images = share * rollout.group_size
    num_times = NFT(train, seed=0).num_times(time_grid)
    grid = " ".join(f"{t:.3g}" for t in time_grid.tolist())
    per_step = -(-images // train.gradient_steps_per_epoch)
    micro = -(-per_step // train.per_device_batch_size)
    cell = train.advantage_cell
    compared = "whole images" if cell is None else f"places of {cell} x {cell} px, each with itself"
    passes = "current" + (" + reference" if train.kl_beta > 0 else "") + " (+ old, unless it equals current)"
    return "\n".join(
        [
            f"  processes                 {num_processes}",
            f"  LR images per step        {rollout.num_groups} ({share} per process), {output[0]}x{output[1]} px "
            "output",
            f"  rollouts per LR image     {rollout.group_size}: {images} per process, {chunk_size} solved and "
            f"{decode_chunk_size} decoded at a time",
            f"  chunk sizes               {choice.reason}",
            f"  compared in a group       {compared}",
            f"  solver                    {rollout.solver}, {rollout.num_inference_steps} steps: {grid}",
            f"  trained times             {num_times} per rollout ({train.timestep_sampling}, "
            f"{train.t_min:g} to {train.t_max:g}); passes: {passes}",
            f"  backward passes           {micro} of {min(train.per_device_batch_size, per_step)} rollouts "
            f"x {num_times} times, per optimiser step",
            f"  optimiser steps           {train.gradient_steps_per_epoch} per step, {train.max_train_steps} steps",
        ]
    )


def saved_bytes(module: nn.Module, forward: Callable[[], object]) -> int:
    """Bytes that a forward pass keeps for its backward pass, the module's own parameters left out."""
    saved: dict[int, int] = {}

    def count(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        kept = forward()
    del kept
    for parameter in module.parameters():
        saved.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(saved.values())


def describe_memory(memory: RunMemory, rollout: RolloutConfig, rewards_on_top: Sequence[str]) -> str:
    """Bytes of every part, the peak of every phase with all that is there besides, and the highest, to print."""
    chunk_size, decode_chunk_size = rollout.chunks
    phases = memory.phases(chunk_size, decode_chunk_size)
    highest = max(phases, key=phases.__getitem__)
    rows = {
        **{name: size for name, size in memory.parts.items() if size},
        "condition of the LR images": memory.kept_condition,
        "rollouts and decoded images": memory.latents + memory.images,
        f"solving {chunk_size} rollouts": memory.rollout(chunk_size),
        f"decoding {decode_chunk_size}": memory.decode(decode_chunk_size),
        "activations of a backward pass": memory.backward,
    }
    lines = [f"  {name:<34}{gib(size):>12}" for name, size in rows.items()]
    lines.append("peak of each phase, with what is there besides:")
    lines += [f"  {name:<34}{gib(size):>12}" for name, size in phases.items()]
    on_top = ["libraries, about 1 GiB"]
    if rewards_on_top:
        on_top.append(f"rewards whose size is not known: {', '.join(rewards_on_top)}")
    return "\n".join([*lines, f"highest: {highest}, {gib(phases[highest])}; on top: {'; '.join(on_top)}"])


def format_memory(estimate: dict[str, int]) -> str:
    """Parts that are there together as lines to print; what libraries take for themselves comes on top."""
    lines = [f"  {name:<32}{size / 2**20:9.1f} MiB" for name, size in estimate.items()]
    return "\n".join(
        [*lines, f"  {'sum (plus libraries, about 1 GiB)':<32}{sum(estimate.values()) / 2**20:8.1f} MiB"]
    )


def describe_supervised_plan(trainer: SupervisedTrainer) -> str:
    """Data, batch plan and memory estimate of a supervised run; activations are measured on two samples at most.

    Raises:
        ValueError: train.batch_size cannot be divided among the processes.
    """
    train, task = trainer.train, trainer.task
    parts = trainer.rows()
    few = min(2, len(parts[0]))  # a contrastive loss needs two
    samples = task.probe(few)
    activations = saved_bytes(task.module, lambda: task.loss(samples)) / few
    trained = sum(p.numel() * p.element_size() for p in trainer.parameters.values())
    weights = sum(p.numel() * p.element_size() for p in task.module.parameters())
    plan = [
        f"  processes                 {trainer.accelerator.num_processes}",
        f"  samples per step          {train.batch_size} ({sum(map(len, parts))} per process)",
        f"  backward passes           {len(parts)} of {len(parts[0])} samples, per optimiser step",
        f"  optimiser steps           {train.max_train_steps}",
        f"  weights                   {trained / 4e6:.2f} M trained of {weights / 4e6:.2f} M",
    ]
    memory = format_memory(
        {
            "weights": weights,
            "gradients, optimiser, average": trained * (4 if train.use_ema else 3),
            "activations of a backward pass": round(activations * len(parts[0])),
        }
    )
    return f"data:\n{task.describe()}\nbatch plan:\n" + "\n".join(plan) + f"\nmemory:\n{memory}"
