"""Quantised base weights: which, how many bytes, how far from the full ones, and what adapters make of them."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import nn

from lucidnft.backbones import quantization
from lucidnft.backbones.adapters import LoraSettings, can_fold, folded_adapter, lora_layers
from lucidnft.backbones.dit4sr_config import DiT4SRBackboneConfig
from lucidnft.backbones.lucidflux_config import LucidFluxBackboneConfig
from lucidnft.backbones.quantization import quantisable_layers, quantize_base_, stored_bytes, weight_bytes
from lucidnft.inference import load_policy
from lucidnft.policy import Policy, Role
from tests.backbones import small_lucidflux as lucidflux
from tests.small_dit4sr import SMALL, small_dit4sr

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCES = {"nf4": 0.25, "int8": 0.02, "fp8": 0.06}  # of a velocity; 4 and 8 bits, and 3 of a mantissa
KINDS = tuple(TOLERANCES)
ARCHITECTURE = {
    "transformer": SMALL,
    "vae": {"block_out_channels": (4,) * 4, "norm_num_groups": 2, "latent_channels": 4},
    "num_text_tokens": 3,
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    pytest.importorskip(quantization.PACKAGES[request.param])
    return request.param


def section(**fields: Any) -> DiT4SRBackboneConfig:
    fields = {"lr_key": "lr", "lora_rank": 2, "dtype": "float32", **fields}
    return DiT4SRBackboneConfig(model_name_or_path=None, architecture=ARCHITECTURE, **fields)


def inputs(backbone: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
    generator = torch.Generator().manual_seed(5)
    condition = backbone.encode_condition(torch.rand((2, 3, 4, 4), generator=generator), upscale=4)
    x_t = torch.randn((2, *backbone.latent_spec.grid(16, 16)), generator=generator)
    return x_t, torch.tensor([0.3, 0.7]), condition


def test_a_quantised_base_is_near_the_full_one_and_trains(kind):
    full, backbone = small_dit4sr(), small_dit4sr()
    layers = {path: layer.weight.shape for path, layer in quantisable_layers(backbone.network).items()}
    quantize_base_(backbone.network, kind)
    for path, shape in layers.items():
        weight = backbone.network.get_submodule(path).weight
        assert type(weight) is not nn.Parameter and not weight.requires_grad, path
        assert stored_bytes(weight) == weight_bytes(tuple(shape), kind), path

    expected = full.velocity(*inputs(full))
    policy = Policy(backbone, LoraSettings(lora_rank=2), seed=0)
    v = policy(*inputs(backbone))
    error = float((v.detach() - expected).norm() / expected.norm())
    assert 1e-4 < error < TOLERANCES[kind]
    with torch.no_grad():  # a pass that must not change what the next one computes, nor cut its gradient
        policy(*inputs(backbone), Role.OLD)
    policy(*inputs(backbone)).square().mean().backward()
    still = {
        n
        for n, p in policy.parameters.items()
        if ".lora_B." in n and not (p.grad is not None and p.grad.any())
    }
    assert still <= {
        "transformer_blocks.2.attn.add_q_proj.lora_B.weight"
    }  # nothing reads the last block's text


def test_the_layers_compute_in_the_dtype_of_autocast(kind):
    backbone = small_dit4sr()
    nn.Module.to(backbone.network, torch.bfloat16)
    quantize_base_(backbone.network, kind)
    layer = backbone.network.get_submodule("transformer_blocks.0.attn.to_q")
    x = torch.randn(2, 3, layer.in_features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_only_linear_layers_of_blocks_are_quantised(kind):
    network = lucidflux.small_lucidflux().network
    full = {n for n, m in network.named_modules() if type(m) is nn.Linear}
    quantize_base_(network, kind)
    kept = {n for n in full if type(network.get_submodule(n).weight) is nn.Parameter}
    assert kept and not [n for n in kept if "transformer_blocks" in n]
    assert full - kept == {n for n in full if "transformer_blocks" in n}
    assert {"transformer.proj_out", "transformer.x_embedder", "conditioner.modulation_lq.linear"} <= kept


def test_nothing_is_folded_into_quantised_weights(kind):
    backbone = small_dit4sr()
    quantize_base_(backbone.network, kind)
    policy = Policy(backbone, LoraSettings(lora_rank=2), seed=0)
    assert not can_fold(backbone.network)
    before = [layer.get_base_layer().weight for layer in lora_layers(backbone.network).values()]
    with policy.folded(Role.OLD):
        policy(*inputs(backbone), Role.OLD)
    with (
        pytest.raises(ValueError, match="folded into float32 weights only"),
        folded_adapter(backbone.network, "old"),
    ):
        pass
    after = [layer.get_base_layer().weight for layer in lora_layers(backbone.network).values()]
    assert all(a is b for a, b in zip(before, after, strict=True))


def test_an_adapter_goes_from_a_quantised_base_to_the_full_one_and_back(kind, tmp_path):
    from lucidnft.checkpoint import save_tensors

    sections = {"none": section(), kind: section(quantize=kind)}
    backbones = {name: config.build(seed=3) for name, config in sections.items()}
    assert backbones["none"].fingerprint == backbones[kind].fingerprint
    for name, other in (("none", kind), (kind, "none")):
        policy = Policy(backbones[name], sections[name], seed=1)
        header = {
            "format": "lucidnft.policy.1", "base_fingerprint": backbones[name].fingerprint,
            "backbone": sections[other].model_dump(mode="json"), "config": {"seed": 3},
        }  # fmt: skip
        file = tmp_path / f"{name}.safetensors"
        save_tensors(file, policy.state(Role.CURRENT), header)
        loaded = load_policy(file)
        assert all(torch.equal(p, policy.parameters[n]) for n, p in loaded.parameters.items())


def test_lucidflux_quantises_what_its_section_says():
    pytest.importorskip("bitsandbytes")
    sizes = lucidflux.SMALL.model_dump()
    sections = [
        LucidFluxBackboneConfig(model_name_or_path=None, dtype="float32", architecture=sizes, quantize=q)
        for q in ("none", "nf4")
    ]
    full, quantised = (config.build() for config in sections)
    assert full.fingerprint == quantised.fingerprint
    assert not [m for m in full.network.modules() if type(m).__name__ == "Nf4Linear"]
    for part in (quantised.network.transformer, quantised.network.conditioner.condition_ldr):
        assert [m for m in part.modules() if type(m).__name__ == "Nf4Linear"]


def test_a_missing_package_is_said_before_anything_is_loaded(monkeypatch):
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    monkeypatch.setattr(DiT4SRBackboneConfig, "_full", lambda self, seed: pytest.fail("loaded"))
    said = r"model\.quantize: int8 needs the package torchao .*pip install 'lucidnft\[quantize\]'"
    with pytest.raises(ImportError, match=said):
        section(quantize="int8").build()


def test_adapters_are_not_quantised():
    pytest.importorskip("bitsandbytes")
    policy = Policy(small_dit4sr(), LoraSettings(lora_rank=2), seed=0)
    with pytest.raises(ValueError, match="quantise before adding them"):
        quantize_base_(policy.backbone.network, "nf4")
    with pytest.raises(ValueError, match="Conv2d has no linear layer in repeated blocks"):
        quantize_base_(nn.Conv2d(1, 1, 1), "nf4")


def test_bytes_of_a_full_size_layer():
    count = 3072 * 12288
    sizes = {kind: weight_bytes((12288, 3072), kind) for kind in ("none", *KINDS)}
    assert sizes["none"] == 2 * count
    assert weight_bytes((12288, 3072), "none", torch.float32) == 4 * count
    assert sizes["nf4"] / count == pytest.approx(4.127 / 8, rel=1e-3)  # the paper's bits per weight
    assert sizes["int8"] == count + 5 * 12288 and sizes["fp8"] == count + 4 * 12288
