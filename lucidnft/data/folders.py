"""Finding out what a folder of images holds, before anything is trained on it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from lucidnft.data.batches import SMALLEST_CROP, crop_side
from lucidnft.images import UnreadableImageError, decode_pixels, list_images

OnUnreadable = Literal["error", "skip"]

_SHOWN = 10
_WORTH_A_BAR = 500  # images: decoding fewer takes seconds


@dataclass(frozen=True)
class FolderScan:
    """The readable images of a folder, in order of name."""

    folder: Path
    paths: tuple[Path, ...]
    sizes: tuple[tuple[int, int], ...]  # (height, width), upright
    notes: tuple[str, ...]  # files left out, and why

    @property
    def names(self) -> tuple[str, ...]:
        """Paths relative to the folder, with forward slashes."""
        return tuple(path.relative_to(self.folder).as_posix() for path in self.paths)


def scan_folder(
    folder: str | Path, *, setting: str, recursive: bool = False, on_unreadable: OnUnreadable = "error"
) -> FolderScan:
    """Decode every image in a folder once.  `setting` is the config key to name in messages.

    Headers alone would let a file cut off behind its header end the run at the step that draws it.

    Raises:
        ValueError: the folder is missing or has no images, or some are unreadable and on_unreadable is
            "error"; one message lists up to ten of them.
    """
    folder = Path(folder).expanduser()
    try:
        listed = list_images(folder, recursive)
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from None
    paths, sizes, failures = [], [], []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checked = tqdm(
            pool.map(_size_or_error, listed), total=len(listed), desc=f"checking {folder}",
            unit="image", disable=None if len(listed) > _WORTH_A_BAR else True,
        )  # fmt: skip
        for path, size in zip(listed, checked, strict=True):
            if isinstance(size, UnreadableImageError):
                failures.append(str(size))
            else:
                paths.append(path)
                sizes.append(size)
    if failures and on_unreadable == "error":
        more = f"\n  and {len(failures) - _SHOWN} more" if len(failures) > _SHOWN else ""
        raise ValueError(
            f"{setting}: {len(failures)} of {len(listed)} images in '{folder}' cannot be read:\n  "
            + "\n  ".join(failures[:_SHOWN])
            + f"{more}\nRemove them, or set data.on_unreadable=skip"
        )
    if not paths:
        raise ValueError(
            f"{setting}: none of the {len(listed)} images in '{folder}' can be read; {failures[0]}"
        )
    return FolderScan(folder, tuple(paths), tuple(sizes), tuple(f"skipped: {text}" for text in failures))


def _size_or_error(path: Path) -> tuple[int, int] | UnreadableImageError:
    try:
        height, width = decode_pixels(path).rgb.shape[:2]
    except UnreadableImageError as error:
        return error
    return height, width


@dataclass(frozen=True)
class Buckets:
    """Image numbers by crop side in LR pixels, and notes on the images too small for any crop."""

    members: dict[int, list[int]]
    notes: tuple[str, ...]

    @property
    def usable(self) -> list[int]:
        """All image numbers that have a crop, in order."""
        return sorted(index for members in self.members.values() for index in members)


def sort_into_buckets(
    names: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    crop_size: int,
    *,
    pixels_per_lr_pixel: int,
    where: str,
) -> Buckets:
    """Group images by the largest crop they allow; `sizes` are in the pixels of the files.

    Raises:
        ValueError: every image is too small.
    """
    members: dict[int, list[int]] = {}
    notes = []
    needed = SMALLEST_CROP * pixels_per_lr_pixel
    for index, (name, size) in enumerate(zip(names, sizes, strict=True)):
        side = crop_side(min(size) // pixels_per_lr_pixel, crop_size)
        if side is None:
            notes.append(f"skipped: '{name}' is {size[0]}x{size[1]}, below {needed} px on its shorter side")
        else:
            members.setdefault(side, []).append(index)
    if not members:
        largest = max(sizes, key=min)
        raise ValueError(
            f"{where}: all {len(sizes)} images are too small; the largest is {largest[0]}x{largest[1]} "
            f"(height x width) and the smallest crop needs {needed} px a side. Use larger images"
            + (", or a smaller model.upscale" if pixels_per_lr_pixel > 1 else "")
        )
    return Buckets(members, tuple(notes))


def split_held_out(names: Sequence[str], fraction: float, *, where: str) -> tuple[list[int], list[int]]:
    """(train numbers, held-out numbers), decided by a hash of each name, so that adding files moves none.

    At least one image is held out and at least one is left.

    Raises:
        ValueError: there are fewer than two images.
    """
    if len(names) < 2:
        raise ValueError(
            f"{where}: one usable image ('{names[0]}') cannot be trained on and held out for evaluation; "
            "add images, or give the held-out ones in a folder of their own (data.val_folder, or "
            "data.val_lr_folder and data.val_hr_folder for pairs)"
        )
    places = [_place(name) for name in names]
    held_out = [i for i, place in enumerate(places) if place < fraction]
    order = sorted(range(len(names)), key=places.__getitem__)
    held_out = held_out or order[:1]
    if len(held_out) == len(names):
        held_out = order[:-1]
    kept = set(held_out)
    return [i for i in range(len(names)) if i not in kept], sorted(held_out)


def _place(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    digest = hashlib.blake2b(name.encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little") / 2**56


def match_pairs(lr: FolderScan, hr: FolderScan, upscale: int, *, where: str) -> list[tuple[int, int]]:
    """(LR number, HR number) of the images whose paths agree up to the extension, in order of the LR names.

    Raises:
        ValueError: an image has no partner or two candidates, or an HR size is not upscale x its LR size.
    """
    lr_stems, hr_stems = _by_stem(lr, where), _by_stem(hr, where)
    lonely = [f"'{lr.names[lr_stems[stem]]}' (LR only)" for stem in lr_stems if stem not in hr_stems]
    lonely += [f"'{hr.names[hr_stems[stem]]}' (HR only)" for stem in hr_stems if stem not in lr_stems]
    if lonely:
        raise ValueError(
            f"{where}: {len(lonely)} images have no partner of the same name: {', '.join(lonely[:_SHOWN])}; "
            f"'{lr.folder}' and '{hr.folder}' must hold the same stems"
        )
    pairs = [(index, hr_stems[stem]) for stem, index in lr_stems.items()]
    wrong = []
    for i, j in pairs:
        if hr.sizes[j] != (lr.sizes[i][0] * upscale, lr.sizes[i][1] * upscale):
            wrong.append(f"'{lr.names[i]}' {_size(lr.sizes[i])} with '{hr.names[j]}' {_size(hr.sizes[j])}")
    if wrong:
        raise ValueError(
            f"{where}: {len(wrong)} pairs are not a factor of {upscale} apart: {'; '.join(wrong[:_SHOWN])}. "
            "HR must be exactly upscale times LR; check model.upscale, or crop the files"
        )
    return pairs


def _by_stem(scan: FolderScan, where: str) -> dict[str, int]:
    stems: dict[str, int] = {}
    for index, path in enumerate(scan.paths):
        stem = path.relative_to(scan.folder).with_suffix("").as_posix()
        if stem in stems:
            raise ValueError(
                f"{where}: '{scan.names[stems[stem]]}' and '{scan.names[index]}' in '{scan.folder}' share a "
                "stem, so pairing by name is ambiguous; rename one"
            )
        stems[stem] = index
    return stems


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
