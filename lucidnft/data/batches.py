"""From image sets to batches: crops of one size per step, as a pure function of (seed, step).

Nothing here remembers which batches were handed out, so a resumed run needs no data state, and a step's
groups are the same however many processes share them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch

from lucidnft.data.image_sets import Example, ImageSet, Window
from lucidnft.records import ImageBatch
from lucidnft.rng import numpy_generator_for

CROP_MULTIPLE = 8  # LR pixels; crop sides are multiples of it
SMALLEST_CROP = 16  # LR pixels


class ImageSource(Protocol):
    """Training images, by step."""

    name: str
    provides: frozenset[str]  # {"lr"} or {"lr", "hr"}

    def batch(self, step: int, num_groups: int, rows: range) -> ImageBatch:
        """Rows `rows` of the `num_groups` groups of a step, counted over all processes.

        group_ids are step * num_groups + row; a row does not depend on which others are asked for.
        """

    def __len__(self) -> int:
        """Number of images."""

    def describe(self) -> str:
        """Counts, crop sizes and what was skipped, for the start of a run."""


def crop_side(shorter_side: int, crop_size: int) -> int | None:
    """The crop side for an image, all in LR pixels; None when it is too small for any."""
    side = min(crop_size, shorter_side // CROP_MULTIPLE * CROP_MULTIPLE)
    return side if side >= SMALLEST_CROP else None


class CroppedSource:
    """Random square crops of an image set.

    Images with a side shorter than crop_size share a step only with images of the same, smaller crop.  An
    epoch takes every image at least once; a bucket that does not divide by the number of groups starts over,
    and a repeated image gets another crop.
    """

    def __init__(
        self,
        name: str,
        images: ImageSet,
        buckets: dict[int, list[int]],
        *,
        seed: int,
        flip: bool,
        provides: frozenset[str],
        notes: Sequence[str] = (),
        crops_per_image: int | None = None,
    ) -> None:
        """Say what is cut from where.

        Args:
            buckets: crop side in LR pixels -> image numbers.
            provides: what of each example to hand out.
            crops_per_image: every crop of an image is one of this many, which the seed and the image's name decide;
                None draws a new one each time.
        """
        self.name, self.images, self.provides = name, images, provides
        self.buckets = {side: tuple(buckets[side]) for side in sorted(buckets, reverse=True)}
        self.seed, self.flip, self.notes = seed, flip, tuple(notes)
        self.crops_per_image = crops_per_image
        self._lots = lru_cache(maxsize=2)(self._draw_lots)

    def __len__(self) -> int:
        return sum(len(members) for members in self.buckets.values())

    def describe(self) -> str:
        sizes = ", ".join(f"{len(members)} at {side} px" for side, members in self.buckets.items())
        provides = " and ".join(sorted(self.provides, reverse=True))
        again = "" if self.crops_per_image is None else f", {self.crops_per_image} per image"
        lines = [f"{self.name}: {len(self)} images ({provides}), crops in LR pixels: {sizes}{again}"]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def batch(self, step: int, num_groups: int, rows: range) -> ImageBatch:
        """See `ImageSource.batch`.  Raises ValueError for rows outside 0..num_groups - 1."""
        if len(rows) == 0 or min(rows) < 0 or max(rows) >= num_groups or step < 0:
            raise ValueError(f"step {step}, rows {rows} of {num_groups} groups: nothing to load there")
        side, members = self._members(step, num_groups)
        group_ids = [step * num_groups + row for row in rows]
        examples = [self._crop(members[row], side, group) for row, group in zip(rows, group_ids, strict=True)]
        names = [self.images.names[members[row]] for row in rows]
        return stack_examples(examples, names, group_ids, self.images.upscale, with_hr="hr" in self.provides)

    def _members(self, step: int, num_groups: int) -> tuple[int, list[int]]:
        """(crop side, num_groups image numbers) of a step."""
        lots_per_epoch = sum(-(-len(members) // num_groups) for members in self.buckets.values())
        lots = self._lots(step // lots_per_epoch, num_groups)
        return lots[step % lots_per_epoch]

    def _draw_lots(self, epoch: int, num_groups: int) -> list[tuple[int, list[int]]]:
        lots = []
        for side, members in self.buckets.items():
            order = numpy_generator_for(self.seed, "data/order", epoch, side).permutation(len(members))
            for start in range(0, len(members), num_groups):
                picks = order[np.arange(start, start + num_groups) % len(members)]
                lots.append((side, [members[pick] for pick in picks]))
        shuffle = numpy_generator_for(self.seed, "data/lots", epoch).permutation(len(lots))
        return [lots[i] for i in shuffle]

    def _crop(self, index: int, side: int, group: int) -> Example:
        rng = numpy_generator_for(self.seed, "data/crop", group)
        if self.crops_per_image is not None:
            number = int(rng.integers(self.crops_per_image))
            rng = numpy_generator_for(self.seed, "data/crop_of_image", self.images.names[index], number)
        height, width = self.images.lr_size(index)
        if min(height, width) < side:
            raise ValueError(
                f"'{self.images.names[index]}' is now {height}x{width} LR pixels; it was larger at the start"
            )
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        flip = bool(rng.integers(2)) and self.flip
        return self.images.example(index, Window(top, left, side, side, flip), rng)


class HeldOut:
    """Fixed crops of images that are never trained on, in batches of one size.

    Keys and degradations depend on image names and positions alone, so they stay the same from run to run.
    """

    def __init__(
        self, images: ImageSet, windows: Sequence[tuple[int, Window]], *, batch_size: int = 8
    ) -> None:
        """windows: (image number, window) pairs; group_ids count them in this order."""
        self.images = images
        self.provides = images.provides
        self.windows = tuple(windows)
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Number of crops."""
        return len(self.windows)

    def describe(self) -> str:
        """Counts and sizes, for the start of a run."""
        images = len({index for index, _ in self.windows})
        sizes = sorted({(w.height, w.width) for _, w in self.windows})
        known = "with HR" if "hr" in self.provides else "without HR"
        return f"{len(self)} crops of {images} images ({known}), LR " + ", ".join(
            f"{h}x{w}" for h, w in sizes
        )

    @property
    def keys(self) -> tuple[str, ...]:
        """One name per crop: the image, with the crop's place (top, left in LR pixels)."""
        return tuple(f"{self.images.names[i]}@{w.top},{w.left}" for i, w in self.windows)

    def batches(self) -> Iterator[ImageBatch]:
        """All crops, equal sizes together, in a fixed order."""
        by_size: dict[tuple[int, int], list[int]] = {}
        for number, (_, window) in enumerate(self.windows):
            by_size.setdefault((window.height, window.width), []).append(number)
        for numbers in by_size.values():
            for start in range(0, len(numbers), self.batch_size):
                yield self._load(numbers[start : start + self.batch_size])

    def _load(self, numbers: Sequence[int]) -> ImageBatch:
        keys = [self.keys[number] for number in numbers]
        examples = []
        for number, key in zip(numbers, keys, strict=True):
            index, window = self.windows[number]
            examples.append(self.images.example(index, window, numpy_generator_for(0, "data/held_out", key)))
        with_hr = "hr" in self.images.provides
        return stack_examples(examples, keys, numbers, self.images.upscale, with_hr=with_hr)


def stack_examples(
    examples: Iterable[Example], keys: Sequence[str], group_ids: Sequence[int], upscale: int, *, with_hr: bool
) -> ImageBatch:
    """Examples of one size -> a batch; degradation records go into its metadata."""
    examples = list(examples)
    references = [example.hr for example in examples if example.hr is not None]
    return ImageBatch(
        lr=torch.stack([example.lr for example in examples]),
        keys=tuple(keys),
        group_ids=tuple(group_ids),
        upscale=upscale,
        hr=torch.stack(references) if with_hr else None,
        metadata=tuple(example.metadata for example in examples),
    )
