"""Frozen base weights in 4 or 8 bits: less memory, at the price of a base that is rounded.

The linear layers of the repeated blocks are quantised, in place and after loading: they hold nearly all weights.
Everything else keeps its dtype: embeddings, normalisation weights, convolutions, and the layers before and
after the blocks.  Because the base is complete before it is quantised, its fingerprint is that of the full weights,
and an adapter trained on a quantised base loads on the full one and the other way round.

    nf4   bitsandbytes, 4-bit normal floats in blocks of 64 with doubly quantised scales (arXiv 2305.14314)
    int8  torchao, 8-bit integers with one scale per output row
    fp8   torchao, 8-bit floats (e4m3) with one scale per output row

All three are weight-only: a layer is computed in its weights' former dtype, or in autocast's.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lucidnft.backbones.adapters import lora_layers

Quantize = Literal["none", "nf4", "int8", "fp8"]

PACKAGES = {"nf4": "bitsandbytes", "int8": "torchao", "fp8": "torchao"}

BLOCK_LISTS = ("transformer_blocks", "single_transformer_blocks")
"""What diffusers calls the lists of repeated blocks of a transformer."""


def repeated_blocks(network: nn.Module) -> dict[str, nn.Module]:
    """{path: block} of all transformers in a network: nearly all of its weights and of its time."""
    return {
        f"{path}.{index}": block
        for path, blocks in network.named_modules()
        if path.rpartition(".")[2] in BLOCK_LISTS and isinstance(blocks, nn.ModuleList)
        for index, block in enumerate(blocks)
    }


def quantisable_layers(network: nn.Module) -> dict[str, nn.Linear]:
    """{path: linear layer} of those that `quantize_base_` changes."""
    return {
        f"{path}.{name}": layer
        for path, block in repeated_blocks(network).items()
        for name, layer in block.named_modules()
        if type(layer) is nn.Linear
    }


def require_quantizer(kind: Quantize) -> Any:
    """The package that `kind` needs, imported; None for "none".

    Raises:
        ImportError: it is not installed, or broken.
    """
    if kind == "none":
        return None
    try:
        return importlib.import_module(PACKAGES[kind])
    except ImportError as error:
        raise ImportError(
            f"model.quantize: {kind} needs the package {PACKAGES[kind]} ({error}); "
            "run: pip install 'lucidnft[quantize]', or set model.quantize: none"
        ) from error


def quantize_base_(network: nn.Module, kind: Quantize) -> None:
    """Quantise a network's base weights where they are, before adapters are added.

    Raises:
        ImportError: the package is missing.
        ValueError: the network has adapters, or no linear layer in repeated blocks.
    """
    if kind == "none":
        return
    package = require_quantizer(kind)
    if lora_layers(network):
        raise ValueError(
            "the network has adapters, which would be quantised too: quantise before adding them"
        )
    layers = quantisable_layers(network)
    if not layers:
        raise ValueError(f"{type(network).__name__} has no linear layer in repeated blocks to quantise")
    if kind == "nf4":
        nf4 = _nf4_class(package)
        for path, layer in layers.items():
            network.set_submodule(path, nf4.from_linear(layer))
        network.is_loaded_in_4bit = True  # type: ignore[assignment]  # by this peft knows that it is
    else:
        _quantize_with_torchao_(network, kind, set(layers))
    for path in layers:
        network.get_submodule(path).register_forward_pre_hook(_to_autocast_dtype)


def weight_bytes(shape: tuple[int, int], kind: Quantize, dtype: torch.dtype = torch.bfloat16) -> int:
    """Bytes of one linear layer's weight (rows, columns) with its scales.  dtype: without quantisation."""
    rows, columns = shape
    count = rows * columns
    if kind == "none":
        return count * dtype.itemsize
    if kind == "nf4":
        blocks = -(-count // 64)
        # 4 bits a value, 8 a block of 64, 32 per 256 blocks; two tables and an offset per layer
        return -(-count // 2) + blocks + 4 * -(-blocks // 256) + 4 * (16 + 256 + 1)
    return count + (5 if kind == "int8" else 4) * rows  # a scale a row; int8 has a zero point too


def stored_bytes(weight: Tensor) -> int:
    """Bytes that a weight, quantised or not, takes with its scales."""
    state = getattr(weight, "quant_state", None)
    if state is not None:
        tensors = [weight, state.absmax, state.code]
        if state.nested:
            tensors += [state.offset, state.state2.absmax, state.state2.code]
        return sum(t.numel() * t.element_size() for t in tensors)
    if hasattr(weight, "__tensor_flatten__"):
        names, _ = weight.__tensor_flatten__()
        return sum(stored_bytes(getattr(weight, name)) for name in names)
    return weight.numel() * weight.element_size()


def _quantize_with_torchao_(network: nn.Module, kind: Quantize, paths: set[str]) -> None:
    quantization = importlib.import_module("torchao.quantization")
    configs = {"int8": "Int8WeightOnlyConfig", "fp8": "Float8WeightOnlyConfig"}
    config = getattr(quantization, configs[kind])()
    quantization.quantize_(network, config, filter_fn=lambda _, path: path in paths)


def _to_autocast_dtype(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Autocast knows plain weights alone; without this a float32 input would give a float32 output."""
    device = inputs[0].device.type
    if not torch.is_autocast_enabled(device):
        return None
    return (inputs[0].to(torch.get_autocast_dtype(device)), *inputs[1:])


def _nf4_class(bitsandbytes: Any) -> Any:
    class Nf4Linear(bitsandbytes.nn.Linear4bit):
        """bitsandbytes' layer with one layout of its weights in training and inference."""

        @classmethod
        def from_linear(cls, layer: nn.Linear) -> Nf4Linear:
            """The quantised layer, on the device of `layer`."""
            weight, bias = layer.weight, layer.bias
            made = cls(
                layer.in_features, layer.out_features, bias is not None,
                compute_dtype=weight.dtype, quant_type="nf4", device="meta",
            )  # fmt: skip
            # On a CPU bitsandbytes repacks a weight in its first pass without gradients, for good, and has no
            # backward pass for that layout: the old policy's pass would cut the current policy's gradient.
            made.support_avx512bf16_for_cpu = False
            parameter = bitsandbytes.nn.Params4bit(
                weight.data, requires_grad=False, quant_type="nf4", module=made
            )
            made.weight = parameter.to(weight.device)  # this quantises
            made.bias = bias
            return made

    return Nf4Linear
