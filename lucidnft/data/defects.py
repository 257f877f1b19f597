"""Synthetic restoration defects, whole-image or in regions: seeded, parameters returned, severity 0 to 1.

Region swaps follow FGR-30k's recipe (mask * bad + (1 - mask) * good); the bad image there comes from a
restorer, here from `defect_kinds`.  A recipe fixes everything but the severity, so that one recipe
applied at several severities gives an ordered set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lucidnft.data.defect_draws import Parameters
from lucidnft.data.defect_kinds import KINDS, UNFAITHFUL_KINDS
from lucidnft.rng import generator_for

DEFECT_NAMES: tuple[str, ...] = tuple(KINDS)
"""Kinds that show in the image alone."""
UNFAITHFUL_NAMES: tuple[str, ...] = tuple(UNFAITHFUL_KINDS)
"""Kinds that only a comparison with the reference finds."""

VISIBLE = 0.012
"""Mean absolute difference of a patch (3 steps of 255) from which its damage counts in full."""

_ALL_KINDS = {**KINDS, **UNFAITHFUL_KINDS}


@dataclass(frozen=True)
class Defect:
    """One defect with all its parameters drawn, except for the severity."""

    name: str
    parameters: Parameters
    share: float = 1.0  # fraction of the recipe's severity that this defect gets


@dataclass(frozen=True)
class Region:
    """Where a recipe acts: a smooth random blob covering `area` of the image."""

    seed: int
    area: float  # fraction of the image, in (0, 1]
    cell: float  # size of the blobs as a fraction of the shorter side

    def mask(self, height: int, width: int) -> Tensor:
        """(1, H, W) in [0, 1], with soft edges."""
        grid = tuple(max(2, round(side / (self.cell * min(height, width)))) + 1 for side in (height, width))
        noise = torch.randn(1, 1, *grid, generator=generator_for(self.seed, "region"))
        field = F.interpolate(noise, size=(height, width), mode="bicubic", align_corners=True)[0]
        threshold = torch.quantile(field.flatten()[:: max(1, field.numel() // 20000)], 1 - self.area)
        return ((field - threshold) / (0.15 * field.std().clamp_min(1e-6)) + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class DefectRecipe:
    """One or several defects in order, everywhere or in a region."""

    defects: tuple[Defect, ...]
    region: Region | None = None

    @property
    def needs_donor(self) -> bool:
        return any(_ALL_KINDS[defect.name].needs_donor for defect in self.defects)

    def total_severity(self, severity: float) -> float:
        """Severity of the composition: what each defect leaves intact multiplies."""
        intact = 1.0
        for defect in self.defects:
            intact *= 1 - severity * defect.share
        return 1 - intact

    def metadata(self, severity: float) -> dict[str, Any]:
        """JSON-able record of what was done."""
        return {"severity": severity, **asdict(self)}


def draw_defect(generator: np.random.Generator, name: str | None = None, *, share: float = 1.0) -> Defect:
    """A defect of a kind (any, by default) with drawn parameters.  Raises ValueError for an unknown kind."""
    if name is None:
        name = DEFECT_NAMES[int(generator.integers(len(DEFECT_NAMES)))]
    if name not in _ALL_KINDS:
        raise ValueError(f"defect '{name}' is unknown; kinds are {', '.join(_ALL_KINDS)}")
    return Defect(name, _ALL_KINDS[name].draw(generator), share)


def draw_recipe(
    generator: np.random.Generator,
    names: Sequence[str] = DEFECT_NAMES,
    *,
    weights: Sequence[float] | None = None,
    compose_probability: float = 0.35,
    region_probability: float = 0.35,
) -> DefectRecipe:
    """One defect, or with `compose_probability` two or three different ones; sometimes only in a region.

    weights: how likely each of `names` is, relative to the others; equal by default.
    """
    count = 1
    if generator.random() < compose_probability:
        count = min(len(names), int(generator.integers(2, 4)))
    odds = np.ones(len(names)) if weights is None else np.asarray(weights, dtype=np.float64)
    chosen = generator.choice(len(names), size=count, replace=False, p=odds / odds.sum())
    shares = [1.0] if count == 1 else [float(generator.uniform(0.3, 0.9)) for _ in chosen]
    defects = tuple(draw_defect(generator, names[i], share=s) for i, s in zip(chosen, shares, strict=True))
    region = draw_region(generator) if generator.random() < region_probability else None
    return DefectRecipe(defects, region)


def draw_region(generator: np.random.Generator) -> Region:
    """A region of 5 % to 70 % of the image."""
    return Region(
        seed=int(generator.integers(2**62)),
        area=float(generator.uniform(0.05, 0.7)),
        cell=float(generator.uniform(0.2, 0.6)),
    )


def apply_defect(image: Tensor, defect: Defect, severity: float, *, donor: Tensor | None = None) -> Tensor:
    """(3, H, W) in [0, 1] -> the same size with the defect at `severity` in [0, 1], clamped.

    donor: another photograph of the same size, for kinds that borrow from one.

    Raises:
        ValueError: severity outside [0, 1], an image under 8 px, a donor missing or of another size.
    """
    if not 0 <= severity <= 1:
        raise ValueError(f"defect '{defect.name}': severity is {severity}, expected 0 to 1")
    if image.ndim != 3 or image.shape[0] != 3 or min(image.shape[1:]) < 8:
        raise ValueError(
            f"defect '{defect.name}': image has shape {tuple(image.shape)}, expected (3, H, W), 8 px or more"
        )
    kind = _ALL_KINDS[defect.name]
    if kind.needs_donor and (donor is None or donor.shape != image.shape):
        seen = None if donor is None else tuple(donor.shape)
        raise ValueError(f"defect '{defect.name}' needs a donor of shape {tuple(image.shape)}, got {seen}")
    if severity == 0:
        return image.clone()
    return kind.apply(image, defect.parameters, severity, image if donor is None else donor).clamp(0, 1)


def apply_recipe(
    image: Tensor, recipe: DefectRecipe, severity: float, *, donor: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(3, H, W) -> (image with the defects, mask (1, H, W) of where they were put).

    Raises:
        ValueError: as `apply_defect`.
    """
    spoilt = image
    for defect in recipe.defects:
        spoilt = apply_defect(spoilt, defect, severity * defect.share, donor=donor)
    if recipe.region is None:
        return spoilt, torch.ones(1, *image.shape[1:])
    mask = recipe.region.mask(image.shape[1], image.shape[2])
    return torch.lerp(image, spoilt, mask), mask


def visible_severity(image: Tensor, damaged: Tensor, severity: Tensor, cell: int) -> Tensor:
    """(ceil(H/cell), ceil(W/cell)) severity per cell, reduced where nothing shows (blur on a clear sky).

    image, damaged: (3, H, W) in [0, 1]; severity: (1, H, W).
    """
    difference = (damaged - image).abs().mean(dim=0, keepdim=True)
    maps = F.avg_pool2d(torch.stack((difference, severity)), cell, ceil_mode=True)[:, 0]
    return maps[1] * (maps[0] / VISIBLE).clamp(max=1)
