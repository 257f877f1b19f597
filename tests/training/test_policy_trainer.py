"""The reinforcement loop: it learns, it resumes bit for bit, ranks agree, and it says what broke."""

import json

import pytest
import torch
from accelerate import Accelerator
from torch.nn.functional import avg_pool2d

from lucidnft.backbones.adapters import LoraSettings
from lucidnft.metric_logger import read_metrics
from lucidnft.policy import Policy, Role
from lucidnft.records import ImageBatch
from lucidnft.rewards.base import Reward, RewardCard, RewardSuite
from lucidnft.rollout import RolloutConfig
from lucidnft.training.guards import Guards
from lucidnft.training.policy_evaluation import PolicyEvaluator
from lucidnft.training.policy_trainer import PolicyTrainer
from lucidnft.training.settings import EvalConfig, LogConfig, NFTTrainConfig
from lucidnft.training.state import resume_trainer
from tests.small_backbone import small_backbone


class Brightness(Reward):
    """Mean pixel value: a reward the policy can raise quickly."""

    card = RewardCard(name="brightness")

    def score(self, sr, reference):
        return sr.mean(dim=(1, 2, 3))


class Stripes(Reward):
    """How much brighter even columns are than odd ones: what the tiny backbone can move, unlike brightness."""

    card = RewardCard(name="stripes")

    def score(self, sr, reference):
        return (sr[..., ::2] - sr[..., 1::2]).mean(dim=(1, 2, 3))


class Evenness(Reward):
    card = RewardCard(name="evenness")

    def score(self, sr, reference):
        return -sr.std(dim=(1, 2, 3))


class NoisyImages:
    """LR images made from the group number, HR unknown."""

    name = "made"
    provides = frozenset({"lr"})

    def batch(self, step, num_groups, rows):
        ids = tuple(step * num_groups + row for row in rows)
        lr = torch.stack([torch.rand((3, 8, 8), generator=torch.Generator().manual_seed(i)) for i in ids])
        return ImageBatch(lr=lr, keys=tuple(f"made{i}" for i in ids), group_ids=ids)


class TwoHeldOut:
    provides = frozenset({"lr", "hr"})

    def __len__(self):
        return 2

    def batches(self):
        hr = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(5))
        yield ImageBatch(lr=torch.nn.functional.avg_pool2d(hr, 4), hr=hr, keys=("x", "y"), group_ids=(0, 1))


def trainer(run_dir, *, num_groups=2, suite=None, weights=(1.0, 0.5), **train):
    settings = NFTTrainConfig.model_validate(
        {
            "max_train_steps": 4, "learning_rate": 5e-3, "num_train_timesteps": 2, "timestep_sampling": "grid",
            "gradient_steps_per_epoch": 2, "per_device_batch_size": 2, "kl_beta": 0.01, "device": "cpu", **train,
        }
    )  # fmt: skip
    policy = Policy(small_backbone(), LoraSettings(lora_rank=2, lora_alpha=4), seed=0)
    suite = suite or RewardSuite({"brightness": Brightness(), "evenness": Evenness()})
    evaluator = PolicyEvaluator(
        policy, suite, TwoHeldOut(), EvalConfig(eval_steps=2, num_inference_steps=2),
        guards=Guards(), run_dir=run_dir, num_grid_images=2,
    )  # fmt: skip
    return PolicyTrainer(
        policy, suite, torch.tensor(weights), NoisyImages(), TwoHeldOut(), evaluator,
        rollout=RolloutConfig(num_groups=num_groups, group_size=3, num_inference_steps=3),
        train=settings, log=LogConfig(save_steps=1, checkpoints_total_limit=9, report_to="none"),
        run_dir=run_dir, accelerator=Accelerator(cpu=True), seed=3,
        header={"base_fingerprint": policy.backbone.fingerprint, "backbone": {"type": "tiny"}},
    )  # fmt: skip


def without_timings(run_dir):
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in read_metrics(run_dir)]


def weights_of(run_dir, step):
    from lucidnft.checkpoint import load_tensors

    folder = run_dir / f"checkpoint-{step:06d}"
    names = ("policy", "old_policy", "ema", "optimizer")
    return {f"{n}/{k}": v for n in names for k, v in load_tensors(folder / f"{n}.safetensors")[0].items()}


