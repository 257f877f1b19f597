"""SwinIR (arXiv 2108.10257) as DiffBIR's general pre-restorer (arXiv 2308.15070): degraded image in, clean image out.

The image is unshuffled by 8, so that its windows cover 64 x 64 pixels, and enlarged by 8 at the end: it keeps its
size.  Its output has few artefacts and little detail; LucidFlux takes it as a second condition, as the source of its
image tokens and as the reference of the colour fix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lucidnft.checkpoint.released_files import load_strictly_

CHANNEL_MEANS = (0.4488, 0.4371, 0.4040)
_DERIVED = ("relative_position_index", "attn_mask")
"""Buffers in released files that follow from the window size; checked against ours, not loaded."""


class WindowAttention(nn.Module):
    """Attention within windows, with a learned bias for each offset between two of its pixels."""

    def __init__(self, width: int, window_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        self.window_size = window_size

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """windows (B, number, pixels, D), mask (number, pixels, pixels) to be added, or None -> same."""
        qkv = self.qkv(windows).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(3, 0, 1, 4, 2, 5)  # each (B, number, heads, pixels, D / heads)
        index = relative_position_index(self.window_size, windows.device)
        bias = self.relative_position_bias_table[index].permute(2, 0, 1)
        if mask is not None:
            bias = bias + mask[:, None].to(bias.dtype)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return self.proj(out.transpose(2, 3).flatten(3))


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """Window attention and an MLP; every other block sees windows shifted by half their size."""

    def __init__(self, width: int, num_heads: int, window_size: int, shift: int, mlp_ratio: float) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift = shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, window_size, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) -> same; H and W are multiples of the window size."""
        height, width = x.shape[1:3]
        moved = torch.roll(self.norm1(x), (-self.shift, -self.shift), dims=(1, 2))
        mask = shifted_mask(height, width, self.window_size, self.shift, x.device) if self.shift else None
        attended = self.attn(into_windows(moved, self.window_size), mask)
        back = from_windows(attended, self.window_size, height, width)
        x = x + torch.roll(back, (self.shift, self.shift), dims=(1, 2))
        return x + self.mlp(self.norm2(x))


