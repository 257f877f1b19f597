"""The reinforcement loop.  `run_step` is the whole method; everything it calls is a named function elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from lucidnft.advantages import advantage_health, places_as_groups
from lucidnft.algorithms.nft import NFT, old_policy_decay
from lucidnft.checkpoint import checkpoint_folder, load_tensors, prune_checkpoints, save_tensors
from lucidnft.data.batches import HeldOut, ImageSource
from lucidnft.inference.checkpoints import POLICY_FORMAT
from lucidnft.metric_logger import MetricLogger
from lucidnft.policy import Policy, Role
from lucidnft.records import Condition, ImageBatch, RewardOutput, Rollout
from lucidnft.rewards.base import RewardSuite
from lucidnft.rollout import RolloutConfig, generate_rollout
from lucidnft.training.ema import Ema
from lucidnft.training.optim import apply_update, build_optimizer, learning_rate_at
from lucidnft.training.policy_evaluation import PolicyEvaluator
from lucidnft.training.progress import show_phase
from lucidnft.training.settings import LogConfig, NFTTrainConfig
from lucidnft.training.state import load_progress, load_state_, save_state


@dataclass(frozen=True)
class StepReport:
    """What one step produced, for logs and tests."""

    batch: ImageBatch  # the G groups of this rank
    rollout: Rollout  # x_0 (G, K, C, h, w)
    scores: RewardOutput  # stacked (G_all, K, M): the groups of all ranks, in order
    advantages: Tensor  # (G_all, K), or (G_all, K, a, b) with train.advantage_cell
    scalars: dict[str, float]


class PolicyTrainer:
    """Rollouts, rewards, advantages, updates; evaluation and checkpoints around them."""

    def __init__(
        self,
        policy: Policy,
        suite: RewardSuite,
        weights: Tensor,
        source: ImageSource,
        held_out: HeldOut,
        evaluator: PolicyEvaluator,
        *,
        rollout: RolloutConfig,
        train: NFTTrainConfig,
        log: LogConfig,
        run_dir: str | Path,
        accelerator: Accelerator,
        seed: int,
        header: dict[str, Any],
    ) -> None:
        """weights: (M,) of the rewards, in the suite's order.  header: written into policy.safetensors."""
        self.policy, self.suite, self.weights = policy, suite, weights
        self.source, self.held_out, self.evaluator = source, held_out, evaluator
        self.rollout, self.train, self.log = rollout, train, log
        self.run_dir, self.accelerator, self.seed, self.header = Path(run_dir), accelerator, seed, header
        self.algorithm = NFT(train, seed=seed)
        self.parameters = policy.parameters
        self.optimizer = build_optimizer(self.parameters, train)
        self.ema = Ema(self.parameters, train.ema_decay) if train.use_ema else None
        self.step = 0  # rollout batches done
        self.num_updates = 0  # optimiser steps done
        self.best: dict[str, float] = {}
        share = rollout.num_groups // accelerator.num_processes
        self.rows = range(accelerator.process_index * share, (accelerator.process_index + 1) * share)
        self.logger = MetricLogger(self.run_dir, enabled=False)

    def run_step(self, step: int) -> StepReport:
        """One step of DiffusionNFT with decoupled advantages (docs/one_step.md walks through it)."""
        phase = self.logger.phase
        with phase("data"):
            batch = self.source.batch(step, self.rollout.num_groups, self.rows).to(self.accelerator.device)
        with phase("condition"):
            condition = self.policy.encode_condition(batch)
        with phase("rollout"):
            rollout = self.generate(condition, batch, step)
        with phase("decode"):
            images = self.policy.decode(rollout.x_0, chunk_size=self.rollout.chunks[1])
        with phase("reward"):
            scores = self.gather(self.suite.score(images, batch, cell=self.train.advantage_cell))
        # Of all groups, on every rank: whitening spans the batch, and scores are few numbers to gather.
        advantages = self.train.advantages(scores.compared, self.weights)
        with phase("optimise"):
            logs = self.optimise(rollout, advantages[self.rows.start : self.rows.stop], batch.group_ids, step)
        self.policy.update_old(self.old_decay())
        power = self.accelerator.reduce(rollout.x_0.square().mean(), reduction="mean")
        scalars = {**self.health(scores, advantages), "health/x0_rms": float(power.sqrt())}
        return StepReport(batch, rollout, scores, advantages, {**scalars, **logs})

    def generate(self, condition: Condition, batch: ImageBatch, step: int) -> Rollout:
        """Rollouts of this rank's groups, by the old policy."""
        size = (batch.lr.shape[2] * batch.upscale, batch.lr.shape[3] * batch.upscale)
        return generate_rollout(
            self.policy, condition, batch.group_ids, self.rollout, seed=self.seed, step=step, size=size
        )

    def gather(self, scores: RewardOutput) -> RewardOutput:
        """Scores of all ranks, in group order.  Synchronises ranks."""
        if self.accelerator.num_processes == 1:
            return scores
        places = scores.places
        return RewardOutput(
            names=scores.names,
            stacked=self.accelerator.gather(scores.stacked.contiguous()),
            places=None if places is None else self.accelerator.gather(places.contiguous()),
        )

    def optimise(
        self, rollout: Rollout, advantages: Tensor, group_ids: tuple[int, ...], step: int
    ) -> dict[str, float]:
        """All minibatches of the step; an optimiser step whenever one closes it.  Synchronises ranks."""
        sums: dict[str, Tensor] = {}
        norms = []
        for mini in self.algorithm.minibatches(rollout, advantages, group_ids, step):
            losses, logs = self.algorithm.loss(self.policy, mini)
            self.accelerator.backward(losses.mean() * mini.share)
            for name, value in {"total": losses.detach().mean(), **logs}.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value * mini.share
            if mini.closes_step:
                norms.append(self.update())
        names = list(sums)
        means = torch.stack([sums[n] for n in names] + [torch.stack(norms).sum()]) / len(norms)
        values = self.accelerator.reduce(means, reduction="mean").tolist()
        if values[-1] == 0 and bool(advantages.any()):
            raise ValueError(
                f"step {step}: the gradient is exactly zero although the rollouts' advantages are not, so nothing "
                "can be learned; a base whose last layer is zero does this: is model.model_name_or_path untrained?"
            )
        return {
            **{f"loss/{n}": v for n, v in zip(names, values[:-1], strict=True)},
            "train/grad_norm": values[-1],
        }

    def update(self) -> Tensor:
        """One optimiser step on the accumulated gradient; returns its norm.  Synchronises ranks."""
        norm = apply_update(
            self.optimizer, self.parameters, self.train, step=self.step, accelerator=self.accelerator
        )
        self.num_updates += 1
        self.policy.mark_updated()
        if self.ema is not None:
            self.ema.update()
        return norm

    def old_decay(self) -> float:
        """Weight the old policy keeps at this point of the run."""
        old = self.train.old_policy
        return old_policy_decay(old.schedule, self.num_updates, **old.model_dump(exclude={"schedule"}))

    def health(self, scores: RewardOutput, advantages: Tensor) -> dict[str, float]:
        """Reward means and spreads, and whether the advantages still carry a signal."""
        scalars = {}
        for name, values in scores.by_name().items():
            scalars[f"reward/{name}/mean"] = float(values.mean())
            scalars[f"reward/{name}/group_std"] = float(values.std(dim=1, correction=1).mean())
        compared = scores.stacked
        if scores.places is not None:
            compared = places_as_groups(scores.places)
            advantages = places_as_groups(advantages.unsqueeze(2)).squeeze(2)
        health = advantage_health(compared, advantages, std_floor=self.train.advantage_std_floor)
        return {**scalars, **health.scalars(scores.names)}

    def fit(self) -> None:
        """Train to max_train_steps, from the start or where `resume` put it; evaluates, logs and saves on the way."""
        main = self.accelerator.is_main_process
        self.logger = MetricLogger(
            self.run_dir, step0=self.step, enabled=main, tensorboard=self.log.report_to == "tensorboard"
        )
        steps = {"total": self.train.max_train_steps, "initial": self.step, "unit": "step"}
        with self.logger, tqdm(desc="nft", disable=not main, **steps) as bar:
            self.logger.on_phase = partial(show_phase, bar, "nft")
            if self.step == 0:
                self.evaluate()
            while self.step < self.train.max_train_steps:
                started = time.perf_counter()
                report = self.run_step(self.step)
                seconds = time.perf_counter() - started
                self.step += 1
                self.log_step(report, seconds)
                means = [report.scalars[f"reward/{n}/mean"] for n in self.suite.names]
                bar.set_postfix({n: f"{m:.4f}" for n, m in zip(self.suite.names, means, strict=True)})
                bar.update()
                last = self.step == self.train.max_train_steps
                if self.step % self.evaluator.settings.eval_steps == 0 or last:
                    self.evaluate()
                if self.step % self.log.save_steps == 0 or last:
                    self.save()

    def log_step(self, report: StepReport, seconds: float) -> None:
        """Scalars of a finished step."""
        if self.step % self.log.log_steps and self.step != self.train.max_train_steps:
            return
        num_images = self.rollout.num_groups * self.rollout.group_size
        self.logger.log(
            {
                **report.scalars,
                "train/learning_rate": learning_rate_at(self.step - 1, self.train),
                "train/old_policy_decay": self.old_decay(),
                "perf/step_seconds": seconds,
                "perf/images_per_second": num_images / seconds,
                # of this process, evaluation since the last line included
                **{f"perf/{name}": count for name, count in self.policy.take_cache_counts().items()},
            },
            self.step,
        )

    def evaluate(self) -> None:
        """Score the held-out images with the averaged weights, on the main process."""
        if self.accelerator.is_main_process:
            if self.ema is None:
                means = self.evaluator.run(self.step, self.logger)
            else:
                with self.ema.applied():
                    means = self.evaluator.run(self.step, self.logger)
            weighted = sum(float(w) * means[n] for w, n in zip(self.weights, self.suite.names, strict=True))
            if not self.best or weighted > self.best["weighted_reward"]:
                self.best = {"step": self.step, "weighted_reward": weighted}
        self.accelerator.wait_for_everyone()

    def save(self) -> None:
        """Write checkpoint-<step>.  Synchronises ranks."""
        if self.accelerator.is_main_process:
            header = {**self.header, "format": POLICY_FORMAT, "step": self.step}
            with checkpoint_folder(self.run_dir, self.step) as folder:
                for role, name in ((Role.CURRENT, "policy"), (Role.OLD, "old_policy")):
                    save_tensors(folder / f"{name}.safetensors", self.policy.state(role), header)
                save_state(
                    folder,
                    parameters=self.parameters,
                    optimizer=self.optimizer,
                    ema=self.ema,
                    header=header,
                    progress={
                        "task": "nft",
                        "step": self.step,
                        "num_updates": self.num_updates,
                        "samples_seen": self.step * self.rollout.num_groups * self.rollout.group_size,
                        "best": self.best,
                    },
                )
            prune_checkpoints(self.run_dir, self.log.checkpoints_total_limit)
        self.accelerator.wait_for_everyone()

    def resume(self, folder: Path) -> None:
        """Continue from a checkpoint folder, bit for bit as if the run had not stopped."""
        progress = load_progress(folder)
        if progress.get("task") != "nft":
            raise ValueError(f"{folder} is a checkpoint of task {progress.get('task')!r}, this run is 'nft'")
        for role, name in ((Role.CURRENT, "policy"), (Role.OLD, "old_policy")):
            tensors, header = load_tensors(folder / f"{name}.safetensors")
            if header.get("base_fingerprint") != self.header["base_fingerprint"]:
                raise ValueError(
                    f"{folder} was trained on base weights {header.get('base_fingerprint')}, this run uses "
                    f"{self.header['base_fingerprint']}; set model.model_name_or_path to those weights"
                )
            if header.get("lora") != self.header.get("lora"):
                raise ValueError(
                    f"{folder} was started from another model.adapter than this run: its layers, ranks or scales "
                    "differ; set model.adapter to what the run was started with"
                )
            try:
                self.policy.load_state_(role, tensors)
            except ValueError as error:
                raise ValueError(f"{folder / name}.safetensors: {error}") from error
        load_state_(folder, parameters=self.parameters, optimizer=self.optimizer, ema=self.ema)
        self.step, self.num_updates = int(progress["step"]), int(progress["num_updates"])
        self.best = dict(progress["best"])
