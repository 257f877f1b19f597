"""Our DiffusionNFT step against the published one: same backbone, sizes, trained times and machine, one run.

    python benchmarks/nft_step.py [--repeats 3] [--num_train_timesteps 3] [--kl_beta 0.0]

The published step, as the released script does it: the condition encoded for every rollout, each trained
time in a call of its own, and three passes each (old, reference, current) whatever the settings.  Both
train the same times of the same rollouts and must arrive at the same gradient, which is checked.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from lucidnft.advantages import decoupled_advantages, optimality
from lucidnft.algorithms.nft import NFT, NFTSettings
from lucidnft.backbones.adapters import LoraSettings
from lucidnft.backbones.tiny import TinyBackbone
from lucidnft.data.sources import LrFolderConfig
from lucidnft.flow.conversions import interpolate
from lucidnft.losses.nft import nft_loss
from lucidnft.policy import Policy, Role
from lucidnft.records import ImageBatch, Rollout
from lucidnft.rewards import RewardSuite, build_reward
from lucidnft.rollout import RolloutConfig, generate_rollout
from lucidnft.training.run_folder import git_commit

RESULT = Path(__file__).parent / "results" / "nft_step.json"
REWARDS = ("lucid_consistency", "quality_net", "lr_fidelity")
PHASES = ("condition", "rollout", "decode", "reward", "optimise")


class Step:
    """The phases of one step; `PublishedStep` redoes those in which the release differs."""

    def __init__(self, settings: NFTSettings, rollout: RolloutConfig, crop_size: int) -> None:
        self.policy = Policy(TinyBackbone.from_pretrained("tiny"), LoraSettings(), seed=0)
        with torch.no_grad():  # an adapter that does something, or all passes would agree by accident
            for index, parameter in enumerate(self.policy.parameters.values()):
                generator = torch.Generator().manual_seed(index)
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
        self.policy.update_old(0.0)
        self.settings, self.config, self.algorithm = settings, rollout, NFT(settings, seed=0)
        self.suite = RewardSuite({name: build_reward(name) for name in REWARDS})
        source = LrFolderConfig(crop_size=crop_size).build(0, 4).train
        self.batch = source.batch(0, rollout.num_groups, range(rollout.num_groups))
        side = crop_size * self.batch.upscale
        self.size = (side, side)

    def condition(self) -> Any:
        return self.policy.encode_condition(self.batch)

    def rollout(self, condition: Any) -> Rollout:
        ids = self.batch.group_ids
        return generate_rollout(self.policy, condition, ids, self.config, seed=0, step=0, size=self.size)

    def decode(self, rollout: Rollout) -> Tensor:
        return self.policy.decode(rollout.x_0, chunk_size=self.config.chunk_size)

    def reward(self, images: Tensor) -> Tensor:
        return self.suite.score(images, self.batch).stacked

    def optimise(self, rollout: Rollout, advantages: Tensor) -> None:
        for mini in self.algorithm.minibatches(rollout, advantages, self.batch.group_ids, 0):
            losses, _ = self.algorithm.loss(self.policy, mini)
            (losses.mean() * mini.share).backward()


class PublishedStep(Step):
    """One LR image per rollout throughout, one call per trained time, three passes."""

    def each_rollout(self) -> ImageBatch:
        rows = [g for g in range(self.config.num_groups) for _ in range(self.config.group_size)]
        return self.batch.index(rows)

    def condition(self) -> Any:
        return self.policy.encode_condition(self.each_rollout())

    def rollout(self, condition: Any) -> Rollout:
        single = self.config.model_copy(update={"group_size": 1})
        ids = range(self.config.num_groups * self.config.group_size)
        # the release samples through its adapter: nothing is folded into the weights
        with patch.object(self.policy, "folded", lambda role: nullcontext()):
            return generate_rollout(self.policy, condition, ids, single, seed=0, step=0, size=self.size)

    def reward(self, images: Tensor) -> Tensor:
        return self.suite.score(images, self.each_rollout()).stacked

    def optimise(self, rollout: Rollout, advantages: Tensor) -> None:
        x_0 = rollout.x_0.flatten(0, 1)
        times, noise = self.algorithm.draws(rollout, self.batch.group_ids, 0)
        r = optimality(advantages, self.settings.adv_clip_max).flatten()
        condition = self.condition()
        rows_of_all = torch.arange(len(x_0)).split(self.settings.per_device_batch_size)
        for rows in rows_of_all:
            for index in range(times.shape[1]):
                t, cond = times[rows, index], condition.index(rows)
                x_t = interpolate(x_0[rows], noise[rows, index], t)
                v_old = self.policy(x_t, t, cond, Role.OLD)
                v_ref = self.policy(x_t, t, cond, Role.REFERENCE)
                v = self.policy(x_t, t, cond, Role.CURRENT)
                losses, _ = nft_loss(
                    v, v_old, v_ref, x_0=x_0[rows], x_t=x_t, t=t, optimality=r[rows],
                    nft_beta=self.settings.nft_beta, kl_beta=self.settings.kl_beta,
                    adv_clip_max=self.settings.adv_clip_max,
                )  # fmt: skip
                (losses.sum() / (len(x_0) * times.shape[1])).backward()


def measure(step: Step, same: tuple[Rollout, Tensor], repeats: int) -> dict[str, Any]:
    """Median seconds and network calls per phase; the optimisation runs on the rollouts `same`."""
    calls = 0
    velocity = step.policy.backbone.velocity

    def counted(x_t: Tensor, *arguments: Any, **options: Any) -> Tensor:
        nonlocal calls
        calls += x_t.shape[0]
        return velocity(x_t, *arguments, **options)

    step.policy.backbone.velocity = counted  # type: ignore[method-assign]
    seconds: dict[str, list[float]] = {name: [] for name in PHASES}
    images_called: dict[str, int] = {}
    for _ in range(repeats):
        made: dict[str, Any] = {}
        for parameter in step.policy.parameters.values():
            parameter.grad = None
        phases: dict[str, Callable[[], Any]] = {
            "condition": step.condition,
            "rollout": lambda made=made: step.rollout(made["condition"]),
            "decode": lambda made=made: step.decode(made["rollout"]),
            "reward": lambda made=made: step.reward(made["decode"]),
            "optimise": lambda: step.optimise(*same),
        }
        for name, run in phases.items():
            calls, start = 0, time.perf_counter()
            made[name] = run()
            seconds[name].append(time.perf_counter() - start)
            images_called[name] = calls
    gradient = torch.cat([p.grad.flatten() for p in step.policy.parameters.values() if p.grad is not None])
    return {
        "seconds": {name: sorted(values)[repeats // 2] for name, values in seconds.items()},
        "calls": images_called,
        "x_0": made["rollout"].x_0.flatten(0, 1),
        "gradient": gradient,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num_train_timesteps", type=int, default=3, help="of a grid of 4: all but one")
    parser.add_argument("--kl_beta", type=float, default=0.0)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    rollout = RolloutConfig(num_groups=6, group_size=8, num_inference_steps=4)
    settings = NFTSettings(
        num_train_timesteps=args.num_train_timesteps, timestep_sampling="all", kl_beta=args.kl_beta
    )
    ours, published = (kind(settings, rollout, crop_size=24) for kind in (Step, PublishedStep))
    made = ours.rollout(ours.condition())
    advantages = decoupled_advantages(ours.reward(ours.decode(made)), torch.ones(len(REWARDS)))
    results = [measure(step, (made, advantages), args.repeats + 1) for step in (ours, published)]
    difference = (results[0]["gradient"] - results[1]["gradient"]).norm() / results[1]["gradient"].norm()
    num_images = rollout.num_groups * rollout.group_size
    report: dict[str, Any] = {
        "machine": {
            "processor": platform.processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "commit": git_commit(),
        "settings": {**vars(args), "output": None, **rollout.model_dump(), "crop_size": 24},
        "relative_gradient_difference": float(difference),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(f"{'phase':<12}{'ours ms':>12}{'published ms':>14}{'ratio':>8}{'calls/image':>13}{'published':>11}")
    for name in (*PHASES, "step"):
        ms, calls = [], []
        for result in results:
            values = result["seconds"]
            ms.append(1000 * (sum(values.values()) if name == "step" else values[name]))
            counts = result["calls"]
            calls.append((sum(counts.values()) if name == "step" else counts[name]) / num_images)
        report[name] = {"ms": ms, "ratio": ms[1] / ms[0], "calls_per_image": calls}
        print(f"{name:<12}{ms[0]:12.1f}{ms[1]:14.1f}{ms[1] / ms[0]:8.2f}{calls[0]:13.1f}{calls[1]:11.1f}")
    rates = [num_images / sum(result["seconds"].values()) for result in results]
    report["images_per_second"] = rates
    print(f"images/s: ours {rates[0]:.2f}, published {rates[1]:.2f} ({rates[0] / rates[1]:.2f}x)")
    print(f"relative difference of the gradients: {float(difference):.2e}")
    print(f"peak memory of this process: {report['peak_memory_mib']:.0f} MiB")
    if float(difference) > 1e-3:
        raise SystemExit("the two steps do not compute the same gradient: the comparison is void")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
