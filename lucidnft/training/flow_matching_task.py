"""Task flow_matching: train a backbone's own weights on HR photographs and their degraded versions.

Departures from the plain recipe: an optional weight for flat regions; the noise and the time of a sample
are functions of (seed, step, row), and a stratified time of the number of rows too, so a resumed run and a
run on more processes see the same samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lucidnft.backbones.base import Backbone
from lucidnft.data.batches import HeldOut, ImageSource
from lucidnft.flow.conversions import interpolate
from lucidnft.flow.schedules import sample_times
from lucidnft.losses.flow_matching import flat_region_weight, flow_matching_loss
from lucidnft.records import ImageBatch
from lucidnft.rng import generator_for
from lucidnft.training.evaluation import Evaluation
from lucidnft.training.guards import Guards
from lucidnft.training.held_out import picture_rows, restore_held_out
from lucidnft.training.settings import EvalConfig, FlowMatchingTrainConfig
from lucidnft.training.supervised_task import SupervisedTask


@dataclass(frozen=True)
class FlowMatchingSamples:
    """B training samples: images with their noise and time."""

    images: ImageBatch  # B images, hr known
    noise: Tensor  # (B, C, h, w)
    t: Tensor  # (B,)


class FlowMatchingTask(SupervisedTask):
    """Its samples, loss and evaluation around a backbone."""

    name = "flow_matching"

    def __init__(
        self,
        backbone: Backbone,
        source: ImageSource,
        held_out: HeldOut,
        train: FlowMatchingTrainConfig,
        evaluation: EvalConfig,
        *,
        seed: int,
        num_grid_images: int = 6,
    ) -> None:
        if "hr" not in source.provides:
            raise ValueError(
                f"task flow_matching needs HR images but data '{source.name}' provides LR only; "
                "use data.type=hr_folder or paired_folder"
            )
        self.backbone = backbone
        self.module: nn.Module = backbone.module
        self.source = source
        self.held_out = held_out
        self.train = train
        self.evaluation = evaluation
        self.seed = seed
        self.num_grid_images = num_grid_images
        self.guards = Guards()

    def describe(self) -> str:
        """Counts, crop sizes and what was skipped."""
        return self.source.describe()

    def batch(self, step: int, rows: range, num_rows: int) -> FlowMatchingSamples:
        """The rows of this rank out of the step's `num_rows` samples."""
        images = self.source.batch(step, num_rows, rows)
        assert images.hr is not None
        shape = self.backbone.latent_spec.grid(images.hr.shape[2], images.hr.shape[3])
        noise = [torch.randn(shape, generator=generator_for(self.seed, "noise", step, row)) for row in rows]
        return FlowMatchingSamples(
            images=images, noise=torch.stack(noise), t=self.times(step, rows, num_rows)
        )

    def times(self, step: int, rows: range, num_rows: int) -> Tensor:
        """(B,) times of these rows; stratified ones lie one in each of `num_rows` equal spans of a step."""
        sampling = self.train.timestep_sampling
        if sampling == "stratified":
            # All rows of the step are drawn by everyone: its micro-batches and processes share out the spans.
            generator = generator_for(self.seed, "time", step)
            return sample_times(sampling, 1, num_rows, generator=generator)[0, list(rows)]
        mean, std = self.train.logit_mean, self.train.logit_std
        generators = [generator_for(self.seed, "time", step, row) for row in rows]
        return torch.cat(
            [
                sample_times(sampling, 1, 1, generator=generator, logit_mean=mean, logit_std=std)[0]
                for generator in generators
            ]
        )

    def loss(self, samples: FlowMatchingSamples) -> tuple[Tensor, dict[str, Tensor]]:
        """(B,) losses and scalars to log."""
        device = next(self.module.parameters()).device
        images = samples.images.to(device)
        assert images.hr is not None
        x_0 = self.backbone.encode(images.hr)
        noise, t = samples.noise.to(device), samples.t.to(device)
        condition = self.backbone.encode_condition(images.lr, upscale=images.upscale, prompts=images.prompts)
        v = self.backbone.velocity(interpolate(x_0, noise, t), t, condition)
        weight = None
        if self.train.flat_weighting > 0:
            weight = flat_region_weight(images.lr, (x_0.shape[2], x_0.shape[3]), self.train.flat_weighting)
        return flow_matching_loss(v, x_0=x_0, noise=noise, weight=weight)

    def evaluate(self) -> Evaluation:
        """PSNR-Y, SSIM and spectral distance of held-out restorations against HR, and pictures of the first ones."""
        restored = restore_held_out(self.backbone.velocity, self.backbone, self.held_out, self.evaluation)
        first = restored[0]
        assert first.batch.hr is not None
        pictures = picture_rows(first, [first.sr, first.batch.hr], self.num_grid_images)
        return Evaluation(self.guards.means(restored), pictures, ("LR", "restored", "HR"))

    def export(self, path: str, **card: Any) -> None:
        """Write shippable base weights."""
        self.backbone.save_pretrained(path, **card)  # type: ignore[attr-defined]
