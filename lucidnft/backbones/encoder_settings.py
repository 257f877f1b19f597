"""Settings of the networks around a large backbone: what they leave in memory, and whether their work is kept."""

from __future__ import annotations

from typing import Any, Literal, Protocol, Self, TypeVar

from pydantic import Field, model_validator

from lucidnft.backbones.condition_cache import GIB, DiskStore, MemoryStore
from lucidnft.backbones.image_conditions import ImageConditions
from lucidnft.schema import ConfigModel

DEFAULT_GIB = {"memory": 8.0, "disk": 100.0}


class HasEncoders(Protocol):
    """A backbone that these settings can be applied to."""

    image_conditions: ImageConditions

    @property
    def vae(self) -> Any:
        """diffusers' AutoencoderKL."""


BackboneT = TypeVar("BackboneT", bound=HasEncoders)


class EncoderSettings(ConfigModel):
    """Fields of the `model:` section of backbones with image encoders."""

    # what depends on the LR image alone is computed once per image: kept in this process, or in a folder
    condition_cache: Literal["none", "memory", "disk"] = "none"
    condition_cache_folder: str | None = None  # of condition_cache: disk; several runs may share it
    condition_cache_gib: float | None = Field(default=None, gt=0)  # null: 8 in memory, 100 on disk
    # image encoders live on the CPU and visit the run's device while images are encoded
    encoder_offload: bool = False
    # images above the VAE's own size (1024 px) in overlapping parts, for what does not fit: less memory, but every
    # pixel changes a little, for the VAE normalises and attends within a part, and most of all near the seams
    vae_tiling: bool = False
    vae_slicing: bool = False  # one image of a batch at a time through the VAE

    @model_validator(mode="after")
    def _cache_settings_are_read(self) -> Self:
        disk = self.condition_cache == "disk"
        if disk != (self.condition_cache_folder is not None):
            raise ValueError(
                "condition_cache: disk needs condition_cache_folder, a folder to keep conditions in"
                if disk
                else f"condition_cache_folder is read only with condition_cache: disk, not {self.condition_cache}"
            )
        if self.condition_cache == "none" and self.condition_cache_gib is not None:
            raise ValueError("condition_cache_gib bounds a cache, but condition_cache is none")
        return self

    def set_up(self, backbone: BackboneT) -> BackboneT:
        """Apply the settings to a backbone that was just built; returns it.

        Raises:
            ValueError: the cache's folder is a file.
        """
        self.set_up_vae(backbone)
        backbone.image_conditions.offload = self.encoder_offload
        if self.condition_cache != "none":
            gib = self.condition_cache_gib or DEFAULT_GIB[self.condition_cache]
            limit = round(gib * GIB)
            folder = self.condition_cache_folder
            backbone.image_conditions.store = (
                MemoryStore(limit) if folder is None else DiskStore(folder, limit)
            )
        return backbone

    def set_up_vae(self, backbone: BackboneT) -> BackboneT:
        """Apply those settings that do not need the weights; returns the backbone."""
        if self.vae_tiling:
            backbone.vae.enable_tiling()
        if self.vae_slicing:
            backbone.vae.enable_slicing()
        return backbone

    def without_cache(self) -> Self:
        """The same without its cache, whose folder belongs to the machine of the training run."""
        unset = {"condition_cache": "none", "condition_cache_folder": None, "condition_cache_gib": None}
        return self.model_copy(update=unset)
