"""How much memory a piece of code needs at its peak, without having it: live storages of meta tensors.

Tensors on the meta device have shapes and dtypes but no values; code runs on them in seconds, and every storage it
would have filled is made and dropped at the same places as on a real device.  What kernels take for themselves while
they run is not seen.  Real tensors can be followed as well, which is how this is checked.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

T = TypeVar("T")


class LiveStorages(TorchDispatchMode):
    """Inside, counts the bytes of the storages that are made and still there, and their peak.

    Storages that were there before are left out, whatever is done to them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._followed: dict[int, weakref.ref[Any]] = {}
        self._forms: dict[Any, list[Any]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = _tensors((*args, *kwargs.values()))
        # networks repeat their blocks, and torch takes long to find out the shape of a result
        key = None
        if given and all(t.is_meta for t in given):
            key = (func, _form(args), _form(tuple(kwargs.items())))
            if key in self._forms:
                made = [_like(form) for form in self._forms[key]]
                for tensor in made:
                    self._follow(tensor.untyped_storage())
                return made[0] if len(made) == 1 else tuple(made)
        result = func(*args, **kwargs)
        before = {t.untyped_storage()._cdata for t in given}
        fresh = True
        for tensor in _tensors((result,)):
            storage = tensor.untyped_storage()
            if storage._cdata in before:  # a view, or changed in place
                fresh = False
            elif storage._cdata not in self._followed:
                self._follow(storage)
        if key is not None and fresh and _only_tensors(result):
            self._forms[key] = [_form(t) for t in _tensors((result,))]
        return result

    def _follow(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()

        def dropped(_: object) -> None:
            del self._followed[key]
            self.live -= size

        self._followed[key] = weakref.ref(storage, dropped)
        self.live += size
        self.peak = max(self.peak, self.live)


def _form(x: Any) -> Any:
    """What decides the shape of an operation's result, of a tensor or of anything that holds some; hashable."""
    if isinstance(x, Tensor):
        return x.shape, x.stride(), x.dtype
    if isinstance(x, (tuple, list)):
        return tuple([_form(part) for part in x])
    return type(x), x  # 1, 1.0 and True are equal


def _like(form: Any) -> Tensor:
    shape, stride, dtype = form
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


def _tensors(parts: Iterable[Any]) -> list[Tensor]:
    """The tensors among the arguments or results of an operation, and in lists of them."""
    found = []
    for part in parts:
        if isinstance(part, Tensor):
            found.append(part)
        elif isinstance(part, (tuple, list)):
            found += [x for x in part if isinstance(x, Tensor)]
    return found


def _only_tensors(result: Any) -> bool:
    return isinstance(result, Tensor) or (
        isinstance(result, tuple)
        and len(result) > 1
        and all(isinstance(x, Tensor) and x.is_meta for x in result)
    )


class FusedAttention(TorchFunctionMode):
    """Attention on meta tensors as the fused kernels of a device do it, which never hold the matrix of weights."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        on_meta = all(t.is_meta for t in _tensors((*args, *kwargs.values())))
        return _attention(*args, **kwargs) if on_meta else func(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """(..., L, D) -> (..., L, D).  The form of the mask does not matter here: fused kernels make none of their own."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], dim=-3) for x in (key, value))
    heads = [x.reshape(-1, *x.shape[-3:]) for x in (query, key, value)]
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in heads)
    operator: Any = torch.ops.aten._scaled_dot_product_efficient_attention
    out: Tensor = operator(*heads, None, needs_gradient, dropout_p, is_causal, scale=scale)[0]
    return out.reshape(*query.shape[:-1], value.shape[-1])


@dataclass(frozen=True)
class Measured(Generic[T]):
    """What a region needed and made, in bytes beyond what was there before."""

    peak: int
    kept: int  # by its result
    result: T


def measure(region: Callable[[], T]) -> Measured[T]:
    """Run a region and follow its storages."""
    storages = LiveStorages()
    with FusedAttention(), storages:
        result = region()
    return Measured(storages.peak, storages.live, result)


def backward(loss: Tensor) -> None:
    """loss.backward() of one number, under the modes of the caller.

    torch's own method sets aside the modes that see functions, and gradient checkpointing repeats the forward pass in
    there.
    """
    engine: Any = torch.autograd.Variable._execution_engine
    engine.run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of tensors, each counted once."""
    storages = {s._cdata: s.nbytes() for s in (t.untyped_storage() for t in tensors)}
    return sum(storages.values())
