"""Defects that transform the image: halos, blur, JPEG, foreign texture, melting, over-smoothing.

The conventions are those of `defect_additions`.
"""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lucidnft.data.defect_draws import Parameters, choice, normal, seed
from lucidnft.filters import box_blur, gaussian_blur


def draw_ringing(generator: np.random.Generator) -> Parameters:
    return {
        "mode": choice(generator, ("unsharp", "unsharp", "sinc")),
        "sigma": float(generator.uniform(0.7, 2.5)),
    }


def ringing(image: Tensor, parameters: Parameters, severity: float, donor: Tensor) -> Tensor:
    """Halos: unsharp masking carried too far, or an ideal low-pass with its ripples."""
    if parameters["mode"] == "unsharp":
        return image + 2.5 * severity**0.9 * (image - gaussian_blur(image[None], parameters["sigma"])[0])
    pad = min(16, image.shape[1] - 1, image.shape[2] - 1)
    padded = F.pad(image[None], (pad, pad, pad, pad), mode="reflect")[0]
    height, width = padded.shape[1:]
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    cutoff = 0.5 * 0.25 ** (severity**0.8)
    kept = ((rows**2 + columns**2).sqrt() <= cutoff).float()
    low = torch.fft.irfft2(torch.fft.rfft2(padded) * kept, s=(height, width))
    low = low[:, pad : height - pad, pad : width - pad]
    return low + 0.8 * severity * (low - gaussian_blur(low[None], 1.5)[0])


def draw_blur(generator: np.random.Generator) -> Parameters:
    return {
        "mode": choice(generator, ("gaussian", "directional", "resample")),
        "angle": float(generator.uniform(0, math.pi)),
        "ratio": float(generator.uniform(0.2, 0.6)),
        "resample": choice(generator, ("bicubic", "bilinear", "nearest")),
    }


def blur(image: Tensor, parameters: Parameters, severity: float, donor: Tensor) -> Tensor:
    """Gaussian or directional blur, or a round trip through a smaller size."""
    sigma = 3.2 * severity**0.8
    if parameters["mode"] == "gaussian":
        return gaussian_blur(image[None], sigma)[0]
    if parameters["mode"] == "resample":
        size = tuple(max(4, round(side / (1 + 4 * severity))) for side in image.shape[1:])
        small = F.interpolate(image[None], size=size, mode="bicubic", antialias=True)
        smooth = {} if parameters["resample"] == "nearest" else {"align_corners": False}
        return F.interpolate(small, size=image.shape[1:], mode=parameters["resample"], **smooth)[0]
    radius = min(math.ceil(3 * sigma), image.shape[1] - 1, image.shape[2] - 1)
    axis = torch.arange(-radius, radius + 1, dtype=torch.float32)
    rows, columns = axis[:, None], axis[None]
    cosine, sine = math.cos(parameters["angle"]), math.sin(parameters["angle"])
    along, across = cosine * columns + sine * rows, cosine * rows - sine * columns
    kernel = torch.exp(-0.5 * ((along / sigma) ** 2 + (across / (sigma * parameters["ratio"])) ** 2))
    weight = (kernel / kernel.sum()).repeat(3, 1, 1, 1)
    return F.conv2d(F.pad(image[None], (radius,) * 4, mode="reflect"), weight, groups=3)[0]


def draw_blocking(generator: np.random.Generator) -> Parameters:
    return {
        "shift": [int(v) for v in generator.integers(0, 8, size=2)],
        "subsampling": choice(generator, (0, 2)),
    }


