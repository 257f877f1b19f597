"""`data:` of task consistency with a frozen embedder: the recipes `paired` and `pools`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field, field_validator
from torch import Tensor

from lucidnft.backbones.inpainting import InpaintingConfig
from lucidnft.checkpoint.fingerprint import fingerprint
from lucidnft.checkpoint.required_files import RequiredFile
from lucidnft.config_validation import one_of
from lucidnft.data.batches import CroppedSource
from lucidnft.data.degradation import Preset
from lucidnft.data.sources import HrFolderConfig, PairedFolderConfig
from lucidnft.losses.consistency import alignment_loss, consistency_loss
from lucidnft.rewards.consistency import (
    SHIPPED,
    AnyEmbedder,
    TinyEmbedderConfig,
    load_consistency_network,
    save_consistency_network,
)
from lucidnft.rewards.embedders import ImageEmbedder
from lucidnft.rewards.model_files import head_files
from lucidnft.rewards.projection_head import ProjectionHead, load_head, save_head
from lucidnft.schema import ConfigModel
from lucidnft.training.embedding_cache import EmbeddingCache, embedder_identity, file_identity
from lucidnft.training.head_contents import CELL, Crops, PairRecipe, PoolRecipe
from lucidnft.training.head_task import Contents, Embedded, HeadTask, Loss, Recipe

CACHE_FORMAT = 3
"""Part of every cache's name: raise it when the same settings come to draw other images."""

HrImages = Annotated[HrFolderConfig | PairedFolderConfig, *one_of(HrFolderConfig, PairedFolderConfig)]