@pytest.mark.parametrize("schedule", ["copy", "linear_to_0_5"])
def test_two_steps_restore_two_steps_equal_four_bit_for_bit(tmp_path, schedule):
    old_policy = (
        {"schedule": "custom", "ramp_rate": 0.2, "max_decay": 0.7}
        if schedule != "copy"
        else {"schedule": "copy"}
    )
    trainer(tmp_path / "whole", old_policy=old_policy).fit()
    trainer(tmp_path / "parts", old_policy=old_policy, max_train_steps=2).fit()
    torch.manual_seed(1234)  # the global generator must not matter
    second = trainer(tmp_path / "parts", old_policy=old_policy)
    resume_trainer(second, "latest")
    second.fit()
    whole, parts = weights_of(tmp_path / "whole", 4), weights_of(tmp_path / "parts", 4)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[n], parts[n]) for n in whole)
    assert without_timings(tmp_path / "whole") == without_timings(tmp_path / "parts")
    state = [
        json.loads((tmp_path / d / "checkpoint-000004/state.json").read_text()) for d in ("whole", "parts")
    ]
    assert state[0] == state[1]
    assert state[0]["samples_seen"] == 4 * 2 * 3


def test_weights_move_and_the_reference_does_not(tmp_path):
    run = trainer(tmp_path)
    before = run.policy.state(Role.CURRENT)
    condition = run.policy.encode_condition(NoisyImages().batch(0, 2, range(2)))
    x_t, t = torch.zeros(2, 3, 32, 32), torch.full((2,), 0.5)
    reference = run.policy(x_t, t, condition, Role.REFERENCE)
    run.fit()
    after = run.policy.state(Role.CURRENT)
    assert any(not torch.equal(before[n], after[n]) for n in before)
    assert torch.equal(run.policy(x_t, t, condition, Role.REFERENCE), reference)


def test_a_simple_reward_rises_on_images_not_trained_on(tmp_path):
    suite = RewardSuite({"stripes": Stripes()})
    run = trainer(
        tmp_path, suite=suite, weights=(1.0,), max_train_steps=12, learning_rate=1e-2, kl_beta=0.0,
        old_policy={"schedule": "copy"}, ema_decay=0.0, gradient_steps_per_epoch=1, per_device_batch_size=6,
    )  # fmt: skip
    run.fit()
    rows = read_metrics(tmp_path)
    first, last = rows[0]["eval/stripes/mean"], rows[-1]["eval/stripes/mean"]
    assert last > first + 0.004  # an untrained policy moves little, but the right way


def test_logged_names_and_files(tmp_path):
    trainer(tmp_path, max_train_steps=2).fit()
    row = read_metrics(tmp_path)[-1]
    for name in (
        "step", "reward/brightness/mean", "advantage/distinct_levels", "advantage/pair_gap",
        "advantage/zero_spread_groups/evenness", "advantage/floor_hits/evenness", "loss/policy", "loss/kl",
        "loss/old_gap", "health/x0_rms", "health/velocity_norm_ratio", "eval/brightness/mean", "eval/psnr_y/mean",
        "eval/ssim/mean", "perf/rollout_seconds", "perf/decode_seconds", "perf/reward_seconds", "train/grad_norm",
    ):  # fmt: skip
        assert name in row, name
    names = {p.name for p in (tmp_path / "checkpoint-000002").iterdir()}
    assert {
        "policy.safetensors",
        "old_policy.safetensors",
        "ema.safetensors",
        "optimizer.safetensors",
        "state.json",
    } <= names
    assert (tmp_path / "images/held_out-000002.png").exists()
    assert (tmp_path / "eval/scores-000000.json").exists()


def test_old_and_current_differ_after_the_first_of_two_optimiser_steps(tmp_path):
    run = trainer(tmp_path)
    report = run.run_step(0)
    assert report.scalars["loss/old_gap"] > 0
    one = trainer(
        tmp_path / "one", gradient_steps_per_epoch=1, per_device_batch_size=8, old_policy={"schedule": "copy"}
    )
    assert one.run_step(0).scalars["loss/old_gap"] == 0


