"""Pictures for a browser of an LR image and its restoration, of one size: what TIFF and 16-bit files need to be seen.

A preview carries in its comment which states of both files it was made of, so an unchanged one is used again.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from lucidnft.images import DecodedPixels, UnreadableImageError, decode_pixels
from lucidnft.sample.stamped import file_states, read_stamp, save_stamped

FOLDER = "compare"
SIDES = ("lr", "output")
LONGEST_SIDE = 2048  # pixels; larger outputs are shown smaller
VERSION = 1
"""Part of every stamp: raise it when a preview of the same files comes out differently."""

Size = tuple[int, int]


@dataclass(frozen=True)
class ComparedPair:
    """An image before and after."""

    name: str  # path below the output folder, without suffix
    source: Path  # the LR file
    output: Path  # the restored file
    chosen: Mapping[str, str] = field(default_factory=dict)  # facts shown under the picture


@dataclass(frozen=True)
class Preview:
    """A picture that a page can show."""

    file: str  # its path below the output folder
    size: Size  # (width, height) in pixels, the same on both sides of a pair
    original: Size  # (width, height) of the image it stands for


@dataclass(frozen=True)
class Previews:
    """What can be shown of a pair: sides that could not be read are missing and have a reason."""

    sides: dict[str, Preview]  # by name, see SIDES
    problems: tuple[str, ...] = ()

    @property
    def has_alpha(self) -> bool:
        return any(preview.file.endswith(".png") for preview in self.sides.values())


def make_previews(pair: ComparedPair, folder: Path) -> Previews:
    """Write the previews of a pair below folder, each whole or not at all, unless they are there already.

    The LR image is enlarged by bicubic interpolation to the size of the output; both are reduced together where
    that is above LONGEST_SIDE.  Opaque pictures become JPEG files, others PNG; colour profiles are kept.

    Raises:
        OSError: a preview cannot be written.
    """
    files = {"lr": pair.source, "output": pair.output}
    stem = file_stem(pair.name)
    states = file_states(files.values())
    stamp = None if states is None else f"v{VERSION} {states}"
    kept = _kept(folder, stem, stamp)
    if kept:
        return Previews(kept)
    pixels: dict[str, DecodedPixels] = {}
    problems = []
    for side, path in files.items():
        try:
            pixels[side] = decode_pixels(path)
        except UnreadableImageError as error:
            what = "LR image" if side == "lr" else "restored image"
            problems.append(f"the {what} cannot be shown: {error.reason}")
    if not pixels:
        return Previews({}, tuple(problems))
    size = _shown_size(_size(pixels["output"] if "output" in pixels else pixels["lr"]))
    suffix = ".jpg" if all(p.alpha is None for p in pixels.values()) else ".png"
    sides = {}
    for side, decoded in pixels.items():
        name = f"{FOLDER}/{stem}.{side}{suffix}"
        width, height = _size(decoded)
        save_stamped(folder / name, _shown(decoded, size), f"{stamp} {width} {height}", decoded.icc_profile)
        sides[side] = Preview(name, size, (width, height))
    return Previews(sides, tuple(problems))


def file_stem(name: str) -> str:
    """A short ASCII name that is safe in any file system and URL, and another one for every other name."""
    digest = hashlib.blake2b(os.fsencode(name), digest_size=6).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', name)[:60]}-{digest}"


def _kept(folder: Path, stem: str, stamp: str | None) -> dict[str, Preview]:
    """Both previews that an earlier run made of the same files, or nothing."""
    if stamp is None:
        return {}
    for suffix in (".jpg", ".png"):
        names = {side: f"{FOLDER}/{stem}.{side}{suffix}" for side in SIDES}
        found = {side: _read_stamped(folder, name, stamp) for side, name in names.items()}
        if all(found.values()):
            return {side: preview for side, preview in found.items() if preview is not None}
    return {}


def _read_stamped(folder: Path, name: str, stamp: str) -> Preview | None:
    text, size = read_stamp(folder / name)
    made_of, _, numbers = text.partition(f"{stamp} ")
    if made_of or not re.fullmatch(r"\d+ \d+", numbers):
        return None
    width, height = map(int, numbers.split())
    return Preview(name, size, (width, height))


def _size(pixels: DecodedPixels) -> Size:
    return pixels.rgb.shape[1], pixels.rgb.shape[0]


def _shown_size(size: Size) -> Size:
    factor = min(1.0, LONGEST_SIDE / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _shown(pixels: DecodedPixels, size: Size) -> Image.Image:
    colour = _to_8bit(pixels.rgb[..., :1] if pixels.was_grey else pixels.rgb)
    # Pillow enlarges with alpha multiplied in, so no colour bleeds out of what is transparent.
    planes = colour if pixels.alpha is None else np.dstack([colour, _to_8bit(pixels.alpha)])
    picture = Image.fromarray(planes.squeeze(axis=2) if planes.shape[2] == 1 else planes)
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC)


def _to_8bit(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
