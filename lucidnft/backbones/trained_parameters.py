"""A chosen sub-set of a network's own parameters as the trained part of a policy, with no adapter.

The trained values are float32 whatever the base is in: AdamW's steps are far smaller than the rounding of bfloat16
(about 1/256 of a value), which would swallow them.  Where the base is narrower, the network still computes in the
base's dtype: a parametrisation casts a trained parameter whenever it is read, so gradients reach the float32 values,
recomputed blocks (gradient checkpointing) read them too, and neither autocast nor the network need to know.
The parameter's own name in the network becomes <module>.parametrizations.<name>.original then.

The lagging copy is float32 for the same reason, the base values keep their dtype.  Per trained number that is

    bfloat16 base   4 trained + 4 lagging + 2 base = 10 bytes, of which 8 come on top of the base model
    float32 base    4 trained + 4 lagging + 4 base = 12 bytes, of which 8 come on top

and 12 for gradient and AdamW, 4 for the average (train.use_ema).  The copies stay where they were made until their role
is first used, so a policy that only restores holds no copy on the GPU.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lucidnft.backbones.trainable import CURRENT, OLD, check_decay, is_lora
from lucidnft.checkpoint.tensor_files import check_shapes, first_few

_NARROW = (torch.bfloat16, torch.float16)


class TrainedParameters:
    """`lucidnft.backbones.trainable.Trainable` for parameters chosen by name; all others are frozen.

    Roles differ in the tensors that stand in the parameters' places.
    """

    can_fold = True

    def __init__(self, network: nn.Module, patterns: Sequence[str]) -> None:
        """patterns: as `select_parameters`, which says what is refused."""
        self.parameters: dict[str, nn.Parameter] = select_parameters(network, patterns)
        network.requires_grad_(False)
        self._base: dict[str, Tensor] = {}
        self._old: dict[str, Tensor] = {}
        self._current: dict[str, Tensor] = {}  # while other tensors stand in the parameters' places
        for name, parameter in self.parameters.items():
            base = parameter.data
            self._base[name] = base if base.dtype in _NARROW else base.clone()
            if base.dtype in _NARROW:
                parameter.data = base.float()
                _cast_when_read(network, name, base.dtype)
            self._old[name] = parameter.data.clone()
            parameter.requires_grad_(True)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the lagging copy and of the base values."""
        return sum(v.numel() * v.element_size() for d in (self._old, self._base) for v in d.values())

    @property
    def is_no_change(self) -> bool:
        """Whether the trained values are the base's, exactly."""
        return self._equal(None)

    @property
    def old_equals_current(self) -> bool:
        """Whether the lagging copy has the trained values, exactly."""
        return self._equal(OLD)

    def use(self, role: str | None) -> AbstractContextManager[None]:
        """Inside, the role's tensors stand in the parameters' places; then the very tensors of before."""
        return self._in_place(self._values(role))

    def folded(self, role: str) -> AbstractContextManager[None]:
        """As `use`, with the values cast to what the network computes in once instead of whenever they are read."""
        values = self._values(role)
        return self._in_place({name: values[name].to(base.dtype) for name, base in self._base.items()})

    @torch.no_grad()
    def lerp_old_(self, decay: float) -> None:
        """Interpolate every value."""
        check_decay(decay)
        current = self._values(CURRENT)
        for name, old in self._values(OLD).items():
            if decay == 0.0:
                old.copy_(current[name])  # exact, so that old equals current bit for bit
            else:
                old.lerp_(current[name], 1.0 - decay)

    def state(self, role: str) -> dict[str, Tensor]:
        """A CPU copy of the role's values in float32, under the parameters' own names in the network."""
        return {n: v.detach().cpu().clone().contiguous() for n, v in self._values(role).items()}

    @torch.no_grad()
    def load_state_(self, role: str, state: Mapping[str, Tensor]) -> None:
        """Copy saved values into a role.

        Raises:
            ValueError: names or shapes differ, or this is a LoRA adapter.
        """
        if is_lora(state):
            raise ValueError(
                f"this is a LoRA adapter of {len(state)} tensors, and this policy trains {len(self.parameters)} "
                "parameters of the network itself (model.train_parameters); set that to null, as in the adapter's run"
            )
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        check_shapes("the set of trained parameters", shapes, self.parameters)
        for name, value in self._values(role).items():
            value.copy_(state[name])

    def _values(self, role: str | None) -> dict[str, Tensor]:
        """The role's tensors, on the devices of the parameters."""
        if role == CURRENT:
            return self._current or {name: p.data for name, p in self.parameters.items()}
        kept = self._base if role is None else self._old
        for name, parameter in self.parameters.items():
            kept[name] = kept[name].to(parameter.device)  # nothing where it is there already
        return kept

    def _equal(self, role: str | None) -> bool:
        other = self._values(role)
        return all(torch.equal(v, other[n].to(v.dtype)) for n, v in self._values(CURRENT).items())

    @contextmanager
    def _in_place(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        before = {name: p.data for name, p in self.parameters.items()}
        outer = self._current
        try:
            self._current = outer or before
            for name, parameter in self.parameters.items():
                parameter.data = values[name]
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = before[name]
            self._current = outer


def select_parameters(network: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Parameter]:
    """{name: parameter} of all parameters whose name matches a pattern, in the network's order.

    A pattern is as in a shell: * is any text, dots too, ? any character, [ab] one of these.  It has to match the
    whole name, so a name without these marks is that parameter alone.

    Raises:
        ValueError: a pattern matches nothing, or a parameter in half or full precision is not what it matches.
    """
    named = dict(network.named_parameters())
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in named):
            near = first_few(_near(pattern, named)) or first_few(named)
            raise ValueError(
                f"train_parameters {pattern!r} matches no parameter of {type(network).__name__}; near are: {near}. "
                "A pattern has to match a whole name, and * is any text"
            )
    chosen = {n: p for n, p in named.items() if any(fnmatch.fnmatchcase(n, pattern) for pattern in patterns)}
    other = [f"{n} ({p.dtype})" for n, p in chosen.items() if not _is_plain(p)]
    if other:
        raise ValueError(
            f"train_parameters matches {len(other)} parameters that cannot be trained: {first_few(other)}; quantised "
            "weights have no gradient. Do not quantise the base, train others, or use LoRA (train_parameters: null)"
        )
    return chosen


def _near(pattern: str, names: Mapping[str, object]) -> list[str]:
    """Names, and beginnings of names, that look like the pattern without its marks."""
    parts = [name.split(".") for name in names]
    beginnings = dict.fromkeys(".".join(p[: i + 1]) for p in parts for i in range(len(p)))
    return difflib.get_close_matches(pattern.strip("*."), beginnings, cutoff=0.5)


def _is_plain(parameter: nn.Parameter) -> bool:
    # quantised weights are integers, 8-bit floats, or tensors of a class of their own that claim a usual dtype
    return parameter.dtype in (*_NARROW, torch.float32) and type(parameter.data) is Tensor


class _Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, value: Tensor) -> Tensor:
        return value.to(self.dtype)


def _cast_when_read(network: nn.Module, name: str, dtype: torch.dtype) -> None:
    owner, _, leaf = name.rpartition(".")
    # "unsafe" is torch's word for a parametrisation that changes the dtype
    parametrize.register_parametrization(network.get_submodule(owner), leaf, _Cast(dtype), unsafe=True)
