"""Optimiser, learning-rate schedules and the update shared by both trainers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lucidnft.training.settings import OptimizerSettings


def build_optimizer(parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW over named parameters, in their order.  Raises ValueError when there are none."""
    if not parameters:
        raise ValueError("nothing to train: no parameter of the network is selected")
    return torch.optim.AdamW(
        list(parameters.values()),
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.adam_weight_decay,
        eps=settings.adam_epsilon,
    )


def learning_rate_at(step: int, settings: OptimizerSettings) -> float:
    """Learning rate of the update number `step` (from 0): linear warm-up, then the named decay to zero."""
    warmup = settings.lr_warmup_steps
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    if settings.lr_scheduler == "constant":
        return settings.learning_rate
    progress = (step - warmup) / max(1, settings.max_train_steps - warmup)
    if settings.lr_scheduler == "linear":
        return settings.learning_rate * max(0.0, 1 - progress)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def apply_update(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    settings: OptimizerSettings,
    *,
    step: int,
    accelerator: Accelerator,
) -> Tensor:
    """Average gradients over ranks (synchronises them), clip, step, clear.  Returns the norm before clipping.

    Raises:
        FloatingPointError: the gradient is not finite; the weights are left as they were.
    """
    grads = [p.grad for p in parameters.values() if p.grad is not None]
    if not grads:
        raise ValueError("no parameter received a gradient; is the loss connected to the trained adapter?")
    if accelerator.num_processes > 1:
        average_over_ranks_(grads, accelerator)
    norm = torch.nn.utils.clip_grad_norm_(list(parameters.values()), settings.max_grad_norm)
    # the one host synchronisation of an update: weights must not be touched by a broken gradient
    if not bool(torch.isfinite(norm)):
        raise FloatingPointError(
            f"gradient norm is {float(norm)} at step {step}; weights were not updated. "
            "Lower train.learning_rate or set train.mixed_precision=no"
        )
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(step, settings)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm.detach()


def average_over_ranks_(grads: list[Tensor], accelerator: Accelerator) -> None:
    """Replace gradients by their mean over ranks, in one message.  Synchronises ranks."""
    flat = torch.cat([g.reshape(-1) for g in grads])
    mean = accelerator.reduce(flat, reduction="mean")
    for grad, part in zip(grads, mean.split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))
