"""Frozen image embedders behind one call: `embed(images) -> (N, L, D)`.

L counts the places an embedder looks at: 1 for models that give one vector per image, one per 16 x 16 patch
for the tiny one.  Several local vectors keep a small invented detail from drowning in a global average.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lucidnft.images import resize
from lucidnft.rewards.conv_trunk import ConvTrunk, keep_variance_

CELL = 16
"""Pixels per side of a place of the tiny embedder."""


class ImageEmbedder(Protocol):
    """What a consistency reward asks of an embedder."""

    name: str
    dimension: int  # D
    cell: int | None  # pixels per side of a place, row by row; None: L is 1, an image as a whole
    resizes_lr: bool  # whether LR is enlarged to the size of SR before it is embedded

    def embed(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, L, D) float32; L depends on H and W alone."""

    def to(self, device: torch.device | str) -> Any:
        """Move the networks."""


def lr_as_embedded(embedder: ImageEmbedder, lr: Tensor, sr_size: tuple[int, int]) -> Tensor:
    """LR images (N, 3, h, w) as this embedder takes them beside SR of (H, W): enlarged, or as they are."""
    return resize(lr, sr_size) if embedder.resizes_lr else lr


@dataclass(frozen=True)
class EmbedderArchitecture:
    """Sizes of a `TinyEmbedder`; stored in the header of its weight file."""

    widths: tuple[int, int, int] = (64, 128, 128)  # channels at 1/4, 1/8, 1/16 of the size
    depths: tuple[int, int, int] = (1, 1, 1)  # residual blocks at each
    dimension: int = 128


class TinyEmbedder(ConvTrunk):
    """A small convolutional encoder, one vector per 16 x 16 patch (with what surrounds it); any size."""

    name = "tiny"
    cell: int | None = CELL
    resizes_lr = True  # a convolution sees LR and SR alike only at one scale

    def __init__(self, architecture: EmbedderArchitecture | None = None) -> None:
        sizes = architecture or EmbedderArchitecture()
        super().__init__(sizes.widths, sizes.depths)
        self.architecture = sizes
        self.dimension = sizes.dimension
        self.fine = nn.Conv2d(sizes.widths[1], sizes.dimension, 2, stride=2)
        self.coarse = nn.Conv2d(sizes.widths[2], sizes.dimension, 1)
        for layer in (self.fine, self.coarse):
            keep_variance_(layer)

    def embed(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, ceil(H/16) * ceil(W/16), D), row by row."""
        *_, eighth, sixteenth = self.features(images.to(self.stem.weight.device).float())
        vectors = self.fine(F.silu(eighth)) + self.coarse(F.silu(sixteenth))
        return vectors.flatten(2).transpose(1, 2)

    forward = embed

    def header(self) -> dict[str, Any]:
        """The sizes, for the weight file."""
        return asdict(self.architecture)
