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
from torch import Tensor, nn
from torch.nn import functional as F

from lucidnft.checkpoint import save_tensors
from lucidnft.config_validation import one_of
from lucidnft.images import resize
from lucidnft.rewards.base import Reference, Reward, RewardCard
from lucidnft.rewards.embedders import EmbedderArchitecture, ImageEmbedder, TinyEmbedder
from lucidnft.rewards.projection_head import ProjectionHead, load_head
from lucidnft.rewards.qwen3_vl import Qwen3VLEmbedderConfig
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

    def __init__(self, embedder: ImageEmbedder, head: ProjectionHead | None) -> None:
        """embedder and head: trained; the head is frozen here.  No head: the cosine of the embeddings themselves.

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
        resized = resize(lr, sr_size) if self.embedder.resizes_lr else lr
        return {"projected": self.project(resized)}

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
        return (self.project(sr) * reference["projected"]).sum(dim=-1)

    def project(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, L, D), L2-normalised."""
        embeddings = self.embedder.embed(images)
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
        step = window // 2 if stride is None else stride
        if window < 1 or step < 1:
            raise ValueError(f"window is {window} and stride {step}, expected 1 or more")
        size = (sr.shape[1], sr.shape[2])
        enlarged = resize(lr[None], size)[0].to(sr.device)
        reference = self.reference(lr[None], None, None, size)
        before = self.score(sr[None], reference)
        corners = [(y, x) for y in _starts(size[0], window, step) for x in _starts(size[1], window, step)]
        rises, weights = sr.new_zeros(size), sr.new_zeros(size)
        for start in range(0, len(corners), chunk_size):
            masks = torch.stack(
                [_fade(size, corner, window) for corner in corners[start : start + chunk_size]]
            )
            masks = masks.to(sr.device)
            swapped = sr + masks[:, None] * (enlarged - sr)
            rows = {n: v.expand(len(masks), *v.shape[1:]) for n, v in reference.items()}
            rise = (self.score(swapped, rows) - before).to(sr.device)
            rises += (rise[:, None, None] * masks).sum(dim=0)
            weights += masks.sum(dim=0)
        return rises / weights

    def to(self, device: torch.device | str) -> LucidConsistency:
        """Move embedder and head."""
        self.embedder.to(device)
        if self.head is not None:
            self.head.to(device)
        return self


def _starts(side: int, window: int, stride: int) -> list[int]:
    """First pixels of windows that cover a side to its end."""
    last = max(0, side - window)
    return sorted({*range(0, last, stride), last})


def _fade(size: tuple[int, int], corner: tuple[int, int], window: int) -> Tensor:
    """(H, W): a window of height 1 that falls off to its edges, so that no seam is scored; zero elsewhere."""
    mask = torch.zeros(size)
    lengths = [min(window, side - start) for side, start in zip(size, corner, strict=True)]
    rows, columns = (torch.hann_window(n + 2, periodic=False)[1:-1] for n in lengths)
    (top, left), (height, width) = corner, lengths
    mask[top : top + height, left : left + width] = rows[:, None] * columns
    return mask


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

    def build(self) -> LucidConsistency:
        """Load the weights and make the reward.

        Raises:
            ValueError: head and embedder do not belong together, or a file does not hold what it should.
        """
        if isinstance(self.embedder, TinyEmbedderConfig):
            reward = LucidConsistency.from_pretrained(self.head or "tiny")
            return reward if self.head else LucidConsistency(reward.embedder, None)
        if self.head in SHIPPED:
            raise ValueError(
                f"head {self.head!r} was trained with the embedder that ships, not with {self.embedder.type}; set "
                "head to its file (of the release: proj_head.pt), or to null for the embeddings themselves"
            )
        head = None if self.head is None else load_head(self.head)
        return LucidConsistency(self.embedder.build(), head)
