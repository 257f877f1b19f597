"""What `--fidelity` trades: error against detail on pairs, at several settings, and whether it is monotone.

    python benchmarks/fidelity.py --lr DIR --hr DIR [--checkpoint base] [--levels 0,0.25,0.5,0.75,1] [--limit 20]

Pairs belong together by their stems.  Error: PSNR on Y of YCbCr, no border, and LR fidelity (how well the output,
shrunk, is the input; 0 is best).  Detail: the mean absolute difference of neighbouring pixels over that of the HR
image.  Means over images with 95 % bootstrap intervals, and how many images move the same way at every step.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from lucidnft.checkpoint import save_json
from lucidnft.environment import git_commit
from lucidnft.images import list_images, read_image
from lucidnft.inference import load_policy, restore
from lucidnft.rewards import FullReferenceReward, build_reward
from lucidnft.statistics import mean_interval

RESULTS = Path(__file__).parent / "results" / "fidelity.json"
RISES = {"psnr_y": True, "lr_fidelity": True, "detail": False}
"""Which way each number should go with more fidelity."""


def detail(images: Tensor) -> float:
    """Mean absolute difference of neighbours, both ways."""
    return float(images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean())


def scores_of(
    pairs: list[tuple[Path, Path]], checkpoint: str, levels: list[float]
) -> dict[str, list[list[float]]]:
    """metric -> image -> level -> score."""
    policy = load_policy(checkpoint)
    rewards = {
        "psnr_y": FullReferenceReward("psnr", color_space="ycbcr_y"), "lr_fidelity": build_reward("lr_fidelity"),
    }  # fmt: skip
    found: dict[str, list[list[float]]] = {name: [] for name in RISES}
    for lr_path, hr_path in pairs:
        lr, hr = (read_image(path).rgb[None] for path in (lr_path, hr_path))
        row: dict[str, list[float]] = {name: [] for name in RISES}
        for level in levels:
            size = (hr.shape[2], hr.shape[3])
            sr = restore(policy, lr, keys=[lr_path.stem], size=size, fidelity=level)
            sr = sr.mul(255).round().div(255)  # as it would be read from its file
            for name, reward in rewards.items():
                row[name].append(float(reward(sr, lr=lr, hr=hr)))
            row["detail"].append(detail(sr) / detail(hr))
        for name, values in row.items():
            found[name].append(values)
    return found


def summary(scores: dict[str, list[list[float]]], levels: list[float]) -> dict[str, Any]:
    """Means with intervals by level, and the images that are monotone."""
    result: dict[str, Any] = {}
    for name, rows in scores.items():
        columns = list(zip(*rows, strict=True))
        steps = [[b - a for a, b in zip(row, row[1:], strict=False)] for row in rows]
        good = sum(all((step > 0) == RISES[name] for step in row) for row in steps)
        result[name] = {
            "levels": {
                str(level): {"mean": fmean(column), "interval": mean_interval(column, key=name)}
                for level, column in zip(levels, columns, strict=True)
            },
            "monotone_images": good,
            "images": len(rows),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lr", type=Path, required=True)
    parser.add_argument("--hr", type=Path, required=True)
    parser.add_argument("--checkpoint", default="base")
    parser.add_argument("--levels", default="0,0.25,0.5,0.75,1")
    parser.add_argument("--limit", type=int, help="the first pairs only")
    args = parser.parse_args()
    levels = [float(level) for level in args.levels.split(",")]
    references = {path.stem: path for path in list_images(args.hr)}
    pairs = [(path, references[path.stem]) for path in list_images(args.lr)][: args.limit]
    result = summary(scores_of(pairs, args.checkpoint, levels), levels)
    for name, found in result.items():
        print(f"{name}: {found['monotone_images']} of {found['images']} images monotone")
        for level, value in found["levels"].items():
            ends = value["interval"]
            shown = "" if ends is None else f"  [{ends[0]:.4f}, {ends[1]:.4f}]"
            print(f"  fidelity {level:<5}{value['mean']:10.4f}{shown}")
    save_json(
        RESULTS,
        {"commit": git_commit(), "torch": torch.__version__, "checkpoint": args.checkpoint, "result": result},
    )


if __name__ == "__main__":
    main()
