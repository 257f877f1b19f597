"""Names of FLUX's tensors: as its authors released them, and as diffusers holds them.

The released names (double_blocks.0.img_attn.qkv.weight, ...) serve FLUX itself and the two branches of
LucidFlux's conditioner, which are built of the same parts.  The differences are names, the fused projections
(queries, keys and values, and in single blocks the first layer of the MLP, in one matrix), and the order of the
two halves of the last modulation: (shift, scale) as released, (scale, shift) in diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from lucidnft.checkpoint.tensor_files import first_few

# released module -> the modules of diffusers that its rows are split over, in this order
_OUTER: dict[str, tuple[str, ...]] = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    "pos_embed_input": ("controlnet_x_embedder",),
    "input_hint_block.0": ("input_hint_block.conv_in",),
    **{f"input_hint_block.{2 * i + 2}": (f"input_hint_block.blocks.{i}",) for i in range(6)},
    "input_hint_block.14": ("input_hint_block.conv_out",),
}
_DOUBLE: dict[str, tuple[str, ...]] = {
    "img_mod.lin": ("norm1.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_SINGLE: dict[str, tuple[str, ...]] = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
SWAPPED = "norm_out.linear"
"""The module of diffusers whose rows are in the other order."""

_BLOCKS: tuple[tuple[str, str, dict[str, tuple[str, ...]]], ...] = (
    ("double_blocks", "transformer_blocks", _DOUBLE),
    ("single_blocks", "single_transformer_blocks", _SINGLE),
    ("controlnet_blocks", "controlnet_blocks", {"": ("",)}),
)


def flux_to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under released names -> under those of diffusers' FluxTransformer2DModel or FluxControlNetModel.

    Raises:
        ValueError: a name that is not one of FLUX's, or img_in.weight, which tells the width, is missing.
    """
    if "img_in.weight" not in state:
        raise ValueError(
            f"not the weights of FLUX under their released names: img_in.weight is missing among "
            f"{len(state)} tensors ({first_few(state)})"
        )
    width = state["img_in.weight"].shape[0]
    converted: dict[str, Tensor] = {}
    unknown = []
    for name, value in state.items():
        module, _, leaf = name.rpartition(".")
        targets = diffusers_modules(module)
        if targets is None or leaf not in ("weight", "bias", "scale"):
            unknown.append(name)
            continue
        leaf = "weight" if leaf == "scale" else leaf
        if len(targets) == 1:
            part = swap_halves(value) if targets[0] == SWAPPED else value
            converted[f"{targets[0]}.{leaf}"] = part
            continue
        sizes = [width] * (len(targets) - 1)
        parts = value.split([*sizes, value.shape[0] - sum(sizes)])
        converted.update({f"{target}.{leaf}": part for target, part in zip(targets, parts, strict=True)})
    if unknown:
        raise ValueError(f"{len(unknown)} names are not FLUX's: {first_few(unknown)}")
    return converted


def diffusers_to_flux(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `flux_to_diffusers`.  Tensors may be on the meta device.

    Raises:
        ValueError: a name that is not one of FLUX's in diffusers, or a part of a fused matrix is missing.
    """
    parts: dict[str, list[Tensor | None]] = {}
    unknown = []
    for name, value in state.items():
        module, _, leaf = name.rpartition(".")
        source = released_module(module)
        if source is None or leaf not in ("weight", "bias"):
            unknown.append(name)
            continue
        released, position, count = source
        leaf = "scale" if released.endswith(("query_norm", "key_norm")) else leaf
        part = swap_halves(value) if module == SWAPPED else value
        parts.setdefault(f"{released}.{leaf}", [None] * count)[position] = part
    incomplete = [name for name, values in parts.items() if any(v is None for v in values)]
    if unknown or incomplete:
        raise ValueError(
            f"{len(unknown)} names are not those of FLUX in diffusers ({first_few(unknown)}); "
            f"{len(incomplete)} fused tensors lack a part ({first_few(incomplete)})"
        )
    return {
        name: torch.cat([v for v in values if v is not None]) if len(values) > 1 else _only(values)
        for name, values in parts.items()
    }


def diffusers_modules(module: str) -> tuple[str, ...] | None:
    """The modules that a released module's rows are split over, in order; None for a name that is not FLUX's."""
    if module in _OUTER:
        return _OUTER[module]
    for released, ours, table in _BLOCKS:
        match = re.fullmatch(rf"{released}\.(\d+)\.?(.*)", module)
        if match and match[2] in table:
            return tuple(f"{ours}.{match[1]}.{target}".rstrip(".") for target in table[match[2]])
    return None


def released_module(module: str) -> tuple[str, int, int] | None:
    """(released module, which part of it this is, number of its parts), or None; the inverse of the above."""
    for source, targets in _OUTER.items():
        if module in targets:
            return source, 0, 1
    for released, ours, table in _BLOCKS:
        match = re.fullmatch(rf"{ours}\.(\d+)\.?(.*)", module)
        for source, targets in table.items() if match else ():
            if match and match[2] in targets:
                name = f"{released}.{match[1]}.{source}".rstrip(".")
                return name, targets.index(match[2]), len(targets)
    return None


def swap_halves(value: Tensor) -> Tensor:
    """The second half of the rows before the first."""
    first, second = value.chunk(2)
    return torch.cat([second, first])


def _only(values: list[Tensor | None]) -> Tensor:
    value = values[0]
    assert value is not None
    return value
