"""Restore a photograph or a folder of them with a trained policy or with the base that ships.

Exit status: 0 when every image was restored or skipped, 1 when some failed, 2 when nothing was started, 130 when
it was interrupted.
"""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings
from functools import partial
from typing import TYPE_CHECKING

from lucidnft.sample.arguments import parse_args

if TYPE_CHECKING:
    from lucidnft.inference.folder import RestoreSummary
    from lucidnft.sample.processes import Processes
    from lucidnft.sample.setup import Work


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    args = parse_args(argv)
    # Only now the libraries that take seconds to load: --help and typing mistakes answer at once.
    from lucidnft.sample.processes import join_processes

    # Pillow's name no file; what they are about is reported by name
    warnings.filterwarnings("ignore", module=r"PIL\b")
    processes = join_processes()
    try:
        status = _run(args, processes)
    except KeyboardInterrupt:
        print("sample.py: interrupted; --skip_existing goes on where it stopped", file=sys.stderr)
        return 130
    processes.close()
    return status


def _run(args: argparse.Namespace, processes: Processes) -> int:
    from lucidnft.evaluation.pairing import printable
    from lucidnft.inference.device import give_back_memory
    from lucidnft.sample.checks import run_checks

    work = _prepared(args, processes)
    if work is None:
        return 2
    summary, stopped = restore_share(args, work, processes)
    shares = processes.gather((summary, stopped))
    if not processes.is_main:
        return 0  # the main process speaks for all: a launcher stops the others at the first other status
    restored, skipped, failed, notes = (
        [item for share, _ in shares for item in getattr(share, name)]
        for name in ("restored", "skipped", "failed", "notes")
    )
    print(f"{len(restored)} restored, {len(skipped)} skipped, {len(failed)} failed -> {args.output_dir}")
    for source, note in notes:
        print(f"note: {printable(str(source))}: {note}", file=sys.stderr)
    for source, reason in failed:
        print(f"failed: {printable(str(source))}: {reason}", file=sys.stderr)
    stops = sorted({reason for _, reason in shares if reason is not None})
    for reason in stops:
        print(f"sample.py: stopped: {reason}", file=sys.stderr)
    look = partial(
        run_checks,
        work.checks,
        work.jobs,
        work.output_dir,
        work.device,
        part=work.shard,
        largest=work.largest,
    )
    device = work.device
    del work  # the networks that score need the memory
    give_back_memory(device)
    try:
        missing = look()
    except Exception as error:  # the images are there, and what became of them has to be said
        missing = [f"sample.py: the outputs could not be looked at: {_explained(error)}"]
    for line in missing:
        print(line, file=sys.stderr)
    return 1 if failed or stops or missing else 0


def _prepared(args: argparse.Namespace, processes: Processes) -> Work | None:
    """The work of this process, if all have theirs and agree on the whole: they wait for each other later."""
    from lucidnft.sample.setup import prepare

    work, problem = None, None
    try:
        work = prepare(args, processes)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        problem = str(error)
        print(f"sample.py: {problem}", file=sys.stderr)
    states = processes.gather((problem, work and work.plan))
    if any(found is not None for found, _ in states):
        return None
    if len({plan for _, plan in states}) > 1:
        if processes.is_main:
            print(
                "sample.py: the input changed while the processes looked at it; start again", file=sys.stderr
            )
        return None
    return work


def restore_share(
    args: argparse.Namespace, work: Work, processes: Processes
) -> tuple[RestoreSummary, str | None]:
    """Restore the files of this process; what became of them, and why it stopped early if it did."""
    from lucidnft.environment import environment
    from lucidnft.inference.folder import RestoreSummary, restore_files
    from lucidnft.inference.tiled_images import folded
    from lucidnft.sample.manifest import Manifest, other_plans, other_settings

    if args.skip_existing and processes.is_main:
        different = other_settings(work.output_dir, work.settings)
        if different:
            print(f"sample.py: outputs that are there were made with {'; '.join(different)}", file=sys.stderr)
    strangers = (
        other_plans(work.output_dir, work.shard, work.plan) if work.shard and processes.is_main else []
    )
    if strangers:
        print(
            f"sample.py: {', '.join(strangers)} saw other input files than this shard, so some may be restored by "
            "none; start all shards again with --skip_existing",
            file=sys.stderr,
        )
    written = RestoreSummary()
    facts = {"shard": work.shard, "plan": work.plan, **environment(work.device, processes.count)}
    try:
        with folded(work.policy), Manifest(work.output_dir, work.settings, facts, work.part) as manifest:
            restore_files(
                work.batches, work.restore_images, work.output, skip_existing=args.skip_existing,
                progress=processes.is_main, record=manifest.add, summary=written,
            )  # fmt: skip
    except OSError as error:
        return written, f"cannot write: {error}"
    except Exception as error:  # the other processes wait for this one, and what it has done has to be said
        return written, _explained(error)
    return written, None


def _explained(error: Exception) -> str:
    """An error in a line; one that nobody expects is printed with where it came from."""
    if isinstance(error, (OSError, ValueError)):
        return str(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())
