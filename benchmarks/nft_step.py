"""Our DiffusionNFT step against the published one: same backbone, sizes, trained times and machine, one run.

    python benchmarks/nft_step.py [--num_inference_steps 4] [--repeats 5] [--kl_beta 0.0]

The published step, as the released script does it: the condition encoded for every rollout, all times of the
grid but one trained, each in a call of its own, and three passes each (old, reference, current) whatever the
settings.  Both train the same times of the same rollouts and must arrive at the same gradient, which is
checked.  The two take turns, so that a machine that slows down does so for both; what other programs take can
only lengthen a round, so the fastest of each is the estimate, and the median is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
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
from lucidnft.environment import git_commit
from lucidnft.flow.conversions import interpolate
from lucidnft.losses.nft import nft_loss
from lucidnft.policy import Policy, Role
from lucidnft.records import ImageBatch, Rollout
from lucidnft.rewards import RewardSuite, build_reward
from lucidnft.rollout import RolloutConfig, generate_rollout

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
        return self.policy.decode(rollout.x_0, chunk_size=self.config.chunks[1])

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


class Stopwatch:
    """Seconds and network calls of the phases of one kind of step, round after round."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.seconds: dict[str, list[float]] = {name: [] for name in PHASES}
        self.calls: dict[str, int] = {}
        self.calls_now = 0
        velocity = step.policy.backbone.velocity

        def counted(x_t: Tensor, *arguments: Any, **options: Any) -> Tensor:
            self.calls_now += x_t.shape[0]
            return velocity(x_t, *arguments, **options)

        step.policy.backbone.velocity = counted  # type: ignore[method-assign]

    def round(self, same: tuple[Rollout, Tensor]) -> None:
        """All phases once; the optimisation runs on the rollouts `same`."""
        step, made = self.step, {}
        for parameter in step.policy.parameters.values():
            parameter.grad = None
        phases: dict[str, Callable[[], Any]] = {
            "condition": step.condition,
            "rollout": lambda: step.rollout(made["condition"]),
            "decode": lambda: step.decode(made["rollout"]),
            "reward": lambda: step.reward(made["decode"]),
            "optimise": lambda: step.optimise(*same),
        }
        for name, run in phases.items():
            self.calls_now, start = 0, time.perf_counter()
            made[name] = run()
            self.seconds[name].append(time.perf_counter() - start)
            self.calls[name] = self.calls_now

    def drop_first(self) -> None:
        """Forget the first round, in which memory is claimed and kernels are chosen."""
        self.seconds = {name: values[1:] for name, values in self.seconds.items()}

    def milliseconds(self, name: str, of: Callable[[list[float]], float]) -> float:
        """Of a phase, or of "step", all phases of a round."""
        rounds = (
            zip(*self.seconds.values(), strict=True) if name == "step" else ((s,) for s in self.seconds[name])
        )
        return 1000 * of([sum(phases) for phases in rounds])

    def gradient(self) -> Tensor:
        """(P,) of the last round."""
        parameters = self.step.policy.parameters.values()
        return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def table(ours: Stopwatch, published: Stopwatch, num_images: int) -> dict[str, Any]:
    """Print and return the phases: the fastest round, the median, and network calls per image."""
    found: dict[str, Any] = {}
    print(f"{'':<12}{'fastest round, ms':>24}{'':>8}{'median round, ms':>24}{'':>8}{'calls per image':>18}")
    print(
        f"{'phase':<12}" + 2 * f"{'ours':>12}{'published':>12}{'ratio':>8}" + f"{'ours':>9}{'published':>9}"
    )
    for name in (*PHASES, "step"):
        row: dict[str, Any] = {}
        for label, of in (("fastest", min), ("median", statistics.median)):
            ms = [watch.milliseconds(name, of) for watch in (ours, published)]
            row[label] = {"ms": ms, "ratio": ms[1] / ms[0]}
        counts = [sum(w.calls.values()) if name == "step" else w.calls[name] for w in (ours, published)]
        row["calls_per_image"] = [count / num_images for count in counts]
        found[name] = row
        times = "".join(
            f"{row[k]['ms'][0]:12.1f}{row[k]['ms'][1]:12.1f}{row[k]['ratio']:8.2f}"
            for k in ("fastest", "median")
        )
        print(f"{name:<12}{times}" + "".join(f"{c:9.1f}" for c in row["calls_per_image"]))
    for label in ("fastest", "median"):
        rates = [1000 * num_images / ms for ms in found["step"][label]["ms"]]
        found[f"images_per_second_{label}"] = rates
        print(
            f"images/s, {label} round: ours {rates[0]:.2f}, published {rates[1]:.2f} ({rates[0] / rates[1]:.2f}x)"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--num_inference_steps", type=int, default=4, help="4 is the tiny base's own; 2 or more"
    )
    parser.add_argument("--kl_beta", type=float, default=0.0)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    rollout = RolloutConfig(num_groups=6, group_size=8, num_inference_steps=args.num_inference_steps)
    settings = NFTSettings(kl_beta=args.kl_beta)  # its times: all of the grid but one
    ours, published = (kind(settings, rollout, crop_size=24) for kind in (Step, PublishedStep))
    made = ours.rollout(ours.condition())
    advantages = decoupled_advantages(ours.reward(ours.decode(made)), torch.ones(len(REWARDS)))
    watches = (Stopwatch(ours), Stopwatch(published))
    for _ in range(args.repeats + 1):
        for watch in watches:
            watch.round((made, advantages))
    for watch in watches:
        watch.drop_first()
    gradients = [watch.gradient() for watch in watches]
    difference = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    num_images = rollout.num_groups * rollout.group_size
    report: dict[str, Any] = {
        "machine": {
            "processor": platform.processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "commit": git_commit(),
        "settings": {
            "repeats": args.repeats,
            **settings.model_dump(),
            **rollout.model_dump(),
            "crop_size": 24,
        },
        "relative_gradient_difference": float(difference),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    report.update(table(*watches, num_images))
    print(f"relative difference of the gradients: {float(difference):.2e}")
    print(f"peak memory of this process: {report['peak_memory_mib']:.0f} MiB")
    if float(difference) > 1e-3:
        raise SystemExit("the two steps do not compute the same gradient: the comparison is void")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
