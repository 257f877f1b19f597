"""LucidConsistency: does the restored image show what the low-resolution image shows?

Cosine between the embeddings of LR and SR after one trained projection head shared by both (arXiv
2603.05947; the head is Linear, GELU, Linear with biases).  Departures: any embedder fits; an embedder with
local vectors is compared place by place and the cosines are averaged, which is the cosine itself for an
embedder with one vector.  The tiny embedder's LR is enlarged to the size of SR (bicubic) first.

A restoration that merely enlarges LR scores close to 1: this reward keeps a policy faithful and cannot
judge quality.  Use it beside a reward that does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from lucidnft.checkpoint import save_tensors
from lucidnft.checkpoint.fingerprint import tensor_key
from lucidnft.checkpoint.required_files import RequiredFile
from lucidnft.config_validation import one_of
from lucidnft.images import resize
from lucidnft.rewards.base import Reference, Reward, RewardCard
from lucidnft.rewards.embedders import (
    EmbedderArchitecture,
    ImageEmbedder,
    TinyEmbedder,
    lr_as_embedded,
)
from lucidnft.rewards.model_files import head_files
from lucidnft.rewards.occlusion import occlusion_map
from lucidnft.rewards.projection_head import ProjectionHead, load_head
from lucidnft.rewards.qwen3_vl import Qwen3VLEmbedderConfig
from lucidnft.rewards.tensor_cache import TensorCache
from lucidnft.rewards.vision_towers import HfVisionEmbedderConfig, OpenClipEmbedderConfig
from lucidnft.rewards.weights import half_precision, load_weights_, read_header, weight_file
from lucidnft.schema import ConfigModel

SHIPPED = {"tiny": "tiny_embedder.safetensors"}
WEIGHT_TYPE = "consistency_tiny"


class TinyConsistencyNetwork(nn.Module):
    """The tiny embedder with its head: what the consistency task trains and one file holds."""

    def __init__(self, architecture: EmbedderArchitecture | None = None) -> None:
        super().__init__()
        self.embedder = TinyEmbedder(architecture)
        self.head = ProjectionHead(self.embedder.dimension)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, L, D), L2-normalised."""
        return self.head(self.embedder.embed(images))


