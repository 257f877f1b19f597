"""An optimiser that went through files continues bit for bit, and only beside its own parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lucidnft.checkpoint import flatten_optimizer, load_optimizer_, load_tensors, save_tensors


def network(dtype: torch.dtype = torch.float32, width: int = 5) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2)).to(dtype)


def adamw(net: nn.Module, **options) -> torch.optim.AdamW:
    parameters = list(net.parameters())
    groups = [{"params": parameters[:2], "lr": 3e-3}, {"params": parameters[2:], "weight_decay": 0.3}]
    return torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.97), **options)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step)).to(next(net.parameters()).dtype)
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()


def through_file(tmp_path, optimizer, net):
    tensors, header = flatten_optimizer(optimizer, net.named_parameters())
    save_tensors(tmp_path / "optimizer.safetensors", tensors, header)
    return load_tensors(tmp_path / "optimizer.safetensors", expected=tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_training_continues_bit_identically(tmp_path, dtype, amsgrad):
    unbroken = network(dtype)
    optimizer = adamw(unbroken, amsgrad=amsgrad)
    train(unbroken, optimizer, 0, 3)
    weights = {n: p.detach().clone() for n, p in unbroken.named_parameters()}
    tensors, header = through_file(tmp_path, optimizer, unbroken)
    train(unbroken, optimizer, 3, 6)

    resumed = network(dtype)
    resumed.load_state_dict(weights)
    fresh = torch.optim.AdamW(
        [{"params": list(resumed.parameters())[:2]}, {"params": list(resumed.parameters())[2:]}],
        amsgrad=amsgrad,
    )
    load_optimizer_(fresh, resumed.named_parameters(), tensors, header)
    train(resumed, fresh, 3, 6)

    for name, parameter in unbroken.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name
    settings = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    assert settings == [{k: v for k, v in g.items() if k != "params"} for g in fresh.param_groups]


def test_moments_keep_another_dtype_than_their_parameter(tmp_path):
    net = network(torch.bfloat16)
    optimizer = adamw(net)
    train(net, optimizer, 0, 1)
    for state in optimizer.state.values():
        state["exp_avg"] = state["exp_avg"].float() + 1e-4
    tensors, header = through_file(tmp_path, optimizer, net)
    fresh = adamw(network(torch.bfloat16))
    names = dict(
        zip(
            ["0.weight", "0.bias", "2.weight", "2.bias"],
            fresh.param_groups[0]["params"] + fresh.param_groups[1]["params"],
            strict=True,
        )
    )
    load_optimizer_(fresh, names.items(), tensors, header)
    for parameter, name in zip(net.parameters(), names, strict=True):
        loaded = fresh.state[names[name]]["exp_avg"]
        assert loaded.dtype == torch.float32
        assert torch.equal(loaded, optimizer.state[parameter]["exp_avg"])


def test_an_optimiser_that_never_stepped_round_trips(tmp_path):
    net = network()
    tensors, header = through_file(tmp_path, adamw(net), net)
    assert tensors == {}
    fresh = adamw(net)
    load_optimizer_(fresh, net.named_parameters(), tensors, header)
    assert not fresh.state


def test_a_learning_rate_kept_as_a_tensor_is_restored_in_place(tmp_path):
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=torch.tensor(0.1), foreach=False)
    tensors, header = through_file(tmp_path, optimizer, net)
    held = torch.tensor(0.5)
    fresh = torch.optim.AdamW(net.parameters(), lr=held, foreach=False)
    load_optimizer_(fresh, net.named_parameters(), tensors, header)
    assert torch.equal(held, torch.tensor(0.1))


def saved(tmp_path):
    net = network()
    optimizer = adamw(net)
    train(net, optimizer, 0, 1)
    return net, *through_file(tmp_path, optimizer, net)


def refuses(net, optimizer, tensors, header, message):
    before = {id(p): {k: v for k, v in s.items()} for p, s in optimizer.state.items()}
    rates = [group["lr"] for group in optimizer.param_groups]
    with pytest.raises(ValueError, match=message):
        load_optimizer_(optimizer, net.named_parameters(), tensors, header)
    assert rates == [group["lr"] for group in optimizer.param_groups]
    assert before == {id(p): {k: v for k, v in s.items()} for p, s in optimizer.state.items()}


def test_other_optimisers_groups_and_parameters_are_refused(tmp_path):
    net, tensors, header = saved(tmp_path)
    refuses(net, torch.optim.SGD(net.parameters(), lr=1.0), tensors, header, "'AdamW', this run uses 'SGD'")
    refuses(
        net, torch.optim.AdamW(net.parameters(), lr=1.0), tensors, header, "2 parameter groups, this run 1"
    )
    other = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Tanh(), nn.Linear(5, 2))
    refuses(other, adamw(other), tensors, header, r"group 1 differs.*2 not saved \(3.weight, 3.bias\)")


def test_wrong_tensors_are_refused(tmp_path):
    net, tensors, header = saved(tmp_path)
    fresh = adamw(net)
    lost = {k: v for k, v in tensors.items() if k != "0.bias/exp_avg"}
    refuses(net, fresh, lost, header, r"1 tensors missing \(0.bias/exp_avg\)")
    refuses(net, fresh, tensors | {"9.bias/exp_avg": torch.ones(1)}, header, r"1 entries unexpected \(9.bias")
    refuses(
        net, fresh, tensors | {"0.bias/exp_avg": torch.ones(1)}, header, r"shape \(1,\), the parameter \(5,\)"
    )
    refuses(net, fresh, tensors, {"step": 3}, r"not the header of an optimiser: it has \['step'\]")


def test_a_wider_network_is_refused(tmp_path):
    _, tensors, header = saved(tmp_path)
    wide = network(width=6)
    refuses(wide, adamw(wide), tensors, header, "belongs to another model")


def test_parameters_without_a_name_are_refused():
    net = network()
    with pytest.raises(
        ValueError, match=r"2 parameters of the optimiser have no name \(shapes \(2, 5\), \(2,\)\)"
    ):
        flatten_optimizer(adamw(net), list(net.named_parameters())[:2])


def test_state_that_is_no_tensor_and_no_number_is_refused():
    net = network()
    optimizer = adamw(net)
    optimizer.state[net[0].bias]["closure"] = print
    with pytest.raises(ValueError, match="state 'closure' of parameter '0.bias'"):
        flatten_optimizer(optimizer, net.named_parameters())
