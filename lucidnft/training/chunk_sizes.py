"""How many rollouts are solved and decoded at a time: as many as fit beside everything else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lucidnft.rollout import RolloutConfig
from lucidnft.training.memory import RunMemory

SHARE = 0.9
"""Of the free memory: the rest is for libraries, for what kernels take and for gaps between blocks of memory."""


@dataclass(frozen=True)
class ChunkChoice:
    """Chunk sizes with the reason, and what does not fit if anything."""

    rollout: RolloutConfig  # with numbers
    reason: str  # one line
    problem: str | None


def free_bytes(device: torch.device, num_processes: int = 1) -> int:
    """Memory that this process can take on a device: of the GPU, or its share of the machine's available RAM."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":  # a container's own limit
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return max(0, available) // num_processes


def choose_chunks(memory: RunMemory, config: Any, num_images: int, free: int, where: str) -> ChunkChoice:
    """Put numbers where the rollout section says auto.

    Args:
        config: a run of task nft.
        num_images: rollouts per step on this process.
        free: bytes, before any part of `memory` is there.
        where: they are free, for the message.

    Returns:
        The choice.  Its problem is not None when even one rollout at a time does not fit.
    """
    rollout: RolloutConfig = config.rollout
    budget = int(SHARE * free)
    fitting = {
        "chunk_size": _largest(lambda n: memory.phases(n, 1)["rollout"], budget, num_images),
        "decode_chunk_size": _largest(lambda n: memory.phases(1, n)["decode"], budget, num_images),
    }
    decode = rollout.chunk_size if rollout.decode_chunk_size is None else rollout.decode_chunk_size
    asked = {"chunk_size": rollout.chunk_size, "decode_chunk_size": decode}
    if rollout.decode_chunk_size is None and decode == "auto":  # as many as are solved
        fitting = dict.fromkeys(fitting, min(fitting.values()))
    update = {name: fitting[name] if value == "auto" else value for name, value in asked.items()}
    chosen = rollout.model_copy(update=update)
    smallest = memory.phases(1, 1)
    highest = max(smallest, key=smallest.__getitem__)
    problem = None
    if smallest[highest] > free:
        problem = (
            f"the {highest} phase needs about {gib(smallest[highest])} with one rollout at a time, and "
            f"{gib(free)} are free {where}; {', or '.join(memory_knobs(config))}"
        )
    if "auto" not in asked.values():
        planned = memory.phases(*chosen.chunks)
        above = [name for name in planned if planned[name] > free]
        reason = f"as set; {gib(free)} are free {where}"
        if above:
            reason += f", which is less than {' and '.join(above)} may need"
    else:
        reason = f"auto: what fits in {SHARE:.0%} of the {gib(free)} that are free {where}"
    return ChunkChoice(chosen, reason, problem)


def _largest(need: Any, budget: int, num_images: int) -> int:
    """The size of equal chunks, the fewest that fit; 1 where none does."""
    fits = [n for n in range(1, num_images + 1) if need(n) <= budget]
    largest = max(fits, default=1)
    num_chunks = -(-num_images // largest)
    return -(-num_images // num_chunks)


def memory_knobs(config: Any) -> list[str]:
    """What to set for less memory, as far as a run has it and does not do it yet."""
    knobs = []
    if hasattr(config.data, "crop_size"):
        knobs.append(f"lower data.crop_size (it is {config.data.crop_size})")
    if not config.train.gradient_checkpointing:
        knobs.append("set train.gradient_checkpointing=true")
    if config.train.per_device_batch_size > 1:
        knobs.append(f"lower train.per_device_batch_size (it is {config.train.per_device_batch_size})")
    if config.train.num_train_timesteps != 1:
        knobs.append("lower train.num_train_timesteps: those of a rollout are trained together")
    if config.eval.batch_size > 1:
        knobs.append(f"lower eval.batch_size (it is {config.eval.batch_size})")
    off = {"quantize": ("none", "nf4"), "encoder_offload": (False, "true"), "vae_tiling": (False, "true")}
    for name, (unset, value) in off.items():
        if getattr(config.model, name, None) == unset:
            knobs.append(f"set model.{name}={value}")
    return knobs


def gib(size: int) -> str:
    """Bytes as text."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
