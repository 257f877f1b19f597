"""Roles of a policy, rollouts that depend on their keys alone, and the algorithm's minibatches."""

import pytest
import torch

from lucidnft.backbones.adapters import LoraSettings, adapter_parameters
from lucidnft.inference import restore
from lucidnft.policy import Policy, Role
from lucidnft.records import ImageBatch
from lucidnft.rollout import RolloutConfig, generate_rollout
from tests.small_backbone import backbone, moved_policy

__all__ = ["backbone"]


def batch_of(groups: int = 3, side: int = 8) -> ImageBatch:
    lr = torch.rand((groups, 3, side, side), generator=torch.Generator().manual_seed(0))
    return ImageBatch(lr=lr, keys=tuple("abcdef"[:groups]), group_ids=tuple(range(10, 10 + groups)))


def rolled(policy, batch, config, **options):
    condition = policy.encode_condition(batch)
    size = (batch.lr.shape[2] * 4, batch.lr.shape[3] * 4)
    return generate_rollout(
        policy, condition, batch.group_ids, config, **{"seed": 1, "step": 2, "size": size, **options}
    )


CONFIG = RolloutConfig(num_groups=3, group_size=2, num_inference_steps=3)


def test_all_roles_start_equal_and_differ_after_an_update(backbone):
    policy = Policy(backbone, LoraSettings(lora_rank=2), seed=0)
    assert policy.old_equals_current
    condition = policy.encode_condition(batch_of())
    x_t, t = torch.randn((3, 3, 32, 32), generator=torch.Generator().manual_seed(1)), torch.full((3,), 0.5)
    first = [policy(x_t, t, condition, role).detach() for role in Role]
    assert torch.equal(first[0], first[1])
    torch.testing.assert_close(first[0], first[2])
    with torch.no_grad():
        for parameter in policy.parameters.values():
            parameter.add_(0.05)
    policy.mark_updated()
    assert not policy.old_equals_current
    current, old, reference = (policy(x_t, t, condition, role).detach() for role in Role)
    assert torch.equal(old, first[1])
    assert torch.equal(reference, first[2])
    assert not torch.equal(current, old)
    policy.update_old(0.5)
    assert not policy.old_equals_current
    assert not torch.equal(policy(x_t, t, condition, Role.OLD), old)
    policy.update_old(0.0)
    assert policy.old_equals_current
    assert torch.equal(policy(x_t, t, condition, Role.OLD), current)


def test_only_the_current_role_builds_a_graph_and_only_its_adapter_is_trained(backbone):
    policy = moved_policy(backbone)
    condition = policy.encode_condition(batch_of())
    x_t, t = torch.zeros(3, 3, 32, 32), torch.full((3,), 0.5)
    assert not policy(x_t, t, condition, Role.OLD).requires_grad
    assert not policy(x_t, t, condition, Role.REFERENCE).requires_grad
    policy(x_t, t, condition).square().sum().backward()
    with_grad = {n for n, p in backbone.module.named_parameters() if p.grad is not None}
    assert with_grad
    assert all(".current." in n for n in with_grad)


def test_old_and_reference_passes_between_forward_and_backward_change_no_gradient(backbone):
    # with gradient checkpointing the recompute happens in backward, under whatever adapter is active then
    backbone.set_gradient_checkpointing(True)
    policy = moved_policy(backbone)
    condition = policy.encode_condition(batch_of())
    x_t, t = torch.randn((3, 3, 32, 32), generator=torch.Generator().manual_seed(1)), torch.full((3,), 0.5)
    grads = []
    for disturbed in (False, True):
        for parameter in policy.parameters.values():
            parameter.grad = None
        loss = policy(x_t, t, condition).square().mean()
        if disturbed:
            policy(x_t, t, condition, Role.OLD)
            policy(x_t, t, condition, Role.REFERENCE)
        loss.backward()
        grads.append({n: p.grad.clone() for n, p in policy.parameters.items()})
    assert all(torch.equal(grads[0][n], grads[1][n]) for n in grads[0])


def test_states_go_out_and_in_and_restore_the_equality_flag(backbone):
    policy = moved_policy(backbone)
    state = policy.state(Role.CURRENT)
    policy.load_state_(Role.OLD, state)
    assert policy.old_equals_current
    policy.load_state_(Role.OLD, {n: v + 1 for n, v in state.items()})
    assert not policy.old_equals_current
    with pytest.raises(ValueError, match="no adapter"):
        policy.state(Role.REFERENCE)


def test_rollouts_come_from_the_old_policy(backbone):
    policy = moved_policy(backbone)
    before = rolled(policy, batch_of(), CONFIG).x_0
    with torch.no_grad():
        for parameter in policy.parameters.values():
            parameter.add_(1.0)
    assert torch.equal(rolled(policy, batch_of(), CONFIG).x_0, before)
    with torch.no_grad():
        for parameter in adapter_parameters(backbone.network, "old").values():
            parameter.add_(0.1)
    assert not torch.equal(rolled(policy, batch_of(), CONFIG).x_0, before)


