"""Attention backends and compiled blocks: reached everywhere, refused with a reason, and no change of results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from lucidnft.backbones import speed
from lucidnft.backbones.adapters import LoraSettings, adapter_parameters
from lucidnft.backbones.quantization import repeated_blocks
from lucidnft.backbones.speed import SpeedSettings, compile_blocks, prepare_speed, set_attention_backend
from lucidnft.backbones.tiny import TinyBackboneConfig
from lucidnft.policy import Policy, Role
from tests.backbones import small_lucidflux as lucidflux
from tests.small_backbone import small_backbone
from tests.small_dit4sr import SMALL, small_dit4sr

pytestmark = pytest.mark.usefixtures("one_thread")
CPU, FLOAT32 = torch.device("cpu"), torch.float32


@pytest.fixture
def compiler():
    """Nothing compiled before, and torch's own limits again afterwards."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(recompile_limit=8):
        yield torch._dynamo.utils.counters
    torch._dynamo.reset()


def one_block(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A small backbone with a single block of each kind: tracing one takes seconds."""
    if name == "dit4sr":
        for field, value in {"num_layers": 1, "dual_attention_layers": ()}.items():
            monkeypatch.setitem(SMALL, field, value)
        return small_dit4sr()
    transformer = lucidflux.SMALL.transformer.model_copy(update={"num_layers": 1})
    sizes = {"transformer": transformer, "num_condition_blocks": 1}
    monkeypatch.setattr(lucidflux, "SMALL", lucidflux.SMALL.model_copy(update=sizes))
    return lucidflux.small_lucidflux()


def trained_policy(backbone: Any, *targets: str) -> Policy:
    """A policy whose two adapters differ from each other and from none."""
    policy = Policy(backbone, LoraSettings(lora_rank=2, target_modules=targets or None), seed=0)
    for seed, role in enumerate((Role.CURRENT, Role.OLD)):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in adapter_parameters(backbone.network, role.value).values():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return policy


def inputs(backbone: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
    generator = torch.Generator().manual_seed(5)
    condition = backbone.encode_condition(torch.rand((2, 3, 4, 4), generator=generator), upscale=4)
    x_t = torch.randn((2, *backbone.latent_spec.grid(16, 16)), generator=generator)
    return x_t, torch.tensor([0.3, 0.7]), condition


def results(policy: Policy, roles: tuple[Role, ...] = tuple(Role)) -> dict[str, torch.Tensor]:
    """Velocities of all roles, the current one's also without gradients, and its gradients."""
    arguments = inputs(policy.backbone)
    found = {role.name: policy(*arguments, role) for role in roles if role is not Role.CURRENT}
    v = found["CURRENT"] = policy(*arguments)
    gradients = torch.autograd.grad(v.square().mean(), list(policy.parameters.values()))
    found |= dict(zip(policy.parameters, gradients, strict=True))
    if len(roles) > 1:
        with torch.no_grad():
            found["evaluated"] = policy(*arguments)
    return {name: value.detach() for name, value in found.items()}


def count_calls(monkeypatch: pytest.MonkeyPatch, backend: str) -> list[torch.dtype]:
    """Put a counting stand-in for a backend's kernel into diffusers' dispatch; pretend that it is installed."""
    seen: list[torch.dtype] = []

    def attention(query: Any, key: Any, value: Any, attn_mask: Any = None, scale: float | None = None) -> Any:
        assert attn_mask is None  # which xformers would need in another form, and flash refuses
        assert query.dtype == key.dtype == value.dtype
        seen.append(value.dtype)
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)

    name = AttentionBackendName(backend)
    monkeypatch.setitem(_AttentionBackendRegistry._backends, name, attention)
    names = {"query", "key", "value", "attn_mask", "scale"}
    monkeypatch.setitem(_AttentionBackendRegistry._supported_arg_names, name, names)
    monkeypatch.setattr(attention_dispatch, "_CAN_USE_XFORMERS_ATTN", True)
    monkeypatch.setattr(attention_dispatch, "_CAN_USE_FLASH_ATTN", True)
    monkeypatch.setattr(speed.importlib.util, "find_spec", lambda package: object())
    return seen


# trunk: 3 double and 1 single block, two branches of 2; DiT4SR: 3 blocks, two of them with a second attention
@pytest.mark.parametrize(("make", "attentions"), [(lucidflux.small_lucidflux, 8), (small_dit4sr, 5)])
@pytest.mark.parametrize("backend", ["xformers", "flash"])
def test_every_attention_of_a_velocity_goes_through_the_backend(make, attentions, backend, monkeypatch):
    backbone = make()
    arguments = inputs(backbone)
    expected = backbone.velocity(*arguments)
    seen = count_calls(monkeypatch, backend)
    active = _AttentionBackendRegistry.get_active_backend()[0]
    set_attention_backend(backbone.network, backend, device=torch.device("cuda"), dtype=torch.bfloat16)
    assert torch.allclose(backbone.velocity(*arguments), expected, atol=1e-5)
    assert len(seen) == attentions
    assert _AttentionBackendRegistry.get_active_backend()[0] == active  # other models keep theirs
    set_attention_backend(backbone.network, "sdpa", device=CPU, dtype=FLOAT32)
    backbone.velocity(*arguments)
    assert len(seen) == attentions


