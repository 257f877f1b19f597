"""Restoring LR images of different sizes: those of one size go through the network together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lucidnft.backbones.base import Backbone
from lucidnft.inference.restore import restore
from lucidnft.policy import Policy


def restore_mixed(
    policy_or_backbone: Policy | Backbone,
    images: Sequence[Tensor],
    *,
    keys: Sequence[str] | None = None,
    **options: Any,
) -> list[Tensor]:
    """Restore LR images (3, h, w) in [0, 1], each of its own size, and return them in the same order.

    An image's result does not depend on which others are in the list, up to the rounding of kernels.

    Args:
        policy_or_backbone: as in `restore`.
        images: LR images.
        keys: a name for each, which keys its noise; default "0", "1", ...
        options: the other arguments of `restore`; batch_size bounds how many of one size are solved at a time.

    Returns:
        Restored images (3, H, W), float32 in [0, 1], on the device of the backbone.

    Raises:
        ValueError: an image is not (3, h, w), another number of keys than of images, or as `restore`.
    """
    names = [str(number) for number in range(len(images))] if keys is None else list(keys)
    if len(names) != len(images):
        raise ValueError(f"{len(names)} keys for {len(images)} LR images")
    buckets: dict[tuple[int, ...], list[int]] = {}
    for number, image in enumerate(images):
        if image.ndim != 3:
            raise ValueError(f"LR image '{names[number]}' is {tuple(image.shape)}, expected (3, h, w)")
        buckets.setdefault(tuple(image.shape), []).append(number)
    restored: dict[int, Tensor] = {}
    for numbers in buckets.values():
        lr = torch.stack([images[number].float() for number in numbers])
        sr = restore(policy_or_backbone, lr, keys=[names[number] for number in numbers], **options)
        restored.update(zip(numbers, sr, strict=True))
    return [restored[number] for number in range(len(images))]
