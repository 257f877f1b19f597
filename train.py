"""Train with a run file: config -> backbone -> policy -> rewards -> data -> trainer.fit().

    python train.py --config configs/tiny/nft.yaml [key=value ...] [--dry-run] [--resume_from_checkpoint latest|DIR]

Several processes, on GPUs or CPUs: accelerate launch --multi_gpu --num_processes 2 train.py ...
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from lucidnft.checkpoint.required_files import check_files
from lucidnft.config import FlowMatchingConfig, NFTConfig, RunConfig, dump_config, load_config
from lucidnft.environment import environment
from lucidnft.rewards import RewardSuite
from lucidnft.training import dry_run
from lucidnft.training.device import build_accelerator, prepare_backbone
from lucidnft.training.flow_matching_task import FlowMatchingTask
from lucidnft.training.guards import Guards
from lucidnft.training.nft_plan import build_policy, planned_backbone, policy_header, settle_plan
from lucidnft.training.plan import check_can_learn, describe_supervised_plan
from lucidnft.training.policy_evaluation import PolicyEvaluator
from lucidnft.training.policy_trainer import PolicyTrainer
from lucidnft.training.report import finish_run
from lucidnft.training.run_folder import open_run_folder, stop_message
from lucidnft.training.state import resume_trainer
from lucidnft.training.supervised_trainer import SupervisedTrainer

FAULTS = (ValueError, OSError, ImportError, FloatingPointError, torch.OutOfMemoryError)


def prepare_nft(config: NFTConfig, run_dir: Path, accelerator: Accelerator) -> PolicyTrainer:
    """Everything of a reinforcement run, built and checked."""
    weights = [reward.weight for reward in config.rewards.values()]
    check_can_learn(config.rollout, config.train, weights, num_processes=accelerator.num_processes)
    planned = planned_backbone(config, accelerator.device)
    data = config.data.build(config.seed, planned.upscale or 4)
    suite = RewardSuite({name: reward.build() for name, reward in config.rewards.items()})
    suite.check_needs(data.train.provides, data.train.name)
    suite.check_places(config.train.advantage_cell)
    guards = Guards()
    accelerator.print(f"data:\n{data.train.describe()}", *([guards.missing] if guards.missing else []))
    rollout = settle_plan(config, planned, data, suite.rewards, accelerator)
    policy = build_policy(config, planned, accelerator)
    suite.to(accelerator.device)
    evaluator = PolicyEvaluator(
        policy, suite, data.held_out, config.eval,
        guards=guards, run_dir=run_dir, num_grid_images=config.log.num_grid_images,
    )  # fmt: skip
    return PolicyTrainer(
        policy, suite, torch.tensor(weights), data.train, data.held_out, evaluator,
        rollout=rollout, train=config.train, log=config.log, run_dir=run_dir,
        accelerator=accelerator, seed=config.seed, header=policy_header(config, policy),
    )  # fmt: skip


def prepare_supervised(config: RunConfig, run_dir: Path, accelerator: Accelerator) -> SupervisedTrainer:
    """A run that learns from targets: the base restorer or one of the small reward models."""
    if isinstance(config, FlowMatchingConfig):
        backbone = prepare_backbone(config.model.build(seed=config.seed), config.train, accelerator)
        data = config.data.build(config.seed, backbone.upscale or 4)
        task = FlowMatchingTask(
            backbone, data.train, data.held_out, config.train, config.eval,
            seed=config.seed, num_grid_images=config.log.num_grid_images,
        )  # fmt: skip
    else:
        task = config.data.build(config.seed)
    trainer = SupervisedTrainer(
        task, train=config.train, evaluation=config.eval, log=config.log, run_dir=run_dir,
        accelerator=accelerator, header={"config": config.model_dump(mode="json")},
    )  # fmt: skip
    accelerator.print(describe_supervised_plan(trainer))
    return trainer


def main(argv: list[str] | None = None) -> None:
    """The command.  Mistakes in settings and data end it with one message, before anything is written.

    A fault later on (a full disk, a score that is not finite) ends it with one message too; error.txt has more.
    """
    parser = argparse.ArgumentParser(description="Train with a run file; key=value overrides a setting.")
    parser.add_argument("--config", required=True, metavar="FILE", help="e.g. configs/tiny/nft.yaml")
    parser.add_argument("--dry-run", action="store_true", help="print config, batch plan, memory; stop")
    parser.add_argument("--resume_from_checkpoint", metavar="latest|DIR", help="continue a run")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args(argv)
    started: Path | None = None
    try:
        config = load_config(args.config, args.overrides)
        run_dir = Path(config.output_dir) / config.run_name
        if not args.dry_run:
            check_files(config, args.config, args.config, *args.overrides)
        accelerator = build_accelerator(config.train.device)
        planned = dry_run.begin(config, dump_config(config), accelerator) if args.dry_run else config
        if planned is None:
            return
        prepare = prepare_nft if isinstance(config, NFTConfig) else prepare_supervised
        trainer = prepare(planned, run_dir, accelerator)
        resume = args.resume_from_checkpoint is not None
        checkpoint = resume_trainer(trainer, args.resume_from_checkpoint) if resume else None
        if args.dry_run:
            return dry_run.end(config, accelerator)
        facts = (dump_config(config), environment(accelerator.device, accelerator.num_processes))
        open_run_folder(run_dir, *facts, accelerator=accelerator, resume=resume, checkpoint=checkpoint)
        started = run_dir
        trainer.fit()
        if accelerator.is_main_process:
            finish_run(run_dir)
    except FAULTS as error:
        sys.exit(f"train.py: {stop_message(error, started)}")


if __name__ == "__main__":
    main()
