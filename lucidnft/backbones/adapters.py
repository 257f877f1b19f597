"""LoRA adapters on a backbone's network: the one route into peft.

An adapter is named ("current", "old"); the reference is the network with adapters switched off.
peft's switches flip requires_grad on everything they touch, so all switching happens in
`use_adapter`, which puts both the active adapter and every flag back, also after an exception.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from lucidnft.backbones.lora_start import LoraStartSettings
from lucidnft.backbones.trainable import check_decay
from lucidnft.rng import generator_for


class LoraSettings(LoraStartSettings):
    """What of the network is trained: fields shared by every `model:` section."""

    lora_rank: int = 16
    lora_alpha: float = 32.0
    # names of modules or of groups of modules; null is all attention (tiny: conv1 and conv2).  The groups are
    # attention and mlp, and for lucidflux also trunk_attention, trunk_mlp, conditioner_attention, conditioner_mlp
    target_modules: tuple[str, ...] | None = None
    # instead of LoRA: patterns of names of parameters that are trained themselves, all others being frozen.
    # As in a shell: * is any text, dots too.  E.g. ["*control*"] is what DiT4SR's authors trained
    train_parameters: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _adapters_or_parameters(self) -> Self:
        if self.train_parameters is None:
            return self
        if not self.train_parameters:
            raise ValueError("train_parameters is empty, so nothing would be trained; null is LoRA")
        # resolved settings name every field, so a default tells nothing of what was asked for
        fields = type(self).model_fields
        unread = [
            name
            for name in ("lora_rank", "lora_alpha", "target_modules", "adapter")
            if getattr(self, name) != fields[name].default
        ]
        if unread:
            raise ValueError(
                f"train_parameters trains parameters themselves, without LoRA: remove {', '.join(unread)}, or set "
                "train_parameters to null"
            )
        return self


def lora_layers(network: nn.Module) -> dict[str, Any]:
    """{module path: peft LoRA layer} of a network."""
    from peft.tuners.lora import LoraLayer

    return {name: m for name, m in network.named_modules() if isinstance(m, LoraLayer)}


def add_adapter(
    network: nn.Module, adapter: str, settings: LoraSettings, targets: tuple[str, ...], *, seed: int
) -> None:
    """Attach a LoRA adapter in place: A random (Kaiming uniform from `seed`), B zero, so it starts as no change.

    The base weights are frozen.  The adapter becomes the active, trainable one.  Its factors are float32, whatever
    the base is in.

    Raises:
        ValueError: no module matches the targets, or the rank is below 1.
    """
    from peft import LoraConfig

    if settings.lora_rank < 1:
        raise ValueError(f"lora_rank is {settings.lora_rank}, expected at least 1")
    unknown = unmatched(network, targets)
    if unknown:
        raise ValueError(f"target_modules {unknown} match no module of {type(network).__name__}")
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]  # a float works and is stored as given
        target_modules=list(targets),
        lora_dropout=0.0,
    )
    inject(network, adapter, config)
    for name, parameter in adapter_parameters(network, adapter).items():
        with torch.no_grad():
            if parameter.is_meta:
                continue  # a skeleton has no values
            if ".lora_A." in name:
                bound = math.sqrt(3.0 / parameter[0].numel())
                draw = torch.rand(parameter.shape, generator=generator_for(seed, "lora", name))
                parameter.copy_((2 * draw - 1) * bound)
            else:
                parameter.zero_()
    activate(network, adapter)


def unmatched(network: nn.Module, targets: Sequence[str]) -> list[str]:
    """The targets that are neither the path of a module nor the end of one, after a dot."""
    dotted = [f".{name}" for name, _ in network.named_modules()]
    return [t for t in targets if not any(name.endswith(f".{t}") for name in dotted)]


def inject(network: nn.Module, adapter: str, config: Any) -> None:
    """Put peft's layers of a LoraConfig into a network, in float32; torch's seed is left alone."""
    from peft import inject_adapter_in_model

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")  # two by design
        warnings.filterwarnings("ignore", message=".*get_apply_tensor_subclass")  # read by merge(), not used
        inject_adapter_in_model(config, network, adapter_name=adapter)
    for parameter in adapter_parameters(network, adapter).values():
        # peft takes the base's dtype; in half precision most of AdamW's steps would be rounded away
        parameter.data = parameter.data.float()


def activate(network: nn.Module, adapter: str) -> None:
    """Make one adapter active and the only trainable one."""
    for layer in lora_layers(network).values():
        layer.set_adapter(adapter)
    own = {id(p) for p in adapter_parameters(network, adapter).values()}
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in own)


def adapter_parameters(network: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """{name without the adapter's own: parameter}, in a fixed order; empty when it does not exist."""
    marker = f".{adapter}."
    found = {}
    for name, parameter in network.named_parameters():
        if ".lora_" in name and marker in f"{name}.":
            found[f"{name}.".replace(marker, ".", 1).rstrip(".")] = parameter
    return found


def is_no_change(network: nn.Module, adapter: str) -> bool:
    """Whether every B of the adapter is zero, as at its start: the network then is the base, exactly."""
    factors = adapter_parameters(network, adapter).items()
    return not any(bool(factor.any()) for name, factor in factors if ".lora_B." in name)


@contextmanager
def use_adapter(network: nn.Module, adapter: str | None) -> Iterator[None]:
    """Inside, the network runs with this adapter (None: with none).  Afterwards everything is as before."""
    layers = list(lora_layers(network).values())
    active = [(layer, layer.active_adapters, layer.disable_adapters) for layer in layers]
    flags = [(p, p.requires_grad) for p in network.parameters()]
    try:
        for layer in layers:
            if adapter is None:
                layer.enable_adapters(False)
            else:
                layer.enable_adapters(True)
                layer.set_adapter(adapter)
        yield
    finally:
        for layer, before, disabled in active:
            layer.set_adapter(list(before))
            layer.enable_adapters(not disabled)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def folded_adapter(network: nn.Module, adapter: str) -> Iterator[None]:
    """Inside, the adapter is added into the base weights, so that a pass costs what the base costs.

    For passes without gradients.  Afterwards the very tensors of before are back, also after an exception;
    nothing is subtracted, so no rounding is left behind.  Outputs differ from the adapter's by rounding.

    Raises:
        ValueError: the weights are not plain float32 tensors.
    """
    if not can_fold(network):
        raise ValueError("an adapter is folded into float32 weights only, not into rounded or quantised ones")
    kept: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for layer in lora_layers(network).values():
            weight = layer.get_base_layer().weight
            kept.append((weight, weight.data))
            folded = torch.empty_like(weight.data)  # in the base's memory format
            weight.data = torch.add(weight.data, layer.get_delta_weight(adapter).detach(), out=folded)
        with use_adapter(network, None):
            yield
    finally:
        for weight, data in kept:
            weight.data = data


def can_fold(network: nn.Module) -> bool:
    """Are the adapted weights float32?  In half precision or quantised, folding would round to another policy."""
    weights = [layer.get_base_layer().weight for layer in lora_layers(network).values()]
    # a quantised weight is of a class of its own, and some name the dtype that they had before
    return all(type(weight) is nn.Parameter and weight.dtype == torch.float32 for weight in weights)


@torch.no_grad()
def lerp_adapter_(network: nn.Module, target: str, source: str, decay: float) -> None:
    """target <- decay * target + (1 - decay) * source, factor by factor (A and B, not their product)."""
    check_decay(decay)
    sources = adapter_parameters(network, source)
    for name, parameter in adapter_parameters(network, target).items():
        if decay == 0.0:
            parameter.copy_(sources[name])  # exact, so that old equals current bit for bit
        else:
            parameter.lerp_(sources[name], 1.0 - decay)


def adapter_state(network: nn.Module, adapter: str) -> dict[str, Tensor]:
    """A detached CPU copy of an adapter, ready to save."""
    return {n: p.detach().cpu().clone().contiguous() for n, p in adapter_parameters(network, adapter).items()}


@torch.no_grad()
def load_adapter_state_(network: nn.Module, adapter: str, state: Mapping[str, Tensor]) -> None:
    """Copy a saved adapter into an attached one of the same shape.

    Raises:
        ValueError: names or shapes differ; the first few are listed.
    """
    parameters = adapter_parameters(network, adapter)
    missing, extra = sorted(parameters.keys() - state.keys()), sorted(state.keys() - parameters.keys())
    wrong = [n for n in parameters.keys() & state.keys() if parameters[n].shape != state[n].shape]
    if missing or extra or wrong:
        raise ValueError(
            f"adapter does not fit: {len(missing)} missing {missing[:3]}, {len(extra)} unknown {extra[:3]}, "
            f"{len(wrong)} of another shape {wrong[:3]}; was it trained with another lora_rank or base?"
        )
    for name, parameter in parameters.items():
        parameter.copy_(state[name])
