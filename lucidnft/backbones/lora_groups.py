"""Groups of linear layers that `target_modules` may name, per network.

A layer without an influence on the velocity is in none: it would have no gradient, which distributed training takes
for a fault.
"""

from __future__ import annotations

from lucidnft.backbones.dit4sr_network import DiT4SRNetwork
from lucidnft.backbones.lucidflux_network import LucidFluxNetwork

IMAGE_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_ATTENTION = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
MLP = ("net.0.proj", "net.2")


def lucidflux_groups(network: LucidFluxNetwork) -> dict[str, tuple[str, ...]]:
    """Paths of attention and MLP layers: all of them, and those of the trunk and of the conditioner alone.

    A single block of FLUX has one layer for the outputs of its attention and of its MLP; it goes with the MLP.
    What a branch's last block makes of its text is dropped, so its layers for that are left out.
    """
    last = network.conditioner.num_blocks - 1
    dropped = {
        f"conditioner.{branch}.transformer_blocks.{last}.{layer}"
        for branch in ("condition_lq", "condition_ldr")
        for layer in ("attn.add_q_proj", "attn.to_add_out", *(f"ff_context.{part}" for part in MLP))
    }
    attention = tuple(f".attn.{layer}" for layer in IMAGE_ATTENTION + TEXT_ATTENTION)
    mlp = tuple(f".{part}.{layer}" for part in ("ff", "ff_context") for layer in MLP)
    names = [name for name, _ in network.named_modules() if name not in dropped]
    found = {
        "attention": [name for name in names if name.endswith(attention)],
        "mlp": [
            name
            for name in names
            if name.endswith(mlp)
            or (".single_transformer_blocks." in name and name.endswith((".proj_mlp", ".proj_out")))
        ],
    }
    groups = {kind: tuple(members) for kind, members in found.items()}
    for part, root in (("trunk", "transformer."), ("conditioner", "conditioner.")):
        for kind, members in found.items():
            groups[f"{part}_{kind}"] = tuple(name for name in members if name.startswith(root))
    return groups


def dit4sr_groups(network: DiT4SRNetwork) -> dict[str, tuple[str, ...]]:
    """Paths of the attention layers, of noise, LR and text tokens, and of the MLPs' linear layers.

    Left out are the text layers of the second attention, which sees no text, the last block's layer of text queries,
    whose result is dropped, and, where LR keys are made from noise keys, to_k_control.
    """
    control = [
        f"to_{name}_control" for name in ("q", "v", "out") + (("k",) if network.lr_key == "lr" else ())
    ]
    image = tuple(f".{layer}" for layer in (*IMAGE_ATTENTION, *control))
    text = tuple(f".attn.{layer}" for layer in TEXT_ATTENTION)
    mlp = tuple(f".{part}.{layer}" for part in ("ff", "ff_context") for layer in MLP)
    dropped = f"transformer_blocks.{len(network.transformer_blocks) - 1}.attn.add_q_proj"
    names = [name for name, _ in network.named_modules() if name != dropped]
    return {
        "attention": tuple(name for name in names if name.endswith(image + text)),
        "mlp": tuple(name for name in names if name.endswith(mlp)),
    }
