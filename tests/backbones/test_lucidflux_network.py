"""LucidFlux's velocity network against its equations written out in plain PyTorch."""

import pytest
import torch

from lucidnft.backbones.flux_keys import diffusers_to_flux
from lucidnft.backbones.lucidflux_condition import DualBranchConditioner, LayerModulation
from lucidnft.backbones.lucidflux_network import pack, position_ids, text_ids, unpack
from lucidnft.backbones.lucidflux_weights import build_network
from tests.backbones import flux_equations as equations
from tests.backbones.random_tensors import draws, randomise_
from tests.backbones.small_lucidflux import SMALL

SIZE = (4, 6)  # latent cells
SHAPE = {"size": SIZE, "num_heads": 2, "axes": (2, 2, 4)}
INPUTS = {
    "lq": draws(2, 3, 32, 48, seed=1),
    "pre_restored": draws(2, 3, 32, 48, seed=2),
    "text": draws(2, 5, 20, seed=3),
    "pooled": draws(2, 12, seed=4),
    "siglip": draws(2, 4, 20, seed=5),
    "guidance_scale": 4.0,
}
X_T, T = draws(2, 16, *SIZE, seed=6), torch.tensor([0.83, 0.31])


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng(devices=[]):
        return randomise_(build_network(SMALL)).eval()


def expected_residuals(network, num_layers):
    released = network.conditioner.released_state()
    guidance, residuals = torch.full((2,), 4.0), 0
    for name, image in (("lq", INPUTS["lq"]), ("ldr", INPUTS["pre_restored"])):
        w = {n: v.detach() for n, v in released[f"condition_{name}"].items()}
        prompt = (INPUTS["text"], T, guidance, INPUTS["pooled"])
        outputs = equations.branch(w, equations.packed(X_T), image, *prompt, **SHAPE)
        modulation = {n: v.detach() for n, v in released[f"modulation_{name}"].items()}
        parts = [equations.modulated(modulation, outputs, T, layer) for layer in range(num_layers)]
        residuals = residuals + torch.stack(parts)
    return residuals


def residuals_of(network, num_layers):
    return network.conditioner(
        pack(X_T),
        T,
        INPUTS["lq"],
        INPUTS["pre_restored"],
        num_layers,
        encoder_hidden_states=INPUTS["text"],
        pooled_projections=INPUTS["pooled"],
        guidance=torch.full((2,), 4.0),
        img_ids=position_ids(*SIZE),
        txt_ids=text_ids(INPUTS["text"]),
    )


@torch.no_grad()
@pytest.mark.parametrize("num_layers", [1, 3, 19])
def test_residuals_are_those_of_the_equations_for_any_number_of_layers(network, num_layers):
    residuals = torch.stack(list(residuals_of(network, num_layers)))
    assert residuals.shape == (num_layers, 2, 6, 16)
    torch.testing.assert_close(residuals, expected_residuals(network, num_layers), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_velocity_is_that_of_the_equations(network):
    w = diffusers_to_flux(network.transformer.state_dict())
    context = torch.cat([INPUTS["text"], INPUTS["siglip"]], dim=1)
    expected = equations.trunk(
        w,
        equations.packed(X_T),
        context,
        T,
        torch.full((2,), 4.0),
        INPUTS["pooled"],
        expected_residuals(network, 3),
        depths=(3, 1),
        **SHAPE,
    )
    v = network(X_T, T, **INPUTS)
    torch.testing.assert_close(equations.packed(v), expected, rtol=1e-5, atol=1e-5)
    assert float(v.std()) > 0.1


@torch.no_grad()
def test_a_residual_comes_after_its_own_double_block_and_after_no_other(network, monkeypatch):
    marks = [draws(2, 6, 16, seed=10 + layer) for layer in range(3)]
    seen = []
    blocks = [*network.transformer.transformer_blocks, *network.transformer.single_transformer_blocks]
    hooks = [
        block.register_forward_hook(
            lambda m, args, kwargs, out: seen.append((kwargs["hidden_states"], out[1])), with_kwargs=True
        )
        for block in blocks
    ]
    monkeypatch.setattr(network.conditioner, "forward", lambda *args, **kwargs: marks)
    network(X_T, T, **INPUTS)
    for hook in hooks:
        hook.remove()
    assert len(seen) == 4
    for layer in range(3):
        torch.testing.assert_close(seen[layer + 1][0] - seen[layer][1], marks[layer])


@torch.no_grad()
def test_a_new_conditioner_leaves_the_trunk_alone():
    network = build_network(SMALL).eval()
    randomise_(network.transformer)
    context = torch.cat([INPUTS["text"], INPUTS["siglip"]], dim=1)
    alone = network.transformer(
        hidden_states=pack(X_T),
        encoder_hidden_states=context,
        pooled_projections=INPUTS["pooled"],
        timestep=T,
        guidance=torch.full((2,), 4.0),
        img_ids=position_ids(*SIZE),
        txt_ids=text_ids(context),
        return_dict=False,
    )[0]
    torch.testing.assert_close(network(X_T, T, **INPUTS), unpack(alone, *SIZE), rtol=0, atol=0)


@torch.no_grad()
def test_the_image_tokens_of_siglip_reach_the_trunk_but_not_the_conditioner(network):
    other = {**INPUTS, "siglip": draws(2, 4, 20, seed=9)}
    reached = []
    hook = network.conditioner.condition_lq.register_forward_pre_hook(
        lambda m, args, kwargs: reached.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    difference = network(X_T, T, **INPUTS) - network(X_T, T, **other)
    hook.remove()
    assert float(difference.abs().max()) > 1e-3
    assert all(torch.equal(text, INPUTS["text"]) for text in reached)
    assert len(reached) == 2


def test_packing_keeps_a_cell_of_four_together_and_comes_back():
    latents = draws(2, 16, 6, 4)
    torch.testing.assert_close(pack(latents), equations.packed(latents), rtol=0, atol=0)
    assert torch.equal(unpack(pack(latents), 6, 4), latents)
    with pytest.raises(ValueError, match="3 x 4 cells cannot be packed"):
        pack(draws(1, 16, 3, 4))


def test_positions_are_rows_and_columns_and_text_has_none():
    expected = equations.ids_of(7, *SIZE)
    assert torch.equal(torch.cat([text_ids(draws(1, 7, 3)), position_ids(*SIZE)]), expected)


@torch.no_grad()
def test_modulation_takes_the_raw_index_of_a_layer_and_a_thousand_times_t():
    modulation = randomise_(LayerModulation(16))
    seen = []
    monitored = modulation.frequencies.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    scale, shift = modulation(torch.tensor([0.25, 1.0]), 19)
    monitored.remove()
    assert torch.equal(seen[0], torch.tensor([250.0, 1000.0]))
    assert torch.equal(seen[1], torch.arange(19))
    assert scale.shape == shift.shape == (19, 2, 1, 16)


@torch.no_grad()
def test_residuals_behave_as_a_sequence(network):
    residuals = residuals_of(network, 3)
    assert len(residuals) == len(list(residuals)) == 3
    assert torch.equal(residuals[1:][0], residuals[1])
    with pytest.raises(IndexError, match="layer 3 of 3"):
        residuals[3]


def test_latents_of_other_channels_are_refused():
    config = {**SMALL.transformer.model_dump(), "in_channels": 32}
    with pytest.raises(ValueError, match="tokens of 32 channels"):
        DualBranchConditioner(config)