@pytest.mark.parametrize("make", [lucidflux.small_lucidflux, small_dit4sr])
def test_queries_and_keys_have_the_dtype_of_values_under_autocast(make, monkeypatch):
    backbone = make()
    backbone.autocast_dtype = torch.bfloat16
    own = torch.nn.functional.rms_norm
    # as autocast does on a GPU, and not on a CPU
    monkeypatch.setattr(torch.nn.functional, "rms_norm", lambda x, *rest: own(x, *rest).float())
    seen = count_calls(monkeypatch, "xformers")
    set_attention_backend(backbone.network, "xformers", device=torch.device("cuda"), dtype=torch.bfloat16)
    backbone.velocity(*inputs(backbone))
    assert set(seen) == {torch.bfloat16}


@pytest.mark.parametrize(
    ("backend", "installed", "device", "dtype", "said"),
    [
        ("xformers", False, "cuda", torch.bfloat16, "needs the package xformers.*pip install 'lucidnft"),
        ("flash", False, "cuda", torch.bfloat16, "needs the package flash_attn.*pip install flash-attn"),
        ("xformers", True, "cpu", torch.bfloat16, "runs on CUDA devices only, this run is on cpu; set sdpa"),
        ("flash", True, "cuda", FLOAT32, "computes in bfloat16 or float16, this run in float32; set train"),
    ],
)
def test_what_cannot_run_is_said_at_the_start(backend, installed, device, dtype, said, monkeypatch):
    monkeypatch.setattr(speed.importlib.util, "find_spec", lambda package: object() if installed else None)
    with pytest.raises(ValueError, match=rf"^model\.attention_backend: {backend} {said}"):
        set_attention_backend(torch.nn.Module(), backend, device=torch.device(device), dtype=dtype)


def test_a_package_too_old_for_diffusers_is_said_too(monkeypatch):
    monkeypatch.setattr(speed.importlib.util, "find_spec", lambda package: object())
    monkeypatch.setattr(attention_dispatch, "_CAN_USE_XFORMERS_ATTN", False)
    with pytest.raises(ValueError, match=r"model\.attention_backend: xformers cannot be used: .* too old"):
        set_attention_backend(
            small_dit4sr().network, "xformers", device=torch.device("cuda"), dtype=torch.bfloat16
        )


def test_compiled_dit4sr_is_the_same_in_every_role(compiler, monkeypatch):
    policy = trained_policy(one_block("dit4sr", monkeypatch), "to_q")
    policy.backbone.set_gradient_checkpointing(True)
    expected = results(policy)
    names = list(policy.backbone.network.state_dict())
    assert compile_blocks(policy.backbone.network, backend="eager") == 1
    for compiled in (4, 4):  # old, reference, current with and without gradients; then nothing new
        found = results(policy)
        assert found.keys() == expected.keys()
        assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)
        assert compiler["frames"]["ok"] == compiled
    assert not compiler["graph_break"]
    assert list(policy.backbone.network.state_dict()) == names
    assert torch._dynamo.config.recompile_limit >= 64


def test_compiled_lucidflux_is_the_same(compiler, monkeypatch):
    policy = trained_policy(one_block("lucidflux", monkeypatch), "to_q")
    expected = results(policy, (Role.CURRENT,))
    assert compile_blocks(policy.backbone.network, backend="eager") == 4  # both branches too
    found = results(policy, (Role.CURRENT,))
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)
    assert compiler["frames"]["ok"] > 0 and not compiler["graph_break"]


def test_blocks_of_every_transformer_are_found():
    found = repeated_blocks(lucidflux.small_lucidflux().network)
    assert {path.rpartition(".")[0] for path in found} == {
        "transformer.transformer_blocks",
        "transformer.single_transformer_blocks",
        "conditioner.condition_lq.transformer_blocks",
        "conditioner.condition_ldr.transformer_blocks",
    }
    assert len(found) == 3 + 1 + 2 + 2


def test_a_section_is_applied_and_one_without_speed_is_left_alone(monkeypatch):
    compiled: list[Any] = []
    monkeypatch.setattr(speed, "compile_blocks", compiled.append)
    backbone = small_dit4sr()
    prepare_speed(backbone, SpeedSettings(compile="regional"))
    assert compiled == [backbone.network]
    prepare_speed(backbone, SpeedSettings())
    prepare_speed(small_backbone(), TinyBackboneConfig())
    assert len(compiled) == 1
    seen = count_calls(monkeypatch, "flash")
    monkeypatch.setattr(type(backbone), "device", torch.device("cuda"))
    with pytest.raises(ValueError, match="this run in float32"):
        prepare_speed(backbone, SpeedSettings(attention_backend="flash"))
    backbone.autocast_dtype = torch.bfloat16  # what attention will run in
    prepare_speed(backbone, SpeedSettings(attention_backend="flash"))
    assert not seen


def test_quantised_weights_are_not_trained():
    class Section(SpeedSettings):
        train_parameters: tuple[str, ...] | None = None

    Section(quantize="nf4")
    Section(train_parameters=("attn",))
    with pytest.raises(ValueError, match="quantize: nf4 rounds the base weights, so train_parameters"):
        Section(quantize="nf4", train_parameters=("attn",))
