"""LucidFlux's adapters under the release's names, checked by applying them by hand and by peft itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lucidnft.backbones.flux_keys import diffusers_to_flux, flux_to_diffusers
from lucidnft.backbones.lora_names import TRUNK, to_folders
from lucidnft.backbones.lora_values import LoraPair
from lucidnft.inference import load_policy
from lucidnft.inference.adapter_export import export_adapter
from tests.backbones.random_tensors import draws
from tests.small_adapters import apart, save_policy, small_base, small_policy, velocity

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.usefixtures("one_thread")]

BRANCHES = {"lq": "condition_lq", "pre": "condition_ldr"}  # in the release's wrapper, and in its file
# attention in part, and others: modulation, embedders, MLPs, the last layers, whose halves differ
TARGETS = (
    "attn.to_q", "attn.to_v", "transformer.proj_out", "norm_out.linear", "x_embedder", "ff.net.0.proj", "norm.linear",
    "add_k_proj", "modulation_ldr.linear", "controlnet_blocks.1", "input_hint_block.conv_in",
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.set_num_threads(1)
    return small_base(tmp_path_factory.mktemp("base"), "lucidflux")


def released_state(backbone: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of the trunk and of the wrapped conditioner, as the release's classes name them."""
    trunk = diffusers_to_flux(backbone.network.transformer.state_dict())
    parts = backbone.network.conditioner.released_state()
    wrapper = {}
    for theirs, ours in BRANCHES.items():
        for kind, name in ((theirs, ours), (f"modulation_{theirs}", ours.replace("condition", "modulation"))):
            wrapper.update({f"dual_condition_branch.{kind}.{n}": v for n, v in parts[name].items()})
    return trunk, wrapper


def load_released_(backbone: Any, trunk: dict[str, Tensor], wrapper: dict[str, Tensor]) -> None:
    backbone.network.transformer.load_state_dict(flux_to_diffusers(trunk))
    parts = {}
    for theirs, ours in BRANCHES.items():
        for kind, name in ((theirs, ours), (f"modulation_{theirs}", ours.replace("condition", "modulation"))):
            start = f"dual_condition_branch.{kind}."
            parts[name] = {n.removeprefix(start): v for n, v in wrapper.items() if n.startswith(start)}
    backbone.network.conditioner.load_released_(parts, "test")


def add_by_hand_(state: dict[str, Tensor], folder: Path) -> set[str]:
    """W + alpha / rank * B @ A for every layer of a PEFT folder, with nothing of this library."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    names = {n.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for n in tensors}
    for name in names:
        a, b = (tensors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        rank = config["rank_pattern"].get(name, config["r"])
        assert a.shape[0] == b.shape[1] == rank
        scale = config["alpha_pattern"].get(name, config["lora_alpha"]) / rank
        weight = state[f"{name}.weight"]
        state[f"{name}.weight"] = weight + scale * (b.flatten(1) @ a.flatten(1)).reshape(weight.shape)
    return names


class Tree(nn.Module):
    """Linear layers and convolutions of these names and weights, in a tree as the release's classes are."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for key, value in state.items():
            if not key.endswith(".weight") or value.ndim < 2:
                continue
            *path, last = key.removesuffix(".weight").split(".")
            parent: nn.Module = self
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            made = nn.Linear(*value.shape[::-1]) if value.ndim == 2 else nn.Conv2d(3, 16, 3)
            made.weight.data = value.clone()
            parent.add_module(last, made)


