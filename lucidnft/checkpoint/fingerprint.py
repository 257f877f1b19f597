"""Short names for values: of a set of weights, so that an adapter can refuse another base, and of an image."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

_SAMPLED_VALUES = 4096


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits of a hash over names, shapes, dtypes and bytes, whatever the order and device.

    Tensors on the meta device have no bytes: their names, shapes and dtypes are hashed.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(tensors):
        value = tensors[name].detach()
        digest.update(f"{name}|{tuple(value.shape)}|{value.dtype}|".encode())
        if value.is_meta:
            continue
        value = value.cpu().contiguous()
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def sampled_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A hash over names, shapes and evenly spaced values of each tensor, the same in float32 and in bfloat16.

    Reading all of 12 billion values would take minutes.  Training moves nearly every value, so a few tell two sets
    of weights apart.
    """
    samples = {}
    for name, value in tensors.items():
        stride = max(1, value.numel() // _SAMPLED_VALUES)
        sample = value.detach().flatten()[::stride]
        samples[f"{name} {tuple(value.shape)}"] = sample.to(torch.bfloat16)
    return fingerprint(samples)


def tensor_key(image: Tensor, also: object = None) -> str:
    """A name for the values of a tensor together with something printable."""
    value = image.detach().cpu().contiguous()
    digest = hashlib.blake2b(f"{tuple(value.shape)}|{value.dtype}|{also}|".encode(), digest_size=16)
    digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
