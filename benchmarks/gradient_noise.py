"""How noisy is the NFT gradient of the tiny configuration, and what do its settings do about it?

    python benchmarks/gradient_noise.py [--num_groups 6] [--redraws 12] [--batches 8]

Two questions, both about LoRA gradients of the base on rollouts scored as configs/tiny/nft.yaml does:

- draws: one batch of rollouts, fresh training times and noise again and again, drawn per rollout or shared by
  the rollouts of an LR image.  Total variance over the draws as a multiple of the squared length of the mean.
- images: batches of different LR images, in two halves, and the gradient of each reward alone.  Cosine between
  the halves, of the gradients and of their signs (what Adam steps by), with advantages of whole images and of
  places, at several times.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from lucidnft.algorithms.nft import NFT, NFTSettings
from lucidnft.config import NFTConfig, load_config
from lucidnft.environment import git_commit
from lucidnft.policy import Policy, Role
from lucidnft.records import RewardOutput, Rollout
from lucidnft.rewards import RewardSuite
from lucidnft.rollout import generate_rollout

CONFIG = Path(__file__).parents[1] / "configs" / "tiny" / "nft.yaml"
RESULT = Path(__file__).parent / "results" / "gradient_noise.json"
TIMES = (0.25, 0.5, 0.75, 1.0)


class Experiment:
    """The base, the data and the rewards of the configuration."""

    def __init__(self, config: NFTConfig) -> None:
        self.config = config
        self.policy = Policy(config.model.build(seed=config.seed), config.model, seed=config.seed)
        self.source = config.data.build(config.seed, 4).train
        self.suite = RewardSuite({name: reward.build() for name, reward in config.rewards.items()})
        self.group_ids = tuple(range(config.rollout.num_groups))

    def rollouts(self, step: int) -> tuple[Rollout, RewardOutput]:
        """A batch of rollouts and its scores, of whole images and of places."""
        batch = self.source.batch(step, len(self.group_ids), range(len(self.group_ids)))
        size = (batch.lr.shape[2] * batch.upscale, batch.lr.shape[3] * batch.upscale)
        condition = self.policy.encode_condition(batch)
        with self.policy.folded(Role.OLD):
            rollout = generate_rollout(
                self.policy, condition, batch.group_ids, self.config.rollout,
                seed=self.config.seed, step=step, size=size,
            )  # fmt: skip
        images = self.policy.decode(rollout.x_0)
        return rollout, self.suite.score(images, batch, cell=self.config.train.advantage_cell)

    def gradient(self, settings: NFTSettings, rollout: Rollout, advantages: Tensor, step: int) -> Tensor:
        """(P,) the gradient of one optimiser step with the training draws of `step`."""
        algorithm = NFT(settings, seed=self.config.seed)
        for parameter in self.policy.parameters.values():
            parameter.grad = None
        for mini in algorithm.minibatches(rollout, advantages, self.group_ids, step):
            (algorithm.loss(self.policy, mini)[0].mean() * mini.share).backward()
        return torch.cat([p.grad.flatten() for p in self.policy.parameters.values() if p.grad is not None])


def noise_of_draws(experiment: Experiment, redraws: int) -> dict[str, float]:
    """Variance over training draws in units of the squared mean, for both ways of drawing."""
    rollout, scores = experiment.rollouts(0)
    weights = torch.tensor([reward.weight for reward in experiment.config.rewards.values()])
    advantages = experiment.config.train.advantages(scores.compared, weights)
    found: dict[bool, Tensor] = {}
    for shared in (False, True):
        settings = experiment.config.train.model_copy(update={"share_draws_in_group": shared})
        # other steps for the second way, so that the two means below are independent
        steps: Iterable[int] = range(shared * redraws, (shared + 1) * redraws)
        rows = [
            experiment.gradient(settings, rollout, advantages, s)
            for s in tqdm(steps, desc=f"shared {shared}")
        ]
        found[shared] = torch.stack(rows)
    means = {shared: rows.mean(dim=0) for shared, rows in found.items()}
    # the product of two independent means estimates the squared mean without their noise in it
    signal = float(means[False] @ means[True])
    return {
        "drawn per rollout": float(found[False].var(dim=0).sum()) / signal,
        "shared by the group": float(found[True].var(dim=0).sum()) / signal,
        "cosine of the two means": float(torch.cosine_similarity(means[False], means[True], dim=0)),
    }


def agreement_of_halves(experiment: Experiment, batches: int) -> list[dict[str, float | str]]:
    """Cosine between the gradients of two halves of the LR images, and between their signs."""
    config = experiment.config
    halves: dict[tuple[str, str, float], list[Tensor]] = {}
    for step in tqdm(range(batches), desc="batches"):
        rollout, scores = experiment.rollouts(step)
        compared = {"images": scores.stacked, "places": scores.places}
        for index, reward in enumerate(config.rewards):
            for kind, values in compared.items():
                if values is None:
                    continue
                advantages = config.train.advantages(values[:, :, index : index + 1], torch.ones(1))
                for t in TIMES:
                    around = {"t_min": t - 1e-3, "t_max": min(1.0, t + 1e-3), "num_train_timesteps": 1}
                    settings = config.train.model_copy(update={**around, "timestep_sampling": "uniform"})
                    gradient = experiment.gradient(settings, rollout, advantages, step)
                    sums = halves.setdefault(
                        (kind, reward, t), [torch.zeros_like(gradient) for _ in range(2)]
                    )
                    sums[step % 2] += gradient
    rows: list[dict[str, float | str]] = []
    for (kind, reward, t), (one, other) in sorted(halves.items()):
        raw = float(torch.cosine_similarity(one, other, dim=0))
        signs = float(torch.cosine_similarity(one.sign(), other.sign(), dim=0))
        rows.append({"compared": kind, "reward": reward, "t": t, "gradients": raw, "signs": signs})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num_groups", type=int, default=6)
    parser.add_argument("--redraws", type=int, default=12)
    parser.add_argument("--batches", type=int, default=8, help="of num_groups LR images; even")
    args = parser.parse_args()
    if args.batches % 2:
        parser.error(f"--batches is {args.batches}; two equal halves need an even number")
    config = load_config(CONFIG, [f"rollout.num_groups={args.num_groups}"])
    assert isinstance(config, NFTConfig)
    experiment = Experiment(config)
    draws = noise_of_draws(experiment, args.redraws)
    halves = agreement_of_halves(experiment, args.batches)
    for name, value in draws.items():
        note = "" if name.startswith("cosine") else "  variance / squared mean"
        print(f"{name:<24}{value:.3f}{note}")
    print(f"{'compared':<10}{'reward':<14}{'t':>6}{'gradients':>11}{'signs':>8}   cosine between halves")
    for row in halves:
        name = f"{row['compared']:<10}{row['reward']:<14}"
        print(f"{name}{row['t']:>6}{row['gradients']:>11.3f}{row['signs']:>8.3f}")
    record = {"commit": git_commit(), **vars(args), "draws": draws, "halves": halves}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
