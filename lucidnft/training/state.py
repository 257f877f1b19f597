"""Saving and restoring a run: named parameters, average, optimiser and progress.  No RNG state exists."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lucidnft.checkpoint import (
    check_checkpoint,
    flatten_optimizer,
    latest_checkpoint,
    load_json,
    load_optimizer_,
    load_tensors,
    save_json,
    save_tensors,
)
from lucidnft.training.ema import Ema

STATE_FORMAT = "lucidnft.training_state.1"


class Resumable(Protocol):
    """What both trainers are."""

    run_dir: Path
    accelerator: Accelerator

    def resume(self, folder: Path) -> None:
        """Continue from a checkpoint folder."""


def save_state(
    folder: Path,
    *,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
    progress: Mapping[str, Any],
    header: Mapping[str, Any] | None = None,
) -> None:
    """Write optimizer.safetensors, ema.safetensors and state.json into a checkpoint folder being filled.

    header: said of the averaged weights, so that ema.safetensors can be loaded like the current ones.
    """
    tensors, header = flatten_optimizer(optimizer, parameters.items())
    save_tensors(folder / "optimizer.safetensors", tensors, header)
    if ema is not None:
        save_tensors(
            folder / "ema.safetensors", ema.shadow, {**(header or {}), "num_updates": ema.num_updates}
        )
    save_json(folder / "state.json", {"format": STATE_FORMAT, **progress})


def load_progress(folder: Path) -> dict[str, Any]:
    """The saved progress of a checkpoint folder.

    Raises:
        ValueError: the folder is not a complete checkpoint.
    """
    check_checkpoint(folder)
    progress: dict[str, Any] = load_json(folder / "state.json")
    if progress.get("format") != STATE_FORMAT:
        raise ValueError(
            f"{folder / 'state.json'} has format {progress.get('format')!r}, expected {STATE_FORMAT!r}"
        )
    return progress


def load_state_(
    folder: Path,
    *,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    ema: Ema | None,
) -> dict[str, Any]:
    """Put optimiser and average back in place; returns the saved progress.

    Raises:
        ValueError: the folder is not a complete checkpoint of such a run.
    """
    progress = load_progress(folder)
    tensors, header = load_tensors(folder / "optimizer.safetensors")
    load_optimizer_(optimizer, parameters.items(), tensors, header)
    if ema is not None:
        path = folder / "ema.safetensors"
        if not path.exists():
            raise ValueError(
                f"{folder} holds no ema.safetensors but train.use_ema is on; set train.use_ema=false"
            )
        shadow, ema_header = load_tensors(path, expected=ema.shadow)
        ema.load_(shadow, ema_header["num_updates"])
    return progress


def find_checkpoint(run_dir: Path, resume_from: str) -> Path | None:
    """The checkpoint folder that `latest` or a path names.

    None for the `latest` of a run that was killed before its first checkpoint: it begins again, and since
    every draw is a function of the seed and the step, it becomes the run that it would have been.

    Raises:
        FileNotFoundError: the named folder does not exist, or there is no run whose latest could be meant.
        ValueError: the named folder is not a complete checkpoint.
    """
    if resume_from == "latest":
        if not run_dir.is_dir():
            raise FileNotFoundError(
                f"there is no run in {run_dir} to resume; start without --resume_from_checkpoint, or check "
                "output_dir and run_name"
            )
        return latest_checkpoint(run_dir)
    check_checkpoint(resume_from)
    return Path(resume_from)


def resume_trainer(trainer: Resumable, resume_from: str) -> Path | None:
    """Put a trainer where `latest` or a named checkpoint folder stands, before anything is written.

    Returns the checkpoint, or None when the latest is asked for and the run has none yet.  Raises as
    `find_checkpoint`, and a ValueError when the checkpoint is not one of such a run.
    """
    checkpoint = find_checkpoint(trainer.run_dir, resume_from)
    if checkpoint is None:
        trainer.accelerator.print("resuming at step 0: there is no checkpoint yet")
    else:
        trainer.resume(checkpoint)
        trainer.accelerator.print(f"resuming {checkpoint}")
    return checkpoint


@torch.no_grad()
def load_parameters_(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors of the same names into parameters."""
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
