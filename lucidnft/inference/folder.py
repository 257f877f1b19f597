"""Restoring files: which inputs become which outputs, and the loop over them.

One PNG per input under the same stem, with its depth, greyness, alpha and colour profile kept.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from lucidnft.images import UnreadableImageError, list_images, read_image, resize, save_image
from lucidnft.inference.tile_memory import is_out_of_memory

RestoreFunction = Callable[[Tensor, str], Tensor]
"""(lr (1, 3, h, w) in [0, 1], key) -> sr (1, 3, H, W) in [0, 1]."""

BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_inv_fmt}]{postfix}"


@dataclass(frozen=True)
class RestoreJob:
    """One input file and the PNG it becomes."""

    source: Path
    target: Path

    @property
    def key(self) -> str:
        """The stem, which keys the noise: a file gives the same pixels alone and in any folder."""
        return self.source.stem


@dataclass
class RestoreSummary:
    """What happened to the files of a folder."""

    restored: list[Path] = field(default_factory=list)  # outputs written
    skipped: list[Path] = field(default_factory=list)  # outputs that were there already
    failed: list[tuple[Path, str]] = field(default_factory=list)  # inputs, and the reason


def plan_jobs(source: str | Path, output_dir: str | Path, *, recursive: bool = False) -> list[RestoreJob]:
    """Inputs and outputs, sorted by path; `recursive` keeps sub-folders.

    Images already below output_dir are results, not inputs, when output_dir lies inside the input folder.

    Raises:
        FileNotFoundError: the input does not exist.
        ValueError: no image in the folder, two inputs would be written to one file, or an output would
            replace an input; nothing has been written then.
    """
    source, output_dir = Path(source), Path(output_dir)
    if not source.exists():
        raise FileNotFoundError(f"input {source} does not exist")
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"output_dir {output_dir} is a file; give a folder")
    folder = source if source.is_dir() else source.parent
    files = list_images(source, recursive) if source.is_dir() else [source]
    results = output_dir.resolve()
    if results != folder.resolve() and results.is_relative_to(folder.resolve()):
        files = [file for file in files if not file.resolve().is_relative_to(results)]
        if not files:
            raise ValueError(
                f"every image in '{folder}' lies in output_dir '{output_dir}'; nothing to restore"
            )
    jobs = [
        RestoreJob(file, output_dir / file.relative_to(folder).parent / f"{file.stem}.png") for file in files
    ]
    _check_targets(jobs)
    return jobs


def restore_files(
    jobs: Sequence[RestoreJob],
    restore_image: RestoreFunction,
    *,
    skip_existing: bool = False,
    progress: bool = True,
) -> RestoreSummary:
    """Restore file after file; one that cannot be read or restored is recorded and the rest go on.

    Raises:
        OSError: an output cannot be written, which would befall all that follow too.
    """
    summary = RestoreSummary()
    if skip_existing:
        summary.skipped = [job.target for job in jobs if job.target.exists()]
        jobs = [job for job in jobs if not job.target.exists()]
    bar = tqdm(jobs, desc="restore", unit="image", bar_format=BAR_FORMAT, disable=not progress)
    for job in bar:
        started = time.perf_counter()
        reason = restore_file(job, restore_image)
        if reason is None:
            summary.restored.append(job.target)
            bar.set_postfix_str(f"{job.source.name}: {time.perf_counter() - started:.1f} s")
        else:
            summary.failed.append((job.source, reason))
    return summary


def restore_file(job: RestoreJob, restore_image: RestoreFunction) -> str | None:
    """Restore one file; returns why it failed, or None.  Raises OSError when the output cannot be written."""
    try:
        image = read_image(job.source)
        sr = restore_image(image.rgb.unsqueeze(0), job.key)[0].cpu()
    except UnreadableImageError as error:
        return error.reason
    except ValueError as error:
        return str(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return "not enough memory to restore it; take smaller tiles (--tile_size) or another device"
    alpha = None
    if image.alpha is not None:
        alpha = resize(image.alpha.unsqueeze(0), (sr.shape[1], sr.shape[2]))[0]
    job.target.parent.mkdir(parents=True, exist_ok=True)
    save_image(
        job.target,
        sr,
        alpha=alpha,
        grey=image.was_grey,
        bit_depth=image.bit_depth,
        icc_profile=image.icc_profile,
    )
    return None


def _check_targets(jobs: Sequence[RestoreJob]) -> None:
    sources: defaultdict[Path, list[Path]] = defaultdict(list)
    for job in jobs:
        sources[job.target].append(job.source)
    shared = [
        f"{target.name} <- {', '.join(map(str, files))}"
        for target, files in sources.items()
        if len(files) > 1
    ]
    if shared:
        raise ValueError(
            f"{len(shared)} output(s) would be written by several inputs: {'; '.join(shared[:3])}; "
            "rename the inputs or restore them into different folders"
        )
    inputs = {job.source.resolve() for job in jobs}
    replaced = [str(job.target) for job in jobs if job.target.resolve() in inputs]
    if replaced:
        raise ValueError(
            f"{len(replaced)} output(s) would replace an input ({replaced[0]}); choose another output_dir"
        )
