"""Parameters trained themselves: three roles by exchange of tensors, in float32, on every backbone."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lucidnft.backbones.adapters import LoraSettings
from lucidnft.backbones.trained_parameters import select_parameters
from lucidnft.policy import Policy, Role
from tests.backbones.random_tensors import draws, uniforms
from tests.backbones.small_lucidflux import small_lucidflux
from tests.small_backbone import small_backbone
from tests.small_dit4sr import small_dit4sr

pytestmark = pytest.mark.usefixtures("one_thread")

PATTERNS = {
    "tiny": ("*conv2*",),
    "lucidflux": (
        "conditioner.modulation_*",
        "transformer.time_text_embed.*",
    ),  # the very first parameters too
    "dit4sr": ("*control*",),
}
NAMES = tuple(PATTERNS)
T = torch.tensor([0.7, 0.2])


def made(name: str, dtype: torch.dtype = torch.float32) -> Any:
    backbone = {"tiny": small_backbone, "lucidflux": small_lucidflux, "dit4sr": small_dit4sr}[name]()
    nn.Module.to(backbone.network, dtype)
    return backbone


def policy_of(name: str, dtype: torch.dtype = torch.float32) -> Policy:
    return Policy(made(name, dtype), LoraSettings(train_parameters=PATTERNS[name]), seed=0)


def inputs(policy: Policy) -> tuple[Any, ...]:
    return inputs_of(policy.backbone.name)


@cache
@torch.no_grad()
def inputs_of(name: str) -> tuple[Any, ...]:
    backbone = made(name)
    condition = backbone.encode_condition(uniforms(2, 3, 8, 8), upscale=4)
    return draws(2, *backbone.latent_spec.grid(32, 32)), T, condition


def velocities(policy: Policy) -> list[Tensor]:
    return [policy(*inputs(policy), role).detach() for role in Role]


@torch.no_grad()
def move_(policy: Policy, seed: int, amount: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters.values():
        parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    policy.mark_updated()


def moved(name: str, dtype: torch.dtype = torch.float32) -> Policy:
    """A policy whose three roles are three different ones."""
    policy = policy_of(name, dtype)
    move_(policy, 1)
    policy.update_old(0.0)
    move_(policy, 2)
    return policy


def places(policy: Policy) -> dict[str, tuple[int, torch.dtype, bool]]:
    network = policy.backbone.network
    return {n: (p.data_ptr(), p.dtype, p.requires_grad) for n, p in network.named_parameters()}


BASES = [("tiny", torch.float32), ("lucidflux", torch.bfloat16), ("dit4sr", torch.float32)]


@torch.no_grad()
def seen(policy: Policy, role: Role) -> dict[str, Tensor]:
    """The trained parameters as the network reads them in a role."""
    with policy.trainable.use(role.value):
        owners = {
            name: policy.backbone.network.get_submodule(name.rpartition(".")[0]) for name in policy.parameters
        }
        return {name: getattr(owner, name.rpartition(".")[2]).clone() for name, owner in owners.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Equal to the bit, dtypes too."""
    return one.keys() == other.keys() and all(
        torch.equal(v, other[n]) and v.dtype == other[n].dtype for n, v in one.items()
    )


def far(one: Tensor, other: Tensor) -> float:
    """The difference in parts of the whole; matrix products on a CPU round by where a tensor lies in memory."""
    return float((one - other).detach().norm() / other.detach().norm())


@pytest.mark.parametrize(("name", "dtype"), BASES)
def test_all_roles_start_as_the_base_and_part(name: str, dtype: torch.dtype) -> None:
    bare, policy = made(name, dtype), policy_of(name, dtype)
    assert policy.is_reference and policy.old_equals_current
    with torch.no_grad():
        base = bare.velocity(*inputs(policy))
    values = {n: p.detach() for n, p in bare.network.named_parameters() if n in policy.parameters}
    assert all(same(seen(policy, role), values) for role in Role)  # in half precision nothing is lost either
    assert max(far(v, base) for v in velocities(policy)) < 1e-3
    move_(policy, 1)
    assert not policy.is_reference
    current, old, reference = velocities(policy)
    assert far(current, base) > 0.02 > 1e-3 > max(far(old, base), far(reference, base))
    assert same(seen(policy, Role.OLD), values) and same(seen(policy, Role.REFERENCE), values)
    policy.update_old(0.0)
    assert policy.old_equals_current
    assert same(seen(policy, Role.OLD), seen(policy, Role.CURRENT))
    assert far(velocities(policy)[1], current) < 1e-3
    assert same(seen(policy, Role.REFERENCE), values)


