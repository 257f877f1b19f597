"""Several processes over one folder: started together by accelerate, or apart as shards of a batch system."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from lucidnft.inference.device import choose_device

LONGEST_WAIT = timedelta(days=30)
"""For the slowest process to finish its share; torch's own limit is half an hour."""


@dataclass(frozen=True)
class Processes:
    """This process among those of `accelerate launch`; alone when it was not launched so."""

    index: int = 0
    count: int = 1
    local_index: int = 0  # on this machine

    @property
    def is_main(self) -> bool:
        """Whether this one speaks for all."""
        return self.index == 0

    def device(self, name: str) -> torch.device:
        """See `choose_device`; of several GPUs each process takes its own.

        Raises:
            ValueError: also when one GPU was named for several processes.
        """
        if self.count == 1:
            return choose_device(name)
        if name.startswith("cuda:"):
            raise ValueError(
                f"--device {name} is one GPU for {self.count} processes; leave it at auto or cuda"
            )
        device = choose_device(name)
        if device.type != "cuda":
            return device
        return choose_device(f"cuda:{self.local_index % torch.cuda.device_count()}")

    def gather(self, mine: Any) -> list[Any]:
        """What every process has, by their index.  Synchronises processes."""
        if self.count == 1:
            return [mine]
        everyone: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(everyone, mine)
        return everyone

    def close(self) -> None:
        """Wait for all, then leave: launchers stop the others when one process ends with an error.

        Synchronises processes.
        """
        if self.count > 1:
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()


def join_processes() -> Processes:
    """The processes that a launcher (accelerate, torchrun) started together, by its environment variables.

    They exchange records only, so they meet over gloo, which needs no GPU.  Synchronises processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=True, timeout=LONGEST_WAIT)
    return Processes(state.process_index, state.num_processes, state.local_process_index)