class LucidConsistency(Reward):
    """Mean cosine of projected LR and SR embeddings, in [-1, 1]; differentiable where the embedder is."""

    def __init__(
        self,
        embedder: ImageEmbedder,
        head: ProjectionHead | None,
        *,
        device: str | None = None,
        offload: bool = False,
        lr_cache_bytes: int = 0,
    ) -> None:
        """embedder and head: trained; the head is frozen here.  No head: the cosine of the embeddings themselves.

        device: where they live whatever device the run has; default that of the run.  offload: they wait on the
            CPU until `wake`.  lr_cache_bytes: projected LR embeddings that are kept, for weights that do not change.

        Raises:
            ValueError: the head is of another width than the embeddings.
        """
        if head is not None and head.dimension != embedder.dimension:
            raise ValueError(
                f"the head takes embeddings of {head.dimension} numbers, the embedder '{embedder.name}' gives "
                f"{embedder.dimension}; they were not trained together"
            )
        self.embedder = embedder
        self.head = None if head is None else head.eval().requires_grad_(False)
        self.offload = offload
        self._own_device, self._device = device, torch.device(device or "cpu")
        self._lr_cache = TensorCache(lr_cache_bytes)
        self.card = RewardCard(
            name="lucid_consistency",
            needs=frozenset({"lr"}),
            value_range=(-1.0, 1.0),
            min_size=16,
            note=f"Cosine of LR and SR under the {embedder.name} embedder: content kept, nothing invented.",
        )

    @classmethod
    def from_pretrained(cls, path_or_name: str | Path = "tiny") -> LucidConsistency:
        """Load shipped weights ("tiny") or a .safetensors file that the consistency task wrote.

        Raises:
            ValueError: no such file or name, another type of weights, or keys that do not fit.
        """
        network = load_consistency_network(path_or_name)
        return cls(cast(ImageEmbedder, network.embedder.eval().requires_grad_(False)), network.head)

    def reference(
        self,
        lr: Tensor | None,
        hr: Tensor | None,
        prompts: Sequence[str] | None,
        sr_size: tuple[int, int],
    ) -> Reference:
        """The projected embeddings of the G LR images, (G, L, D), once per group."""
        if lr is None:
            raise ValueError("reward 'lucid_consistency' needs lr: pass reward(sr, lr=...)")
        if self._lr_cache.limit_bytes == 0:
            return {"projected": self.project(lr_as_embedded(self.embedder, lr, sr_size))}
        keys = [tensor_key(image, sr_size if self.embedder.resizes_lr else None) for image in lr]
        kept = [self._lr_cache.get(key) for key in keys]
        new = [index for index, value in enumerate(kept) if value is None]
        if new:
            projections = self.project(lr_as_embedded(self.embedder, lr[new], sr_size))
            for index, projected in zip(new, projections, strict=True):
                kept[index] = projected
                self._lr_cache.put(keys[index], projected)
        found = [value for value in kept if value is not None]
        device = found[new[0]].device if new else self._device
        return {"projected": torch.stack([value.to(device) for value in found])}

    def score(self, sr: Tensor, reference: Reference) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N,) float32 in [-1, 1]."""
        return self.local_scores(sr, reference).mean(dim=1)

    @property
    def scores_places(self) -> bool:
        """Whether the embedder looks at places, or at images as a whole."""
        return self.embedder.cell is not None

    def score_map(self, sr: Tensor, reference: Reference) -> Tensor:
        """(N, 3, H, W) -> (N, ceil(H/cell), ceil(W/cell)) cosines, where the embedder has cells."""
        if self.embedder.cell is None:
            return super().score_map(sr, reference)
        rows = -(-sr.shape[2] // self.embedder.cell)
        return self.local_scores(sr, reference).unflatten(1, (rows, -1))

    def local_scores(self, sr: Tensor, reference: Reference) -> Tensor:
        """(N, 3, H, W) -> (N, L) cosines, one for every place the embedder looks at."""
        projected = self.project(sr)
        return (projected * reference["projected"].to(projected.device)).sum(dim=-1)

    def project(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, L, D), L2-normalised."""
        return self.project_embeddings(self.embedder.embed(images))

    def project_embeddings(self, embeddings: Tensor) -> Tensor:
        """(N, L, D) of the embedder -> (N, L, D), through the head if there is one, L2-normalised."""
        return F.normalize(embeddings, dim=-1) if self.head is None else self.head(embeddings)

    @torch.no_grad()
    def explain(
        self, lr: Tensor, sr: Tensor, *, window: int = 64, stride: int | None = None, chunk_size: int = 16
    ) -> Tensor:
        """Where SR is unfaithful: lr (3, h, w) and sr (3, H, W) in [0, 1] -> (H, W), higher is worse.

        By occlusion: a window of SR fades into the enlarged LR image, and what the score rises by is the fault of
        what stood there.  A pixel gets the mean over the windows that cover it, weighted as they cover it.

        Args:
            window: pixels per side, at most those of the image.
            stride: pixels between windows; default half a window.  Costs one embedding per window.

        Raises:
            ValueError: lr or sr is not one image, or a size is below 1.
        """
        for name, image in (("lr", lr), ("sr", sr)):
            if image.ndim != 3:
                raise ValueError(
                    f"explain takes one image (3, H, W), got {name} of shape {tuple(image.shape)}"
                )
        size = (sr.shape[1], sr.shape[2])
        enlarged = resize(lr[None], size)[0].to(sr.device)
        reference = self.reference(lr[None], None, None, size)

        def score(images: Tensor) -> Tensor:
            rows = {name: value.expand(len(images), *value.shape[1:]) for name, value in reference.items()}
            return self.score(images, rows)

        step = window // 2 if stride is None else stride
        return occlusion_map(score, sr, enlarged, window=window, stride=step, chunk_size=chunk_size)

    def to(self, device: torch.device | str) -> LucidConsistency:
        """Move embedder and head, unless they have a device of their own; offloaded ones move when they wake."""
        self._device = torch.device(self._own_device or device)
        self._move("cpu" if self.offload else self._device)
        return self

    def wake(self) -> None:
        """Bring offloaded networks to their device."""
        if self.offload:
            self._move(self._device)

    def rest(self) -> None:
        """Bring networks that are to be offloaded back to the CPU, and give their memory free."""
        if self.offload:
            self._move("cpu")
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _move(self, device: torch.device | str) -> None:
        self.embedder.to(device)
        if self.head is not None:
            self.head.to(device)


