"""What the shipped rewards say about real pairs: bicubic, the base, HR, and the outputs of other methods.

    python benchmarks/rewards.py --lr DIR.. --hr DIR.. [--sr NAME=DIR.. ...] [--output FILE]

Scores every image with every reward and prints the mean of each kind of image, and how often one kind scores
above another on the same LR image.  Several folders may follow --lr, --hr and NAME=DIR, in the same order; files
of a pair share their name.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lucidnft.environment import git_commit
from lucidnft.images import list_images, read_image, resize, tensor_to_uint8
from lucidnft.inference import restore
from lucidnft.inference.checkpoints import load_policy
from lucidnft.rewards import build_reward
from lucidnft.statistics import bootstrap_means

REWARDS = ("lucid_consistency", "quality_net", "lr_fidelity")


def versions_of(
    path: Path, lr: Tensor, hr: Tensor, base: object, others: dict[str, Path]
) -> dict[str, Tensor]:
    """{kind: (1, 3, H, W)} of one LR image, in the 8-bit steps of saved files."""
    images = {
        "bicubic": resize(lr, (hr.shape[2], hr.shape[3])),
        "base": restore(base, lr, keys=[path.stem]),  # type: ignore[arg-type]
        **{name: read_image(folder / path.name).rgb[None] for name, folder in others.items()},
        "HR": hr,
    }
    return {name: tensor_to_uint8(image).float() / 255 for name, image in images.items()}


def interval(values: np.ndarray, key: str) -> tuple[float, float, float]:
    """Mean and its 95 % bootstrap interval."""
    low, high = np.quantile(bootstrap_means(values, 2000, seed=0, key=key), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lr", type=Path, nargs="+", required=True)
    parser.add_argument("--hr", type=Path, nargs="+", required=True)
    parser.add_argument("--sr", nargs="+", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    others = [dict(entry.split("=", 1) for entry in row) for row in zip(*args.sr, strict=True)]
    others = others or [{} for _ in args.lr]
    base = load_policy("base")
    rewards = {name: build_reward(name) for name in REWARDS}
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in REWARDS}
    for lr_folder, hr_folder, folders in zip(args.lr, args.hr, others, strict=True):
        for path in tqdm(list_images(lr_folder), desc=str(lr_folder)):
            lr, hr = read_image(path).rgb[None], read_image(hr_folder / path.name).rgb[None]
            paths = {name: Path(folder) for name, folder in folders.items()}
            for kind, image in versions_of(path, lr, hr, base, paths).items():
                for name, reward in rewards.items():
                    with torch.no_grad():
                        scores[name].setdefault(kind, []).append(float(reward(image, lr=lr)))
    print("| reward | image | n | mean | 95 % interval |\n| --- | --- | ---: | ---: | --- |")
    for name, of_kind in scores.items():
        for kind, values in of_kind.items():
            mean, low, high = interval(np.asarray(values), f"{name}/{kind}")
            print(f"| {name} | {kind} | {len(values)} | {mean:.4f} | [{low:.4f}, {high:.4f}] |")
    for name, of_kind in scores.items():
        for (worse, low), (better, high) in pairwise(of_kind.items()):
            wins = int((np.asarray(high) > np.asarray(low)).sum())
            print(f"{name}: {better} above {worse} in {wins} of {len(low)}")
    if args.output is not None:
        args.output.write_text(json.dumps({"commit": git_commit(), "scores": scores}, indent=1) + "\n")


if __name__ == "__main__":
    main()
