"""Pools of images, and their division into training crops and held-out crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from lucidnft.data.batches import CROP_MULTIPLE, CroppedSource, HeldOut, ImageSource
from lucidnft.data.bundled import HELD_OUT_PHOTOGRAPHS, TRAIN_PHOTOGRAPHS, photograph_paths
from lucidnft.data.degradation import Degradation
from lucidnft.data.folders import sort_into_buckets, split_held_out
from lucidnft.data.image_sets import (
    DecodedImages,
    DegradedImages,
    ImageSet,
    Window,
    centre_window,
    tile_windows,
)
from lucidnft.images import read_size

T = TypeVar("T")


@dataclass(frozen=True)
class TrainAndHeldOut:
    """The images of a run."""

    train: ImageSource
    held_out: HeldOut


@dataclass(frozen=True)
class ImagePool:
    """An image set with what its headers say."""

    images: ImageSet
    sizes: tuple[tuple[int, int], ...]  # stored (height, width) of the files that sizes are judged by
    pixels_per_lr_pixel: int  # 1 when those files are LR, upscale when they are HR
    where: str  # for messages: setting and folder
    notes: tuple[str, ...] = ()
    tiled: bool = False  # whether held-out images give several crops side by side, or their centre


def bundled_pools(degradation: Degradation, cache: DecodedImages) -> tuple[ImagePool, ImagePool]:
    """(training, held-out) photographs of scikit-image, degraded."""

    def pool(names: Sequence[str]) -> ImagePool:
        paths = photograph_paths(names)
        return ImagePool(
            images=DegradedImages(paths, names, degradation, cache),
            sizes=tuple(read_size(path) for path in paths),
            pixels_per_lr_pixel=degradation.upscale,
            where="the bundled photographs",
            tiled=True,
        )

    return pool(TRAIN_PHOTOGRAPHS), pool(HELD_OUT_PHOTOGRAPHS)


@dataclass(frozen=True)
class CropPlan:
    """How pools are cut; sizes in LR pixels."""

    crop_size: int
    val_crop_size: int
    num_val_crops: int
    val_fraction: float
    flip: bool
    seed: int
    crops_per_image: int | None = None  # None: a new crop every time


def train_and_held_out(
    name: str, plan: CropPlan, train: ImagePool, held_out: ImagePool | None, provides: frozenset[str]
) -> TrainAndHeldOut:
    """Sources for a run; without a held-out pool, a part of the training pool is held out by name.

    Raises:
        ValueError: no image is large enough, or there is nothing to hold out.
    """
    buckets = sort_into_buckets(
        train.images.names,
        train.sizes,
        plan.crop_size,
        pixels_per_lr_pixel=train.pixels_per_lr_pixel,
        where=train.where,
    )
    notes = [*train.notes, *buckets.notes]
    if held_out is None:
        usable = buckets.usable
        kept, out = split_held_out(
            [train.images.names[i] for i in usable], plan.val_fraction, where=train.where
        )
        kept_numbers, out_numbers = {usable[i] for i in kept}, [usable[i] for i in out]
        members = {
            side: [i for i in numbers if i in kept_numbers] for side, numbers in buckets.members.items()
        }
        members = {side: numbers for side, numbers in members.items() if numbers}
        held_out_crops = _held_out_crops(train, out_numbers, plan)
        notes.append(f"{len(out_numbers)} of the {len(usable)} images are held out, by name")
    else:
        members = buckets.members
        held_out_buckets = sort_into_buckets(
            held_out.images.names,
            held_out.sizes,
            plan.val_crop_size,
            pixels_per_lr_pixel=held_out.pixels_per_lr_pixel,
            where=held_out.where,
        )
        held_out_crops = _held_out_crops(held_out, held_out_buckets.usable, plan)
        notes += [f"held out, {note}" for note in (*held_out.notes, *held_out_buckets.notes)]
    notes.append(f"held out: {held_out_crops.describe()}")
    source = CroppedSource(
        name, train.images, members, seed=plan.seed, flip=plan.flip, provides=provides, notes=notes,
        crops_per_image=plan.crops_per_image,
    )  # fmt: skip
    return TrainAndHeldOut(source, held_out_crops)


def _held_out_crops(pool: ImagePool, numbers: Sequence[int], plan: CropPlan) -> HeldOut:
    """At most num_val_crops windows, spread evenly over the images when there are more."""
    if not pool.tiled:
        numbers = _spread(numbers, plan.num_val_crops)
    windows: list[tuple[int, Window]] = []
    for index in numbers:
        size = pool.images.lr_size(index)
        if pool.tiled:
            cuts = tile_windows(size, plan.val_crop_size, CROP_MULTIPLE)
        else:
            cuts = [centre_window(size, plan.val_crop_size, CROP_MULTIPLE)]
        windows += [(index, window) for window in cuts]
    return HeldOut(pool.images, _spread(windows, plan.num_val_crops))


def _spread(items: Sequence[T], count: int) -> list[T]:
    if len(items) <= count:
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]
