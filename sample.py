"""Restore a photograph or a folder of them with a trained policy or with the base that ships.

    python sample.py --input photos --output_dir restored --checkpoint runs/nft --upscale 4

Exit status: 0 when every image was restored or skipped, 1 when some failed, 2 when nothing was started.
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def above_zero(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def at_least_one(text: str) -> int:
    """A whole number, 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; argparse ends the process with status 2 on a mistake."""
    parser = argparse.ArgumentParser(
        description="Restore a photograph or a folder of them: one PNG per input, under the same stem."
    )
    parser.add_argument(
        "-i", "--input", required=True, metavar="PATH", help="an image, or a folder of images"
    )
    parser.add_argument("-o", "--output_dir", required=True, metavar="DIR", help="where the PNGs go")
    parser.add_argument(
        "--checkpoint", default="base", metavar="PATH",
        help="policy.safetensors, base weights, a checkpoint folder, a run folder (its latest), PEFT folders, merged "
        "weights, or 'base' for that of --base_config, else the tiny base that ships (default)",
    )  # fmt: skip
    parser.add_argument(
        "--model_name_or_path",
        metavar="PATH",
        help="base weights of the adapter, if they have moved since training",
    )
    parser.add_argument(
        "--base_config", metavar="FILE",
        help="a run file whose model: section is the base, for a PEFT folder that does not say it",
    )  # fmt: skip
    parser.add_argument(
        "--upscale", type=above_zero, default=4.0, help="output size over input size (default 4)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="noise depends on it and on the file's stem (default 0)"
    )
    parser.add_argument(
        "--num_inference_steps", type=at_least_one, help="solver steps (default: the model's own, 4 for tiny)"
    )
    parser.add_argument("--solver", choices=("euler", "heun", "dpm2"), default="euler")
    parser.add_argument(
        "--align_method", choices=("wavelet", "adain", "nofix"), default="nofix",
        help="take colours from the input; the tiny base keeps them by itself (default nofix)",
    )  # fmt: skip
    parser.add_argument("--skip_existing", action="store_true", help="leave outputs that are there already")
    parser.add_argument("--recursive", action="store_true", help="take sub-folders too, and keep them")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<index> (default auto)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    args = parse_args(argv)
    # Only now the libraries that take seconds to load: --help and typing mistakes answer at once.
    from lucidnft.config import base_section
    from lucidnft.inference import load_policy, restore
    from lucidnft.inference.device import choose_device, move_to
    from lucidnft.inference.folder import plan_jobs, restore_files

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
        return restore(
            policy, lr, keys=[key], upscale=args.upscale, seed=args.seed, solver=args.solver,
            num_inference_steps=args.num_inference_steps, align_method=args.align_method,
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


if __name__ == "__main__":
    sys.exit(main())
