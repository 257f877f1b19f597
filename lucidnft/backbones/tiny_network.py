"""The network of the small x4 restorer that ships with the package: a convolutional U-Net, cost linear in pixels.

The LR image is encoded once per group by its own stack at LR resolution, which carries no adapter and
sees neither x_t nor t; the trunk runs at every solver step.  What goes in and out, and how the output
becomes a velocity, is said in `lucidnft.backbones.tiny`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lucidnft.schema import ConfigModel


class TinyArchitecture(ConfigModel):
    """Sizes of the network, stored in the header of its weights."""

    widths: tuple[int, int, int] = (32, 96, 192)  # at 1/2, 1/4 and 1/8 of the output size
    num_blocks: tuple[int, int, int] = (1, 2, 4)  # on the way down; the way up has one more at 1/2
    lr_width: int = 64
    num_lr_blocks: int = 6
    time_width: int = 128


def start_at_zero(layer: nn.Module) -> None:
    """Zero weights and biases: the layer adds nothing until it has learnt something."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def pad_edges(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H + 2, W + 2), the outermost pixels repeated.

    Zeros would darken every layer's view of an image's border, and show there.  Padding the input rather
    than inside the convolution lets an adapter on it see the same border, so that it merges exactly.
    """
    return F.pad(x, (1, 1, 1, 1), mode="replicate")


class ChannelNorm(nn.Module):
    """Layer norm over channels at each pixel: local, so a pixel's value never depends on the image's size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> same."""
        last = x.permute(0, 2, 3, 1)
        return F.layer_norm(last, self.weight.shape, self.weight).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """norm, modulation by time, two 3x3 convolutions; the second starts at zero, so a new block is the identity."""

    def __init__(self, width: int, time_width: int = 0) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.modulation = nn.Linear(time_width, 2 * width) if time_width else None
        self.conv1 = nn.Conv2d(width, width, 3)
        self.conv2 = nn.Conv2d(width, width, 3)
        start_at_zero(self.conv2)
        if self.modulation is not None:
            start_at_zero(self.modulation)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), time (B, time_width) -> (B, C, H, W)."""
        h = self.norm(x)
        if self.modulation is not None:
            scale, shift = self.modulation(time)[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        h = self.conv1(pad_edges(F.silu(h)))
        return x + self.conv2(pad_edges(F.silu(h)))


class LREncoder(nn.Module):
    """LR image to features at LR resolution; runs once per group."""

    def __init__(self, width: int, num_blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(num_blocks))

    def forward(self, lr: Tensor) -> Tensor:
        """(G, 3, h, w) in [-1, 1] -> (G, width, h, w)."""
        x = self.stem(pad_edges(lr))
        for block in self.blocks:
            x = block(x)
        return x


class TinyTrunk(nn.Module):
    """The time-dependent U-Net: three levels at 1/2, 1/4 (the LR grid) and 1/8 of the output size."""

    def __init__(self, arch: TinyArchitecture) -> None:
        super().__init__()
        half, quarter, eighth = arch.widths
        n_half, n_quarter, n_eighth = arch.num_blocks
        time = arch.time_width
        self.time_width = time
        self.gradient_checkpointing = False
        self.time_mlp = nn.Sequential(nn.Linear(time, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        self.stem = nn.Conv2d(24, half, 3)  # noisy residual and up-sampled LR, 12 channels each
        self.down_half = nn.ModuleList(ResidualBlock(half, time) for _ in range(n_half))
        self.to_quarter = nn.Conv2d(half, quarter, 2, stride=2)
        self.lr_in = nn.Conv2d(arch.lr_width, quarter, 1)
        self.down_quarter = nn.ModuleList(ResidualBlock(quarter, time) for _ in range(n_quarter))
        self.to_eighth = nn.Conv2d(quarter, eighth, 2, stride=2)
        self.middle = nn.ModuleList(ResidualBlock(eighth, time) for _ in range(n_eighth))
        self.from_eighth = nn.Conv2d(eighth, 4 * quarter, 1)
        self.merge_quarter = nn.Conv2d(2 * quarter, quarter, 1)
        self.up_quarter = nn.ModuleList(ResidualBlock(quarter, time) for _ in range(n_quarter))
        self.from_quarter = nn.Conv2d(quarter, 4 * half, 1)
        self.merge_half = nn.Conv2d(2 * half, half, 1)
        self.up_half = nn.ModuleList(ResidualBlock(half, time) for _ in range(n_half + 1))
        self.out_norm = ChannelNorm(half)
        self.out = nn.Conv2d(half, 12, 3)
        start_at_zero(self.out)

    def run(self, block: nn.Module, x: Tensor, time: Tensor) -> Tensor:
        """One block, its activations recomputed in the backward pass when gradient checkpointing is on."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, time, use_reentrant=False)
        return block(x, time)

    def forward(self, y_t: Tensor, t: Tensor, up: Tensor, lr_features: Tensor) -> Tensor:
        """y_t and up (B, 3, H, W), t (B,), lr_features (B, lr_width, H/4, W/4) -> (B, 3, H, W)."""
        # products of one row round differently from those of several: a time that all rows share is one row, so that
        # an image's result does not depend on its batch
        t = t[:1] if t.stride(0) == 0 else t
        time = self.time_mlp(time_embedding(t, self.time_width))
        x = torch.cat([F.pixel_unshuffle(y_t, 2), F.pixel_unshuffle(up, 2)], dim=1)
        at_half = self.stem(pad_edges(x.contiguous(memory_format=torch.channels_last)))
        for block in self.down_half:
            at_half = self.run(block, at_half, time)
        at_quarter = self.to_quarter(at_half) + self.lr_in(lr_features)
        for block in self.down_quarter:
            at_quarter = self.run(block, at_quarter, time)
        x = self.to_eighth(at_quarter)
        for block in self.middle:
            x = self.run(block, x, time)
        x = self.merge_quarter(torch.cat([F.pixel_shuffle(self.from_eighth(x), 2), at_quarter], dim=1))
        for block in self.up_quarter:
            x = self.run(block, x, time)
        x = self.merge_half(torch.cat([F.pixel_shuffle(self.from_quarter(x), 2), at_half], dim=1))
        for block in self.up_half:
            x = self.run(block, x, time)
        return F.pixel_shuffle(self.out(pad_edges(F.silu(self.out_norm(x)))), 2)


def time_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoids of t in [0, 1]: (B,) -> (B, width) float32.  Lowest period 4, highest frequency about 500 rad."""
    half = width // 2
    frequencies = torch.exp(torch.linspace(math.log(math.pi / 2), math.log(500.0), half, device=t.device))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class TinyNetwork(nn.Module):
    """LR encoder and trunk; `trunk` is what LoRA attaches to."""

    def __init__(self, arch: TinyArchitecture) -> None:
        super().__init__()
        self.lr_encoder = LREncoder(arch.lr_width, arch.num_lr_blocks)
        self.trunk = TinyTrunk(arch)
        self.to(memory_format=torch.channels_last)