@pytest.mark.parametrize(("name", "dtype"), BASES)
def test_gradient_reaches_exactly_the_trained_parameters_whatever_runs_in_between(
    name: str, dtype: torch.dtype
) -> None:
    policy = moved(name, dtype)
    policy.backbone.set_gradient_checkpointing(True)  # repeated in the backward pass, in the role of then
    arguments, grads = inputs(policy), []
    for disturbed in (False, True):
        loss = policy(*arguments).square().mean()
        if disturbed:
            policy(*arguments, Role.OLD)
            policy(*arguments, Role.REFERENCE)
        loss.backward()
        reached = {id(p) for p in policy.backbone.network.parameters() if p.grad is not None}
        assert reached == {id(p) for p in policy.parameters.values()}
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in policy.parameters.values())
        grads.append(torch.cat([p.grad.flatten() for p in policy.parameters.values() if p.grad is not None]))
        policy.backbone.network.zero_grad()
    assert far(grads[1], grads[0]) < 1e-3


@pytest.mark.parametrize(("name", "dtype"), [("tiny", torch.float32), ("lucidflux", torch.bfloat16)])
@pytest.mark.parametrize("role", list(Role))
def test_switching_leaves_the_very_tensors_behind_also_after_an_exception(
    name: str, dtype: torch.dtype, role: Role
) -> None:
    policy = moved(name, dtype)
    before, states = places(policy), [policy.state(role) for role in (Role.CURRENT, Role.OLD)]
    with policy.trainable.use(role.value):
        assert (places(policy) == before) == (role is Role.CURRENT)
    assert places(policy) == before
    for region in (policy.trainable.use, policy.trainable.folded):
        with (
            pytest.raises(RuntimeError, match="inside"),
            region(role.value),
            policy.trainable.use(Role.OLD.value),
        ):
            raise RuntimeError("inside")
        assert places(policy) == before
    assert all(same(policy.state(r), v) for r, v in zip((Role.CURRENT, Role.OLD), states, strict=True))


def test_inside_another_role_the_current_one_is_still_known() -> None:
    policy = moved("lucidflux", torch.bfloat16)
    state, outside = policy.state(Role.CURRENT), velocities(policy)
    with policy.trainable.use(None), policy.trainable.use(Role.OLD.value):
        assert same(policy.state(Role.CURRENT), state)
        with policy.trainable.use(Role.CURRENT.value):
            assert far(policy(*inputs(policy)), outside[0]) < 1e-3
    assert max(far(a, b) for a, b in zip(velocities(policy), outside, strict=True)) < 1e-3
    assert min(far(outside[a], outside[b]) for a, b in ((0, 1), (0, 2), (1, 2))) > 0.02


@pytest.mark.parametrize("role", [Role.CURRENT, Role.OLD])
def test_folding_casts_once_and_changes_no_number(role: Role) -> None:
    policy = moved("lucidflux", torch.bfloat16)
    before, expected = places(policy), policy(*inputs(policy), role).detach()
    with policy.folded(role), torch.no_grad():
        assert {p.dtype for p in policy.backbone.network.parameters()} == {torch.bfloat16}
        assert far(policy(*inputs(policy), role), expected) < 1e-3
        assert {v.dtype for v in policy.state(role).values()} == {torch.float32}
    assert places(policy) == before


