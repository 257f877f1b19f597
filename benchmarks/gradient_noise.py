"""How much noise of the NFT gradient comes from its training draws, drawn per rollout or shared by a group?

    python benchmarks/gradient_noise.py [--num_groups 4] [--redraws 12]

Makes one batch of rollouts of the tiny base, scores it as configs/tiny/nft.yaml does, and computes the
LoRA gradient again and again with fresh training times and noise.  Prints, for both ways of drawing, the
total variance of the gradient over the draws as a multiple of the squared length of their common mean.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from lucidnft.advantages import decoupled_advantages
from lucidnft.algorithms.nft import NFT
from lucidnft.config import NFTConfig, load_config
from lucidnft.policy import Policy
from lucidnft.rewards import RewardSuite
from lucidnft.rollout import generate_rollout
from lucidnft.training.run_folder import git_commit

CONFIG = Path(__file__).parents[1] / "configs" / "tiny" / "nft.yaml"
RESULT = Path(__file__).parent / "results" / "gradient_noise.json"


def gradients(config: NFTConfig, num_redraws: int) -> dict[bool, Tensor]:
    """{shared: (R, P) gradients of one batch of rollouts}."""
    policy = Policy(config.model.build(seed=config.seed), config.model, seed=config.seed)
    source = config.data.build(config.seed, 4).train
    suite = RewardSuite({name: reward.build() for name, reward in config.rewards.items()})
    weights = torch.tensor([reward.weight for reward in config.rewards.values()])
    groups = config.rollout.num_groups
    batch = source.batch(0, groups, range(groups))
    size = (batch.lr.shape[2] * batch.upscale, batch.lr.shape[3] * batch.upscale)
    condition = policy.encode_condition(batch)
    rollout = generate_rollout(
        policy, condition, batch.group_ids, config.rollout, seed=config.seed, step=0, size=size
    )
    scores = suite.score(policy.decode(rollout.x_0), batch).stacked
    advantages = decoupled_advantages(scores, weights)
    found: dict[bool, Tensor] = {}
    for shared in (False, True):
        settings = config.train.model_copy(update={"share_draws_in_group": shared})
        algorithm, rows = NFT(settings, seed=config.seed), []
        for step in range(num_redraws):
            for parameter in policy.parameters.values():
                parameter.grad = None
            for mini in algorithm.minibatches(rollout, advantages, batch.group_ids, step):
                (algorithm.loss(policy, mini)[0].mean() * mini.share).backward()
            rows.append(
                torch.cat([p.grad.flatten() for p in policy.parameters.values() if p.grad is not None])
            )
            print(f"shared {shared}: {step + 1} of {num_redraws}", flush=True)
        found[shared] = torch.stack(rows)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num_groups", type=int, default=4)
    parser.add_argument("--redraws", type=int, default=12)
    args = parser.parse_args()
    config = load_config(CONFIG, [f"rollout.num_groups={args.num_groups}"])
    assert isinstance(config, NFTConfig)
    found = gradients(config, args.redraws)
    means = {shared: rows.mean(dim=0) for shared, rows in found.items()}
    # the product of two independent means estimates the squared mean without their noise in it
    signal = float(means[False] @ means[True])
    record: dict[str, object] = {"commit": git_commit(), "groups": args.num_groups, "redraws": args.redraws}
    for shared, rows in found.items():
        name = "shared by the group" if shared else "drawn per rollout"
        record[name] = float(rows.var(dim=0).sum()) / signal
        print(f"{name:<22} variance / squared mean  {record[name]:.3f}")
    cosine = float(torch.cosine_similarity(means[False], means[True], dim=0))
    record["cosine of the two means"] = cosine
    print(f"cosine of the two mean gradients  {cosine:.3f}")
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
