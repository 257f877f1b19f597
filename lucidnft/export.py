"""The command lucidnft-export: a trained adapter as PEFT folders, or as plain weights with the base.

lucidnft-export runs/nft adapter                         # lora_dit/ (and lora_condition/), for the release's script
lucidnft-export runs/nft adapter --names diffusers       # the same for peft on diffusers' models
lucidnft-export runs/nft merged --merge                  # the base with the adapter added in
"""

from __future__ import annotations

import argparse
import sys


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; argparse ends the process with status 2 on a mistake."""
    about = "Write a trained adapter as PEFT folders, or merged into its base."
    parser = argparse.ArgumentParser(prog="lucidnft-export", description=about)
    places = parser.add_argument_group("from and to")
    sources = "policy.safetensors, a checkpoint folder, a run folder (its latest), or PEFT folders"
    places.add_argument("checkpoint", metavar="CHECKPOINT", help=sources)
    places.add_argument("output_dir", metavar="OUTPUT_DIR", help="a new or empty folder")
    form = parser.add_argument_group("what is written").add_mutually_exclusive_group()
    form.add_argument(
        "--names", choices=("release", "diffusers"), default=None,
        help="of LucidFlux's layers: as the LucidNFT release's script loads them (default), or as diffusers' models "
        "have them, for peft; other backbones have one naming",
    )  # fmt: skip
    form.add_argument("--merge", action="store_true", help="plain weights, the adapter added into the base")
    base = parser.add_argument_group("where the base is").add_mutually_exclusive_group()
    base.add_argument(
        "--model_name_or_path", metavar="PATH", help="with --merge: base weights that have moved"
    )
    base.add_argument(
        "--base_config",
        metavar="FILE",
        help="a run file whose model: section is the base of somebody's PEFT folder",
    )
    args = parser.parse_args(argv)
    if args.model_name_or_path and not args.merge:
        parser.error("--model_name_or_path is read with --merge only: PEFT folders need no base")
    return args


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status: 0, or 2 when nothing was written."""
    args = parse_args(argv)
    # only now the libraries that take seconds to load
    from lucidnft.config import base_section
    from lucidnft.inference.adapter_export import export_adapter

    try:
        written = export_adapter(
            args.checkpoint, args.output_dir, names=args.names or "release", merge=args.merge,
            model_name_or_path=args.model_name_or_path,
            base=base_section(args.base_config) if args.base_config else None,
        )  # fmt: skip
    except (ValueError, OSError, ImportError) as error:
        print(f"lucidnft-export: {error}", file=sys.stderr)
        return 2
    print(f"{written} -> {args.output_dir}")
    return 0
