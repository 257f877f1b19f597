"""Names of FLUX's tensors, there and back, and the names and shapes of the full-size networks."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from lucidnft.backbones.flux_keys import diffusers_to_flux, flux_to_diffusers
from lucidnft.backbones.lucidflux_architecture import LucidFluxArchitecture
from lucidnft.backbones.lucidflux_weights import build_connector, build_network
from lucidnft.backbones.swinir import SwinIR
from tests.backbones.random_tensors import randomise_
from tests.backbones.small_lucidflux import SMALL

FULL_SIZE = Path(__file__).parent / "lucidflux_released_names.json"
"""{part: {name with * for the number of a block: [how many, shape]}} of the released sizes."""


@pytest.fixture(scope="module")
def transformer():
    with torch.random.fork_rng(devices=[]):
        return randomise_(build_network(SMALL)).transformer


def test_names_go_there_and_back_without_loss(transformer):
    state = transformer.state_dict()
    released = diffusers_to_flux(state)
    assert sum(v.numel() for v in released.values()) == sum(v.numel() for v in state.values())
    back = flux_to_diffusers(released)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_fused_rows_are_queries_keys_values_and_in_single_blocks_the_mlp(transformer):
    state = transformer.state_dict()
    released = diffusers_to_flux(state)
    block = "single_transformer_blocks.0"
    rows = [state[f"{block}.{name}.bias"] for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
    assert torch.equal(released["single_blocks.0.linear1.bias"], torch.cat(rows))
    text = [state[f"transformer_blocks.1.attn.add_{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(released["double_blocks.1.txt_attn.qkv.weight"], torch.cat(text))


def test_the_halves_of_the_last_modulation_change_places(transformer):
    scale, shift = transformer.state_dict()["norm_out.linear.bias"].chunk(2)
    released = diffusers_to_flux(transformer.state_dict())
    assert torch.equal(released["final_layer.adaLN_modulation.1.bias"], torch.cat([shift, scale]))


def test_foreign_and_partial_weights_are_named(transformer):
    released = diffusers_to_flux(transformer.state_dict())
    with pytest.raises(ValueError, match=r"img_in\.weight is missing"):
        flux_to_diffusers({"conv_in.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"1 names are not FLUX's: double_blocks\.0\.img_attn\.lora"):
        flux_to_diffusers({**released, "double_blocks.0.img_attn.lora": torch.zeros(1)})
    partial = dict(transformer.state_dict())
    del partial["transformer_blocks.0.attn.to_k.weight"]
    with pytest.raises(ValueError, match=r"1 fused tensors lack a part \(double_blocks\.0\.img_attn\.qkv"):
        diffusers_to_flux(partial)
    with pytest.raises(ValueError, match="1 names are not those of FLUX in diffusers"):
        diffusers_to_flux({**transformer.state_dict(), "something.weight": torch.zeros(1)})


def test_full_size_networks_have_the_names_and_shapes_of_the_released_files():
    assert json.loads(FULL_SIZE.read_text()) == full_size_names()


def full_size_names():
    """What the fixture holds: python -c 'from tests.backbones.test_flux_keys import *; write_names()'."""
    architecture = LucidFluxArchitecture()
    with torch.device("meta"):
        network = build_network(architecture)
        swinir = SwinIR(**architecture.swinir.model_dump())
        connector = build_connector(
            architecture.siglip.hidden_size, architecture.transformer.joint_attention_dim
        )
    parts = {
        **network.conditioner.released_state(),
        "transformer": diffusers_to_flux(network.transformer.state_dict()),
        "swinir": swinir.state_dict(),
        "connector": connector.state_dict(),
    }
    collapsed = {}
    for part, tensors in parts.items():
        patterns = {name: re.sub(r"(blocks|layers)\.\d+", r"\1.*", name) for name in tensors}
        counts = Counter(patterns.values())
        collapsed[part] = {p: [counts[p], list(tensors[name].shape)] for name, p in patterns.items()}
    return collapsed


def write_names():
    lines = [
        f'"{part}": {{\n' + ",\n".join(f"{json.dumps(n)}: {json.dumps(v)}" for n, v in names.items()) + "}"
        for part, names in full_size_names().items()
    ]
    FULL_SIZE.write_text("{" + ",\n".join(lines) + "}\n")
