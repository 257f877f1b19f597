"""Evaluation of a policy on the held-out images: rewards, guards, health against the reference, pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lucidnft.checkpoint import save_json
from lucidnft.data.batches import HeldOut
from lucidnft.flow.conversions import interpolate
from lucidnft.metric_logger import MetricLogger
from lucidnft.policy import Policy, Role
from lucidnft.rewards.base import RewardSuite
from lucidnft.rng import generator_for
from lucidnft.training.guards import Guards
from lucidnft.training.held_out import (
    RestoredBatch,
    held_out_keys,
    picture_rows,
    restore_held_out,
    score_held_out,
)
from lucidnft.training.settings import EvalConfig

HEALTH_TIMES = (0.25, 0.5, 0.75)
HEALTH_IMAGES = 4  # each costs a pass of both roles at each of these times


class PolicyEvaluator:
    """Restores the held-out images with fixed noise and measures the result."""

    def __init__(
        self,
        policy: Policy,
        suite: RewardSuite,
        held_out: HeldOut,
        settings: EvalConfig,
        *,
        guards: Guards,
        run_dir: str | Path,
        num_grid_images: int,
    ) -> None:
        self.policy, self.suite, self.held_out, self.settings = policy, suite, held_out, settings
        self.guards = guards
        self.run_dir = Path(run_dir)
        self.num_grid_images = num_grid_images
        self._base: list[RestoredBatch] | None = None

    def restore(self, role: Role) -> list[RestoredBatch]:
        """All held-out images restored by one role."""
        with self.policy.folded(role):
            return restore_held_out(
                lambda x_t, t, condition: self.policy(x_t, t, condition, role),
                self.policy.backbone,
                self.held_out,
                self.settings,
            )

    def base(self) -> list[RestoredBatch]:
        """Restorations of the reference, made once."""
        if self._base is None:
            self._base = self.restore(Role.REFERENCE)
        return self._base

    def run(self, step: int, logger: MetricLogger) -> dict[str, float]:
        """Measure, log under eval/, write eval/scores-<step>.json and a picture grid; returns reward means."""
        with logger.phase("evaluate"):
            restored = self.restore(Role.CURRENT)
            if self._base is None and self.policy.is_reference:
                self._base = restored
            rewards = {n: v.tolist() for n, v in score_held_out(restored, self.suite).items()}
            guards = self.guards.scores(restored)
        record = {"step": step, "keys": held_out_keys(restored), "rewards": rewards, "guards": guards}
        folder = self.run_dir / "eval"
        folder.mkdir(parents=True, exist_ok=True)
        save_json(folder / f"scores-{step:06d}.json", record)
        means = {n: sum(v) / len(v) for n, v in rewards.items()}
        guard_means = {n: sum(v) / len(v) for n, v in guards.items() if v}
        scalars = {f"eval/{n}/mean": v for n, v in {**means, **guard_means}.items()}
        logger.log({**scalars, **self.health(restored[0])}, step)
        logger.log_images("held_out", self.grid(restored[0]), ("LR", "base", "tuned"), step)
        return means

    @torch.no_grad()
    def health(self, part: RestoredBatch) -> dict[str, float]:
        """How far the policy has moved from the reference: norms of velocities and of clean latents, as ratios."""
        backbone = self.policy.backbone
        base = next(b for b in self.base() if b.batch.keys == part.batch.keys)
        batch = part.batch.index(range(min(HEALTH_IMAGES, len(part.batch.keys))))
        x_0 = backbone.encode(part.sr[: len(batch.keys)])
        condition = backbone.encode_condition(batch.lr, upscale=batch.upscale, prompts=batch.prompts)
        noise = torch.randn(x_0.shape, generator=generator_for(self.settings.seed, "health")).to(x_0.device)
        tuned_norms, reference_norms = [], []
        for time in HEALTH_TIMES:
            t = torch.full((x_0.shape[0],), time, device=x_0.device)
            x_t = interpolate(x_0, noise, t)
            tuned_norms.append(self.policy(x_t, t, condition, Role.CURRENT).norm())
            reference_norms.append(self.policy(x_t, t, condition, Role.REFERENCE).norm())
        ratio = torch.stack(tuned_norms).sum() / torch.stack(reference_norms).sum()
        return {
            "health/velocity_norm_ratio": float(ratio),
            "health/x0_norm_ratio": float(x_0.norm() / backbone.encode(base.sr[: len(x_0)]).norm()),
        }

    def grid(self, part: RestoredBatch) -> Tensor:
        """(R, 3, 3, H, W): up-sampled LR, base and tuned of the first held-out images."""
        base = next(b for b in self.base() if b.batch.keys == part.batch.keys)
        return picture_rows(part, [base.sr, part.sr], self.num_grid_images)
