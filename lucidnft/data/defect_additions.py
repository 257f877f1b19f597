"""Defects that add something to the image: noise, dots, patches, grids, invented detail.

Each `_draw_*` returns JSON-able parameters; each apply function maps severity 0 to the unchanged image and 1
to a ruined one.  Images are (3, H, W) in [0, 1]; the caller clamps.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lucidnft.data.defect_draws import Parameters, choice, normal, seed, unit_std
from lucidnft.data.periodic_patterns import plane_waves, repeat_tile
from lucidnft.filters import gaussian_blur
from lucidnft.rng import generator_for, numpy_generator_for


def local_contrast(image: Tensor) -> Tensor:
    """(1, H, W): local standard deviation of the grey image, mean 1 over the image."""
    grey = image.mean(dim=0, keepdim=True)[None]
    contrast = gaussian_blur((grey - gaussian_blur(grey, 2.0)).abs(), 2.0)[0]
    return contrast / contrast.mean().clamp_min(1e-4)


def draw_gaussian_noise(generator: np.random.Generator) -> Parameters:
    return {"seed": seed(generator), "grey": bool(generator.random() < 0.3)}


def gaussian_noise(image: Tensor, parameters: Parameters, severity: float, donor: Tensor) -> Tensor:
    channels = 1 if parameters["grey"] else 3
    return image + 0.12 * severity**1.2 * normal(parameters, "noise", channels, *image.shape[1:])


def draw_residual_noise(generator: np.random.Generator) -> Parameters:
    return {
        "seed": seed(generator),
        "sigma": float(generator.uniform(0.5, 2.5)),
        "chroma": float(generator.uniform(0.2, 1.0)),
        "follow_contrast": float(generator.uniform(0, 1)),
    }


def residual_noise(image: Tensor, parameters: Parameters, severity: float, donor: Tensor) -> Tensor:
    """Low-passed, partly coloured noise, stronger on texture: what too few flow steps leave behind."""
    colour = normal(parameters, "colour", 3, *image.shape[1:])
    grey = normal(parameters, "grey", 1, *image.shape[1:])
    field = parameters["chroma"] * colour + (1 - parameters["chroma"]) * grey
    field = unit_std(gaussian_blur(field[None], parameters["sigma"])[0])
    share = parameters["follow_contrast"]
    strength = 1 - share + share * local_contrast(image).clamp(max=3)
    return image + 0.10 * severity**1.2 * field * strength


def draw_speckle(generator: np.random.Generator) -> Parameters:
    return {
        "seed": seed(generator),
        "density": float(10 ** generator.uniform(-2.2, -1.0)),
        "sigma": float(generator.uniform(0.5, 1.2)),
        "grey": bool(generator.random() < 0.5),
    }


def speckle(image: Tensor, parameters: Parameters, severity: float, donor: Tensor) -> Tensor:
    """Isolated bright and dark dots."""
    source = generator_for(parameters["seed"], "dots")
    dots = (torch.rand(1, *image.shape[1:], generator=source) < parameters["density"]).float()
    channels = 1 if parameters["grey"] else 3
    signs = normal(parameters, "signs", channels, *image.shape[1:]).clamp(-2, 2)
    field = (
        gaussian_blur((dots * signs)[None], parameters["sigma"])[0] * 2 * math.pi * parameters["sigma"] ** 2
    )
    return image + 0.6 * severity * field


def draw_blotches(generator: np.random.Generator) -> Parameters:
    return {
        "seed": seed(generator),
        "cell": float(2 ** generator.uniform(2.3, 5.5)),
        "chroma": float(generator.uniform(0.3, 1.0)),
    }


def blotches(image: Tensor, parameters: Parameters, severity: float, donor: Tensor) -> Tensor:
    """Smooth patches of wrong colour and brightness."""
    grid = tuple(max(2, round(side / parameters["cell"])) + 1 for side in image.shape[1:])
    field = parameters["chroma"] * normal(parameters, "colour", 3, *grid)
    field = field + (1 - parameters["chroma"]) * normal(parameters, "grey", 1, *grid)
    smooth = F.interpolate(field[None], size=image.shape[1:], mode="bicubic", align_corners=True)[0]
    return image + 0.11 * severity * unit_std(smooth)


def draw_grid(generator: np.random.Generator) -> Parameters:
    return {
        "seed": seed(generator),
        "period": choice(generator, (2, 2, 4, 8, 16)),
        "waves": choice(generator, (0, 1, 2)),
        "follow_contrast": float(generator.uniform(0, 1)),
    }


def grid(image: Tensor, parameters: Parameters, severity: float, donor: Tensor) -> Tensor:
    """A repeated tile: the checkerboard of transposed convolutions, or the seams of patches."""
    period = parameters["period"]
    if parameters["waves"]:
        source = numpy_generator_for(parameters["seed"], "waves")
        tile = plane_waves(source, period, count=parameters["waves"])
    else:
        tile = normal(parameters, "tile", 3, period, period) + normal(parameters, "grey", 1, period, period)
        tile = unit_std(tile)
        tile = tile - tile.mean(dim=(1, 2), keepdim=True)
    pattern = repeat_tile(tile, image.shape[1], image.shape[2])
    share = parameters["follow_contrast"]
    strength = 1 - share + share * local_contrast(image).clamp(max=3)
    return image + 0.09 * severity**1.2 * pattern * strength


def draw_network_texture(generator: np.random.Generator) -> Parameters:
    return {"seed": seed(generator), "dilation": choice(generator, (1, 1, 2, 4))}


def network_texture(image: Tensor, parameters: Parameters, severity: float, donor: Tensor) -> Tensor:
    """The image's own structure through a small random network: detail that follows content and is wrong."""
    features = (image[None] - gaussian_blur(image[None], 4.0)) * 8
    dilation = parameters["dilation"]
    for layer, (fan_in, fan_out) in enumerate(((3, 8), (8, 8), (8, 3))):
        weight = normal(parameters, f"layer{layer}", fan_out, fan_in, 3, 3) / math.sqrt(fan_in * 9) * 2
        features = F.conv2d(F.pad(features, (dilation,) * 4, mode="reflect"), weight, dilation=dilation)
        if layer < 2:
            features = torch.sin(features)
    field = features - gaussian_blur(features, 4.0)
    return image + 0.09 * severity**1.1 * unit_std(field[0])


def draw_colour_shift(generator: np.random.Generator) -> Parameters:
    return {
        "offset": [float(v) for v in generator.uniform(-1, 1, size=3)],
        "gain": [float(v) for v in generator.uniform(-1, 1, size=3)],
        "saturation": float(generator.uniform(-1, 1)),
    }


def colour_shift(image: Tensor, parameters: Parameters, severity: float, donor: Tensor) -> Tensor:
    """Another brightness, contrast, tint and saturation."""
    offset, gain = (
        torch.tensor(parameters["offset"])[:, None, None],
        torch.tensor(parameters["gain"])[:, None, None],
    )
    grey = image.mean(dim=0, keepdim=True)
    saturated = grey + (1 + 0.8 * severity * parameters["saturation"]) * (image - grey)
    return 0.5 + (1 + 0.5 * severity * gain) * (saturated - 0.5) + 0.2 * severity * offset
