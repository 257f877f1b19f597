"""Evaluate folders of restored images, as papers do.

    python -m lucidnft.evaluation configs/eval/realsr.yaml methods.ours=restored output_dir=evaluation/realsr
    python -m lucidnft.evaluation --sr restored --hr HR --metrics psnr,ssim,musiq --output evaluation/mine

Writes scores.csv, scores.json, tables.md, tables.tex and report.html.  Run again, it continues where it was stopped
and computes only what is new.  Exit status: 0 when everything that was asked for has a score, 1 when an image or a
metric has none (it is named), 2 when nothing was started.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lucidnft.evaluation.settings import EvaluationConfig

FLAGS = {
    "sr": "methods",
    "sr_suffix": "sr_suffix",
    "hr": "hr",
    "lr": "lr",
    "hr_suffix": "hr_suffix",
    "lr_suffix": "lr_suffix",
    "metrics": "metrics",
    "protocol": "protocol",
    "output": "output_dir",
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; argparse ends the process with status 2 on a mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m lucidnft.evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config",
        nargs="*",
        metavar="CONFIG [key=value]",
        help="a file like configs/eval/*.yaml, and overrides",
    )
    folders = parser.add_argument_group("without a config, one folder of restored images")
    folders.add_argument("--sr", metavar="DIR", help="restored images")
    folders.add_argument(
        "--sr_suffix",
        metavar="TEXT",
        help="what their names have behind the stem, as _result in NAME_result.png",
    )
    folders.add_argument("--hr", metavar="DIR", help="their references")
    folders.add_argument("--lr", metavar="DIR", help="their low-resolution inputs")
    folders.add_argument(
        "--hr_suffix", metavar="TEXT", help="what names in --hr have behind the stem, as _HR"
    )
    folders.add_argument("--lr_suffix", metavar="TEXT", help="the same in --lr, as x4 in 0801x4.png")
    folders.add_argument(
        "--metrics",
        metavar="a,b",
        help="pyiqa metrics and rewards of this library by name (default: the protocol's)",
    )
    folders.add_argument(
        "--protocol", metavar="NAME", help="stablesr_crop (default), full_image, full_image_border4, rgb"
    )
    folders.add_argument("--output", metavar="DIR", help="where the results go")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes (default: one for each core, at most 8, or for each GPU)",
    )
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:<index> (default auto)")
    return parser.parse_args(argv)  # fmt: skip


def read_settings(args: argparse.Namespace) -> EvaluationConfig:
    """The settings of a command line.

    Raises:
        ValueError: flags that do not go together, or settings that are wrong; every problem is listed.
    """
    from lucidnft.evaluation.settings import parse_evaluation

    given = {flag: getattr(args, flag) for flag in FLAGS if getattr(args, flag) is not None}
    common = {name: getattr(args, name) for name in ("workers", "device") if getattr(args, name) is not None}
    if args.config:
        if given:
            wanted = ", ".join(f"{FLAGS[flag]}=..." for flag in given)
            raise ValueError(
                f"--{' --'.join(given)} cannot be combined with a config; write {wanted} behind {args.config[0]}"
            )
        from lucidnft.config import read_values

        values = read_values(Path(args.config[0]), args.config[1:])
        return parse_evaluation({**values, **common}, source=args.config[0])
    if missing := [f"--{flag}" for flag in ("sr", "output") if flag not in given]:
        raise ValueError(
            f"give a config, or --sr and --output ({' and '.join(missing)} missing); --help shows more"
        )
    name = Path(args.sr).resolve().name or "sr"
    values = {FLAGS[flag]: value for flag, value in given.items()}
    values |= {"benchmark": name, "methods": {method_name(name): args.sr}}
    if args.sr_suffix is not None:
        values["sr_suffix"] = {method_name(name): args.sr_suffix}
    if args.metrics is not None:
        values["metrics"] = [part.strip() for part in args.metrics.split(",") if part.strip()]
    return parse_evaluation({**values, **common}, source="the command line")


def method_name(folder: str) -> str:
    """A folder's name as the name of a method: other characters than names may have become _."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "_+- .") else "_" for c in folder)
    return name.rstrip(" .") or "sr"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    args = parse_args(argv)
    # Only now the libraries that take seconds to load: --help and typing mistakes answer at once.
    from lucidnft.checkpoint import CheckpointWriteError

    try:
        config = read_settings(args)
        from lucidnft.config import base_section
        from lucidnft.evaluation.evaluator import evaluate

        bases = {name: base_section(run.base_config) for name, run in config.run.items() if run.base_config}
        result = evaluate(config, bases=bases)
    except (ValueError, FileNotFoundError, ImportError) as error:
        return _stop(f"evaluation: {error}", 2)
    except (RuntimeError, OSError) as error:
        return _stop(f"evaluation stopped: {error}", 1)
    try:
        _write(config, result, method_column=bool(args.config))
    except CheckpointWriteError as error:
        return _stop(f"evaluation stopped, the scores are kept: {error}", 1)
    return 0 if result.complete else 1


def _write(config: EvaluationConfig, result: Any, *, method_column: bool) -> None:
    from lucidnft.evaluation.report import REPORT_FILE, write_report
    from lucidnft.evaluation.results import CSV_FILE, write_results
    from lucidnft.evaluation.summary import summarise
    from lucidnft.evaluation.tables import missing_lines, plain

    folder = Path(config.output_dir)
    summary = summarise(result)
    write_results(folder, result, summary, method_column=method_column)
    write_report(folder, result, summary)
    print(f"\n{result.benchmark}, protocol {result.protocol.name}:\n\n{plain(result, summary)}\n")
    for note in result.notes:
        print(f"note: {note}")
    print(f"scores: {folder / CSV_FILE}\nreport: {folder / REPORT_FILE}")
    if lines := missing_lines(result):
        print(f"evaluation: {len(lines)} without a number:", file=sys.stderr)
        print("".join(f"  {line}\n" for line in lines), end="", file=sys.stderr)


def _stop(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
