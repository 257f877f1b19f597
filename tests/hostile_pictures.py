"""What the hostile files are made of: pictures as arrays, and what must become of a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Hostile:
    """One entry of the folder."""

    name: str
    write: Callable[[Path], object]
    pixels: np.ndarray | None = None  # (H, W, 1 to 4) uint8 or uint16, upright; None: it must be refused
    reason: str = ""  # pattern of the refusal
    tolerance: int = 0  # of each value, where the format loses something
    problems: str = ""  # pattern of what is said about its metadata


def smooth(height: int, width: int, channels: int, depth: int = 8) -> np.ndarray:
    """A picture that lossy formats keep well."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    planes = [0.2 + 0.5 * x, 0.9 - 0.6 * y, 0.3 + 0.3 * (x + y) / 2, 1 - 0.8 * x * y][:channels]
    return (np.stack(planes, axis=2) * (2**depth - 1)).round().astype("uint16" if depth > 8 else "uint8")


RGB, RGBA, GREY, GREY_ALPHA = (
    smooth(7, 9, 3),
    smooth(7, 9, 4),
    smooth(7, 9, 1),
    smooth(7, 9, 4)[..., [0, 3]],
)
RGB16, RGBA16, GREY16 = smooth(7, 9, 3, 16), smooth(7, 9, 4, 16), smooth(7, 9, 1, 16)
GREY_ALPHA16 = RGBA16[..., [0, 3]]
BIG = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
CUT = (
    "runcated|not enough|cut off|damaged|broken|"
    "decoder|could not|is missing|unpack|unrecognized|too small|bad|fail|[Rr]ead"
)  # what Pillow calls it


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    """Pillow's encoding of (H, W, channels) bytes."""
    buffer = BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def holding(content: bytes) -> Callable[[Path], object]:
    """Writes these bytes."""
    return lambda path: path.write_bytes(content)