def test_rollouts_depend_on_seed_step_and_group_number_alone(backbone):
    policy, batch = moved_policy(backbone), batch_of()
    whole = rolled(policy, batch, CONFIG).x_0
    assert whole.shape == (3, 2, 3, 32, 32)
    torch.manual_seed(77)
    part = rolled(policy, batch.index([2]), CONFIG).x_0
    torch.testing.assert_close(part[0], whole[2], rtol=1e-4, atol=1e-4)
    chunked = rolled(policy, batch, CONFIG.model_copy(update={"chunk_size": 1})).x_0
    torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-4)
    for other in ({"seed": 5}, {"step": 3}):
        assert not torch.allclose(rolled(policy, batch, CONFIG, **other).x_0, whole, atol=1e-2)
    assert not torch.allclose(whole[:, 0], whole[:, 1], atol=1e-2)  # rollouts of a group differ


def test_decoding_in_chunks_is_decoding(backbone):
    policy = moved_policy(backbone)
    x_0 = rolled(policy, batch_of(), CONFIG).x_0
    images = policy.decode(x_0)
    assert images.shape == (3, 2, 3, 32, 32)
    assert torch.equal(images, policy.decode(x_0, chunk_size=1))


def test_group_size_has_an_alias():
    assert RolloutConfig.model_validate({"num_generations": 5}).group_size == 5
    assert RolloutConfig.model_validate({"group_size": 4}).group_size == 4


def base_weights(backbone):
    return {n: p.detach().clone() for n, p in backbone.network.named_parameters() if ".lora_" not in n}


@pytest.mark.parametrize("role", [Role.CURRENT, Role.OLD, Role.REFERENCE])
def test_folding_changes_nothing_but_rounding_and_leaves_the_very_weights_behind(backbone, role):
    policy = moved_policy(backbone)
    before, condition = base_weights(backbone), policy.encode_condition(batch_of())
    x_t, t = torch.randn((3, 3, 32, 32), generator=torch.Generator().manual_seed(1)), torch.full((3,), 0.5)
    expected = policy(x_t, t, condition, role).detach()
    with torch.no_grad():
        reference = policy(x_t, t, condition, Role.REFERENCE)
    with policy.folded(role), torch.no_grad():
        folded = policy(x_t, t, condition, role)
    torch.testing.assert_close(folded, expected, rtol=1e-4, atol=1e-4)
    if role is not Role.REFERENCE:
        assert float((expected - reference).abs().max()) > 0.01
    assert all(torch.equal(p, before[n]) for n, p in base_weights(backbone).items())
    assert torch.equal(policy(x_t, t, condition, role).detach(), expected)
    assert policy(x_t, t, condition, Role.CURRENT).requires_grad


def test_folding_ends_with_an_error_too_and_refuses_other_roles(backbone):
    policy = moved_policy(backbone)
    before, condition = base_weights(backbone), policy.encode_condition(batch_of())
    arguments = (torch.zeros(3, 3, 32, 32), torch.full((3,), 0.5), condition)
    for call in (
        lambda: policy(*arguments, Role.CURRENT),
        lambda: policy(*arguments, Role.REFERENCE),
        lambda: torch.enable_grad()(policy)(*arguments, Role.OLD),
    ):
        with pytest.raises(RuntimeError, match="folded in"), policy.folded(Role.OLD):
            call()
        assert all(torch.equal(p, before[n]) for n, p in base_weights(backbone).items())
        assert policy(*arguments, Role.CURRENT).requires_grad


def test_folding_within_a_fold_changes_nothing(backbone):
    policy = moved_policy(backbone)
    lr = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    alone = restore(policy, lr, num_inference_steps=1)
    before = {name: value.clone() for name, value in backbone.network.state_dict().items()}
    with policy.folded(Role.CURRENT):
        for _ in range(2):
            assert torch.equal(restore(policy, lr, num_inference_steps=1), alone)
        with (
            pytest.raises(RuntimeError, match="OLD cannot be folded in while Role.CURRENT is"),
            policy.folded(Role.OLD),
        ):
            pass
    assert all(torch.equal(value, before[name]) for name, value in backbone.network.state_dict().items())


def test_half_precision_weights_are_not_folded(backbone):
    policy = moved_policy(backbone)
    backbone.network.to(torch.bfloat16)
    before = {n: p.data_ptr() for n, p in backbone.network.named_parameters()}
    with policy.folded(Role.OLD):
        assert {n: p.data_ptr() for n, p in backbone.network.named_parameters()} == before