class HeadDataSettings(ConfigModel):
    """What both recipes have."""

    embedder: AnyEmbedder = TinyEmbedderConfig()
    dimension: int | None = Field(default=None, ge=1)  # of the embeddings; null loads the embedder to ask it
    images: HrImages = HrFolderConfig()
    upscale: int = Field(default=4, ge=1)
    num_contents: int = Field(default=1024, ge=2)  # training crops
    head: str | None = None  # to start from: a file, or `tiny` for the one that ships; null starts afresh
    cache_folder: str = "runs/embeddings"
    embed_batch_size: int = Field(default=8, ge=1)  # images

    def required_files(self) -> tuple[RequiredFile, ...]:
        """The head to start from; and the embedder, without which a run starts if its embeddings are cached."""
        head = head_files(self.head, tuple(SHIPPED))
        own = None if self.dimension is None else getattr(self.embedder, "required_files", None)
        note = "read for images that are not in data.cache_folder yet"
        embedder = [
            replace(file, setting=f"embedder.{file.setting}", needed=False, note=note)
            for file in (() if own is None else own())
        ]
        return (*head, *embedder)

    @property
    def places(self) -> int:
        """L of the embeddings of a crop."""
        tiny = isinstance(self.embedder, TinyEmbedderConfig)
        return (-(-self.images.crop_size * self.upscale // CELL)) ** 2 if tiny else 1

    def build_task(self, seed: int, *, recipe: Recipe, drawn: Mapping[str, Any], loss: Loss) -> HeadTask:
        """drawn: the settings that decide what the recipe draws; part of the cache's identity.

        Raises:
            ValueError: images are missing, unreadable or too small, or the head is of another width.
        """
        data = self.images.build(seed, self.upscale, section="data.images")
        assert isinstance(data.train, CroppedSource)
        if len(data.held_out) < 2:
            raise ValueError(
                f"data.images leaves {len(data.held_out)} crop to hold out; task consistency compares contents with "
                f"each other and needs 2 or more: raise data.images.val_fraction (it is {self.images.val_fraction}), "
                "add photographs, or name others in data.images.val_folder"
            )
        known = self.build_embedder() if self.dimension is None else None
        head = self._starting_head(seed, known.dimension if known is not None else int(self.dimension or 0))
        identity = {
            "format": CACHE_FORMAT,
            "embedder": self._embedder_identity(),
            "images": self.images.model_dump(mode="json", exclude={"cache_bytes"}),
            "upscale": self.upscale,
            "recipe": dict(drawn),
            "seed": seed,
        }
        parts = []
        for part, crops, images in (
            ("train", Crops(data.train, self.num_contents), data.train.images),
            ("held_out", Crops(data.held_out, len(data.held_out)), data.held_out.images),
        ):
            own = {**identity, "part": part, "files": [file_identity(file) for file in images.files]}
            parts.append(Contents(crops, EmbeddingCache(self.cache_folder, own, len(crops)), seed))
        return HeadTask(
            *parts, recipe=recipe, loss=loss, head=head, seed=seed, places=self.places, embedder=known,
            build_embedder=self.build_embedder, save=self.save, embed_batch_size=self.embed_batch_size,
        )  # fmt: skip

    def _embedder_identity(self) -> dict[str, Any]:
        settings = self.embedder.model_dump(mode="json")
        if isinstance(
            self.embedder, TinyEmbedderConfig
        ):  # its weights change with the version of this package
            weights = load_consistency_network("tiny").embedder.state_dict()
            return {**settings, "weights": fingerprint(weights)}
        return embedder_identity(settings)

    def build_embedder(self) -> ImageEmbedder:
        """The frozen embedder.  Raises as the `build` of its settings."""
        if isinstance(self.embedder, TinyEmbedderConfig):
            embedder: Any = load_consistency_network("tiny").embedder.eval().requires_grad_(False)
            return cast(ImageEmbedder, embedder)
        return cast(ImageEmbedder, self.embedder.build())

    def save(self, head: ProjectionHead, path: str, **card: Any) -> None:
        """Write the head; that of the tiny embedder in one file with it, as the one that ships."""
        card = {**card, "embedder": self.embedder.model_dump(mode="json")}
        if not isinstance(self.embedder, TinyEmbedderConfig):
            return save_head(head, path, **card)
        network = load_consistency_network("tiny")
        network.head.load_state_dict(head.state_dict())
        return save_consistency_network(network, path, **card)

    def _starting_head(self, seed: int, dimension: int) -> ProjectionHead:
        if self.head is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return ProjectionHead(dimension)
        tiny = isinstance(self.embedder, TinyEmbedderConfig)
        head = load_consistency_network(self.head).head if tiny else load_head(self.head)
        if head.dimension != dimension:
            raise ValueError(
                f"data.head={self.head} takes {head.dimension} numbers, the embeddings have {dimension}; it was "
                "trained for another embedder"
            )
        return head.train().requires_grad_(True)


class PairedConfig(HeadDataSettings):
    """LR and HR of one content attract each other: what is known of arXiv 2603.05947 (v1)."""

    type: Literal["paired"] = "paired"
    alignment: Literal["info_nce", "cosine"] = "info_nce"
    temperature: float = Field(default=0.1, gt=0)

    def build(self, seed: int) -> HeadTask:
        """Raises as `build_task`."""

        def loss(batch: Embedded) -> tuple[Tensor, dict[str, Tensor]]:
            return alignment_loss(
                batch.lr[:, 0], batch.sr[:, 0, 0], kind=self.alignment, temperature=self.temperature
            )

        return self.build_task(seed, recipe=PairRecipe(), drawn={"type": self.type}, loss=loss)


class PoolsConfig(HeadDataSettings):
    """Pools of degraded versions of one content, and altered copies that must score less (arXiv 2603.05947, v3)."""

    type: Literal["pools"] = "pools"
    degradations: tuple[Preset, ...] = ("realesrgan", "light", "bsrgan")
    pool_size: int = Field(default=4, ge=2)  # LR versions of a content; the first is the crop's own
    num_altered: int = Field(default=2, ge=1)
    altered_area: tuple[float, float] = (0.02, 0.5)  # least and most, fractions of the image
    inpainting: InpaintingConfig | None = None  # null: regions of other photographs, and synthesised texture
    temperature: float = Field(default=0.3, gt=0)
    margin: float = Field(default=0.1, ge=0, le=2)  # in cosine, of a place that is altered altogether
    hinge_weight: float = Field(default=10.0, ge=0)
    positive_weight: float = Field(default=1.0, ge=0)  # of 1 - cosine within the pool
    spread_weight: float = Field(default=150.0, ge=0)  # of the score's spread over the pool

    @field_validator("altered_area")
    @classmethod
    def _two_areas(cls, area: tuple[float, float]) -> tuple[float, float]:
        if not 0 < area[0] <= area[1] < 1:
            raise ValueError(f"is {list(area)}; expected two fractions, 0 < least <= most < 1")
        return area

    def build(self, seed: int) -> HeadTask:
        """Raises as `build_task`."""
        recipe = PoolRecipe(
            self.degradations, self.pool_size, self.num_altered, self.altered_area,
            inpaint=None if self.inpainting is None else self.inpainting.build(),
        )  # fmt: skip
        fields = {"type", "degradations", "pool_size", "num_altered", "altered_area", "inpainting"}
        drawn = self.model_dump(mode="json", include=fields)
        return self.build_task(seed, recipe=recipe, drawn=drawn, loss=self._loss)

    def _loss(self, batch: Embedded) -> tuple[Tensor, dict[str, Tensor]]:
        conditions, altered = batch.sr.shape[1], batch.shown.shape[1]
        wrong = batch.sr[:, :, 1 : 1 + altered].flatten(1, 2)  # (B, C * Q, L, D)
        unaltered = batch.sr[:, :, :1].expand(-1, -1, altered, -1, -1).flatten(1, 2)
        return consistency_loss(
            batch.sr[:, 0, 0], batch.lr, wrong, batch.shown.repeat(1, conditions, 1), counterpart=unaltered,
            temperature=self.temperature, margin=self.margin, hinge_weight=self.hinge_weight,
            positive_weight=self.positive_weight, spread_weight=self.spread_weight,
        )  # fmt: skip
