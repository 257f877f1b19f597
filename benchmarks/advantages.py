"""Do advantages tell rollouts apart?  Distinct levels and pair gap against K on real rollouts (LucidNFT's figure).

    python benchmarks/advantages.py [--checkpoint base] [--num_groups 30] [--output_dir benchmarks/results]

Restores each of G LR images 16 times with the tiny backbone, scores the rollouts once with the rewards of
configs/tiny/nft.yaml, and forms the advantages of the first K of them for K = 2..16 under
{scalarised, decoupled} x {global, group spread} x {whitening on, off}.  Writes a JSON, a CSV and a PNG
(matplotlib, in the extra `dev`).

Where a name of the grid is not a function of the library: "decoupled, global" normalises each reward by its
spread over all rollouts instead of its group's; whitening a scalarised advantage divides by its own spread.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import torch
from torch import Tensor

from lucidnft.advantages import advantage_health, decoupled_advantages, scalarised_advantages
from lucidnft.backbones.adapters import LoraSettings
from lucidnft.config import NFTConfig, load_config
from lucidnft.environment import git_commit
from lucidnft.policy import Policy
from lucidnft.rewards import RewardSuite
from lucidnft.rollout import RolloutConfig, generate_rollout

CONFIG = Path(__file__).parents[1] / "configs" / "tiny" / "nft.yaml"
LARGEST_GROUP = 16
EPS = 1e-4


def score_rollouts(config: NFTConfig, num_groups: int, chunk: int = 6) -> tuple[tuple[str, ...], Tensor]:
    """(names, scores (G, 16, M)) of rollouts of the base on the configured data."""
    backbone = config.model.build(seed=config.seed)
    policy = Policy(backbone, LoraSettings(), seed=config.seed)
    source = config.data.build(config.seed, 4).train
    suite = RewardSuite({name: reward.build() for name, reward in config.rewards.items()})
    settings = config.rollout.model_dump()
    rollout = RolloutConfig.model_validate({**settings, "group_size": LARGEST_GROUP, "num_groups": chunk})
    parts = []
    for step in range(-(-num_groups // chunk)):
        batch = source.batch(step, chunk, range(chunk))
        condition = policy.encode_condition(batch)
        size = (batch.lr.shape[2] * batch.upscale, batch.lr.shape[3] * batch.upscale)
        made = generate_rollout(
            policy, condition, batch.group_ids, rollout, seed=config.seed, step=step, size=size
        )
        parts.append(suite.score(policy.decode(made.x_0), batch).stacked)
        print(f"scored {min(num_groups, (step + 1) * chunk)} of {num_groups} groups", flush=True)
    return suite.names, torch.cat(parts)[:num_groups]


def whitened(advantages: Tensor) -> Tensor:
    """Unit spread over the batch; the mean is zero already."""
    return advantages / (advantages.std(correction=1) + EPS)


def decoupled_by_global_spread(scores: Tensor, weights: Tensor) -> Tensor:
    """Each reward centred in its group and divided by its spread over all rollouts, then summed."""
    centred = scores - scores.mean(dim=1, keepdim=True)
    spread = scores.flatten(0, 1).std(dim=0, correction=1)
    return (centred / (spread + EPS * spread) * weights).sum(dim=-1)


def variants(scores: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """The eight advantages (G, K) of one batch of scores (G, K, M)."""
    plain = {
        "scalarised, global": scalarised_advantages(scores, weights, std="global"),
        "scalarised, group": scalarised_advantages(scores, weights, std="group"),
        "decoupled, global": decoupled_by_global_spread(scores, weights),
        "decoupled, group": decoupled_advantages(scores, weights, whiten=False),
    }
    return {**plain, **{f"{name}, whitened": whitened(value) for name, value in plain.items()}}


def draw(rows: list[dict[str, object]], path: Path) -> None:
    """The two figures side by side: one line per variant, dashed where whitened."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    names = dict.fromkeys(str(row["variant"]) for row in rows)
    colours = {name: f"C{i}" for i, name in enumerate(n for n in names if "whitened" not in n)}
    for axis, key, label in (
        (axes[0], "distinct_levels", "distinct levels (bins of 0.25), mean over groups"),
        (axes[1], "pair_gap", "advantage gap of the most different pair"),
    ):
        for name in names:
            part = [row for row in rows if row["variant"] == name]
            axis.plot(
                [row["K"] for row in part], [row[key] for row in part], label=name,
                color=colours[name.removesuffix(", whitened")], linestyle="--" if "whitened" in name else "-",
            )  # fmt: skip
        axis.set(xlabel="rollouts per LR image (K)", ylabel=label, ylim=(0, None))
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num_groups", type=int, default=30)
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of configs/tiny/nft.yaml")
    args = parser.parse_args()
    config = load_config(CONFIG, args.overrides)
    assert isinstance(config, NFTConfig)
    names, scores = score_rollouts(config, args.num_groups)
    weights = torch.tensor([reward.weight for reward in config.rewards.values()])
    rows = []
    for group_size in range(2, LARGEST_GROUP + 1):
        part = scores[:, :group_size]
        for name, advantages in variants(part, weights).items():
            health = advantage_health(part, advantages)
            rows.append(
                {
                    "variant": name,
                    "K": group_size,
                    "distinct_levels": health.distinct_levels,
                    "pair_gap": health.pair_gap,
                }
            )
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with open(args.output_dir / "advantages.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    within = scores.std(dim=1, correction=1).mean(dim=0)
    between = scores.mean(dim=1).std(dim=0, correction=1)
    facts = {
        "commit": git_commit(), "num_groups": args.num_groups, "rewards": names, "overrides": args.overrides,
        "spread_within_groups": within.tolist(), "spread_between_groups": between.tolist(),
    }  # fmt: skip
    (args.output_dir / "advantages.json").write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    draw(rows, args.output_dir / "advantages.png")
    for row in rows:
        if row["K"] in (2, 8, 12, 16):
            print(
                f"{row['variant']:<32} K {row['K']:>2}  levels {row['distinct_levels']:.2f}  gap {row['pair_gap']:.2f}"
            )


if __name__ == "__main__":
    main()
