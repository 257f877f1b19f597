"""The folder a run leaves behind: started clean, resumed in place, never written over."""

from __future__ import annotations

import shutil
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from lucidnft.checkpoint import check_checkpoint, latest_checkpoint, save_json, set_aside_newer, unused_name
from lucidnft.metric_logger import PHASE_NOTE

ERROR_FILE = "error.txt"
RECORDS = ("metrics.jsonl", "eval", "images", "tensorboard")  # what a run has written about itself


def open_run_folder(
    run_dir: Path,
    config_yaml: str,
    environment: dict[str, Any],
    *,
    accelerator: Accelerator,
    resume: bool,
    checkpoint: Path | None,
) -> None:
    """Start or continue the folder of a run on the main process and print what it did.  Synchronises ranks."""
    accelerator.wait_for_everyone()  # all have read what is moved now
    if accelerator.is_main_process:
        facts = (run_dir, config_yaml, environment)
        for note in continue_run_folder(*facts, checkpoint) if resume else start_run_folder(*facts):
            print(note)
    accelerator.wait_for_everyone()


def start_run_folder(run_dir: Path, config_yaml: str, environment: dict[str, Any]) -> list[str]:
    """Make the folder of a fresh run, with config.yaml and env.json; returns what the user should know.

    An earlier run of the same name is moved aside (to <name>.1, <name>.2, ...), so nothing is lost and logs
    never mix.  One process per run calls this.
    """
    notes = []
    if run_dir.exists() and any(run_dir.iterdir()):
        aside = run_dir.rename(unused_name(run_dir))
        notes.append(f"an earlier run in {run_dir} was moved to {aside}")
    run_dir.mkdir(parents=True, exist_ok=True)
    _describe(run_dir, config_yaml, environment)
    return notes


def continue_run_folder(
    run_dir: Path, config_yaml: str, environment: dict[str, Any], checkpoint: Path | None
) -> list[str]:
    """Make the folder that of a run standing at a checkpoint (None: at its start); returns notes for the user.

    What lies after the checkpoint is cut off: pictures and scores are made again, checkpoints of later steps
    are kept in `superseded`.  A checkpoint of another run is continued in a folder of its own, which
    begins with that run's records up to the checkpoint.  One process per run calls this.
    """
    notes = []
    step = 0 if checkpoint is None else check_checkpoint(checkpoint)
    source = run_dir if checkpoint is None else checkpoint.resolve().parent
    if source.resolve() != run_dir.resolve():
        before = (source / "config.yaml").read_text() if (source / "config.yaml").exists() else None
        notes += start_run_folder(run_dir, config_yaml, environment)
        notes.append(f"continuing the run in {source} from step {step} in {run_dir}")
        for name in RECORDS:
            if (source / name).is_dir():
                shutil.copytree(source / name, run_dir / name)
            elif (source / name).is_file():
                shutil.copy2(source / name, run_dir / name)
    else:
        before = (run_dir / "config.yaml").read_text() if (run_dir / "config.yaml").exists() else None
        moved = set_aside_newer(run_dir, step)
        notes += [f"a checkpoint of a later step was moved to {folder}" for folder in moved]
    if before is not None:
        changed = changed_settings(before, config_yaml)
        notes += [f"resuming with another setting than before: {line}" for line in changed]
    for path in [*run_dir.glob("eval/scores-*.json"), *run_dir.glob("images/*-*.png")]:
        digits = path.stem.rpartition("-")[2]
        if digits.isdecimal() and int(digits) > step:
            path.unlink()
    _describe(run_dir, config_yaml, environment)
    return notes


def _describe(run_dir: Path, config_yaml: str, environment: dict[str, Any]) -> None:
    (run_dir / "config.yaml").write_text(config_yaml)
    save_json(run_dir / "env.json", environment)


def stop_message(error: BaseException, run_dir: Path | None) -> str:
    """What to tell the user when a run ends early; with a run folder, the traceback goes to error.txt in it."""
    lines = [str(error)]
    if isinstance(error, torch.OutOfMemoryError):
        lines.append(_memory_advice(error))
    if run_dir is not None:
        with suppress(OSError):  # the disk may be what is full
            (run_dir / ERROR_FILE).write_text("".join(traceback.format_exception(error)))
            lines.append(f"traceback: {run_dir / ERROR_FILE}")
        latest = latest_checkpoint(run_dir)
        if latest is not None:
            lines.append(f"last checkpoint: {latest}; continue with --resume_from_checkpoint latest")
    return "\n".join(lines)


_LESS_MEMORY = {
    "condition": "lower rollout.num_groups or data.crop_size",
    "rollout": "lower rollout.chunk_size or data.crop_size",
    "decode": "lower rollout.decode_chunk_size or data.crop_size",
    "reward": "give a large reward a device of its own or offload it, or lower data.crop_size",
    "optimise": "set train.gradient_checkpointing=true, or lower train.per_device_batch_size, "
    "train.num_train_timesteps or data.crop_size",
    "evaluate": "lower eval.batch_size or data.val_crop_size",
}
"""What helps where a step of task nft can run out of memory."""


def _memory_advice(error: BaseException) -> str:
    notes = [note for note in getattr(error, "__notes__", ()) if note.startswith(PHASE_NOTE)]
    phase = notes[0].removeprefix(PHASE_NOTE) if notes else None
    if phase in _LESS_MEMORY:
        return f"out of memory in phase {phase}: {_LESS_MEMORY[phase]}"
    listed = "; ".join(f"{name}: {advice}" for name, advice in _LESS_MEMORY.items())
    return f"what helps depends on the phase: {listed}"


def changed_settings(before: str, after: str) -> list[str]:
    """Settings that differ between two YAML dumps, one `path: old -> new` line each."""
    old, new = flat(yaml.safe_load(before)), flat(yaml.safe_load(after))
    return [
        f"{key}: {old.get(key, 'unset')} -> {new.get(key, 'unset')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings as {dotted path: leaf}."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {k: v for key, value in tree.items() for k, v in flat(value, f"{path}.{key}".lstrip(".")).items()}
