"""Image files and pixel ranges: the one place that knows either.

Everywhere else an image is float32 RGB in [0, 1].  Files keep what they came with (8 or 16 bits, grey,
alpha, colour profile) in a `LoadedImage`, so that a restored image can be written the same way.
"""

from __future__ import annotations

import os
import struct
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lucidnft.image_decoding import DecodedPixels, UnreadableImageError, decode_pixels, read_size

__all__ = [
    "IMAGE_EXTENSIONS",
    "DecodedPixels",
    "LoadedImage",
    "UnreadableImageError",
    "decode_pixels",
    "list_images",
    "pixels_to_tensor",
    "read_image",
    "read_size",
    "resize",
    "save_image",
    "tensor_to_uint8",
]

IMAGE_EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})

ResizeMode = Literal["bicubic", "bilinear", "area", "nearest"]


@dataclass(frozen=True)
class LoadedImage:
    """An image file in the form the rest of the library uses, with what is needed to write it back."""

    rgb: Tensor  # (3, H, W) float32 in [0, 1]
    alpha: Tensor | None  # (1, H, W) float32 in [0, 1], straight; rgb keeps the colours under it
    was_grey: bool
    bit_depth: int  # 8 or 16
    icc_profile: bytes | None  # only when it describes pixels like these (RGB, or grey for a grey file)


def read_image(path: str | Path) -> LoadedImage:
    """Read a file into float32 RGB in [0, 1], and what is needed to write it back.

    Raises as `decode_pixels`.
    """
    pixels = decode_pixels(path)
    alpha = None if pixels.alpha is None else pixels_to_tensor(pixels.alpha[..., None])
    return LoadedImage(
        pixels_to_tensor(pixels.rgb), alpha, pixels.was_grey, pixels.bit_depth, pixels.icc_profile
    )


def pixels_to_tensor(pixels: np.ndarray) -> Tensor:
    """(H, W, C) uint8 or uint16 -> (C, H, W) float32 in [0, 1]."""
    scale = np.float32(np.iinfo(pixels.dtype).max)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32) / scale)


def tensor_to_uint8(images: Tensor) -> Tensor:
    """Float images in [0, 1], any shape -> uint8 of the same shape, rounded (not truncated) and clamped."""
    return images.detach().float().mul(255).round().clamp(0, 255).to(torch.uint8)


def save_image(
    path: str | Path,
    rgb: Tensor,
    *,
    alpha: Tensor | None = None,
    grey: bool = False,
    bit_depth: int = 8,
    icc_profile: bytes | None = None,
) -> None:
    """Write rgb (3, H, W) in [0, 1], and alpha (1, H, W) if given, as a PNG that appears whole or not at all.

    grey writes one channel, the mean of the three.  Values are rounded.

    Raises:
        ValueError: wrong shape, non-finite values, a depth other than 8 or 16, a name that is not .png, or a
            profile for another kind of pixels.
        OSError: the file cannot be written; nothing is left behind and an older file stays.
    """
    path = Path(path)
    _check_writable(path, rgb, alpha, grey, bit_depth, icc_profile)
    planes = rgb.mean(dim=0, keepdim=True) if grey else rgb
    planes = planes if alpha is None else torch.cat([planes, alpha.to(planes)])
    top = 2**bit_depth - 1
    scaled = planes.detach().cpu().double().mul(top).round().clamp(0, top).permute(1, 2, 0).numpy()
    content = _encode_png(scaled.astype(np.uint8 if bit_depth == 8 else np.dtype(">u2")), icc_profile)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def list_images(folder: str | Path, recursive: bool = False) -> list[Path]:
    """The image files in a folder, known by extension in any case, sorted by path; hidden ones are skipped.

    Raises:
        ValueError: the folder does not exist, is not a folder, or holds no image file.
    """
    folder = Path(folder)
    if not folder.exists():
        raise ValueError(f"image folder '{folder}' does not exist")
    if not folder.is_dir():
        raise ValueError(f"'{folder}' is a file; a folder of images is expected here")
    found = [
        path
        for path in sorted(folder.rglob("*") if recursive else folder.iterdir())
        if path.suffix.lower() in IMAGE_EXTENSIONS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    if not found:
        where = "or below it" if recursive else "(its sub-folders were not searched)"
        kinds = " ".join(sorted(IMAGE_EXTENSIONS))
        raise ValueError(f"no image file in '{folder}' {where}; looked for {kinds}")
    return found


def resize(
    images: Tensor, size: tuple[int, int], mode: ResizeMode = "bicubic", antialias: bool = True
) -> Tensor:
    """(N, 3, H, W) in [0, 1] -> (N, 3, *size), clamped to [0, 1].

    With antialias the bicubic kernel (a = -0.5) is widened when shrinking, as in MATLAB and Pillow;
    without, torch's plain interpolation (a = -0.75) is used, as the training-time degradations do.
    """
    if tuple(images.shape[-2:]) == tuple(size):
        return images.clamp(0, 1)
    if mode in ("area", "nearest"):
        return F.interpolate(images, size=size, mode=mode).clamp(0, 1)
    return F.interpolate(images, size=size, mode=mode, align_corners=False, antialias=antialias).clamp(0, 1)


def _check_writable(
    path: Path, rgb: Tensor, alpha: Tensor | None, grey: bool, bit_depth: int, icc_profile: bytes | None
) -> None:
    if path.suffix.lower() != ".png":
        raise ValueError(f"images are written as PNG; '{path}' should end in .png")
    if rgb.ndim != 3 or rgb.shape[0] != 3 or not rgb.is_floating_point():
        raise ValueError(f"'{path}': rgb is {tuple(rgb.shape)} {rgb.dtype}, expected (3, H, W) floats")
    if alpha is not None and tuple(alpha.shape) != (1, *rgb.shape[1:]):
        raise ValueError(f"'{path}': alpha is {tuple(alpha.shape)}, expected {(1, *rgb.shape[1:])}")
    if not (torch.isfinite(rgb).all() and (alpha is None or torch.isfinite(alpha).all())):
        raise ValueError(f"'{path}': the image holds NaN or infinite values; nothing was written")
    if bit_depth not in (8, 16):
        raise ValueError(f"'{path}': bit_depth is {bit_depth}, expected 8 or 16")
    space = b"GRAY" if grey else b"RGB "
    if icc_profile and icc_profile[16:20] != space:
        raise ValueError(
            f"'{path}': the profile is for {icc_profile[16:20]!r}, not {space!r}; pass icc_profile=None"
        )


def _encode_png(samples: np.ndarray, icc_profile: bytes | None) -> bytes:
    """(H, W, 1 to 4) uint8 or big-endian uint16 -> PNG.  Pillow cannot write 16-bit colour."""
    height, width, channels = samples.shape
    depth = 8 * samples.dtype.itemsize
    rows = np.frombuffer(samples.tobytes(), np.uint8).reshape(height, -1)
    filtered = np.full((height, rows.shape[1] + 1), 2, np.uint8)
    filtered[:, 1:] = rows
    filtered[1:, 1:] -= rows[:-1]
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))]
    if icc_profile:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(icc_profile)))
    chunks += [(b"IDAT", zlib.compress(filtered.tobytes(), 6)), (b"IEND", b"")]
    body = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)
