"""How large an output is: by a factor, or by width and height without distortion."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Fit = Literal["inside", "stretch"]

FITS = ("inside", "stretch")


def output_size(height: int, width: int, upscale: float) -> tuple[int, int]:
    """(H, W) of a restored h x w image: each side rounded, and at least one pixel."""
    return max(1, round(height * upscale)), max(1, round(width * upscale))


def asked_size(
    height: int,
    width: int,
    *,
    to_height: int | None = None,
    to_width: int | None = None,
    fit: Fit | None = None,
) -> tuple[int, int]:
    """(H, W) for an h x w image of which a height, a width or both are asked for.

    One side alone is met exactly and the other follows the shape of the image, rounded, at least one pixel.  Both
    are met exactly when the image has that shape, up to the rounding of one side.  Otherwise `fit` decides:

        None      refused: it would distort the image
        inside    the largest size of the image's shape within the box
        stretch   exactly the box

    Raises:
        ValueError: neither is given, a side is below 1, or the pair would distort the image and fit is None.
    """
    if to_height is None and to_width is None:
        raise ValueError("neither width nor height is given")
    if min(to_height or 1, to_width or 1) < 1 or 0 in (to_height, to_width):
        raise ValueError(f"width {to_width}, height {to_height}: expected 1 pixel or more")
    if to_width is None:
        assert to_height is not None
        return to_height, max(1, round(width * to_height / height))
    if to_height is None:
        return max(1, round(height * to_width / width)), to_width
    by_height = (to_height, max(1, round(width * to_height / height)))
    by_width = (max(1, round(height * to_width / width)), to_width)
    if fit == "stretch" or (to_height, to_width) in (by_height, by_width):
        return to_height, to_width
    inside = by_height if by_height[1] <= to_width else by_width
    if fit == "inside":
        return inside
    raise ValueError(
        f"{to_width}x{to_height} would distort an image of {width}x{height} px; give its width or its height alone, "
        f"or say fit=inside (which gives {inside[1]}x{inside[0]}) or fit=stretch"
    )


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """(N, C, H, W) extended right and down by reflection until both sides are multiples.

    An extension longer than the image reflects again and again; a side of one pixel repeats it.
    """
    rows = _reflected(images.shape[2], multiple).to(images.device)
    columns = _reflected(images.shape[3], multiple).to(images.device)
    return images.index_select(2, rows).index_select(3, columns)


def _reflected(size: int, multiple: int) -> Tensor:
    positions = torch.arange(math.ceil(size / multiple) * multiple)
    if size == 1:
        return torch.zeros_like(positions)
    period = 2 * (size - 1)
    folded = positions % period
    return torch.minimum(folded, period - folded)