def load_consistency_network(path_or_name: str | Path) -> TinyConsistencyNetwork:
    """Embedder and head as the consistency task trains them.  Raises ValueError as `from_pretrained`."""
    path = weight_file(path_or_name, SHIPPED, "lucid_consistency")
    network = TinyConsistencyNetwork(_read_architecture(path))
    load_weights_(network, path)
    return network


def save_consistency_network(network: TinyConsistencyNetwork, path: str | Path, **card: Any) -> None:
    """Write shippable float16 weights; `card` (training data, metrics, ...) joins the header."""
    header = {**card, "type": WEIGHT_TYPE, "architecture": network.embedder.header()}
    save_tensors(path, half_precision(network), header)


def _read_architecture(path: Path) -> EmbedderArchitecture:
    sizes = read_header(path, WEIGHT_TYPE).get("architecture", {})
    if set(sizes) != {"widths", "depths", "dimension"}:
        raise ValueError(f"{path}: its header has no usable 'architecture' (found {sizes!r})")
    return EmbedderArchitecture(tuple(sizes["widths"]), tuple(sizes["depths"]), int(sizes["dimension"]))


class TinyEmbedderConfig(ConfigModel):
    """The embedder that ships; its weights are in the file of its head."""

    type: Literal["tiny"] = "tiny"


AnyEmbedder = Annotated[
    TinyEmbedderConfig | Qwen3VLEmbedderConfig | OpenClipEmbedderConfig | HfVisionEmbedderConfig,
    *one_of(TinyEmbedderConfig, Qwen3VLEmbedderConfig, OpenClipEmbedderConfig, HfVisionEmbedderConfig),
]


class LucidConsistencyConfig(ConfigModel):
    """Settings of `LucidConsistency`."""

    type: Literal["lucid_consistency"] = "lucid_consistency"
    embedder: AnyEmbedder = TinyEmbedderConfig()
    head: str | None = "tiny"  # a file, or a shipped name; null compares the embeddings themselves
    weight: float = 1.0
    device: str | None = None  # of embedder and head, such as cuda:1; null is that of the run
    offload: bool = False  # keep them on the CPU while nothing is scored
    lr_cache_bytes: int = Field(default=2**28, ge=0)  # embeddings of LR images that are kept for the run

    def required_files(self) -> tuple[RequiredFile, ...]:
        """The head; the embedder names its own."""
        return head_files(self.head, tuple(SHIPPED))

    def build(self) -> LucidConsistency:
        """Load the weights and make the reward.

        Raises:
            ValueError: head and embedder do not belong together, or a file does not hold what it should.
        """
        if isinstance(self.embedder, TinyEmbedderConfig):
            network = load_consistency_network(self.head or "tiny")
            embedder: Any = network.embedder.eval().requires_grad_(False)
            head: ProjectionHead | None = network.head if self.head else None
        elif self.head in SHIPPED:
            raise ValueError(
                f"head {self.head!r} was trained with the embedder that ships, not with {self.embedder.type}; set "
                "head to its file (of the release: proj_head.pt), or to null for the embeddings themselves"
            )
        else:
            head = None if self.head is None else load_head(self.head)
            embedder = self.embedder.build()
        return LucidConsistency(
            embedder, head, device=self.device, offload=self.offload, lr_cache_bytes=self.lr_cache_bytes
        )
