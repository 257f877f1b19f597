"""From the command line to everything a run needs, so that what cannot work is said before anything is restored."""

from __future__ import annotations

import argparse
import errno
import math
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lucidnft.backbones.base import Backbone
from lucidnft.config import base_section
from lucidnft.inference import load_policy
from lucidnft.inference.batching import Batch, plan_batches, plan_digest, share_of
from lucidnft.inference.checkpoints import weights_id
from lucidnft.inference.device import move_to
from lucidnft.inference.folder import OutputSettings, RestoredImage, RestoreFunction
from lucidnft.inference.jobs import RestoreJob, plan_jobs
from lucidnft.inference.restore import check_settings, restore
from lucidnft.inference.sizes import asked_size, output_size
from lucidnft.inference.speed_settings import prepare_for_restoring
from lucidnft.policy import Policy
from lucidnft.sample.candidates import Candidates, build_candidates
from lucidnft.sample.checks import NO_CHECKS, Checks, plan_checks
from lucidnft.sample.processes import Processes

LEFT_OUT = (
    "input",
    "output_dir",
    "recursive",
    "skip_existing",
    "shard",
    "metrics",
    "save_map",
    "compare",
    "device",
)
"""Options that a manifest's settings do not repeat: they say which files, or look at what was restored."""

RESTORE_OPTIONS = (
    "num_inference_steps", "solver", "fidelity", "align_method", "align_to", "tile_size", "tile_overlap",
    "process_size", "batch_size",
)  # fmt: skip
"""Options that `restore` takes under the same names."""


@dataclass(frozen=True)
class Work:
    """What one process has to do."""

    output_dir: Path
    jobs: list[RestoreJob]  # of all processes that were launched together
    plan: str  # which files those of all shards are, and how they go together
    batches: list[Batch]  # the share of this one
    policy: Policy | Backbone
    restore_images: RestoreFunction
    output: OutputSettings
    settings: dict[str, Any]  # for the manifest
    device: torch.device
    checks: Checks
    largest: int  # pixels of the largest output
    shard: str  # which shard this is, in the names of files; "" when it is all
    part: str  # which shard and process


def prepare(args: argparse.Namespace, processes: Processes) -> Work:
    """Plan the files and load the networks of this process.

    Raises:
        ValueError, OSError, ImportError: something that the command line asks for cannot be had.
    """
    output_dir = Path(args.output_dir)
    jobs = plan_jobs(
        args.input, output_dir, recursive=args.recursive, image_format=args.format, full_names=args.full_names
    )
    check_places(args, jobs, output_dir)
    batches = plan_batches(jobs, args.batch_size)
    plan = plan_digest(batches)
    if args.shard is not None:
        batches = share_of(batches, *args.shard)
    jobs = [job for batch in batches for job in batch.jobs]
    checks = plan_checks(args) if processes.is_main else NO_CHECKS
    device = processes.device(args.device)
    base = base_section(args.base_config) if args.base_config else None
    loaded = load_policy(args.checkpoint, model_name_or_path=args.model_name_or_path, base=base)
    policy = move_to(loaded, device)
    prepare_for_restoring(policy, dtype=args.dtype, compile=args.compile)
    settings = {name: value for name, value in sorted(vars(args).items()) if name not in LEFT_OUT}
    settings["weights"] = weights_id(policy)
    output = OutputSettings(
        bit_depth="auto" if args.bit_depth == "auto" else 16 if args.bit_depth == "16" else 8,
        quality=args.quality,
        keep_metadata=args.keep_metadata,
        size_of=size_function(args),
        place_candidate=_candidate_places(output_dir) if args.keep_candidates else None,
    )
    restore_images = restore_function(args, policy, device)
    check_writable(output_dir)
    check_case(jobs, output_dir)
    return Work(
        output_dir,
        jobs,
        plan,
        share_of(batches, processes.index, processes.count),
        policy,
        restore_images,
        output,
        settings,
        device,
        checks,
        _largest(batches, size_function(args)),
        _shard(args),
        _part(args, processes),
    )


def size_function(args: argparse.Namespace) -> Callable[[int, int], tuple[int, int]]:
    """(h, w) of an input -> (H, W) of its output, as the command line asks."""
    if args.upscale is not None:
        return partial(output_size, upscale=args.upscale)
    return partial(asked_size, to_height=args.height, to_width=args.width, fit=args.fit)