@pytest.mark.parametrize("targets", [None, TARGETS], ids=["attention", "others"])
@torch.no_grad()
def test_released_names_by_hand_and_by_peft_give_our_velocities(base, targets, tmp_path):
    policy = small_policy(base, targets)
    export_adapter(save_policy(tmp_path / "policy.safetensors", policy, base), tmp_path / "out")
    bare = base.build()
    states = released_state(bare)
    merged = [
        PeftModel.from_pretrained(Tree(state), tmp_path / "out" / folder).merge_and_unload().state_dict()
        for state, folder in zip(states, ("lora_dit", "lora_condition"), strict=True)
    ]
    before = {key: value.clone() for state in states for key, value in state.items()}
    names = [
        add_by_hand_(state, tmp_path / "out" / folder)
        for state, folder in zip(states, ("lora_dit", "lora_condition"), strict=True)
    ]
    assert {"double_blocks.0.img_attn.qkv", "single_blocks.0.linear1"} <= names[0]
    assert "dual_condition_branch.pre.double_blocks.1.img_attn.qkv" in names[1]
    for state, by_peft in zip(states, merged, strict=True):
        for key, value in by_peft.items():
            if key.endswith(".weight"):
                torch.testing.assert_close(value, state[key], msg=key)
    changed = {key for state in states for key, value in state.items() if not torch.equal(value, before[key])}
    assert changed == {f"{name}.weight" for part in names for name in part}
    load_released_(bare, *states)
    own = velocity(policy)
    assert apart(own, velocity(base.build())) > 0.05
    torch.testing.assert_close(velocity(bare), own, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(velocity(load_policy(tmp_path / "out")), own, atol=1e-6, rtol=0)


@pytest.mark.parametrize("targets", [None, TARGETS], ids=["attention", "others"])
@torch.no_grad()
def test_peft_loads_diffusers_names_onto_the_bare_transformer(base, targets, tmp_path):
    policy = small_policy(base, targets)
    export_adapter(save_policy(tmp_path / "p.safetensors", policy, base), tmp_path / "out", names="diffusers")
    bare = base.build().network.transformer
    sizes = bare.config
    inputs = {
        "hidden_states": draws(1, 6, 64, seed=1),
        "encoder_hidden_states": draws(1, 5, sizes.joint_attention_dim, seed=2),
        "pooled_projections": draws(1, sizes.pooled_projection_dim, seed=3), "timestep": torch.tensor([0.4]),
        "guidance": torch.tensor([4.0]), "img_ids": draws(6, 3, seed=4), "txt_ids": torch.zeros(5, 3),
    }  # fmt: skip
    base_output = bare(**inputs, return_dict=False)[0]
    loaded = PeftModel.from_pretrained(bare, tmp_path / "out" / "lora_dit")
    expected = policy.backbone.network.transformer(**inputs, return_dict=False)[0]
    torch.testing.assert_close(loaded(**inputs, return_dict=False)[0], expected, atol=1e-5, rtol=0)
    assert apart(expected, base_output) > 0.05


def write_foreign(
    folder: Path, state: dict[str, Tensor], targets: str, config: dict[str, Any], seed: int
) -> None:
    """An adapter as peft saves it after training on the release's classes."""
    folder.mkdir(parents=True)
    tensors = {}
    for index, key in enumerate(sorted(state)):
        name = key.removesuffix(".weight")
        if key.endswith(".weight") and state[key].ndim > 1 and re.fullmatch(targets, name):
            out, *inputs = state[key].shape
            rank = config["rank_pattern"].get(name, config["r"])
            tensors[f"base_model.model.{name}.lora_A.weight"] = 0.3 * draws(rank, *inputs, seed=seed + index)
            ends = (1,) * (len(inputs) - 1)
            tensors[f"base_model.model.{name}.lora_B.weight"] = 0.3 * draws(
                out, rank, *ends, seed=900 + index
            )
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"target_modules": targets, **config}))


