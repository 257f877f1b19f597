"""Task consistency: train the tiny embedder and its head to see content through degradation.

A row is one photograph: the original, two degraded versions enlarged again (the LR side), and wrong
restorations of it: one unfaithful recipe at two severities, and a region swapped for another photograph's
and then degraded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from lucidnft.data.defects import (
    UNFAITHFUL_NAMES,
    DefectRecipe,
    apply_recipe,
    draw_defect,
    draw_recipe,
    draw_region,
    visible_severity,
)
from lucidnft.data.degradation import Degradation, Preset
from lucidnft.data.periodic_patterns import add_faint_pattern
from lucidnft.filters import without_chequer
from lucidnft.images import resize
from lucidnft.losses.consistency import consistency_loss
from lucidnft.rewards.consistency import (
    LucidConsistency,
    TinyConsistencyNetwork,
    load_consistency_network,
    save_consistency_network,
)
from lucidnft.rewards.embedders import CELL
from lucidnft.rng import numpy_generator_for
from lucidnft.training.evaluation import Evaluation
from lucidnft.training.photographs import Photographs, PhotographSettings, describe_photographs
from lucidnft.training.supervised_task import SupervisedTask

UPSCALE = 4
PRESETS: tuple[Preset, ...] = ("realesrgan", "light", "bsrgan", "bicubic")
# Blur, blocking and over-smoothing are what LR itself has: the embedder must not mind them.
WRONG_KINDS = (
    "gaussian_noise",
    "residual_noise",
    "speckle",
    "ringing",
    "blotches",
    "wrong_texture",
    "melting",
    "grid",
    "network_texture",
    *UNFAITHFUL_NAMES,
)
EVALUATION_SEVERITIES = (0.1, 0.25, 0.6)


@dataclass(frozen=True)
class ConsistencySamples:
    """B contents: float32 images in [0, 1] of one size."""

    original: Tensor  # (B, 3, s, s)
    degraded: Tensor  # (B, P, 3, s, s), enlarged back to s
    unfaithful: Tensor  # (B, Q, 3, s, s)
    unfaithfulness: Tensor  # (B, Q, L)


class ConsistencyTaskConfig(PhotographSettings):
    """Settings of `ConsistencyTask`."""

    type: Literal["consistency"] = "consistency"
    crop_size: int = Field(default=96, ge=32, multiple_of=16)  # pixels
    weights: str | None = None  # to start from: `tiny` for those that ship, or a file; null starts afresh

    def build(self, seed: int) -> ConsistencyTask:
        """Decode the photographs and make the task."""
        photographs, held_out = self.build_photographs()
        network = None if self.weights is None else load_consistency_network(self.weights)
        return ConsistencyTask(photographs, held_out, seed=seed, network=network)


class ConsistencyTask(SupervisedTask):
    """Its samples, loss and evaluation."""

    name = "consistency"

    def __init__(
        self,
        photographs: Photographs,
        held_out: Photographs,
        *,
        seed: int,
        network: TinyConsistencyNetwork | None = None,
    ) -> None:
        """held_out: photographs that are never trained on."""
        if photographs.crop_size % CELL or held_out.crop_size % CELL:
            raise ValueError(
                f"task consistency: crop sizes {photographs.crop_size} and {held_out.crop_size} must be "
                f"multiples of {CELL}"
            )
        if len(photographs) < 2 or len(held_out) < 2:
            raise ValueError("task consistency needs two photographs or more in each set, to tell them apart")
        if network is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                network = TinyConsistencyNetwork()
        self.network = network
        self.module: nn.Module = network
        self.photographs, self.held_out = photographs, held_out
        self.seed = seed
        self._degradations = [Degradation(preset, UPSCALE) for preset in PRESETS]
        self._evaluation_set: dict[str, Tensor] | None = None

    def describe(self) -> str:
        """Numbers of photographs and the crop sizes."""
        return describe_photographs(self.photographs, self.held_out)

    def batch(self, step: int, rows: range, num_rows: int) -> ConsistencySamples:
        """The samples of these rows, each a function of (seed, step, row)."""
        drawn = [self._sample(step, row) for row in rows]
        return ConsistencySamples(*(torch.stack(parts) for parts in zip(*drawn, strict=True)))

    def loss(self, samples: ConsistencySamples) -> tuple[Tensor, dict[str, Tensor]]:
        """(B,) losses and scalars to log."""
        device = next(self.module.parameters()).device
        original = samples.original[:, None]
        images = torch.cat((original, samples.degraded, samples.unfaithful), dim=1).to(device)
        vectors = self.module(images.flatten(0, 1)).float().unflatten(0, images.shape[:2])
        split = 1 + samples.degraded.shape[1]
        return consistency_loss(
            vectors[:, 0], vectors[:, 1:split], vectors[:, split:], samples.unfaithfulness.to(device)
        )

    @torch.no_grad()
    def evaluate(self) -> Evaluation:
        """On held-out photographs, as the reward: LR against original, wrong versions and other photographs.

        matched, mismatched: mean score of true pairs and of LR with another photograph; pairs: share of LR
        images whose own original outscores every other one; accuracy/KIND: share of wrong versions
        (severities 0.1, 0.25, 0.6) that the original outscores, region/KIND: with the defect in a region.
        """
        if self._evaluation_set is None:
            self._evaluation_set = self._evaluation_images()
        self.module.eval()
        projected = {name: self._project(images) for name, images in self._evaluation_set.items()}
        self.module.train()
        lr, original = projected.pop("lr"), projected.pop("original")
        table = torch.einsum("ald,bld->ab", lr, original) / lr.shape[1]
        own = table.diagonal()
        others = table[~torch.eye(len(table), dtype=torch.bool)].view(len(table), -1)
        metrics = {
            "matched": float(own.mean()),
            "mismatched": float(others.mean()),
            "pairs": float((own[:, None] > others).all(dim=1).float().mean()),
        }
        for name, wrong in projected.items():
            scores = torch.einsum("ald,asld->as", lr, wrong.unflatten(0, (len(lr), -1))) / lr.shape[1]
            metrics[name] = float((own[:, None] > scores).float().mean())
            metrics[name.replace("accuracy", "gap").replace("region", "region_gap")] = float(
                (own[:, None] - scores).mean()
            )
        for group in ("accuracy", "region"):
            values = [value for name, value in metrics.items() if name.startswith(f"{group}/")]
            metrics[group] = sum(values) / len(values)
        return Evaluation(metrics)

    def export(self, path: str, **card: Any) -> None:
        """Write the weights as `LucidConsistency.from_pretrained` reads them."""
        save_consistency_network(self.network, path, **card)

    def reward(self) -> LucidConsistency:
        """The network as it stands, as a reward; it shares the weights, and the head is frozen."""
        return LucidConsistency(self.network.embedder, self.network.head)

    def _sample(self, step: int, row: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        generator = numpy_generator_for(self.seed, "consistency/sample", step, row)
        index, other = generator.choice(len(self.photographs), size=2, replace=False)
        image = self.photographs.crop(int(index), generator)
        donor = self.photographs.crop(int(other), generator)
        degraded = torch.stack([self._degrade(image, generator) for _ in range(2)])
        recipe = draw_recipe(generator, WRONG_KINDS, compose_probability=0.2, region_probability=0.5)
        versions, maps = [], []
        for severity in sorted(float(v) for v in generator.uniform(0.05, 1, size=2)):
            wrong, mask = apply_recipe(image, recipe, severity, donor=donor)
            versions.append(wrong)
            maps.append(unfaithfulness(image, wrong, mask * recipe.total_severity(severity)))
        swap = DefectRecipe((draw_defect(generator, "foreign_content"),), draw_region(generator))
        swapped, mask = apply_recipe(image, swap, 1.0, donor=donor)
        versions.append(self._degrade(swapped, generator))
        maps.append(unfaithfulness(image, swapped, mask))
        # The LR side carries none: it comes from a file.
        original, *versions = (add_faint_pattern(version, generator) for version in (image, *versions))
        return original, degraded, torch.stack(versions), torch.stack(maps).flatten(1)

    def _degrade(self, image: Tensor, generator: np.random.Generator, preset: int | None = None) -> Tensor:
        """An LR version of a (3, H, W) image, enlarged back to its size as the reward does."""
        drawn = int(generator.integers(len(self._degradations))) if preset is None else preset
        lr, _ = self._degradations[drawn](image, generator)
        return resize(lr[None], (image.shape[1], image.shape[2]))[0]

    def _project(self, images: Tensor) -> Tensor:
        device = next(self.module.parameters()).device
        return torch.cat([self.module(part.to(device)).float().cpu() for part in images.split(32)])

    def _evaluation_images(self) -> dict[str, Tensor]:
        count = len(self.held_out)
        originals = [self.held_out.centre(index) for index in range(count)]
        seeds = [numpy_generator_for(self.seed, "consistency/evaluation", i) for i in range(count)]
        lr = [self._degrade(image, seeds[i], i % 2) for i, image in enumerate(originals)]
        images = {"original": torch.stack(originals), "lr": torch.stack(lr)}
        for kind in WRONG_KINDS:
            for where in ("accuracy", "region"):
                versions = []
                for index, image in enumerate(originals):
                    generator = numpy_generator_for(self.seed, "consistency/wrong", kind, index)
                    region = draw_region(generator) if where == "region" else None
                    recipe = DefectRecipe((draw_defect(generator, kind),), region)
                    donor = originals[(index + 1) % count]
                    versions += [
                        apply_recipe(image, recipe, s, donor=donor)[0] for s in EVALUATION_SEVERITIES
                    ]
                images[f"{where}/{kind}"] = torch.stack(versions)
        return images


def unfaithfulness(image: Tensor, wrong: Tensor, severity: Tensor) -> Tensor:
    """(s / 16, s / 16) severity of each place as far as the embedder, which sees no chequers, can know it.

    image, wrong: (3, s, s) in [0, 1]; severity: (1, s, s).
    """
    image, wrong = without_chequer(torch.stack((image, wrong)))
    return visible_severity(image, wrong, severity, CELL)
