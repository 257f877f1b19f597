"""Task quality: train QualityNet to rank photographs above their damaged versions, by severity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from lucidnft.data.defects import (
    DEFECT_NAMES,
    DefectRecipe,
    apply_recipe,
    draw_defect,
    draw_recipe,
    visible_severity,
)
from lucidnft.data.periodic_patterns import add_faint_pattern
from lucidnft.losses.quality import quality_loss
from lucidnft.rewards.quality import CELL, QualityNet, QualityNetwork, save_quality_network
from lucidnft.rng import numpy_generator_for
from lucidnft.training.evaluation import Evaluation
from lucidnft.training.photographs import Photographs, PhotographSettings, describe_photographs
from lucidnft.training.supervised_task import SupervisedTask

RANKABLE = 0.0015
"""Mean absolute difference of two versions below which their order is not asked for."""
# What resembles a photograph most is shown most often; noise is learnt at once; a grid has many faces.
FREQUENCIES = {
    "painting": 3.0,
    "wrong_texture": 3.0,
    "blocking": 2.5,
    "blur": 2.5,
    "melting": 2.0,
    "ringing": 7.0,
    "grid": 6.0,
    "speckle": 1.5,
}
SOFT_SHARE = 0.3
"""Share of the rows whose damaged versions are of a softened photograph, the second being only that."""
RESTORED_SHARE = 0.2
"""Share of the rows that start from a restoration of the photograph, where there are some."""
RESTORED_SEVERITY = 0.3
"""Severity of a restoration as it is: its photograph is better, and more damage is worse."""
TEXTURES = ("network_texture", "residual_noise", "grid", "speckle", "gaussian_noise", "ringing", "painting")
"""What a policy that is paid for sharpness adds to restorations: the damage that such rows show."""
EVALUATION_SEVERITIES = (0.0, 0.1, 0.25, 0.5, 0.9)


@dataclass(frozen=True)
class QualitySamples:
    """B photographs in V versions, the first undamaged, the others ever more severe."""

    images: Tensor  # (B, V, 3, s, s) float32 in [0, 1]
    severity_maps: Tensor  # (B, V, h, w) in [0, 1], on the grid of the quality map
    distinct: Tensor  # (B, V, V) bool


class QualityTaskConfig(PhotographSettings):
    """Settings of `QualityTask`."""

    type: Literal["quality"] = "quality"
    num_versions: int = Field(default=4, ge=3)  # of each photograph, the undamaged one included
    weights: str | None = None  # to start from: `tiny` for those that ship, or a file; null starts afresh

    def build(self, seed: int) -> QualityTask:
        """Decode the photographs and make the task."""
        photographs, held_out = self.build_photographs()
        network = None
        if self.weights is not None:
            network = QualityNet.from_pretrained(self.weights).network.train().requires_grad_(True)
        return QualityTask(photographs, held_out, seed=seed, num_versions=self.num_versions, network=network)


class QualityTask(SupervisedTask):
    """Its samples, loss and evaluation; a row is one photograph in all its versions."""

    name = "quality"

    def __init__(
        self,
        photographs: Photographs,
        held_out: Photographs,
        *,
        seed: int,
        num_versions: int = 4,
        network: QualityNetwork | None = None,
    ) -> None:
        """num_versions: V, of which one is undamaged.  held_out: photographs that are never trained on."""
        if photographs.crop_size % CELL or held_out.crop_size % CELL or num_versions < 3:
            raise ValueError(
                f"task quality: crop sizes {photographs.crop_size} and {held_out.crop_size} must be "
                f"multiples of {CELL}, num_versions {num_versions} at least 3"
            )
        if len(photographs) < 2 or len(held_out) < 2:
            raise ValueError("task quality needs two photographs or more in each set: textures are exchanged")
        if network is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                network = QualityNetwork()
        self.network = network
        self.module: nn.Module = network
        self.photographs, self.held_out = photographs, held_out
        self.seed, self.num_versions = seed, num_versions
        self._evaluation_set: dict[str, Tensor] | None = None

    def describe(self) -> str:
        """Numbers of photographs and the crop sizes."""
        return describe_photographs(self.photographs, self.held_out)

    def batch(self, step: int, rows: range, num_rows: int) -> QualitySamples:
        """The samples of these rows, each a function of (seed, step, row)."""
        samples = [self._versions(step, row) for row in rows]
        images = torch.stack([versions for versions, _ in samples])
        differences = (images[:, :, None] - images[:, None]).abs().mean(dim=(3, 4, 5))
        for row, versions in zip(rows, images, strict=True):
            generator = numpy_generator_for(self.seed, "quality/faint", step, row)
            for version in versions:
                version.copy_(add_faint_pattern(version, generator))
        return QualitySamples(images, torch.stack([maps for _, maps in samples]), differences > RANKABLE)

    def loss(self, samples: QualitySamples) -> tuple[Tensor, dict[str, Tensor]]:
        """(B,) losses and scalars to log."""
        device = next(self.module.parameters()).device
        logits = self.module(samples.images.flatten(0, 1).to(device)).float()
        maps = logits[:, 0].unflatten(0, samples.images.shape[:2])
        return quality_loss(maps, samples.severity_maps.to(device), distinct=samples.distinct.to(device))

    @torch.no_grad()
    def evaluate(self) -> Evaluation:
        """On held-out photographs, per kind of defect: share of version pairs in the right order, and gaps.

        accuracy/KIND counts all pairs, mild/KIND the undamaged against severity 0.1 alone, gap/KIND is the
        mean score difference between undamaged and severity 0.5; absolute: share of pairs (undamaged,
        severity 0.9 of another photograph) in the right order.
        """
        if self._evaluation_set is None:
            self._evaluation_set = {kind: self._evaluation_versions(kind) for kind in DEFECT_NAMES}
        self.module.eval()
        metrics: dict[str, float] = {}
        absolute = []
        for kind, versions in self._evaluation_set.items():
            parts = [
                torch.sigmoid(self.module(part.to(next(self.module.parameters()).device))).mean(dim=(1, 2, 3))
                for part in versions.flatten(0, 1).split(32)
            ]
            scores = torch.cat(parts).cpu().unflatten(0, versions.shape[:2])
            gaps = scores[:, :, None] - scores[:, None, :]
            pairs = torch.ones(gaps.shape[1:]).triu(diagonal=1).bool()
            metrics[f"accuracy/{kind}"] = float((gaps[:, pairs] > 0).float().mean())
            metrics[f"mild/{kind}"] = float((gaps[:, 0, 1] > 0).float().mean())
            metrics[f"gap/{kind}"] = float(gaps[:, 0, 3].mean())
            across = scores[:, None, 0] - scores[None, :, -1]
            absolute.append((across > 0).float().mean())
        self.module.train()
        for group in ("accuracy", "mild", "gap"):
            metrics[group] = sum(metrics[f"{group}/{kind}"] for kind in DEFECT_NAMES) / len(DEFECT_NAMES)
        metrics["absolute"] = float(torch.stack(absolute).mean())
        return Evaluation(metrics)

    def export(self, path: str, **card: Any) -> None:
        """Write the weights as `QualityNet.from_pretrained` reads them."""
        save_quality_network(self.network, path, **card)

    def reward(self) -> QualityNet:
        """The network as it stands, as a reward; it shares the weights and is frozen."""
        return QualityNet(self.network)

    def _versions(self, step: int, row: int) -> tuple[Tensor, Tensor]:
        generator = numpy_generator_for(self.seed, "quality/versions", step, row)
        index, other = generator.choice(len(self.photographs), size=2, replace=False)
        image, restored = self.photographs.crop_with_restored(int(index), generator)
        donor = self.photographs.crop(int(other), generator)
        if restored is not None and generator.random() < RESTORED_SHARE:
            recipe = draw_recipe(generator, TEXTURES)
            severities = [0.0, *self._severities(generator, 0.05, 0.6, self.num_versions - 2)]
            return self._ordered(image, restored, RESTORED_SEVERITY, recipe, severities, donor)
        recipe = draw_recipe(generator, weights=[FREQUENCIES.get(name, 1.0) for name in DEFECT_NAMES])
        soft, softness = DefectRecipe((draw_defect(generator, "blur"),)), float(generator.uniform(0.04, 0.3))
        # On a soft image, sharpening and false detail are most tempting: they must lose against softness too.
        if generator.random() < SOFT_SHARE:
            severities = [0.0, *self._severities(generator, 0.3, 1.0, self.num_versions - 2)]
            start = apply_recipe(image, soft, softness, donor=donor)[0]
        else:
            # Half of the rows stay mild throughout: that is where a trained policy lives.
            ceiling = 0.4 if generator.random() < 0.5 else 1.0
            severities = self._severities(generator, 0.04, ceiling, self.num_versions - 1)
            start, softness = image, 0.0
        return self._ordered(image, start, softness, recipe, severities, donor)

    def _ordered(
        self,
        image: Tensor,
        start: Tensor,
        start_severity: float,
        recipe: DefectRecipe,
        severities: list[float],
        donor: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The photograph, then `start` with the recipe at rising severities; images and severity maps."""
        images, maps = [image], [torch.zeros(image.shape[1] // CELL, image.shape[2] // CELL)]
        for severity in severities:
            version, mask = apply_recipe(start, recipe, severity, donor=donor)
            total = 1 - (1 - start_severity) * (1 - mask * recipe.total_severity(severity))
            images.append(version)
            maps.append(visible_severity(image, version, total, CELL))
        return torch.stack(images), torch.stack(maps)

    def _severities(self, generator: np.random.Generator, low: float, high: float, count: int) -> list[float]:
        return sorted(float(value) for value in generator.uniform(low, high, size=count))

    def _evaluation_versions(self, kind: str) -> Tensor:
        rows = []
        for index in range(len(self.held_out)):
            generator = numpy_generator_for(self.seed, "quality/evaluation", kind, index)
            image = self.held_out.centre(index)
            donor = self.held_out.centre((index + 1) % len(self.held_out))
            recipe = DefectRecipe((draw_defect(generator, kind),))
            versions = [apply_recipe(image, recipe, s, donor=donor)[0] for s in EVALUATION_SEVERITIES]
            rows.append(torch.stack(versions))
        return torch.stack(rows)
