"""The data section of a run: which images are trained on and which are held out.

With no folder given, the photographs bundled with scikit-image are used, degraded.  Fields called `folder`
and the like are paths; `~` is understood.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from lucidnft.data.batches import CROP_MULTIPLE, SMALLEST_CROP
from lucidnft.data.degradation import Degradation, Preset
from lucidnft.data.folders import FolderScan, OnUnreadable, match_pairs, scan_folder
from lucidnft.data.image_sets import DecodedImages, DegradedImages, ImageSet, LrImages, PairedImages
from lucidnft.data.pools import CropPlan, ImagePool, TrainAndHeldOut, bundled_pools, train_and_held_out
from lucidnft.schema import ConfigModel

BundledPools = Callable[[], tuple[ImagePool, ImagePool]]


class CropSettings(ConfigModel):
    """What all data sections share.  Sizes in LR pixels."""

    val_fraction: float = Field(0.1, gt=0, lt=1)  # held out of the training folder when it has no val folder
    recursive: bool = False
    crop_size: int = Field(48, ge=SMALLEST_CROP, multiple_of=CROP_MULTIPLE)
    val_crop_size: int = Field(48, ge=SMALLEST_CROP, multiple_of=CROP_MULTIPLE)
    num_val_images: int = Field(24, ge=1)  # held-out crops at most; one per image, several of bundled ones
    flip: bool = True  # left-right, half of the training crops
    on_unreadable: OnUnreadable = "error"
    cache_bytes: int = Field(2**30, ge=0)  # decoded images kept in memory

    def crop_plan(self, seed: int) -> CropPlan:
        """The settings that decide how pools are cut."""
        return CropPlan(
            crop_size=self.crop_size,
            val_crop_size=self.val_crop_size,
            num_val_crops=self.num_val_images,
            val_fraction=self.val_fraction,
            flip=self.flip,
            seed=seed,
        )


class OneFolderSettings(CropSettings):
    """Settings of data that lies in one folder, with another for held-out images if wanted."""

    folder: str | None = None  # None: the bundled photographs
    val_folder: str | None = None  # None: a part of `folder` is held out
    degradation: Preset = "light"  # of HR images and bundled photographs; LR folders are used as they are

    def _pools(
        self,
        images_of: Callable[[FolderScan], ImageSet],
        pixels_per_lr_pixel: int,
        bundled: BundledPools,
        section: str,
    ) -> tuple[ImagePool, ImagePool | None]:
        """(training pool, held-out pool if any); images_of makes an image set of a scanned folder."""

        def pool(folder: str, setting: str) -> ImagePool:
            scan = scan_folder(
                folder, setting=setting, recursive=self.recursive, on_unreadable=self.on_unreadable
            )
            where = f"{setting} '{scan.folder}'"
            return ImagePool(images_of(scan), scan.sizes, pixels_per_lr_pixel, where, scan.notes)

        train, held_out = bundled() if self.folder is None else (pool(self.folder, f"{section}.folder"), None)
        if self.val_folder is not None:
            held_out = pool(self.val_folder, f"{section}.val_folder")
        return train, held_out


class RepeatedCropSettings(CropSettings):
    """Of data whose LR images are there as files: crops that come again, so that a condition cache finds them."""

    crops_per_image: int | None = Field(
        default=None, ge=1
    )  # of this many fixed ones; null: a new one every time

    def crop_plan(self, seed: int) -> CropPlan:
        """The settings that decide how pools are cut."""
        return replace(super().crop_plan(seed), crops_per_image=self.crops_per_image)


class LrFolderConfig(RepeatedCropSettings, OneFolderSettings):
    """LR images without references.  The HR of bundled photographs is known to evaluation only."""

    type: Literal["lr_folder"] = "lr_folder"

    def build(self, seed: int, upscale: int, *, section: str = "data") -> TrainAndHeldOut:
        """Raises ValueError for missing, empty, unreadable or too small data, naming the folder.

        section: where these settings are in the run file, for messages.
        """
        cache = DecodedImages(self.cache_bytes)
        degradation = Degradation(self.degradation, upscale)
        train, held_out = self._pools(
            lambda scan: LrImages(scan.paths, scan.names, upscale, cache),
            pixels_per_lr_pixel=1,
            bundled=lambda: bundled_pools(degradation, cache),
            section=section,
        )
        return train_and_held_out(self.type, self.crop_plan(seed), train, held_out, frozenset({"lr"}))


class HrFolderConfig(OneFolderSettings):
    """HR images; every crop is degraded with a draw of its own."""

    type: Literal["hr_folder"] = "hr_folder"

    def build(self, seed: int, upscale: int, *, section: str = "data") -> TrainAndHeldOut:
        """Raises ValueError for missing, empty, unreadable or too small data, naming the folder.

        section: where these settings are in the run file, for messages.
        """
        cache = DecodedImages(self.cache_bytes)
        degradation = Degradation(self.degradation, upscale)
        train, held_out = self._pools(
            lambda scan: DegradedImages(scan.paths, scan.names, degradation, cache),
            pixels_per_lr_pixel=upscale,
            bundled=lambda: bundled_pools(degradation, cache),
            section=section,
        )
        return train_and_held_out(self.type, self.crop_plan(seed), train, held_out, frozenset({"lr", "hr"}))


class PairedFolderConfig(RepeatedCropSettings):
    """LR images and their HR versions under the same names, in two folders.

    Without folders, the bundled photographs, degraded.
    """

    type: Literal["paired_folder"] = "paired_folder"
    lr_folder: str | None = None
    hr_folder: str | None = None
    val_lr_folder: str | None = None
    val_hr_folder: str | None = None
    degradation: Preset = "light"  # of the bundled photographs

    @model_validator(mode="after")
    def _folders_come_in_pairs(self) -> PairedFolderConfig:
        for prefix in ("", "val_"):
            lr, hr = getattr(self, f"{prefix}lr_folder"), getattr(self, f"{prefix}hr_folder")
            if (lr is None) != (hr is None):
                missing = f"{prefix}{'lr' if lr is None else 'hr'}_folder"
                raise ValueError(
                    f"{prefix}lr_folder and {prefix}hr_folder belong together; set {missing} too"
                )
        return self

    def build(self, seed: int, upscale: int, *, section: str = "data") -> TrainAndHeldOut:
        """Raises ValueError for missing, empty, unreadable, unpaired or too small data, naming the folder.

        section: where these settings are in the run file, for messages.
        """
        cache = DecodedImages(self.cache_bytes)
        if self.lr_folder is None or self.hr_folder is None:
            train, held_out = bundled_pools(Degradation(self.degradation, upscale), cache)
        else:
            train, held_out = self._pool(self.lr_folder, self.hr_folder, f"{section}.", upscale, cache), None
        if self.val_lr_folder is not None and self.val_hr_folder is not None:
            held_out = self._pool(self.val_lr_folder, self.val_hr_folder, f"{section}.val_", upscale, cache)
        return train_and_held_out(self.type, self.crop_plan(seed), train, held_out, frozenset({"lr", "hr"}))

    def _pool(
        self, lr_folder: str, hr_folder: str, prefix: str, upscale: int, cache: DecodedImages
    ) -> ImagePool:
        lr, hr = (
            scan_folder(
                folder,
                setting=f"{prefix}{kind}_folder",
                recursive=self.recursive,
                on_unreadable=self.on_unreadable,
            )
            for kind, folder in (("lr", lr_folder), ("hr", hr_folder))
        )
        where = f"{prefix}lr_folder '{lr.folder}'"
        pairs = match_pairs(lr, hr, upscale, where=where)
        images = PairedImages(
            [lr.paths[i] for i, _ in pairs],
            [hr.paths[j] for _, j in pairs],
            [lr.names[i] for i, _ in pairs],
            upscale,
            cache,
        )
        return ImagePool(images, tuple(lr.sizes[i] for i, _ in pairs), 1, where, (*lr.notes, *hr.notes))
