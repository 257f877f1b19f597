"""What a consistency reward measures: matching, invariance to degradation, hallucinated regions, the trap, cost.

    python benchmarks/consistency.py --rewards FILE.yaml --photographs DIR --lr DIR.. --hr DIR.. [--sr NAME=DIR..]

FILE.yaml names the rewards to compare, each as in a run file (`pools: {type: lucid_consistency}`), or as a list of
such, the seeds of one training.  Real pairs share their file names; several folders may follow --lr, --hr and
NAME=DIR, in the same order.  The photographs, which no reward may have trained on, give the synthetic pools.
Writes consistency.json and consistency.png (matplotlib, in the extra `dev`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from consistency_figure import draw
from consistency_report import Results, summary, tables
from nft_step import Step, Stopwatch
from omegaconf import OmegaConf
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

from lucidnft.advantages import decoupled_advantages
from lucidnft.algorithms.nft import NFTSettings
from lucidnft.data.degradation import Degradation, Preset, aligned, replay
from lucidnft.data.region_swaps import Filling, draw_swap_mask, swap_region, visible_swap
from lucidnft.environment import git_commit
from lucidnft.images import list_images, read_image, resize, tensor_to_uint8
from lucidnft.rewards import LucidConsistency, RewardSuite, build_reward
from lucidnft.rewards.embedders import ImageEmbedder, lr_as_embedded
from lucidnft.rng import numpy_generator_for
from lucidnft.rollout import RolloutConfig
from lucidnft.training.photographs import Photographs

PRESETS: tuple[Preset, ...] = ("realesrgan", "light", "bsrgan")
POOL = 10  # degradations of one photograph
AREAS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
DRAWS = 2  # regions of each area in each photograph
FILLINGS: tuple[Filling, ...] = ("foreign", "texture", "own")
ATTEMPTS = 20  # masks tried for a swap that shows
CROP = 240  # pixels of a photograph; the smallest of the usual sets has 250


class Embeddings:
    """Raw embeddings of every image that is asked for, computed once however many heads look at them."""

    def __init__(self, embedder: ImageEmbedder) -> None:
        self.embedder = embedder
        self._kept: dict[tuple[str, int], Tensor] = {}

    def of(self, what: str, images: list[Tensor]) -> Tensor:
        """(N, L, D) of SR images (3, H, W) of one size; `what` names this list of images."""
        for index, image in enumerate(images):
            if (what, index) not in self._kept:
                with torch.no_grad():
                    self._kept[what, index] = self.embedder.embed(image[None])[0].half()
        return torch.stack([self._kept[what, index] for index in range(len(images))]).float()

    def of_lr(self, what: str, images: list[Tensor], size: tuple[int, int]) -> Tensor:
        """The same of LR images beside SR of `size`."""
        return self.of(what, [lr_as_embedded(self.embedder, image[None], size)[0] for image in images])


@dataclass(frozen=True)
class Scorer:
    """A reward taken apart: embeddings, which other rewards may share, and what it makes of them."""

    embeddings: Embeddings
    reward: LucidConsistency

    def sr(self, what: str, images: list[Tensor]) -> Tensor:
        """(N, L, D) projected embeddings."""
        return self.reward.project_embeddings(self.embeddings.of(what, images)).detach()

    def lr(self, what: str, images: list[Tensor], size: tuple[int, int]) -> Tensor:
        """(N, L, D) projected embeddings of LR images beside SR of `size`."""
        return self.reward.project_embeddings(self.embeddings.of_lr(what, images, size)).detach()


def cosines(first: Tensor, second: Tensor) -> np.ndarray:
    """(N, L, D) twice, or one of them (1, L, D) -> (N,): the scores."""
    return (first * second).sum(dim=-1).mean(dim=-1).double().numpy()


def matching(scorer: Scorer, what: str, lr: list[Tensor], hr: list[Tensor]) -> dict[str, Any]:
    """Scores of every LR image with every HR image: own, others, and the area under the ROC curve."""
    restored = scorer.sr(f"{what}/hr", hr)
    known = scorer.lr(f"{what}/lr", lr, (hr[0].shape[1], hr[0].shape[2]))
    table = np.array([cosines(row[None], restored) for row in known])
    own, others = table.diagonal(), table[~np.eye(len(table), dtype=bool)]
    wins = (own[:, None] > others).mean() + 0.5 * (own[:, None] == others).mean()
    return {"own": own.tolist(), "others": others.tolist(), "auc": float(wins)}


def degraded_pool(image: Tensor, index: int) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """POOL LR versions of a photograph (3, s, s) and their records, spread over the presets."""
    drawn = []
    for k in range(POOL):
        generator = numpy_generator_for(0, "benchmark/pool", index, k)
        drawn.append(Degradation(PRESETS[k % len(PRESETS)])(image, generator))
    return [lr for lr, _ in drawn], [record for _, record in drawn]


def invariance(scorer: Scorer, pools: list[list[Tensor]], photographs: list[Tensor]) -> dict[str, Any]:
    """Standard deviation of the score in each pool, and its rank correlation with the degradation's strength.

    Strength: mean squared difference of the enlarged LR image and the photograph.
    """
    spreads, correlations, points = [], [], []
    originals = scorer.sr("synthetic/hr", photographs)
    for index, (pool, image) in enumerate(zip(pools, photographs, strict=True)):
        size = (image.shape[1], image.shape[2])
        scores = cosines(scorer.lr(f"pool{index}", pool, size), originals[index : index + 1])
        strength = (resize(torch.stack(pool), size) - image).square().mean(dim=(1, 2, 3)).numpy()
        spreads.append(float(scores.std(ddof=1)))
        correlations.append(float(spearmanr(scores, strength).statistic))
        points += [[float(a), float(b)] for a, b in zip(strength, scores, strict=True)]
    return {"spread": spreads, "correlation": correlations, "points": points}


def swaps_of(photographs: list[Tensor]) -> list[dict[str, Any]]:
    """Altered copies of every photograph: {photograph, area, filling, image}; only swaps that show."""
    found = []
    for index, image in enumerate(tqdm(photographs, desc="swaps")):
        for area, filling, draw_number in itertools.product(AREAS, FILLINGS, range(DRAWS)):
            donor = photographs[(index + 1 + draw_number) % len(photographs)]
            for attempt in range(ATTEMPTS):
                generator = numpy_generator_for(0, "benchmark/swap", index, str(area), draw_number, attempt)
                mask = draw_swap_mask(generator, CROP, CROP, area)
                swapped = swap_region(image, mask, filling, generator, donor=donor)
                if filling == "own" or visible_swap(image, swapped, mask):
                    found.append({"photograph": index, "area": area, "filling": filling, "image": swapped})
                    break
    return found


def versions_of(
    photographs: list[Tensor], swaps: list[dict[str, Any]], records: list[list[dict[str, Any]]]
) -> list[dict[str, list[Tensor]]]:
    """Per photograph, unaltered and then its swaps: restored, as they are; degraded, under the second record."""
    found = []
    for index, image in enumerate(tqdm(photographs, desc="versions")):
        images = [image, *(swap["image"] for swap in swaps if swap["photograph"] == index)]
        record = aligned(records[index][1])
        again = resize(torch.stack([replay(version, record) for version in images]), (CROP, CROP))
        found.append({"restored": images, "degraded": list(again)})
    return found


def hallucination(
    scorer: Scorer,
    swaps: list[dict[str, Any]],
    versions: list[dict[str, list[Tensor]]],
    pools: list[list[Tensor]],
) -> list[dict[str, Any]]:
    """Score of the unaltered minus that of the altered image against one LR image of the photograph.

    restored: both as they are.  degraded: both under one degradation, another than that of the LR image.
    across: both as they are, each against another LR image of the photograph, averaged over all pairs of these.
    """
    rows = []
    for index, kinds in enumerate(versions):
        own = [swap for swap in swaps if swap["photograph"] == index]
        known = scorer.lr(f"pool{index}", pools[index], (CROP, CROP))
        for where, images in kinds.items():
            embedded = scorer.sr(f"{where}{index}", images)
            scores = np.stack([cosines(embedded, low[None]) for low in known])  # (POOL, 1 + swaps)
            for number, swap in enumerate(own, start=1):
                facts = {key: swap[key] for key in ("photograph", "area", "filling")}
                drop = float(scores[0, 0] - scores[0, number])
                rows.append({**facts, "where": where, "drop": drop, "found": float(drop > 0)})
                if where == "restored":
                    drops = (scores[:, :1] - scores[:, number])[~np.eye(POOL, dtype=bool)]
                    found = float((drops > 0).mean())
                    rows.append({**facts, "where": "across", "drop": float(drops.mean()), "found": found})
    return rows


def trap(
    scorer: Scorer, lr: list[Tensor], hr: list[Tensor], others: dict[str, list[Tensor]]
) -> dict[str, list[float]]:
    """Scores against the same LR image of its enlargement, of published restorations and of HR, in 8-bit steps."""
    size = (hr[0].shape[1], hr[0].shape[2])
    known = scorer.lr("real/lr", lr, size)
    kinds = {"bicubic": [resize(low[None], size)[0] for low in lr], **others, "HR": hr}
    rounded = {
        kind: [tensor_to_uint8(image[None])[0].float() / 255 for image in images]
        for kind, images in kinds.items()
    }
    return {
        kind: cosines(scorer.sr(f"trap/{kind}", images), known).tolist() for kind, images in rounded.items()
    }


def cost(reward: LucidConsistency, lr: list[Tensor], hr: list[Tensor]) -> dict[str, float]:
    """Images scored per second in groups of 8, and the share of a step of the tiny backbone that this reward takes.

    The fastest of three rounds each.  LR is embedded once per group; the step has 6 LR images x 8 rollouts of
    96 px and no other reward.
    """
    groups = torch.stack([image.expand(8, -1, -1, -1) for image in hr[:3]])
    seconds = []
    with torch.no_grad():
        for _ in range(3):
            started = time.perf_counter()
            for sr, low in zip(groups, lr[:3], strict=True):
                reward(sr, lr=low.expand(8, -1, -1, -1))
            seconds.append(time.perf_counter() - started)
    rollout = RolloutConfig(num_groups=6, group_size=8, num_inference_steps=4)
    step = Step(NFTSettings(), rollout, crop_size=24)
    step.suite = RewardSuite({"consistency": reward})
    made = step.rollout(step.condition())
    advantages = decoupled_advantages(step.reward(step.decode(made)), torch.ones(1))
    watch = Stopwatch(step)
    for _ in range(3):
        watch.round((made, advantages))
    return {
        "images_per_second": groups.shape[0] * groups.shape[1] / min(seconds),
        "share_of_step": watch.milliseconds("reward", min) / watch.milliseconds("step", min),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rewards", type=Path, required=True)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--lr", type=Path, nargs="+", required=True)
    parser.add_argument("--hr", type=Path, nargs="+", required=True)
    parser.add_argument("--sr", nargs="+", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--output_dir", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    configs = OmegaConf.to_container(OmegaConf.load(args.rewards), resolve=True)
    assert isinstance(configs, dict)
    pairs = [
        (path, hr / path.name) for lr, hr in zip(args.lr, args.hr, strict=True) for path in list_images(lr)
    ]
    lr, hr = ([read_image(path).rgb for path in side] for side in zip(*pairs, strict=True))
    others: dict[str, list[Tensor]] = {}
    for row in args.sr:
        name = row[0].split("=", 1)[0]
        folders = [Path(entry.split("=", 1)[-1]) for entry in row]
        others[name] = [
            read_image(folder / path.name).rgb
            for source, folder in zip(args.lr, folders, strict=True)
            for path in list_images(source)
        ]
    crops = Photographs(list_images(args.photographs), crop_size=CROP)
    photographs = [crops.centre(index) for index in range(len(crops))]
    drawn = [degraded_pool(image, index) for index, image in enumerate(photographs)]
    pools, records = [pool for pool, _ in drawn], [record for _, record in drawn]
    swaps = swaps_of(photographs)
    versions = versions_of(photographs, swaps, records)
    results: Results = {}
    shared: dict[str, Embeddings] = {}
    seeds = [
        (name, config)
        for name, entry in configs.items()
        for config in (entry if isinstance(entry, list) else [entry])
    ]
    for name, config in tqdm(seeds, desc="rewards"):
        reward = build_reward(config)
        if not isinstance(reward, LucidConsistency):
            raise ValueError(f"{args.rewards}: {name} is not of type lucid_consistency")
        embeddings = shared.setdefault(str(config.get("embedder")), Embeddings(reward.embedder))
        scorer = Scorer(embeddings, reward)
        first = not results.get(name)
        results.setdefault(name, []).append(
            {
                "real": matching(scorer, "real", lr, hr),
                "synthetic": matching(scorer, "synthetic", [pool[0] for pool in pools], photographs),
                "invariance": invariance(scorer, pools, photographs),
                "hallucination": hallucination(scorer, swaps, versions, pools),
                "trap": trap(scorer, lr, hr, others),
                **({"cost": cost(reward, lr, hr)} if first else {}),
            }
        )
    args.output_dir.mkdir(parents=True, exist_ok=True)
    record = {"commit": git_commit(), "rewards": configs, "results": summary(results)}
    (args.output_dir / "consistency.json").write_text(json.dumps(record, indent=1) + "\n")
    print(tables(results))
    draw(results, args.output_dir / "consistency.png")


if __name__ == "__main__":
    main()