def blocking(image: Tensor, parameters: Parameters, severity: float, donor: Tensor) -> Tensor:
    """JPEG: quality 95 down to 6, its block grid shifted at random."""
    top, left = parameters["shift"]
    padded = F.pad(image[None], (left, 0, top, 0), mode="replicate")[0]
    array = (padded.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    quality = round(95 - 89 * severity**0.65)
    Image.fromarray(array).save(stream, "JPEG", quality=quality, subsampling=parameters["subsampling"])
    decoded = np.asarray(Image.open(stream), dtype=np.float32) / 255
    return torch.from_numpy(decoded).permute(2, 0, 1)[:, top:, left:]


def draw_wrong_texture(generator: np.random.Generator) -> Parameters:
    return {"sigma": float(generator.uniform(1.0, 3.5)), "grey": bool(generator.random() < 0.5)}


def wrong_texture(image: Tensor, parameters: Parameters, severity: float, donor: Tensor) -> Tensor:
    """Fine detail replaced by another photograph's, matched in local strength: plausible and false."""
    low = gaussian_blur(image[None], parameters["sigma"])[0]
    foreign = donor - gaussian_blur(donor[None], parameters["sigma"])[0]
    if parameters["grey"]:
        foreign = foreign.mean(dim=0, keepdim=True)
    own_energy = gaussian_blur((image - low).abs().mean(dim=0)[None, None], 6.0)[0]
    foreign_energy = gaussian_blur(foreign.abs().mean(dim=0)[None, None], 6.0)[0]
    gain = ((own_energy + 0.01) / (foreign_energy + 0.01)).clamp(max=4)
    return low + (1 - severity) * (image - low) + severity * gain * foreign


def resample(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Bilinear values of a (3, H, W) image at (H, W) row and column positions, reflected outside."""
    height, width = image.shape[1:]
    where = torch.stack((2 * columns / (width - 1) - 1, 2 * rows / (height - 1) - 1), dim=-1)
    return F.grid_sample(image[None], where[None], padding_mode="reflection", align_corners=True)[0]


def draw_melting(generator: np.random.Generator) -> Parameters:
    return {"seed": seed(generator), "cell": float(choice(generator, (1.0, 2.0, 4.0, 8.0)))}


def melting(image: Tensor, parameters: Parameters, severity: float, donor: Tensor) -> Tensor:
    """Pixels displaced by a random field: from scattered grains (cell 1) to melted shapes (cell 8)."""
    height, width = image.shape[1:]
    cell = parameters["cell"]
    grid = tuple(max(2, round(side / cell)) + 1 for side in (height, width))
    field = F.interpolate(
        normal(parameters, "shift", 1, 2, *grid), size=(height, width), mode="bicubic", align_corners=True
    )[0]
    reach = severity * (1.2 + 0.3 * cell)
    return resample(
        image,
        torch.arange(height)[:, None] + reach * field[0],
        torch.arange(width)[None] + reach * field[1],
    )


def draw_painting(generator: np.random.Generator) -> Parameters:
    return {"radius": int(generator.integers(2, 6)), "sharpen": float(generator.uniform(0, 1.0))}


def painting(image: Tensor, parameters: Parameters, severity: float, donor: Tensor) -> Tensor:
    """Fine texture gone, edges kept or crisped: an edge-preserving (guided) filter that guides itself."""
    guide = image.mean(dim=0, keepdim=True)[None]
    radius = parameters["radius"]
    mean, mean_guide = box_blur(image[None], radius), box_blur(guide, radius)
    covariance = box_blur(guide * image[None], radius) - mean_guide * mean
    variance = box_blur(guide * guide, radius) - mean_guide**2
    slope = covariance / (variance.clamp_min(0) + (0.14 * severity) ** 2)
    offset = mean - slope * mean_guide
    smooth = (box_blur(slope, radius) * guide + box_blur(offset, radius))[0]
    crisp = smooth + parameters["sharpen"] * severity * (smooth - gaussian_blur(smooth[None], 1.0)[0])
    return torch.lerp(image, crisp, min(1.0, 3 * severity))


def draw_foreign_content(generator: np.random.Generator) -> Parameters:
    return {"match_colour": bool(generator.random() < 0.7)}


def foreign_content(image: Tensor, parameters: Parameters, severity: float, donor: Tensor) -> Tensor:
    """Another photograph in place of this one, blended in; meant for regions."""
    other = donor
    if parameters["match_colour"]:
        own_mean, own_std = image.mean(dim=(1, 2), keepdim=True), image.std(dim=(1, 2), keepdim=True)
        mean, std = donor.mean(dim=(1, 2), keepdim=True), donor.std(dim=(1, 2), keepdim=True)
        other = (donor - mean) * (own_std / std.clamp_min(1e-3)).clamp(max=3) + own_mean
    return torch.lerp(image, other, severity)


def draw_displacement(generator: np.random.Generator) -> Parameters:
    return {"angle": float(generator.uniform(0, 2 * math.pi))}


def displacement(image: Tensor, parameters: Parameters, severity: float, donor: Tensor) -> Tensor:
    """Everything moved by up to 10 px: right content in the wrong place."""
    height, width = image.shape[1:]
    rows = (
        torch.arange(height)[:, None] + 10 * severity * math.sin(parameters["angle"]) + torch.zeros(1, width)
    )
    columns = (
        torch.arange(width)[None] + 10 * severity * math.cos(parameters["angle"]) + torch.zeros(height, 1)
    )
    return resample(image, rows, columns)
