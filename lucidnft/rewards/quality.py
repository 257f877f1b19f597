"""QualityNet: does this look like a photograph, or like a failed restoration?  No reference needed.

A small convolutional network rates every 8 x 8 patch between 0 (ruined) and 1; the score is the mean of
that map.  It has no normalisation layers, so a patch is rated by its surroundings and not by statistics
of the whole image, and a defect in one corner cannot be averaged away inside the network.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lucidnft.checkpoint import save_tensors
from lucidnft.rewards.base import Reference, Reward, RewardCard
from lucidnft.rewards.conv_trunk import ConvTrunk, keep_variance_
from lucidnft.rewards.weights import half_precision, load_weights_, read_header, weight_file
from lucidnft.schema import ConfigModel

SHIPPED = {"tiny": "quality_net.safetensors"}
WEIGHT_TYPE = "quality_net"
CELL = 8
"""Pixels per side of one cell of the quality map."""


@dataclass(frozen=True)
class QualityArchitecture:
    """Sizes of a `QualityNetwork`; stored in the header of its weight file."""

    widths: tuple[int, int, int] = (64, 128, 128)  # channels at 1/4, 1/8, 1/16 of the size
    depths: tuple[int, int, int] = (1, 1, 1)  # residual blocks at each


class QualityNetwork(ConvTrunk):
    """(N, 3, H, W) in [0, 1] -> quality logits (N, 1, ceil(H/8), ceil(W/8)); cost linear in pixels."""

    def __init__(self, architecture: QualityArchitecture | None = None) -> None:
        sizes = architecture or QualityArchitecture()
        super().__init__(sizes.widths, sizes.depths)
        self.architecture = sizes
        self.fine = nn.Conv2d(sizes.widths[1], sizes.widths[1], 1)
        self.coarse = nn.Conv2d(sizes.widths[2], sizes.widths[1], 1)
        self.head = nn.Conv2d(sizes.widths[1], 1, 1)
        for layer in (self.fine, self.coarse):
            keep_variance_(layer)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.ones_(cast(Tensor, self.head.bias))

    def forward(self, images: Tensor) -> Tensor:
        *_, eighth, sixteenth = self.features(images)
        coarse = F.interpolate(self.coarse(F.silu(sixteenth)), scale_factor=2, mode="nearest")
        logits = self.head(F.silu(self.fine(F.silu(eighth)) + coarse))
        return logits[:, :, : -(-images.shape[2] // CELL), : -(-images.shape[3] // CELL)]


class QualityNet(Reward):
    """Mean of a per-patch quality map, in (0, 1); sharp photographs score around 0.8.  Differentiable in sr."""

    def __init__(self, network: QualityNetwork) -> None:
        """network: a trained network; it is frozen here."""
        self.network = network.eval().requires_grad_(False)
        self.card = RewardCard(
            name="quality_net",
            value_range=(0.0, 1.0),
            min_size=32,
            note="Small no-reference network: photographs above noise, ringing, blotches, blur, ...",
        )

    @classmethod
    def from_pretrained(cls, path_or_name: str | Path = "tiny") -> QualityNet:
        """Load a shipped network ("tiny") or a .safetensors file written by `save_quality_network`.

        Raises:
            ValueError: no such file or name, another type of weights, or keys that do not fit.
        """
        path = weight_file(path_or_name, SHIPPED, "quality_net")
        network = QualityNetwork(_read_architecture(path))
        load_weights_(network, path)
        return cls(network)

    def score(self, sr: Tensor, reference: Reference | None = None) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N,) float32 in (0, 1)."""
        return self.score_map(sr).mean(dim=(1, 2))

    def score_map(self, sr: Tensor, reference: Reference | None = None) -> Tensor:
        """(N, 3, H, W) -> (N, ceil(H/8), ceil(W/8)): the quality map without its channel."""
        return self.quality_map(sr).squeeze(1)

    def quality_map(self, sr: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, 1, ceil(H/8), ceil(W/8)) in (0, 1), 1 is good."""
        device = next(self.network.parameters()).device
        return torch.sigmoid(self.network(sr.to(device).float()))

    def to(self, device: torch.device | str) -> QualityNet:
        """Move the network."""
        self.network.to(device)
        return self


def save_quality_network(network: QualityNetwork, path: str | Path, **card: Any) -> None:
    """Write shippable float16 weights; `card` (training data, metrics, ...) joins the header."""
    header = {**card, "type": WEIGHT_TYPE, "architecture": asdict(network.architecture)}
    save_tensors(path, half_precision(network), header)


def _read_architecture(path: Path) -> QualityArchitecture:
    sizes = read_header(path, WEIGHT_TYPE).get("architecture", {})
    if set(sizes) != {"widths", "depths"} or any(len(values) != 3 for values in sizes.values()):
        raise ValueError(f"{path}: its header has no usable 'architecture' (found {sizes!r})")
    return QualityArchitecture(tuple(sizes["widths"]), tuple(sizes["depths"]))


class QualityNetConfig(ConfigModel):
    """Settings of `QualityNet`."""

    type: Literal["quality_net"] = "quality_net"
    path: str = "tiny"  # a shipped name or a .safetensors file
    weight: float = 1.0

    def build(self) -> QualityNet:
        """Load the weights and make the reward."""
        return QualityNet.from_pretrained(self.path)
