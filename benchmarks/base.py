"""The restorer on pairs of LR and HR images against bicubic: PSNR-Y, SSIM, FSIM, spectrum, flat-region noise.

    python benchmarks/base.py --lr DIR --hr DIR [--checkpoint base] [--num_inference_steps 4] [--limit N]

Per image, with 95 % bootstrap intervals of the mean; the noise of an image is keyed by its file name.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lucidnft.environment import git_commit
from lucidnft.images import list_images, read_image, resize, save_image, tensor_to_uint8
from lucidnft.inference import restore
from lucidnft.inference.checkpoints import load_policy
from lucidnft.statistics import bootstrap_means
from lucidnft.training.guards import Guards, luminance

FLAT_SHARE = 0.2  # of the blocks of HR, those with the least spread
BLOCK = 8  # pixels


def flat_spread(images: Tensor, hr: Tensor) -> list[float]:
    """Mean standard deviation of Y in 8 x 8 blocks, over the fifth of blocks where HR is flattest."""
    spreads = []
    for image, reference in zip(luminance(images), luminance(hr), strict=True):
        own, of_hr = (
            y.unfold(0, BLOCK, BLOCK).unfold(1, BLOCK, BLOCK).flatten(0, 1).flatten(1).std(dim=1)
            for y in (image, reference)
        )
        flattest = of_hr.argsort()[: max(1, int(FLAT_SHARE * len(of_hr)))]
        spreads.append(float(own[flattest].mean()))
    return spreads


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lr", type=Path, required=True)
    parser.add_argument("--hr", type=Path, required=True)
    parser.add_argument("--checkpoint", default="base")
    parser.add_argument("--num_inference_steps", type=int)
    parser.add_argument("--solver", default="euler")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--pictures", type=Path, help="folder for bicubic | restored | HR")
    args = parser.parse_args()
    policy, guards = load_policy(args.checkpoint), Guards()
    scores: dict[str, dict[str, list[float]]] = {"restored": {}, "bicubic": {}, "hr": {}}
    for path in tqdm(list_images(args.lr)[: args.limit]):
        lr, hr = read_image(path).rgb[None], read_image(args.hr / path.name).rgb[None]
        images = {
            "restored": restore(
                policy, lr, seed=args.seed, keys=[path.stem],
                num_inference_steps=args.num_inference_steps, solver=args.solver,
            ),
            "bicubic": resize(lr, (hr.shape[2], hr.shape[3])),
            "hr": hr,
        }  # fmt: skip
        # as saved files hold them: bicubic in floats has next to no high frequencies, rounded it has some
        images = {name: tensor_to_uint8(image).float() / 255 for name, image in images.items()}
        for name, image in images.items():
            measured = {} if name == "hr" else guards.of_batch(image, hr)
            for metric, values in {**measured, "flat_spread": flat_spread(image, hr)}.items():
                scores[name].setdefault(metric, []).extend(values)
        if args.pictures is not None:
            row = torch.cat([images["bicubic"], images["restored"], hr], dim=3)[0]
            args.pictures.mkdir(parents=True, exist_ok=True)
            save_image(args.pictures / f"{path.stem}.png", row)
    summary: dict[str, dict[str, list[float]]] = {}
    for name, metrics in scores.items():
        for metric, values in metrics.items():
            means = bootstrap_means(np.asarray(values), 2000, seed=0, key=metric)
            low, high = np.quantile(means, [0.025, 0.975])
            summary.setdefault(name, {})[metric] = [float(np.mean(values)), float(low), float(high)]
            print(f"{name:<10}{metric:<20}{np.mean(values):9.4f}  [{low:.4f}, {high:.4f}]  n {len(values)}")
    if args.output is not None:
        settings = {key: str(value) for key, value in vars(args).items() if key not in ("lr", "hr", "output")}
        record = {"commit": git_commit(), "settings": settings, "summary": summary, "per_image": scores}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
