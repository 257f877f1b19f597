"""Methods that are run first: a checkpoint restores the LR folder, then its files are evaluated like any others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lucidnft
from lucidnft.backbones.adapter_files import is_adapter_folder
from lucidnft.backbones.base import Backbone
from lucidnft.backbones.merged_files import is_merged
from lucidnft.checkpoint import load_header
from lucidnft.evaluation.pairing import by_stem, file_digest, printable
from lucidnft.evaluation.settings import RestoreRun
from lucidnft.inference import load_policy, restore
from lucidnft.inference.batching import plan_batches
from lucidnft.inference.checkpoints import BASE, BackboneConfig, find_weights, weights_id
from lucidnft.inference.device import choose_device, give_back_memory, move_to
from lucidnft.inference.folder import RestoredImage, restore_files
from lucidnft.inference.jobs import plan_jobs
from lucidnft.inference.speed_settings import prepare_for_restoring
from lucidnft.inference.tiled_images import folded
from lucidnft.policy import Policy

BATCH_SIZE = 4


def check_runs(
    runs: Mapping[str, RestoreRun], bases: Mapping[str, BackboneConfig], lr: Path | None, output_dir: Path
) -> None:
    """Whether runs can start, as far as that can be said without loading anything.

    Raises:
        ValueError, FileNotFoundError: a checkpoint is not there, a base was not read, or LR files would be restored
            to the same file.
    """
    if runs and lr is not None:
        plan_jobs(lr, output_dir / "restored")
    for name, run in runs.items():
        if run.base_config is not None and name not in bases:
            raise ValueError(
                f"run.{name}.base_config is {run.base_config}, whose model: section was not given; from Python: "
                f"bases={{'{name}': lucidnft.config.base_section('{run.base_config}')}}"
            )
        path = Path(run.checkpoint)
        if run.checkpoint != BASE and not is_adapter_folder(path) and not is_merged(path):
            find_weights(path)


def restore_method(
    name: str,
    run: RestoreRun,
    lr: Path,
    output_dir: Path,
    *,
    device: str,
    lr_suffix: str = "",
    base: BackboneConfig | None = None,
    progress: bool = True,
) -> tuple[Path, dict[str, str]]:
    """Restore the lr folder with a checkpoint; returns the folder of the results and {stem: why it failed}.

    lr_suffix: what names of LR images have behind the stem; other files are not restored.
    base: what run.base_config says, as `lucidnft.config.base_section` reads it.

    The folder's name has a hash of settings, weights, LR files, versions and kind of device, so that what another
    checkpoint, setting or version left behind is never taken for this one's; what this one left when it was stopped
    is kept.

    Raises:
        ValueError, OSError: the checkpoint cannot be loaded, or nothing can be written.
    """
    where = choose_device(device, setting="device=")
    try:
        return _restore(name, run, lr, output_dir, where, lr_suffix, base, progress)
    finally:  # the policy is gone by now; metrics, in other processes too, need the memory it had
        give_back_memory(where)


def _restore(
    name: str,
    run: RestoreRun,
    lr: Path,
    output_dir: Path,
    where: torch.device,
    lr_suffix: str,
    base: BackboneConfig | None,
    progress: bool,
) -> tuple[Path, dict[str, str]]:
    stems = {path: stem for stem, paths in by_stem(lr, lr_suffix)[0].items() for path in paths}
    loaded = load_policy(run.checkpoint, model_name_or_path=run.model_name_or_path, base=base)
    policy = move_to(loaded, where)
    prepare_for_restoring(policy)
    folder = output_dir / "restored" / f"{name}-{_run_digest(run, base, list(stems), policy, where)}"

    def restore_images(images: Tensor, keys: Sequence[str]) -> list[RestoredImage]:
        restored = restore(
            policy, images, keys=keys, upscale=run.upscale, seed=run.seed, solver=run.solver,
            num_inference_steps=run.num_inference_steps, align_method=run.align_method, tile_size="auto",
        )  # fmt: skip
        return [RestoredImage(sr) for sr in restored]

    jobs = [job for job in plan_jobs(lr, folder) if job.source in stems]
    batches = plan_batches(jobs, BATCH_SIZE)
    with folded(policy):
        summary = restore_files(batches, restore_images, skip_existing=True, progress=progress)
    return folder, {stems[path]: f"could not be restored: {reason}" for path, reason in summary.failed}


def _run_digest(
    run: RestoreRun,
    base: BackboneConfig | None,
    lr: Iterable[Path],
    loaded: Policy | Backbone,
    device: torch.device,
) -> str:
    parts = {
        "settings": run.model_dump(mode="json", exclude={"checkpoint", "model_name_or_path", "base_config"}),
        "base": None if base is None else base.model_dump(mode="json"),
        "weights": weights_id(loaded),
        "said": _said_beside_weights(run.checkpoint),
        "lr": [(printable(path.name), file_digest(path)) for path in sorted(lr)],
        "lucidnft": lucidnft.__version__,
        "torch": torch.__version__,
        "device": device.type,
    }
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=6).hexdigest()


def _said_beside_weights(checkpoint: str) -> dict[str, Any]:
    """What a checkpoint says of its base, its scales and how it is run, which weights alone do not tell."""
    path = Path(checkpoint)
    if checkpoint == BASE:
        return {}
    if is_adapter_folder(path) or is_merged(path):
        return {str(file.relative_to(path)): file_digest(file) for file in sorted(path.rglob("*.json"))}
    return dict(load_header(find_weights(path)))
