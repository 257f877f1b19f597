"""LoRA as values: factors with their scales, by module, apart from any network.

An adapter of a policy has one rank and one scale everywhere; one that was read from elsewhere may have others in every
module, and so has to carry them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lucidnft.backbones import adapters
from lucidnft.checkpoint.tensor_files import first_few


@dataclass(frozen=True)
class LoraPair:
    """The change of one module's weight: alpha / rank * B @ A."""

    a: Tensor  # (rank, in, ...)
    b: Tensor  # (out, rank, ...)
    alpha: float

    @property
    def rank(self) -> int:
        """Rows of A and columns of B."""
        return self.a.shape[0]

    @property
    def scale(self) -> float:
        """What the product is multiplied by."""
        return self.alpha / self.rank


Lora = Mapping[str, LoraPair]
"""An adapter, by the names of the network's modules."""


def lora_state(lora: Lora) -> dict[str, Tensor]:
    """The factors under the names that `adapters.adapter_parameters` gives them."""
    return {
        f"{name}.lora_{side}.weight": value
        for name, pair in lora.items()
        for side, value in (("A", pair.a), ("B", pair.b))
    }


def lora_shapes(lora: Lora) -> dict[str, list[float]]:
    """{module: [rank, alpha]}, ready for JSON."""
    return {name: [pair.rank, pair.alpha] for name, pair in lora.items()}


def common_shape(lora: Lora) -> tuple[int, float]:
    """The rank and alpha that most modules have."""
    return Counter((pair.rank, pair.alpha) for pair in lora.values()).most_common(1)[0][0]


def attach(network: nn.Module, adapter: str, lora: Lora) -> None:
    """Add an adapter of these ranks, scales and values, in place; it becomes the active, trainable one.

    Raises:
        ValueError: the network lacks a module, or has one of another shape.
    """
    from peft import LoraConfig

    check_modules(network, lora)
    rank, alpha = common_shape(lora)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # a float works and is stored as given
        target_modules=list(lora),
        rank_pattern={re.escape(n): p.rank for n, p in lora.items() if p.rank != rank},
        alpha_pattern={re.escape(n): p.alpha for n, p in lora.items() if p.alpha != alpha},
        lora_dropout=0.0,
    )
    adapters.inject(network, adapter, config)
    adapters.load_adapter_state_(network, adapter, lora_state(lora))
    adapters.activate(network, adapter)


def weight_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """{module: shape of its weight} of a network's modules that take LoRA, with or without adapters attached."""
    found: dict[str, tuple[int, ...]] = {}
    for path, module in network.named_modules():
        name = path.removesuffix(".base_layer")
        if ".lora_" in path:
            continue
        if isinstance(module, nn.Linear):
            found[name] = (
                module.out_features,
                module.in_features,
            )  # a quantised weight is stored in another shape
        elif isinstance(module, nn.Conv2d):
            found[name] = tuple(module.weight.shape)
    return found


def check_modules(network: nn.Module, lora: Lora) -> None:
    """Raise a ValueError unless every module of the adapter is there, with the shape that its factors change."""
    shapes = weight_shapes(network)
    unknown = [name for name in lora if name not in shapes]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of the adapter's {len(lora)} layers are not among the layers of "
            f"{type(network).__name__}: {first_few(unknown)}; it was made for other layers or another model"
        )
    wrong = []
    for name, pair in lora.items():
        changed = (pair.b.shape[0], *pair.a.shape[1:])
        if changed != shapes[name] or tuple(pair.b.shape[2:]) != (1,) * (len(changed) - 2):
            wrong.append(f"{name} is {shapes[name]}, its factors change {changed}")
    if wrong:
        raise ValueError(
            f"{len(wrong)} of the adapter's layers have another shape: {first_few(wrong)}; it was made for another "
            "model or size"
        )


@torch.no_grad()
def merge_(network: nn.Module, lora: Lora) -> None:
    """Add an adapter into the weights of a network without adapters: in float32, then rounded to their dtype.

    Raises:
        ValueError: as `check_modules`; or a layer that an adapter cannot be added into: quantised, or a convolution in
            groups.
    """
    check_modules(network, lora)
    for name, pair in lora.items():
        module: Any = network.get_submodule(name)
        weight = module.weight
        plain = type(module) in (nn.Linear, nn.Conv2d) and type(weight.data) is Tensor
        if not plain or not weight.is_floating_point():
            raise ValueError(
                f"{name} is a {type(module).__name__} of {weight.dtype}, which an adapter cannot be added into; load "
                "the base unquantised"
            )
        if getattr(module, "groups", 1) != 1:
            raise ValueError(f"{name} is a convolution in groups, which an adapter cannot be added into")
        a, b = (value.float().to(weight.device) for value in (pair.a, pair.b))
        change = pair.scale * (b.flatten(1) @ a.flatten(1)).reshape(weight.shape)
        weight.copy_(weight.float() + change)


def lora_from_tensors(
    source: str, tensors: Mapping[str, Tensor], alphas: Mapping[str, float] | float
) -> dict[str, LoraPair]:
    """Pairs of factors from tensors named as in `lora_state`.

    source: where they come from, the start of a message.
    alphas: of all modules, or by module.

    Raises:
        ValueError: other tensors than factors, a factor without its partner, ranks that differ within a pair, values
            that are not finite, or a module without alpha.
    """
    sides: dict[str, dict[str, Tensor]] = {}
    strangers = []
    for name, value in tensors.items():
        match = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name)
        if match is None or value.ndim < 2:
            strangers.append(name)
        else:
            sides.setdefault(match[1], {})[match[2]] = value
    if strangers or not sides:
        raise ValueError(
            f"{source} holds {len(strangers)} tensors besides LoRA's factors A and B ({first_few(strangers)}) and "
            f"{len(sides)} layers with factors; only plain LoRA can be read"
        )
    halves = [f"{n} has no {'B' if 'A' in pair else 'A'}" for n, pair in sides.items() if len(pair) < 2]
    if halves:
        raise ValueError(
            f"{source}: {len(halves)} layers lack a factor: {first_few(halves)}; it is cut short"
        )
    bad = [n for n, pair in sides.items() if not all(bool(v.isfinite().all()) for v in pair.values())]
    if bad:
        raise ValueError(f"{source}: the factors of {len(bad)} layers are not finite: {first_few(bad)}")
    ranks = {n: (p["A"].shape[0], p["B"].shape[1]) for n, p in sides.items()}
    wrong = [f"{n}: A has {a}, B has {b}" for n, (a, b) in ranks.items() if a != b or a == 0]
    if wrong:
        raise ValueError(f"{source}: A and B of {len(wrong)} layers differ in rank: {first_few(wrong)}")
    without = [] if isinstance(alphas, float) else [n for n in sides if n not in alphas]
    if without:
        raise ValueError(f"{source} does not say the alpha of {first_few(without)}")
    return {
        n: LoraPair(p["A"], p["B"], alphas if isinstance(alphas, float) else alphas[n])
        for n, p in sides.items()
    }
