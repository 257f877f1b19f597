"""What depends on an LR image alone: encoded once per image, by encoders that need not stay on the run's device."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lucidnft.backbones.condition_cache import ConditionStore
from lucidnft.checkpoint.fingerprint import sampled_fingerprint, tensor_key

PREPROCESSING_VERSION = 1
"""To be raised with every change of code between LR pixels and the fields below, so that older files are not read."""

EncodeOne = Callable[[Tensor], dict[str, Tensor]]
"""lr (1, 3, h, w) on the run's device -> fields (1, ...)."""


class ImageConditions:
    """The image encoders of a backbone, and where their results are kept.

    Images are encoded one at a time: kernels round by the size of the batch, and which images of a batch are still to
    be encoded depends on the run's history.
    """

    def __init__(
        self, backbone: str, encoders: Mapping[str, nn.Module], options: Callable[[], Mapping[str, Any]]
    ) -> None:
        """No cache and no offload until `store` and `offload` are set.

        Args:
            backbone: its name.
            encoders: the networks that make the fields, frozen.
            options: JSON-able; whatever but the encoders' weights and the LR image decides the fields.
        """
        self.backbone = backbone
        self.encoders = dict(encoders)
        self.options = options
        self.store: ConditionStore | None = None
        self.offload = False  # takes effect at the next `to`
        self.hits = self.misses = 0
        self._fingerprint: str | None = None

    def to(self, device: torch.device | str) -> None:
        """Move the encoders to the run's device; to the CPU, from where they visit it, with `offload`."""
        for encoder in self.encoders.values():
            encoder.to("cpu" if self.offload else device)

    @contextmanager
    def at(self, device: torch.device) -> Iterator[None]:
        """Inside, the encoders are on this device."""
        if not self.offload:
            yield
            return
        try:
            for encoder in self.encoders.values():
                encoder.to(device)
            yield
        finally:
            self.to("cpu")

    @contextmanager
    def without_store(self) -> Iterator[None]:
        """Inside, nothing is kept or looked up: for fields that depend on more than `identity` and the image."""
        store, self.store = self.store, None
        try:
            yield
        finally:
            self.store = store

    @torch.no_grad()
    def fields(
        self, lr: Tensor, *, upscale: int, device: torch.device, encode: EncodeOne
    ) -> dict[str, Tensor]:
        """lr (G, 3, h, w) -> fields (G, ...) on `device`: those that are kept, and the others from `encode`."""
        lr = lr.to(device)
        if self.store is None:
            with self.at(device):
                return _joined([encode(image) for image in lr.split(1)], device)
        identity = json.dumps(self.identity(upscale, device), sort_keys=True)
        keys = [tensor_key(image, identity) for image in lr]
        rows = {key: row for key in dict.fromkeys(keys) if (row := self.store.get(key)) is not None}
        missing = {key: place for place, key in enumerate(keys) if key not in rows}
        self.misses += len(missing)
        self.hits += len(keys) - len(missing)
        if missing:
            with self.at(device):
                for key, place in missing.items():
                    rows[key] = encode(lr[place : place + 1])
                    self.store.put(key, rows[key])
        return _joined([rows[key] for key in keys], device)

    def identity(self, upscale: int, device: torch.device) -> dict[str, Any]:
        """What the fields depend on beside the LR image, JSON-able."""
        if self._fingerprint is None:
            self._fingerprint = sampled_fingerprint(
                {f"{n}.{k}": v for n, e in self.encoders.items() for k, v in e.state_dict().items()}
            )
        return {
            "backbone": self.backbone,
            "upscale": upscale,
            "device": _kind(device),
            "preprocessing": PREPROCESSING_VERSION,
            "encoders": self._fingerprint,
            "dtypes": {n: str(next(e.parameters()).dtype) for n, e in self.encoders.items()},
            "options": dict(self.options()),
            "libraries": {name: version(name) for name in ("torch", "diffusers", "transformers")},
        }

    def take_counts(self) -> dict[str, int]:
        """Look-ups since the last call; nothing without a cache."""
        if self.store is None:
            return {}
        counts = {"condition_cache_hits": self.hits, "condition_cache_misses": self.misses}
        self.hits = self.misses = 0
        return counts


@runtime_checkable
class EncodesImages(Protocol):
    """A backbone whose conditions can be kept."""

    image_conditions: ImageConditions


def public_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A network's configuration without what says where it came from or who wrote it."""
    return {n: v for n, v in config.items() if not n.startswith("_") and n != "transformers_version"}


def _joined(rows: list[dict[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    return {name: torch.cat([row[name].to(device) for row in rows]) for name in rows[0]}


def _kind(device: torch.device) -> str:
    """Kernels, and so the last bits, differ between devices."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
