"""Evaluation of a policy: what it spares changes nothing."""

import torch

from lucidnft.policy import Role
from tests.training.test_policy_trainer import trainer


def test_before_the_first_update_the_policy_is_the_reference_and_is_restored_once(tmp_path):
    run = trainer(tmp_path)
    evaluator, restore = run.evaluator, run.evaluator.restore
    assert run.policy.is_reference
    roles = []
    evaluator.restore = lambda role: roles.append(role) or restore(role)
    evaluator.run(0, run.logger)
    assert roles == [Role.CURRENT]
    run.run_step(0)
    assert not run.policy.is_reference
    evaluator.run(1, run.logger)
    assert roles == [Role.CURRENT, Role.CURRENT]
    for kept, anew in zip(evaluator.base(), restore(Role.REFERENCE), strict=True):
        assert torch.equal(kept.sr, anew.sr)


def test_a_run_that_goes_on_restores_the_reference_for_itself(tmp_path):
    run = trainer(tmp_path)
    run.run_step(0)
    run.evaluator.run(1, run.logger)
    (base,), (tuned,) = run.evaluator.base(), run.evaluator.restore(Role.CURRENT)
    assert torch.equal(base.sr, run.evaluator.restore(Role.REFERENCE)[0].sr)
    assert not torch.equal(base.sr, tuned.sr)
    grid = run.evaluator.grid(tuned)
    assert torch.equal(grid[:, 1], base.sr[: len(grid)]) and torch.equal(grid[:, 2], tuned.sr[: len(grid)])
