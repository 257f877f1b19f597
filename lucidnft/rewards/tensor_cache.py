"""Features of images that come again, kept up to a number of bytes."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor


class TensorCache:
    """Tensors by key, on the CPU; the least recently used leave first."""

    def __init__(self, limit_bytes: int) -> None:
        """limit_bytes: 0 keeps nothing."""
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._tensors: OrderedDict[str, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tensors)

    def get(self, key: str) -> Tensor | None:
        """What was put under this key, or None."""
        found = self._tensors.get(key)
        if found is not None:
            self._tensors.move_to_end(key)
        return found

    def put(self, key: str, value: Tensor) -> None:
        """Keep a tensor, if it fits at all."""
        kept = value.detach().cpu()
        size = kept.numel() * kept.element_size()
        if size > self.limit_bytes or key in self._tensors:
            return
        self._tensors[key] = kept.clone()
        self.used_bytes += size
        while self.used_bytes > self.limit_bytes:
            _, oldest = self._tensors.popitem(last=False)
            self.used_bytes -= oldest.numel() * oldest.element_size()