def restore_function(
    args: argparse.Namespace, policy: Policy | Backbone, device: torch.device
) -> RestoreFunction:
    """What is done to images of one size, as the command line asks.

    Raises:
        ValueError: settings with which no image can be restored, or by which no candidate can be chosen.
    """

    size_of, options = size_function(args), {name: getattr(args, name) for name in RESTORE_OPTIONS}
    check_settings(policy, **options)
    storage = "cpu" if args.storage == "cpu" else None

    def restore_batch(lr: Tensor, keys: Sequence[str]) -> Tensor:
        size = size_of(lr.shape[2], lr.shape[3])
        return restore(policy, lr, keys=keys, size=size, seed=args.seed, storage=storage, **options)

    if args.num_samples == 1:
        return lambda lr, keys: [RestoredImage(sr) for sr in restore_batch(lr, keys)]
    candidates = build_candidates(args.select_by, args.num_samples, device)
    return _choosing(restore_batch, candidates)


def _choosing(
    restore_batch: Callable[[Tensor, Sequence[str]], Tensor], candidates: Candidates
) -> RestoreFunction:
    def choose(lr: Tensor, key: str) -> RestoredImage:
        keys = candidates.keys(key)
        drawn = restore_batch(lr.unsqueeze(0).expand(len(keys), -1, -1, -1), keys)
        choice = candidates.choose(lr, drawn, key=key)
        others = {f"sample{i}": sr for i, sr in enumerate(drawn) if i != choice.index}
        facts = {"sample": choice.index, "scores": choice.scores, "advantages": choice.advantages}
        kept = drawn[choice.index].clone()  # a view would hold all of them until it is written
        return RestoredImage(kept, facts, others)

    return lambda lr, keys: [choose(image, key) for image, key in zip(lr, keys, strict=True)]


def _candidate_places(output_dir: Path) -> Callable[[Path, str], Path]:
    """out/sub/cat.png -> out/candidates/sub/cat.sample1.png"""

    def place(output: Path, name: str) -> Path:
        path = output_dir / "candidates" / output.relative_to(output_dir)
        return path.with_name(f"{path.stem}.{name}{path.suffix}")

    return place


def check_places(args: argparse.Namespace, jobs: Sequence[RestoreJob], output_dir: Path) -> None:
    """Raise a ValueError if outputs would lie among other files that the command writes."""
    taken = {"candidates": args.keep_candidates, "maps": args.save_map, "compare": args.compare}
    for job in jobs:
        name, *below = job.target.relative_to(output_dir).parts
        if below and taken.get(name):
            raise ValueError(
                f"{job.source} would be written into {output_dir / name}, where other files go that were asked for; "
                "rename that sub-folder of the input"
            )


def check_case(jobs: Sequence[RestoreJob], output_dir: Path) -> None:
    """Raise a ValueError if outputs differ by upper and lower case alone and the disk does not tell them apart."""
    alike: defaultdict[str, list[Path]] = defaultdict(list)
    for job in jobs:
        alike[str(job.target).casefold()].append(job.source)
    shared = [files for files in alike.values() if len(files) > 1]
    if shared and ignores_case(output_dir):
        raise ValueError(
            f"{output_dir} does not tell upper from lower case, and {' and '.join(map(str, shared[0]))} differ in it "
            "alone; rename one"
        )


def ignores_case(folder: Path) -> bool:
    """Whether "a" and "A" are one file there; asked of a file that is made for it."""
    with tempfile.NamedTemporaryFile(prefix=".case", dir=folder) as file:
        return os.path.exists(folder / Path(file.name).name.swapcase())


def check_writable(folder: Path) -> None:
    """Make the folder, and raise an OSError unless files can be made in it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, "the output folder cannot be written", str(folder))


def _largest(batches: Sequence[Batch], size_of: Callable[[int, int], tuple[int, int]]) -> int:
    """Pixels of the largest output that can be promised."""
    most = 0
    for batch in batches:
        if batch.size is not None:
            with suppress(ValueError):  # a size that this image cannot have
                most = max(most, math.prod(size_of(*batch.size)))
    return most


def _shard(args: argparse.Namespace) -> str:
    return "" if args.shard is None else f"shard-{args.shard[0] + 1}-of-{args.shard[1]}"


def _part(args: argparse.Namespace, processes: Processes) -> str:
    process = f"process-{processes.index + 1}-of-{processes.count}" if processes.count > 1 else ""
    return ".".join(part for part in (_shard(args), process) if part)
