"""Task consistency on a frozen embedder: train the projection head on embeddings that were computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lucidnft.rewards.embedders import ImageEmbedder, lr_as_embedded
from lucidnft.rewards.projection_head import ProjectionHead
from lucidnft.rng import numpy_generator_for
from lucidnft.training.embedding_cache import EmbeddingCache
from lucidnft.training.evaluation import Evaluation
from lucidnft.training.head_contents import CELL, ContentImages, Crop, Crops, Donor
from lucidnft.training.supervised_task import SupervisedTask

if TYPE_CHECKING:  # reading a run file must not load accelerate
    from accelerate import Accelerator

SMALL_SHARE = 0.1  # of the image: altered regions up to this are counted on their own too


@dataclass(frozen=True)
class Embedded:
    """B contents as `ContentImages` names them: embeddings, L2-normalised once they are projected."""

    lr: Tensor  # (B, P, L, D)
    sr: Tensor  # (B, C, V, L, D)
    shown: Tensor  # (B, Q, L) in [0, 1]

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Embedded:
        """The same with all embeddings mapped."""
        return Embedded(function(self.lr), function(self.sr), self.shown)


class Recipe(Protocol):
    """What is drawn of a content."""

    def draw(self, crop: Crop, donor: Donor, generator: np.random.Generator) -> ContentImages:
        """Its images."""


Loss = Callable[[Embedded], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Contents:
    """What there is to learn from, or to evaluate on: crops and the cache of their embeddings."""

    crops: Crops
    cache: EmbeddingCache
    seed: int  # of what the recipe draws

    def images(self, index: int, recipe: Recipe) -> ContentImages:
        """The images of a content, a function of (seed, index)."""
        generator = numpy_generator_for(self.seed, "consistency/content", index)
        return recipe.draw(self.crops[index], partial(self.crops.donor, index), generator)


class HeadTask(SupervisedTask):
    """Its samples, loss and evaluation; a row is one content."""

    name = "consistency"

    def __init__(
        self,
        train: Contents,
        held_out: Contents,
        *,
        recipe: Recipe,
        loss: Loss,
        build_embedder: Callable[[], ImageEmbedder],
        save: Callable[..., None],
        head: ProjectionHead,
        places: int,
        embed_batch_size: int,
        seed: int,
        embedder: ImageEmbedder | None = None,
    ) -> None:
        """places: L.  build_embedder: called when embeddings are missing, unless it is there already, as embedder.

        save: called as save(head, path, **card) to export the head.
        """
        self.train, self.held_out = train, held_out
        self.recipe, self.head_loss, self.build_embedder, self.save = recipe, loss, build_embedder, save
        self.module: ProjectionHead = head
        self.places, self.embed_batch_size, self.seed = places, embed_batch_size, seed
        self._embedder = embedder
        self._loaded: tuple[Embedded, Embedded] | None = None
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def describe(self) -> str:
        """Contents and the state of their caches."""
        return (
            f"to train on: {self.train.cache.describe()}\nheld out: {self.held_out.cache.describe()}\n"
            f"embeddings of {self.module.dimension} numbers at {self.places} place(s) of an image"
        )

    def prepare(self, accelerator: Accelerator) -> None:
        """Embed what no cache holds, the shards shared out among the processes, and read everything.

        Raises:
            ValueError: the embedder is of another width than the head.
        """
        for desc, contents in (("embed", self.train), ("embed held-out", self.held_out)):
            mine = {"rank": accelerator.process_index, "num_processes": accelerator.num_processes}
            if contents.cache.share(**mine):
                embed = partial(self.embed, self.embedder(accelerator.device))
                contents.cache.build(partial(contents.images, recipe=self.recipe), embed, desc=desc, **mine)
            accelerator.wait_for_everyone()
        self._embedder = None  # its memory is wanted for nothing else
        self._loaded = (self._load(self.train.cache), self._load(self.held_out.cache))

    def embedder(self, device: torch.device | str) -> ImageEmbedder:
        """The frozen embedder, loaded once."""
        if self._embedder is None:
            self._embedder = self.build_embedder()
        self._embedder.to(device)
        if self._embedder.dimension != self.module.dimension:
            raise ValueError(
                f"data.dimension is {self.module.dimension}, but the embedder '{self._embedder.name}' gives "
                f"{self._embedder.dimension} numbers; set data.dimension to that, or leave it out"
            )
        return self._embedder

    @torch.no_grad()
    def embed(self, embedder: ImageEmbedder, images: ContentImages) -> dict[str, Tensor]:
        """Embeddings of a content, as the cache keeps them: lr (P, L, D), sr (C, V, L, D), shown (Q, L)."""
        size = (images.sr.shape[3], images.sr.shape[4])
        lr = lr_as_embedded(embedder, images.lr, size)
        step = self.embed_batch_size
        parts = {"lr": lr, "sr": images.sr.flatten(0, 1)}
        found = {
            name: torch.cat([embedder.embed(p).cpu() for p in part.split(step)])
            for name, part in parts.items()
        }
        shown = images.shown.flatten(1)
        if embedder.cell is None:
            shown = shown.mean(dim=1, keepdim=True) if len(shown) else shown.new_zeros(0, 1)
        elif embedder.cell != CELL:
            raise ValueError(
                f"embedder '{embedder.name}' has cells of {embedder.cell} px, alterations are judged in {CELL}"
            )
        elif not len(shown):
            shown = shown.new_zeros(0, found["sr"].shape[1])
        return {**found, "sr": found["sr"].unflatten(0, images.sr.shape[:2]), "shown": shown}

    def batch(self, step: int, rows: range, num_rows: int) -> Embedded:
        """The contents of these rows: every epoch takes all of them once, in an order of its own."""
        loaded, _ = self._embeddings()
        count = len(loaded.lr)
        places = [step * num_rows + row for row in rows]
        chosen = [int(self._order(place // count, count)[place % count]) for place in places]
        return Embedded(loaded.lr[chosen].float(), loaded.sr[chosen].float(), loaded.shown[chosen].float())

    def probe(self, num_rows: int) -> Embedded:
        """Random embeddings in the shapes of a batch."""
        crop = self.train.images(0, self.recipe)
        generator = torch.Generator().manual_seed(0)
        lr, sr = (
            torch.randn(num_rows, *shape, self.places, self.module.dimension, generator=generator)
            for shape in (crop.lr.shape[:1], crop.sr.shape[:2])
        )
        return Embedded(lr, sr, torch.zeros(num_rows, len(crop.shown), self.places))

    def loss(self, batch: Embedded) -> tuple[Tensor, dict[str, Tensor]]:
        """(B,) losses and scalars to log."""
        device = next(self.module.parameters()).device
        moved = Embedded(batch.lr.to(device), batch.sr.to(device), batch.shown.to(device))
        return self.head_loss(moved.mapped(self.module))

    @torch.no_grad()
    def evaluate(self) -> Evaluation:
        """On held-out contents, of the head and, as baseline/..., of the embeddings themselves; see `measure`."""
        _, held_out = self._embeddings()
        device = next(self.module.parameters()).device
        self.module.eval()
        projected = Embedded(
            _in_parts(held_out.lr, self.module, device),
            _in_parts(held_out.sr, self.module, device),
            held_out.shown,
        )
        self.module.train()
        plain = held_out.mapped(lambda part: F.normalize(part.float(), dim=-1))
        baseline = {f"baseline/{name}": value for name, value in measure(plain).items()}
        return Evaluation({**measure(projected), **baseline})

    def export(self, path: str, **card: Any) -> None:
        """Write the head, as `LucidConsistencyConfig.head` reads it."""
        self.save(self.module, path, **card)

    def _draw_order(self, epoch: int, count: int) -> np.ndarray:
        return numpy_generator_for(self.seed, "consistency/order", epoch).permutation(count)

    def _embeddings(self) -> tuple[Embedded, Embedded]:
        if self._loaded is None:
            raise RuntimeError("HeadTask has no embeddings yet: call prepare(accelerator) first")
        return self._loaded

    def _load(self, cache: EmbeddingCache) -> Embedded:
        tensors = cache.load()
        return Embedded(tensors["lr"], tensors["sr"], tensors["shown"].float())


def measure(held_out: Embedded) -> dict[str, float]:
    """What a score of these L2-normalised embeddings tells: P >= 1 LR versions, V = 1 or Q + 2 of SR.

    matched, mismatched: mean score of LR with its own original and with those of other contents; auc: chance
    that the first is the larger.  spread: standard deviation over the LR versions of a content.  With altered
    versions: found, the share of these that score below the unaltered one in the same condition; found_small, of
    those that show in a tenth of the image at most; own_drop, what pasting its own region costs, as a share of
    what an alteration costs.
    """
    lr, original = held_out.lr.float(), held_out.sr[:, 0, 0].float()
    table = torch.einsum("apld,bld->apb", lr, original) / lr.shape[2]
    own = table.diagonal(dim1=0, dim2=2).T  # (B, P)
    others = table.movedim(1, 2)[~torch.eye(len(table), dtype=torch.bool)].flatten()
    ordered = others.sort().values
    metrics = {
        "matched": float(own.mean()),
        "mismatched": float(others.mean()),
        "auc": float(
            torch.searchsorted(ordered, own.flatten().contiguous()).double().mean() / max(1, len(ordered))
        ),
    }
    if lr.shape[1] > 1:
        metrics["spread"] = float(own.std(dim=1).mean())
    if held_out.shown.shape[1]:
        scores = torch.einsum("apld,acvld->apcv", lr, held_out.sr.float()) / lr.shape[2]
        drops = scores[..., :1] - scores[..., 1:]  # (B, P, C, Q + 1), the last of the own region
        right = (drops[..., :-1] > 0).float()
        small = held_out.shown.mean(dim=2) <= SMALL_SHARE
        metrics["found"] = float(right.mean())
        if bool(small.any()):
            metrics["found_small"] = float(right.mean(dim=(1, 2))[small].mean())
        metrics["own_drop"] = float(drops[..., -1].mean() / drops[..., :-1].mean())
    return metrics


def _in_parts(embeddings: Tensor, head: ProjectionHead, device: torch.device) -> Tensor:
    return torch.cat([head(part.to(device).float()).cpu() for part in embeddings.split(32)])
