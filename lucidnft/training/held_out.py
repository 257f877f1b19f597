"""Restoring and scoring the held-out images: fixed noise, so that two evaluations differ only by the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lucidnft.backbones.base import Backbone
from lucidnft.data.batches import HeldOut
from lucidnft.flow.solvers import ODE_SOLVERS
from lucidnft.images import resize
from lucidnft.records import Condition, ImageBatch
from lucidnft.rewards.base import RewardSuite
from lucidnft.rng import generator_for
from lucidnft.training.settings import EvalConfig

ConditionedVelocity = Callable[[Tensor, Tensor, Condition], Tensor]
"""(x_t (B, C, h, w), t (B,), condition of B rows) -> v."""


@dataclass(frozen=True)
class RestoredBatch:
    """Held-out images of one size with their restorations."""

    batch: ImageBatch  # G images
    sr: Tensor  # (G, 3, H, W) in [0, 1]


@torch.no_grad()
def restore_held_out(
    velocity: ConditionedVelocity, backbone: Backbone, held_out: HeldOut, evaluation: EvalConfig
) -> list[RestoredBatch]:
    """Restore every held-out image once; its noise is keyed by (eval.seed, its key)."""
    restored: list[RestoredBatch] = []
    remaining = evaluation.max_images or len(held_out)
    device = next(backbone.module.parameters()).device
    for batch in held_out.batches():
        batch = batch.index(range(min(remaining, len(batch.keys)))).to(device)
        if not batch.keys:
            break
        remaining -= len(batch.keys)
        restored.append(RestoredBatch(batch, restore_batch(velocity, backbone, batch, evaluation)))
    return restored


def restore_batch(
    velocity: ConditionedVelocity, backbone: Backbone, batch: ImageBatch, evaluation: EvalConfig
) -> Tensor:
    """Restorations (G, 3, H, W) of one batch."""
    height, width = batch.lr.shape[2] * batch.upscale, batch.lr.shape[3] * batch.upscale
    shape = backbone.latent_spec.grid(height, width)
    noise = torch.stack(
        [torch.randn(shape, generator=generator_for(evaluation.seed, "held_out", key)) for key in batch.keys]
    ).to(batch.lr.device)
    condition = backbone.encode_condition(batch.lr, upscale=batch.upscale, prompts=batch.prompts)
    grid = backbone.default_time_grid(evaluation.num_inference_steps, height, width)
    solve = ODE_SOLVERS[evaluation.solver]
    parts = []
    for rows in torch.arange(len(batch.keys)).split(evaluation.batch_size):
        condition_rows = condition.index(rows)

        def conditioned(x_t: Tensor, t: Tensor, condition_rows: Condition = condition_rows) -> Tensor:
            return velocity(x_t, t, condition_rows)

        parts.append(backbone.decode(solve(conditioned, noise[rows], grid).x_0))
    return torch.cat(parts)


def score_held_out(restored: list[RestoredBatch], suite: RewardSuite) -> dict[str, Tensor]:
    """{reward name: (n,)} scores of the restorations, in the order of the held-out images."""
    columns: dict[str, list[Tensor]] = {name: [] for name in suite.names}
    for part in restored:
        scores = suite.score(part.sr.unsqueeze(1), part.batch).by_name()
        for name, values in scores.items():
            columns[name].append(values[:, 0].cpu())
    return {name: torch.cat(values) for name, values in columns.items()}


def picture_rows(part: RestoredBatch, versions: Sequence[Tensor], limit: int) -> Tensor:
    """(R, 1 + V, 3, H, W) for a grid of pictures: up-sampled LR and V versions (G, 3, H, W) of the first images."""
    rows = min(limit, part.sr.shape[0])
    lr = resize(part.batch.lr[:rows], (part.sr.shape[2], part.sr.shape[3]))
    return torch.stack([lr, *(version[:rows] for version in versions)], dim=1).cpu()


def held_out_keys(restored: list[RestoredBatch]) -> list[str]:
    """Names of the restored images, in order."""
    return [key for part in restored for key in part.batch.keys]
