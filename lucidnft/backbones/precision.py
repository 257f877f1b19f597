"""Autocast of a backbone's network, on the meta device too, where torch has none."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

_LOWER = frozenset(
    {
        "linear", "bilinear", "matmul", "__matmul__", "__rmatmul__", "mm", "mv", "bmm", "addmm", "addmv", "addbmm",
        "baddbmm", "einsum", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
        "prelu", "scaled_dot_product_attention",
    }
)  # fmt: skip
_FULL = frozenset(
    {
        "layer_norm", "group_norm", "softmax", "log_softmax", "softmin", "softplus", "pow", "__pow__", "__rpow__",
        "exp", "expm1", "log", "log2", "log10", "log1p", "rsqrt", "reciprocal", "norm", "normalize", "sum", "prod",
        "cumsum", "cumprod", "cosine_similarity", "mse_loss", "l1_loss", "smooth_l1_loss",
    }
)  # fmt: skip


class MetaAutocast(TorchFunctionMode):
    """What torch.autocast does to dtypes on CUDA (the lists of its documentation), for tensors without values.

    It has to be active in the backward pass as well: gradient checkpointing repeats the forward pass there, and
    puts back torch's own autocast only.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        """dtype: of matrix products."""
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        dtype = self.dtype if name in _LOWER else torch.float32 if name in _FULL else None
        kwargs = kwargs or {}
        if dtype is None:
            return func(*args, **kwargs)

        def cast(x: Tensor) -> Tensor:
            eligible = x.is_meta and x.is_floating_point() and x.dtype != torch.float64
            return x.to(dtype) if eligible else x

        args, kwargs = tree_map_only(Tensor, cast, (args, kwargs))
        return func(*args, **kwargs)


def autocast_region(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """The region that a network's call belongs in: products in `dtype` on `device`; None changes nothing."""
    if device.type != "meta":
        return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
    # off, torch's own region on another device is a region that does nothing
    return MetaAutocast(dtype) if dtype is not None else torch.autocast("cpu", enabled=False)
