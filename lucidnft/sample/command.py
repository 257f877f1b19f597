"""Restore a photograph or a folder of them with a trained policy or with the base that ships.

Exit status: 0 when every image was restored or skipped, 1 when some failed, 2 when nothing was started.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from lucidnft.sample.arguments import parse_args

if TYPE_CHECKING:
    from torch import Tensor


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    args = parse_args(argv)
    # Only now the libraries that take seconds to load: --help and typing mistakes answer at once.
    from lucidnft.config import base_section
    from lucidnft.inference import load_policy, restore
    from lucidnft.inference.device import choose_device, move_to
    from lucidnft.inference.folder import plan_jobs, restore_files
    from lucidnft.inference.sizes import asked_size

    try:
        jobs = plan_jobs(args.input, args.output_dir, recursive=args.recursive)
        device = choose_device(args.device)
        base = base_section(args.base_config) if args.base_config else None
        loaded = load_policy(args.checkpoint, model_name_or_path=args.model_name_or_path, base=base)
        policy = move_to(loaded, device)
    except (ValueError, OSError, ImportError) as error:
        print(f"sample.py: {error}", file=sys.stderr)
        return 2

    def restore_image(lr: Tensor, key: str) -> Tensor:
        size = None
        if args.upscale is None:
            size = asked_size(
                lr.shape[2], lr.shape[3], to_height=args.height, to_width=args.width, fit=args.fit
            )
        return restore(
            policy, lr, keys=[key], upscale=args.upscale, size=size, seed=args.seed, solver=args.solver,
            num_inference_steps=args.num_inference_steps, fidelity=args.fidelity, align_method=args.align_method,
            align_to=args.align_to, tile_size=args.tile_size, tile_overlap=args.tile_overlap,
            process_size=args.process_size, batch_size=args.batch_size,
            storage="cpu" if args.storage == "cpu" else None,
        )  # fmt: skip

    try:
        summary = restore_files(jobs, restore_image, skip_existing=args.skip_existing)
    except OSError as error:
        print(f"sample.py: stopped, cannot write: {error}", file=sys.stderr)
        return 1
    print(
        f"{len(summary.restored)} restored, {len(summary.skipped)} skipped, {len(summary.failed)} failed"
        f" -> {args.output_dir}"
    )
    for source, reason in summary.failed:
        print(f"failed: {source}: {reason}", file=sys.stderr)
    return 1 if summary.failed else 0
