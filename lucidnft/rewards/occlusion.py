"""Where an image loses its score: windows of it are replaced, and the score says what stood there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def occlusion_map(
    score: Callable[[Tensor], Tensor],
    image: Tensor,
    replacement: Tensor,
    *,
    window: int,
    stride: int,
    chunk_size: int,
) -> Tensor:
    """(H, W): by how much the score rises where image (3, H, W) fades into replacement (3, H, W).

    score: (N, 3, H, W) -> (N,).  window, stride: pixels.  A pixel gets the mean over the windows that cover it,
    weighted as they cover it.

    Raises:
        ValueError: window or stride below 1.
    """
    if window < 1 or stride < 1:
        raise ValueError(f"window is {window} and stride {stride}, expected 1 or more")
    size = (image.shape[1], image.shape[2])
    before = score(image[None]).to(image.device)
    corners = [(y, x) for y in _starts(size[0], window, stride) for x in _starts(size[1], window, stride)]
    rises, weights = image.new_zeros(size), image.new_zeros(size)
    for start in range(0, len(corners), chunk_size):
        chunk = corners[start : start + chunk_size]
        masks = torch.stack([_fade(size, corner, window) for corner in chunk]).to(image.device)
        rise = score(image + masks[:, None] * (replacement - image)).to(image.device) - before
        rises += (rise[:, None, None] * masks).sum(dim=0)
        weights += masks.sum(dim=0)
    return rises / weights


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