@torch.no_grad()
def test_the_releases_own_kind_of_adapter_loads_and_goes_back_unchanged(base, tmp_path):
    trunk, wrapper = released_state(base.build())
    fused = r".*\.(qkv|proj|linear1|linear2|img_mlp\.[02]|lin|adaLN_modulation\.1)"
    special = {"single_blocks.0.linear1": 5}
    config = {
        "peft_type": "LORA",
        "r": 3,
        "lora_alpha": 6,
        "rank_pattern": special,
        "alpha_pattern": {},
        "bias": "none",
    }
    write_foreign(tmp_path / "in" / "lora_dit", trunk, fused, config, 100)
    inside = (
        r"dual_condition_branch\..*\.(qkv|proj|linear|input_hint_block\.2|lin)|connector\.redux_(up|down)"
    )
    connector = {
        "connector.redux_up.weight": torch.zeros(8, 4),
        "connector.redux_down.weight": torch.zeros(4, 8),
    }
    write_foreign(
        tmp_path / "in" / "lora_condition", {**wrapper, **connector}, inside,
        {**config, "rank_pattern": {}, "alpha_pattern": {r"modulation_lq\.linear": 1}}, 500,
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"LoRA on 2 layers of the connector .*left out"):
        policy = load_policy(tmp_path / "in", base=base)
    add_by_hand_(trunk, tmp_path / "in" / "lora_dit")
    expected = base.build()
    config_file = tmp_path / "in" / "lora_condition" / "adapter_config.json"
    values = json.loads(config_file.read_text())
    values["alpha_pattern"] = {
        "dual_condition_branch.modulation_lq.linear": 1
    }  # the one name that the pattern matches
    config_file.write_text(json.dumps(values))
    both = {**wrapper, **connector}
    add_by_hand_(both, tmp_path / "in" / "lora_condition")
    load_released_(expected, trunk, both)
    torch.testing.assert_close(velocity(policy), velocity(expected), atol=1e-4, rtol=1e-4)

    with pytest.warns(UserWarning, match="left out"):
        export_adapter(tmp_path / "in", tmp_path / "out", base=base)
    for folder in ("lora_dit", "lora_condition"):
        given, back = (load_file(tmp_path / f / folder / "adapter_model.safetensors") for f in ("in", "out"))
        given = {name: value for name, value in given.items() if "connector" not in name}
        assert given.keys() == back.keys()
        assert all(torch.equal(given[name], back[name]) for name in given)
    export_adapter(tmp_path / "out", tmp_path / "split", names="diffusers")  # where q, k and v share their A
    for folder in ("out", "split"):
        torch.testing.assert_close(
            velocity(load_policy(tmp_path / folder)), velocity(policy), atol=1e-6, rtol=0
        )


def test_factors_missing_from_a_fused_adapter_are_named(base, tmp_path):
    policy = small_policy(base)
    export_adapter(save_policy(tmp_path / "policy.safetensors", policy, base), tmp_path / "out")
    (tmp_path / "out" / "lucidnft.json").unlink()
    weights = tmp_path / "out" / "lora_condition" / "adapter_model.safetensors"
    name = "dual_condition_branch.pre.double_blocks.0.img_attn.qkv"
    save_file({n: v for n, v in load_file(weights).items() if name not in n}, weights)
    with pytest.raises(ValueError, match=f"lacks the factors of 1 layers .*{re.escape(name)}"):
        load_policy(tmp_path / "out", base=base)


def test_parts_of_different_ranks_and_scales_fuse_exactly():
    pairs = {
        f"transformer.transformer_blocks.0.attn.{name}": LoraPair(
            draws(rank, 8, seed=rank), draws(8, rank), alpha
        )
        for name, rank, alpha in (("to_q", 2, 3.0), ("to_v", 3, 1.0))
    }
    fused = to_folders("lucidflux", pairs, "release")[TRUNK]["double_blocks.0.img_attn.qkv"]
    assert fused.rank == 5 and fused.b.shape == (24, 5)
    rows = (fused.scale * fused.b @ fused.a).split(8)
    expected = [pair.scale * pair.b @ pair.a for pair in pairs.values()]
    for found, wanted in zip(rows, (expected[0], torch.zeros(8, 8), expected[1]), strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_layer_without_a_released_name_is_refused():
    pair = {"transformer.strange.layer": LoraPair(draws(1, 4), draws(4, 1), 1.0)}
    with pytest.raises(ValueError, match=r"1 layers have no name in the release: strange\.layer"):
        to_folders("lucidflux", pair, "release")
    assert to_folders("lucidflux", pair, "diffusers") == {
        TRUNK: {"strange.layer": pair["transformer.strange.layer"]}
    }