class _Blocks(nn.Module):
    def __init__(self, blocks: Sequence[SwinBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)


class SwinStage(nn.Module):
    """Some blocks and a convolution, around which the input is added."""

    def __init__(self, width: int, depth: int, num_heads: int, window_size: int, mlp_ratio: float) -> None:
        super().__init__()
        shifts = [0 if i % 2 == 0 else window_size // 2 for i in range(depth)]
        self.residual_group = _Blocks(
            [SwinBlock(width, num_heads, window_size, shift, mlp_ratio) for shift in shifts]
        )
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) -> same."""
        out = x
        for block in self.residual_group.blocks:
            out = block(out)
        return x + self.conv(out.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SwinIR(nn.Module):
    """The pre-restorer.  Its parameters have their released names; the defaults are the released sizes."""

    def __init__(
        self,
        *,
        embed_dim: int = 180,
        depths: Sequence[int] = (6,) * 8,
        num_heads: Sequence[int] = (6,) * 8,
        window_size: int = 8,
        mlp_ratio: float = 2.0,
        unshuffle: int = 8,
        num_features: int = 64,
    ) -> None:
        """depths, num_heads: per stage.  unshuffle: 8, which the three enlargements by 2 undo."""
        super().__init__()
        if unshuffle != 8:
            raise ValueError(f"unshuffle is {unshuffle}, but the network enlarges by 8 (three times by 2)")
        if len(depths) != len(num_heads):
            raise ValueError(f"{len(depths)} depths for {len(num_heads)} num_heads; one of each per stage")
        self.multiple = unshuffle * window_size
        self.register_buffer("mean", torch.tensor(CHANNEL_MEANS).view(1, 3, 1, 1), persistent=False)
        self.conv_first = nn.Sequential(
            nn.PixelUnshuffle(unshuffle), nn.Conv2d(3 * unshuffle**2, embed_dim, 3, padding=1)
        )
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(embed_dim)})
        self.layers = nn.ModuleList(
            SwinStage(embed_dim, depth, heads, window_size, mlp_ratio)
            for depth, heads in zip(depths, num_heads, strict=True)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = nn.Conv2d(embed_dim, embed_dim, 3, padding=1)
        self.conv_before_upsample = nn.Sequential(
            nn.Conv2d(embed_dim, num_features, 3, padding=1), nn.LeakyReLU(0.01)
        )
        for name in ("conv_up1", "conv_up2", "conv_up3", "conv_hr"):
            setattr(self, name, nn.Conv2d(num_features, num_features, 3, padding=1))
        self.conv_last = nn.Conv2d(num_features, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, H, W) around [0, 1], not clamped.  Any size.

        Sides that are no multiple of 8 windows' pixels are continued with the border's values and cropped after.
        """
        height, width = images.shape[2:]
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        x = self.conv_first(F.pad(images, padding, mode="replicate") - self.mean)
        tokens = self.patch_embed["norm"](x.permute(0, 2, 3, 1))
        for stage in self.layers:
            tokens = stage(tokens)
        x = x + self.conv_after_body(self.norm(tokens).permute(0, 3, 1, 2))
        x = self.conv_before_upsample(x)
        for name in ("conv_up1", "conv_up2", "conv_up3"):
            enlarged = F.interpolate(x, scale_factor=2, mode="nearest")
            x = F.leaky_relu(self.get_submodule(name)(enlarged), 0.2)
        x = self.conv_last(F.leaky_relu(self.get_submodule("conv_hr")(x), 0.2)) + self.mean
        return x[:, :, :height, :width]

    def load_released_(
        self, tensors: Mapping[str, Tensor], source: str, *, dtype: torch.dtype | None = None
    ) -> None:
        """Take over released tensors, with or without the index and mask buffers.  May be on the meta device before.

        Raises:
            ValueError: a tensor is missing, unknown or of another shape, or a buffer is not what its windows imply.
        """
        parameters = {n: v for n, v in tensors.items() if n.rsplit(".", 1)[-1] not in _DERIVED}
        load_strictly_(self, parameters, source, dtype=dtype)
        self.mean = torch.tensor(CHANNEL_MEANS, dtype=dtype).view(1, 3, 1, 1)
        blocks = {n: m for n, m in self.named_modules() if isinstance(m, SwinBlock)}
        for name, value in tensors.items():
            if name not in parameters:
                _check_derived(name, value, blocks, source)


def _check_derived(name: str, value: Tensor, blocks: Mapping[str, SwinBlock], source: str) -> None:
    owner = name.removesuffix(".attn.relative_position_index").removesuffix(".attn_mask")
    block = blocks.get(owner)
    expected = None
    if block is not None and name.endswith("relative_position_index"):
        expected = relative_position_index(block.window_size, torch.device("cpu"))
    elif block is not None and block.shift:
        side = round(len(value) ** 0.5) * block.window_size  # the file's masks are those of a square image
        expected = shifted_mask(side, side, block.window_size, block.shift, torch.device("cpu"))
    if expected is None or not torch.equal(expected.to(value), value.cpu()):
        raise ValueError(f"{source}: {name} {tuple(value.shape)} does not go with this network's windows")


def relative_position_index(window_size: int, device: torch.device) -> Tensor:
    """(pixels, pixels) row of the bias table for each pair of a window's pixels."""
    line = torch.arange(window_size, device=device)
    offsets = line[:, None] - line[None, :] + window_size - 1
    rows, columns = offsets[:, None, :, None], offsets[None, :, None, :]
    return (rows * (2 * window_size - 1) + columns).reshape(window_size**2, window_size**2)


def shifted_mask(height: int, width: int, window_size: int, shift: int, device: torch.device) -> Tensor:
    """(number, pixels, pixels): -100 between pixels that only the shift brought into one window, else 0."""
    regions = [
        (torch.arange(side, device=device) >= side - window_size).long()
        + (torch.arange(side, device=device) >= side - shift).long()
        for side in (height, width)
    ]
    region = 3 * regions[0][:, None] + regions[1][None, :]
    windows = into_windows(region[None, ..., None], window_size)[0, ..., 0]
    return -100.0 * (windows[:, :, None] != windows[:, None, :]).float()


def into_windows(x: Tensor, window_size: int) -> Tensor:
    """(B, H, W, D) -> (B, number of windows, pixels, D)."""
    windows = x.unflatten(2, (-1, window_size)).unflatten(1, (-1, window_size)).transpose(2, 3)
    return windows.flatten(3, 4).flatten(1, 2)


def from_windows(windows: Tensor, window_size: int, height: int, width: int) -> Tensor:
    """The inverse of `into_windows`."""
    grid = windows.unflatten(1, (height // window_size, width // window_size))
    x = grid.unflatten(3, (window_size, window_size)).transpose(2, 3)
    return x.reshape(len(windows), height, width, -1)