def test_groups_split_over_ranks_give_the_same_rollouts_scores_and_advantages(tmp_path):
    whole = trainer(tmp_path / "a", num_groups=4).run_step(1)
    parts = []
    for rank in range(2):
        run = trainer(tmp_path / f"r{rank}", num_groups=4)
        run.rows = range(2 * rank, 2 * rank + 2)
        batch = run.source.batch(1, 4, run.rows)
        rollout = run.generate(run.policy.encode_condition(batch), batch, 1)
        parts.append((rollout.x_0, run.suite.score(run.policy.decode(rollout.x_0), batch).stacked))
    torch.testing.assert_close(torch.cat([p[0] for p in parts]), whole.rollout.x_0, rtol=1e-4, atol=1e-4)
    scores = torch.cat([p[1] for p in parts])
    torch.testing.assert_close(
        run.train.advantages(scores, run.weights), whole.advantages, rtol=1e-2, atol=1e-2
    )


class StripeMap(Stripes):
    """Stripes of every 4 x 4 block, so that an image can be good on one side and bad on the other."""

    def score_map(self, sr, reference):
        return avg_pool2d((sr[..., ::2] - sr[..., 1::2]).mean(dim=1), (4, 2))


def test_places_are_compared_and_trained_where_the_rewards_have_maps(tmp_path):
    suite = RewardSuite({"stripes": StripeMap(), "brightness": Brightness()})
    run = trainer(tmp_path, suite=suite, advantage_cell=8, whiten_advantages=False)
    before = run.policy.state(Role.CURRENT)
    report = run.run_step(0)
    assert report.advantages.shape == (2, 3, 4, 4) and report.scores.places.shape == (2, 3, 2, 4, 4)
    assert float(report.advantages.mean(dim=1).abs().max()) < 1e-3
    whole = run.train.advantages(report.scores.stacked, run.weights)
    assert float((report.advantages - whole[..., None, None]).abs().max()) > 0.1
    assert report.scalars["advantage/distinct_levels"] > 1
    assert any(not torch.equal(v, before[n]) for n, v in run.policy.state(Role.CURRENT).items())


def test_aggregations_lead_to_different_advantages(tmp_path):
    run = trainer(tmp_path)
    scores = torch.rand((3, 4, 2), generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 20.0])
    decoupled = run.train.advantages(scores, run.weights)
    run.train = run.train.model_copy(update={"advantage_aggregation": "weighted_sum"})
    scalarised = run.train.advantages(scores, run.weights)
    run.train = run.train.model_copy(update={"global_std": False})
    grouped = run.train.advantages(scores, run.weights)
    assert not torch.allclose(decoupled, scalarised, atol=0.05)
    assert not torch.allclose(scalarised, grouped, atol=0.05)


class NotFinite(Reward):
    card = RewardCard(name="broken")

    def score(self, sr, reference):
        scores = sr.mean(dim=(1, 2, 3))
        scores[-1] = float("nan")
        return scores


def test_a_broken_reward_stops_the_run_and_names_itself_and_the_image(tmp_path):
    run = trainer(tmp_path, suite=RewardSuite({"sound": Brightness(), "broken": NotFinite()}))
    before = run.policy.state(Role.CURRENT)
    with pytest.raises(ValueError, match=r"reward 'broken' is not finite .*made1 \(rollout 2\)"):
        run.run_step(0)
    assert all(torch.equal(v, before[n]) for n, v in run.policy.state(Role.CURRENT).items())


def test_a_broken_gradient_leaves_the_weights(tmp_path):
    run = trainer(tmp_path)
    before = run.policy.state(Role.CURRENT)
    for parameter in run.parameters.values():
        parameter.grad = torch.full_like(parameter, float("inf"))
    with pytest.raises(FloatingPointError, match="weights were not updated"):
        run.update()
    assert all(torch.equal(v, before[n]) for n, v in run.policy.state(Role.CURRENT).items())


class Constant(Reward):
    card = RewardCard(name="constant")

    def score(self, sr, reference):
        return sr.new_full((sr.shape[0],), 0.25)


def test_groups_without_spread_are_counted_and_do_not_train(tmp_path):
    run = trainer(tmp_path, suite=RewardSuite({"a": Constant(), "b": Constant()}), kl_beta=0.0)
    report = run.run_step(0)
    assert report.scalars["advantage/zero_spread_groups/a"] == 2
    assert bool((report.advantages == 0).all())


def test_an_adapter_of_another_base_is_refused_on_resume(tmp_path):
    trainer(tmp_path, max_train_steps=1).fit()
    other = trainer(tmp_path)
    other.header = {**other.header, "base_fingerprint": "something else"}
    with pytest.raises(ValueError, match="trained on base weights"):
        resume_trainer(other, "latest")