def test_the_lagging_copy_is_interpolated_and_the_base_is_not() -> None:
    policy = moved("dit4sr", torch.bfloat16)
    old, current = policy.state(Role.OLD), policy.state(Role.CURRENT)
    reference = seen(policy, Role.REFERENCE)
    policy.update_old(0.999)  # a thousandth of the way: far below the rounding of bfloat16
    for name, value in policy.state(Role.OLD).items():
        torch.testing.assert_close(value, 0.999 * old[name] + 0.001 * current[name], rtol=1e-6, atol=1e-7)
        assert not torch.equal(value, old[name])
    assert not policy.old_equals_current
    policy.update_old(0.0)
    assert same(policy.state(Role.OLD), current) and same(policy.state(Role.CURRENT), current)
    assert same(seen(policy, Role.REFERENCE), reference)
    with pytest.raises(ValueError, match="decay is -0.1"):
        policy.update_old(-0.1)


KINDS = [{"train_parameters": ("*attn.to_k.*",)}, {"target_modules": ("to_k",)}]


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("name", ["lucidflux", "dit4sr"])
def test_a_rate_of_1e_5_moves_what_is_trained_on_a_half_precision_base(
    name: str, autocast: torch.dtype | None, settings: dict[str, Any]
) -> None:
    policy = Policy(made(name, torch.bfloat16), LoraSettings(**settings), seed=0)
    policy.backbone.autocast_dtype = autocast
    assert {p.dtype for p in policy.parameters.values()} == {torch.float32}
    move_(policy, 1, 0.5)  # LoRA's B starts at zero, where any step is seen
    before = policy.state(Role.CURRENT)
    optimizer = torch.optim.AdamW(policy.parameters.values(), lr=1e-5, weight_decay=0.0)
    policy(*inputs(policy)).square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in policy.parameters.values())
    optimizer.step()
    steps = torch.cat([(v - before[n]).abs().flatten() for n, v in policy.state(Role.CURRENT).items()])
    assert float(((steps > 0.9e-5) & (steps < 1.1e-5)).float().mean()) > 0.9
    halves = [(v.bfloat16(), before[n].bfloat16()) for n, v in policy.state(Role.CURRENT).items()]
    unmoved = torch.cat([(a == b).flatten() for a, b in halves])
    assert float(unmoved.float().mean()) > 0.9  # so held in half precision it would have stood still


@pytest.mark.parametrize("name", NAMES)
def test_states_go_out_under_the_base_s_names_and_in_again(name: str) -> None:
    dtype = torch.float32 if name == "tiny" else torch.bfloat16
    names = dict(made(name).network.named_parameters())
    policy = moved(name, dtype)
    state = policy.state(Role.CURRENT)
    assert list(state) == list(select_parameters(made(name).network, PATTERNS[name]))
    assert all(v.dtype == torch.float32 and v.shape == names[n].shape for n, v in state.items())
    other = policy_of(name, dtype)
    other.load_state_(Role.CURRENT, state)
    assert not other.old_equals_current
    assert same(seen(other, Role.CURRENT), seen(policy, Role.CURRENT))
    assert same(seen(other, Role.OLD), seen(other, Role.REFERENCE))
    other.load_state_(Role.OLD, state)
    assert other.old_equals_current


def test_states_that_do_not_fit_are_refused() -> None:
    policy, adapter = moved("tiny"), Policy(small_backbone(), LoraSettings(lora_rank=2), seed=0)
    state = policy.state(Role.CURRENT)
    first = next(iter(state))
    with pytest.raises(ValueError, match=f"1 missing: {first}"):
        policy.load_state_(Role.CURRENT, {n: v for n, v in state.items() if n != first})
    with pytest.raises(ValueError, match="of another shape"):
        policy.load_state_(Role.CURRENT, {**state, first: state[first][:1]})
    with pytest.raises(ValueError, match=r"this is a LoRA adapter of .*\(model.train_parameters\)"):
        policy.load_state_(Role.CURRENT, adapter.state(Role.CURRENT))
    with pytest.raises(ValueError, match="parameters of the network itself.* has a LoRA adapter"):
        adapter.load_state_(Role.CURRENT, state)
    with pytest.raises(ValueError, match="no adapter"):
        policy.state(Role.REFERENCE)


def test_the_copies_cost_what_the_docstring_says() -> None:
    for name, dtype, extra in (("tiny", torch.float32, 8), ("lucidflux", torch.bfloat16, 6)):
        policy = policy_of(name, dtype)
        assert policy.trainable.kept_bytes == extra * sum(p.numel() for p in policy.parameters.values())
