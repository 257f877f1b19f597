"""Which modules LoRA goes to: the groups of each network by name and number, and that all of them learn."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
import torch

from lucidnft.backbones.adapters import LoraSettings
from lucidnft.backbones.dit4sr_architecture import DiT4SRArchitecture
from lucidnft.backbones.dit4sr_network import DiT4SRNetwork
from lucidnft.backbones.lora import lora_targets
from lucidnft.backbones.lora_groups import dit4sr_groups, lucidflux_groups
from lucidnft.backbones.lucidflux_architecture import LucidFluxArchitecture
from lucidnft.backbones.lucidflux_weights import build_network
from lucidnft.policy import Policy
from lucidnft.records import Condition
from tests.backbones.random_tensors import draws, uniforms
from tests.backbones.small_lucidflux import small_lucidflux
from tests.small_dit4sr import small_dit4sr

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGE = {"attn.to_q", "attn.to_k", "attn.to_v"}
TEXT = {"attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"}
MLP = {"ff.net.0.proj", "ff.net.2"}
TEXT_MLP = {"ff_context.net.0.proj", "ff_context.net.2"}


@cache
def full_size(name: str) -> dict[str, tuple[str, ...]]:
    with torch.device("meta"):
        if name == "lucidflux":
            return lucidflux_groups(build_network(LucidFluxArchitecture()))
        sizes = DiT4SRArchitecture().transformer.model_dump()
        return dit4sr_groups(DiT4SRNetwork(lr_key=name.removeprefix("dit4sr_"), **sizes))


def layers_of_blocks(paths: tuple[str, ...], blocks: str) -> dict[int, set[str]]:
    """{number of the block: layers in it} of the paths that start so."""
    found: dict[int, set[str]] = {}
    for path in paths:
        if path.startswith(blocks):
            number, _, layer = path.removeprefix(blocks).partition(".")
            found.setdefault(int(number), set()).add(layer)
    return found


def test_the_groups_of_full_size_lucidflux() -> None:
    groups = full_size("lucidflux")
    assert {name: len(paths) for name, paths in groups.items()} == {
        "attention": 152 + 114 + 28, "mlp": 76 + 76 + 12,
        "trunk_attention": 152 + 114, "trunk_mlp": 76 + 76, "conditioner_attention": 28, "conditioner_mlp": 12,
    }  # fmt: skip
    double, single = "transformer.transformer_blocks.", "transformer.single_transformer_blocks."
    image = {*IMAGE, "attn.to_out.0"}
    for kind, in_double, in_single in (
        ("attention", image | TEXT, IMAGE), ("mlp", MLP | TEXT_MLP, {"proj_mlp", "proj_out"}),
    ):  # fmt: skip
        for name in (kind, f"trunk_{kind}"):
            assert layers_of_blocks(groups[name], double) == dict.fromkeys(range(19), in_double)
            assert layers_of_blocks(groups[name], single) == dict.fromkeys(range(38), in_single)
        assert set(groups[kind]) == set(groups[f"trunk_{kind}"]) | set(groups[f"conditioner_{kind}"])
    for branch in ("condition_lq", "condition_ldr"):
        blocks = f"conditioner.{branch}.transformer_blocks."
        kept = TEXT - {"attn.add_q_proj", "attn.to_add_out"}  # the last block's text goes nowhere
        assert layers_of_blocks(groups["conditioner_attention"], blocks) == {0: image | TEXT, 1: image | kept}
        assert layers_of_blocks(groups["conditioner_mlp"], blocks) == {0: MLP | TEXT_MLP, 1: MLP}


@pytest.mark.parametrize("lr_key", ["noise", "lr"])
def test_the_groups_of_full_size_dit4sr(lr_key: str) -> None:
    groups = full_size(f"dit4sr_{lr_key}")
    stream = {"to_q", "to_k", "to_v", "to_out.0", "to_q_control", "to_v_control", "to_out_control"}
    stream |= {"to_k_control"} if lr_key == "lr" else set()
    attention = layers_of_blocks(groups["attention"], "transformer_blocks.")
    first, second = ({f"{part}.{layer}" for layer in stream} for part in ("attn", "attn2"))
    want = {n: first | TEXT | (second if n < 13 else set()) for n in range(24)}
    want[23] -= {"attn.add_q_proj", "attn.to_add_out"}  # the last block's text goes nowhere
    assert attention == want
    assert len(groups["attention"]) == (390 if lr_key == "lr" else 353)
    mlp = layers_of_blocks(groups["mlp"], "transformer_blocks.")
    assert mlp == {n: MLP | (TEXT_MLP if n < 23 else set()) for n in range(24)}
    assert set(groups) == {"attention", "mlp"}


CASES = [
    *(("lucidflux", choice) for choice in (
        None, ("attention", "mlp"), ("trunk_attention",), ("trunk_mlp",), ("conditioner_attention",),
        ("conditioner_mlp", "conditioner_attention"),
    )),
    *((f"dit4sr_{key}", choice) for key in ("noise", "lr") for choice in (None, ("mlp",), ("attention", "mlp"))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "choice"), CASES)
def test_gradient_reaches_exactly_the_factors_of_the_chosen_modules(
    name: str, choice: tuple[str, ...] | None
) -> None:
    backbone = small_lucidflux() if name == "lucidflux" else small_dit4sr(name.removeprefix("dit4sr_"))
    policy = Policy(backbone, LoraSettings(lora_rank=2, target_modules=choice), seed=0)
    backbone.set_gradient_checkpointing(True)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    condition: Condition = backbone.encode_condition(uniforms(1, 3, 8, 4), upscale=4)
    x_t = draws(1, backbone.latent_spec.channels, 4, 2)
    policy(x_t, torch.tensor([0.6]), condition).square().mean().backward()
    reached = {id(p) for p in backbone.network.parameters() if p.grad is not None and bool(p.grad.any())}
    assert reached == {id(p) for p in policy.parameters.values()}
    factors = Counter(parameter.rsplit(".lora_", 1)[0] for parameter in policy.parameters)
    want = [path for group in choice or ("attention",) for path in backbone.lora_groups[group]]
    assert factors == Counter({path: 2 for path in want})


def test_groups_and_modules_may_be_mixed_and_a_word_that_is_neither_is_refused(backbone) -> None:
    lucidflux = small_lucidflux()
    mixed = ("conditioner_mlp", "modulation_lq.linear", "modulation_lq.linear")
    expected = (*lucidflux.lora_groups["conditioner_mlp"], "modulation_lq.linear")
    assert lora_targets(lucidflux, mixed) == expected
    with pytest.raises(
        ValueError, match=r"\['atention'\] .*'lucidflux' takes the groups attention, mlp, trunk_att"
    ):
        lora_targets(lucidflux, ("mlp", "atention"))
    with pytest.raises(ValueError, match=r"\['q_proj'\] match no module"):  # the end of a name is not a name
        lora_targets(lucidflux, ("to_q", "q_proj"))
    with pytest.raises(
        ValueError, match=r"\['attention'\] .* 'tiny' takes the names of its modules, like conv1"
    ):
        lora_targets(backbone, ("attention",))
