"""One loop for everything learned from targets: base restorers, quality models, consistency heads."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from lucidnft.checkpoint import checkpoint_folder, load_tensors, prune_checkpoints, save_tensors
from lucidnft.metric_logger import MetricLogger
from lucidnft.training.ema import Ema
from lucidnft.training.optim import apply_update, build_optimizer, learning_rate_at
from lucidnft.training.progress import show_phase
from lucidnft.training.settings import EvalSchedule, LogConfig, SupervisedTrainConfig
from lucidnft.training.state import load_parameters_, load_state_, save_state
from lucidnft.training.supervised_task import SupervisedTask


class SupervisedTrainer:
    """Runs a task: batches, updates, average, evaluation, checkpoints."""

    def __init__(
        self,
        task: SupervisedTask,
        *,
        train: SupervisedTrainConfig,
        evaluation: EvalSchedule,
        log: LogConfig,
        run_dir: str | Path,
        accelerator: Accelerator,
        header: dict[str, Any],
    ) -> None:
        self.task, self.train, self.evaluation, self.log = task, train, evaluation, log
        self.run_dir = Path(run_dir)
        self.accelerator = accelerator
        self.header = header  # written into every exported file
        task.module.to(accelerator.device)
        self.parameters = {n: p for n, p in task.module.named_parameters() if p.requires_grad}
        self.optimizer = build_optimizer(self.parameters, train)
        self.ema = Ema(self.parameters, train.ema_decay) if train.use_ema else None
        self.step = 0
        self._batches: Iterator[Any] | None = None

    def rows(self) -> list[range]:
        """Rows of this rank, cut into micro-batches."""
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        if self.train.batch_size % ranks:
            raise ValueError(
                f"train.batch_size {self.train.batch_size} is not a multiple of {ranks} processes"
            )
        share = self.train.batch_size // ranks
        micro = self.train.per_device_batch_size or share
        return [
            range(start, min(start + micro, (rank + 1) * share))
            for start in range(rank * share, (rank + 1) * share, micro)
        ]

    def batches(self, first_step: int) -> Iterator[Any]:
        """This rank's micro-batches from a step on, each made in a thread while the one before it trains."""
        order = ((step, part) for step in itertools.count(first_step) for part in self.rows())
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:

            def start() -> Future[Any]:
                step, part = next(order)
                return pool.submit(self.task.batch, step, part, self.train.batch_size)

            ahead = start()
            while True:
                current, ahead = ahead, start()
                yield current.result()

    def run_step(self) -> dict[str, float]:
        """One update: mean loss over all rows of the step."""
        if self._batches is None:
            self._batches = self.batches(self.step)
        rows = self.rows()
        total = sum(len(r) for r in rows)
        sums: dict[str, Tensor] = {}
        for part in rows:
            losses, logs = self.task.loss(next(self._batches))
            self.accelerator.backward(losses.sum() / total)
            for name, value in {"total": losses.detach().mean(), **logs}.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value * (len(part) / total)
        norm = apply_update(
            self.optimizer, self.parameters, self.train, step=self.step, accelerator=self.accelerator
        )
        if self.ema is not None:
            self.ema.update()
        scalars = {f"loss/{name}": float(value) for name, value in sums.items()}
        return {**scalars, "train/grad_norm": float(norm)}

    def fit(self) -> dict[str, float]:
        """Train to max_train_steps, from the start or where `resume` put it; returns the last evaluation."""
        main = self.accelerator.is_main_process
        self.task.prepare(self.accelerator)
        logger = MetricLogger(
            self.run_dir, step0=self.step, enabled=main, tensorboard=self.log.report_to == "tensorboard"
        )
        steps = {"total": self.train.max_train_steps, "initial": self.step, "unit": "step"}
        with logger, tqdm(desc=self.task.name, disable=not main, **steps) as bar:
            logger.on_phase = partial(show_phase, bar, self.task.name)
            metrics = {} if self.step else self.evaluate(logger)
            while self.step < self.train.max_train_steps:
                started = time.perf_counter()
                scalars = self.run_step()
                scalars["train/learning_rate"] = learning_rate_at(self.step, self.train)
                scalars["perf/samples_per_second"] = self.train.batch_size / (time.perf_counter() - started)
                self.step += 1
                bar.update()
                bar.set_postfix(loss=f"{scalars['loss/total']:.4f}")
                last = self.step == self.train.max_train_steps
                if self.step % self.log.log_steps == 0 or last:
                    logger.log(scalars, self.step)
                if self.step % self.evaluation.eval_steps == 0 or last:
                    metrics = self.evaluate(logger)
                if self.step % self.log.save_steps == 0 or last:
                    self.save(metrics)
        return metrics

    def evaluate(self, logger: MetricLogger) -> dict[str, float]:
        """Held-out metrics of the averaged weights."""
        if not self.accelerator.is_main_process:
            return {}
        with logger.phase("evaluate"), nullcontext() if self.ema is None else self.ema.applied():
            found = self.task.evaluate()
        metrics = found.metrics
        logger.log({f"eval/{name}": value for name, value in metrics.items()}, self.step)
        if found.pictures is not None:
            logger.log_images("held_out", found.pictures, found.captions, self.step)
        tqdm.write(f"step {self.step}: " + "  ".join(f"{n} {v:.4f}" for n, v in metrics.items()))
        return metrics

    def save(self, metrics: dict[str, float]) -> None:
        """Write checkpoint-<step>: current weights, average, optimiser, progress, and the shippable file."""
        if self.accelerator.is_main_process:
            with checkpoint_folder(self.run_dir, self.step) as folder:
                current = {n: p.detach() for n, p in self.parameters.items()}
                save_tensors(folder / "parameters.safetensors", current, {"task": self.task.name})
                card = {**self.header, "step": self.step, "metrics": metrics}
                if self.ema is None:
                    self.task.export(str(folder / "weights.safetensors"), **card)
                else:
                    with self.ema.applied():
                        self.task.export(str(folder / "weights.safetensors"), **card)
                save_state(
                    folder,
                    parameters=self.parameters,
                    optimizer=self.optimizer,
                    ema=self.ema,
                    progress={"step": self.step, "task": self.task.name},
                )
            prune_checkpoints(self.run_dir, self.log.checkpoints_total_limit)
        self.accelerator.wait_for_everyone()

    def resume(self, folder: Path) -> None:
        """Continue from a checkpoint folder."""
        progress = load_state_(folder, parameters=self.parameters, optimizer=self.optimizer, ema=self.ema)
        if progress["task"] != self.task.name:
            raise ValueError(
                f"{folder} is a checkpoint of task {progress['task']!r}, this run is {self.task.name!r}"
            )
        tensors, _ = load_tensors(folder / "parameters.safetensors", expected=self.parameters)
        load_parameters_(self.parameters, tensors)
        self.step = int(progress["step"])
