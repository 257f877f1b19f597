"""Blur kernels of the Real-ESRGAN and BSRGAN degradations: small float64 arrays that sum to 1.

Sources: Wang et al., Real-ESRGAN (2021), section 3; Zhang et al., BSRGAN (2021), section 3.
"""

from __future__ import annotations

import numpy as np
from scipy.special import j1

SHAPES = ("gaussian", "generalised", "plateau")


def _grid(size: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) measured from the centre, moved by `shift` pixels toward the lower right."""
    axis = np.arange(size) - (size - 1) / 2 - shift
    return axis[:, None], axis[None, :]


def elliptic_kernel(
    size: int,
    sigma_x: float,
    sigma_y: float,
    rotation: float,
    *,
    shape: str = "gaussian",
    beta: float = 1.0,
    shift: float = 0.0,
) -> np.ndarray:
    """(size, size) kernel over d2 = x' S^-1 x with S of standard deviations sigma_x, sigma_y, rotated.

    gaussian: exp(-d2 / 2); generalised: exp(-d2^beta / 2); plateau: 1 / (1 + d2^beta).  Rotation in radians,
    sigmas and shift in pixels.
    """
    rows, columns = _grid(size, shift)
    along = columns * np.cos(rotation) + rows * np.sin(rotation)
    across = rows * np.cos(rotation) - columns * np.sin(rotation)
    distance = (along / sigma_x) ** 2 + (across / sigma_y) ** 2
    if shape == "gaussian":
        kernel = np.exp(-0.5 * distance)
    elif shape == "generalised":
        kernel = np.exp(-0.5 * distance**beta)
    elif shape == "plateau":
        kernel = 1 / (1 + distance**beta)
    else:
        raise ValueError(f"unknown kernel shape {shape!r}; expected one of {', '.join(SHAPES)}")
    return kernel / kernel.sum()


def sinc_kernel(size: int, cutoff: float) -> np.ndarray:
    """(size, size) circular low-pass of `cutoff` radians per pixel: cutoff * J1(cutoff r) / (2 pi r).

    It rings, as over-sharpened and recompressed photographs do.
    """
    rows, columns = _grid(size)
    radius = np.hypot(rows, columns)
    centre = radius == 0
    safe = np.where(centre, 1.0, radius)
    kernel = np.where(centre, cutoff**2 / (4 * np.pi), cutoff * j1(cutoff * safe) / (2 * np.pi * safe))
    return kernel / kernel.sum()
