"""LoRA adapters: switching leaves nothing behind, interpolation is exact, files fit or are refused."""

import pytest
import torch

from lucidnft.backbones.adapters import (
    LoraSettings,
    adapter_parameters,
    adapter_state,
    add_adapter,
    lerp_adapter_,
    load_adapter_state_,
    use_adapter,
)

SETTINGS = LoraSettings(lora_rank=2, lora_alpha=4)


@pytest.fixture
def network(backbone):
    for name in ("old", "current"):
        add_adapter(backbone.network, name, SETTINGS, backbone.lora_modules, seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name in ("old", "current"):
            for parameter in adapter_parameters(backbone.network, name).values():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return backbone.network


def output(network):
    generator = torch.Generator().manual_seed(3)
    y_t, up = (torch.randn((1, 3, 16, 16), generator=generator) for _ in range(2))
    return network(y_t, torch.tensor([0.5]), up, torch.randn((1, 8, 4, 4), generator=generator)).detach()


def flags(network):
    return {n: p.requires_grad for n, p in network.named_parameters()}


def test_a_new_adapter_changes_nothing_and_freezes_the_base(backbone):
    before = output(backbone.network)
    add_adapter(backbone.network, "current", SETTINGS, backbone.lora_modules, seed=0)
    assert torch.equal(output(backbone.network), before)
    trainable = {n for n, p in backbone.network.named_parameters() if p.requires_grad}
    assert trainable
    assert all(".lora_" in n and ".current." in n for n in trainable)


def test_initial_values_depend_on_the_seed_and_not_on_the_adapters_name(backbone):
    torch.manual_seed(9)
    state = torch.random.get_rng_state()
    for name, seed in (("old", 0), ("current", 0), ("third", 1)):
        add_adapter(backbone.network, name, SETTINGS, backbone.lora_modules, seed=seed)
    old, current, third = (adapter_state(backbone.network, n) for n in ("old", "current", "third"))
    assert all(torch.equal(old[n], current[n]) for n in old)
    assert any(not torch.equal(old[n], third[n]) for n in old)
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_three_roles_differ(network):
    outputs = []
    for name in ("current", "old", None):
        with use_adapter(network, name):
            outputs.append(output(network))
    assert torch.equal(outputs[0], output(network))  # current is what runs outside
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(outputs[a], outputs[b])


@pytest.mark.parametrize("name", ["old", None])
def test_switching_restores_adapter_and_every_flag(network, name):
    before, out = flags(network), output(network)
    with use_adapter(network, name):
        pass
    assert flags(network) == before
    assert torch.equal(output(network), out)


@pytest.mark.parametrize("name", ["old", None])
def test_switching_restores_them_after_an_exception(network, name):
    before, out = flags(network), output(network)
    with pytest.raises(RuntimeError, match="inside"), use_adapter(network, name):
        raise RuntimeError("inside")
    assert flags(network) == before
    assert torch.equal(output(network), out)


def test_nested_switching_unwinds(network):
    with use_adapter(network, "old"):
        old = output(network)
        with use_adapter(network, None):
            assert not torch.equal(output(network), old)
        assert torch.equal(output(network), old)


def test_interpolation_of_factors(network):
    old, current = adapter_state(network, "old"), adapter_state(network, "current")
    lerp_adapter_(network, "old", "current", 0.75)
    for name, value in adapter_state(network, "old").items():
        torch.testing.assert_close(value, 0.75 * old[name] + 0.25 * current[name])
    lerp_adapter_(network, "old", "current", 0.0)
    assert all(torch.equal(v, current[n]) for n, v in adapter_state(network, "old").items())
    before = adapter_state(network, "old")
    lerp_adapter_(network, "old", "current", 1.0)
    assert all(torch.equal(v, before[n]) for n, v in adapter_state(network, "old").items())
    with pytest.raises(ValueError, match="decay is 1.5"):
        lerp_adapter_(network, "old", "current", 1.5)


def test_states_load_or_say_why_not(network):
    state = adapter_state(network, "current")
    load_adapter_state_(network, "old", state)
    assert all(torch.equal(v, state[n]) for n, v in adapter_state(network, "old").items())
    name = next(iter(state))
    with pytest.raises(ValueError, match="1 missing"):
        load_adapter_state_(network, "old", {n: v for n, v in state.items() if n != name})
    with pytest.raises(ValueError, match="of another shape"):
        load_adapter_state_(network, "old", {**state, name: state[name][:1]})
    with pytest.raises(ValueError, match="1 unknown"):
        load_adapter_state_(network, "old", {**state, "stranger": state[name]})


def test_targets_that_match_nothing_are_refused(backbone):
    with pytest.raises(ValueError, match="to_q"):
        add_adapter(backbone.network, "current", SETTINGS, ("to_q",), seed=0)
    with pytest.raises(ValueError, match="lora_rank is 0"):
        add_adapter(backbone.network, "current", LoraSettings(lora_rank=0), ("conv1",), seed=0)
