"""Image files and pixel ranges: the one place that knows either.

Everywhere else an image is float32 RGB in [0, 1].  Files keep what they came with (8 or 16 bits, grey,
alpha, colour profile) in a `LoadedImage`, so that a restored image can be written the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lucidnft.atomic_file import atomic_file
from lucidnft.image_decoding import (
    DecodedPixels,
    UnreadableImageError,
    decode_pixels,
    read_size,
    set_max_pixels,
)
from lucidnft.image_encoding import (
    OUTPUT_FORMATS,
    Picture,
    check_format,
    encode,
    holds_grey,
    holds_profile,
    output_format,
)
from lucidnft.image_metadata import ImageMetadata

__all__ = [
    "IMAGE_EXTENSIONS",
    "OUTPUT_FORMATS",
    "DecodedPixels",
    "ImageMetadata",
    "LoadedImage",
    "UnreadableImageError",
    "check_format",
    "decode_pixels",
    "holds_profile",
    "list_images",
    "pixels_to_tensor",
    "read_image",
    "read_size",
    "resize",
    "save_image",
    "set_max_pixels",
    "tensor_to_uint8",
]

IMAGE_EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})

_STRIP_SIZE = 2**16  # pixels

ResizeMode = Literal["bicubic", "bilinear", "area", "nearest"]


@dataclass(frozen=True)
class LoadedImage:
    """An image file in the form the rest of the library uses, with what is needed to write it back."""

    rgb: Tensor  # (3, H, W) float32 in [0, 1]
    alpha: Tensor | None  # (1, H, W) float32 in [0, 1], straight; rgb keeps the colours under it
    was_grey: bool
    bit_depth: int  # 8 or 16
    icc_profile: bytes | None  # only when it describes pixels like these (RGB, or grey for a grey file)
    file_format: str  # of the file that was read: a key of OUTPUT_FORMATS, or "gif"
    metadata: ImageMetadata


def read_image(path: str | Path) -> LoadedImage:
    """Read a file into float32 RGB in [0, 1], and what is needed to write it back.

    Raises as `decode_pixels`.
    """
    pixels = decode_pixels(path)
    alpha = None if pixels.alpha is None else pixels_to_tensor(pixels.alpha[..., None])
    return LoadedImage(
        pixels_to_tensor(pixels.rgb),
        alpha,
        pixels.was_grey,
        pixels.bit_depth,
        pixels.icc_profile,
        pixels.file_format,
        pixels.metadata,
    )


def pixels_to_tensor(pixels: np.ndarray) -> Tensor:
    """(H, W, C) uint8 or uint16 -> (C, H, W) float32 in [0, 1]."""
    planes = pixels.transpose(2, 0, 1).astype(np.float32, order="C")
    planes /= np.float32(np.iinfo(pixels.dtype).max)  # in place: one array beside the pixels
    return torch.from_numpy(planes)


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
    metadata: ImageMetadata | None = None,
    quality: int = 95,
) -> None:
    """Write rgb (3, H, W) in [0, 1], and alpha (1, H, W) if given, to a file that appears whole or not at all.

    The extension decides the format.  Values are rounded.

    Args:
        path: ends in one of `OUTPUT_FORMATS`, or .jpeg or .tiff.
        grey: write one channel, the mean of the three.  WebP, and TIFF of 16 bits with alpha, get three equal ones.
        bit_depth: 8, or 16 for PNG and TIFF.
        icc_profile: for pixels like these; `holds_profile` says where it can be kept.
        metadata: its sides are set to those of the picture.  WebP keeps the resolution only if it is in the EXIF
            block; BMP keeps nothing but the resolution.
        quality: of JPEG and WebP, 1 to 100; 100 makes WebP lossless.

    Raises:
        ValueError: wrong shape, non-finite values, a depth other than 8 or 16, a name of no known format, a picture,
            profile or metadata that the format cannot hold, or a profile for another kind of pixels.
        OSError: the file cannot be written; nothing is left behind and an older file stays.
    """
    path = Path(path)
    _check_arguments(path, rgb, alpha, grey, bit_depth, icc_profile, quality)
    name = output_format(path.suffix)
    if grey and not holds_grey(path.suffix, alpha=alpha is not None, bit_depth=bit_depth):
        rgb = rgb.mean(dim=0, keepdim=True).expand_as(rgb)
        grey = False
    _, height, width = rgb.shape
    rows = max(1, _STRIP_SIZE // width)
    picture = Picture(
        height=height, width=width, channels=(1 if grey else 3) + (alpha is not None), bit_depth=bit_depth,
        strips=_strips(path, rgb, alpha, grey, bit_depth, rows), strip_rows=min(rows, height),
        icc_profile=icc_profile, quality=quality, metadata=(metadata or ImageMetadata()).for_size(height, width),
    )  # fmt: skip
    with atomic_file(path) as file:
        encode(file, name, picture)


def list_images(folder: str | Path, recursive: bool = False) -> list[Path]:
    """The image files in a folder, known by extension in any case, sorted by path; hidden ones are skipped.

    Folders are left out; a dangling link or a pipe with such a name is listed, so that reading it says what it is.

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
        and not path.is_dir()
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
    without, torch's plain interpolation (a = -0.75) is used, as the training-time degradations do.  What shrinks to
    less than a 32nd is first averaged to 16 times the size: CUDA's kernel holds no more.
    """
    if tuple(images.shape[-2:]) == tuple(size):
        return images.clamp(0, 1)
    if mode in ("area", "nearest"):
        return F.interpolate(images, size=size, mode=mode).clamp(0, 1)
    if antialias:
        sides = zip(images.shape[-2:], size, strict=True)
        fewer = [16 * new if old > 32 * new else old for old, new in sides]
        images = F.interpolate(images, size=fewer, mode="area") if fewer != [*images.shape[-2:]] else images
    return F.interpolate(images, size=size, mode=mode, align_corners=False, antialias=antialias).clamp(0, 1)


def _check_arguments(
    path: Path,
    rgb: Tensor,
    alpha: Tensor | None,
    grey: bool,
    bit_depth: int,
    icc_profile: bytes | None,
    quality: int,
) -> None:
    if rgb.ndim != 3 or rgb.shape[0] != 3 or rgb.numel() == 0 or not rgb.is_floating_point():
        raise ValueError(f"'{path}': rgb is {tuple(rgb.shape)} {rgb.dtype}, expected (3, H, W) floats")
    if alpha is not None and tuple(alpha.shape) != (1, *rgb.shape[1:]):
        raise ValueError(f"'{path}': alpha is {tuple(alpha.shape)}, expected {(1, *rgb.shape[1:])}")
    if bit_depth not in (8, 16):
        raise ValueError(f"'{path}': bit_depth is {bit_depth}, expected 8 or 16")
    if not 1 <= quality <= 100:
        raise ValueError(f"'{path}': quality is {quality}, expected 1 to 100")
    try:
        size = (rgb.shape[1], rgb.shape[2])
        check_format(path.suffix, size=size, alpha=alpha is not None, bit_depth=bit_depth)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from None
    if icc_profile and not holds_profile(
        path.suffix, grey=grey, alpha=alpha is not None, bit_depth=bit_depth
    ):
        kind = "grey " if grey else ""
        raise ValueError(
            f"'{path}': no profile can be kept in this format for {kind}pixels; pass icc_profile=None"
        )
    space = b"GRAY" if grey else b"RGB "
    if icc_profile and icc_profile[16:20] != space:
        raise ValueError(
            f"'{path}': the profile is for {icc_profile[16:20]!r}, not {space!r}; pass icc_profile=None"
        )


def _strips(
    path: Path, rgb: Tensor, alpha: Tensor | None, grey: bool, bit_depth: int, rows: int
) -> Iterator[np.ndarray]:
    """(rows, W, channels) integers: a whole image in float64 would be the largest thing in memory."""
    top = 2**bit_depth - 1
    for start in range(0, rgb.shape[1], rows):
        planes = rgb[:, start : start + rows].detach()
        planes = planes.mean(dim=0, keepdim=True) if grey else planes
        if alpha is not None:
            planes = torch.cat([planes, alpha[:, start : start + rows].detach().to(planes)])
        if not torch.isfinite(planes).all():
            raise ValueError(f"'{path}': the image holds NaN or infinite values; nothing was written")
        scaled = planes.cpu().double().mul(top).round_().clamp_(0, top).permute(1, 2, 0).numpy()
        yield np.ascontiguousarray(scaled).astype(np.uint8 if bit_depth == 8 else np.uint16)
