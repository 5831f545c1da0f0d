"""The optimiser and its learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from tiltyard.errors import ConfigError
from tiltyard.training.models import Models


class Schedule(Protocol):
    """The part of `Run` that the learning rate follows."""

    steps: int
    schedule: str
    final_lr: float
    warmup: float


class OptimizerRun(Protocol):
    """The part of `Run` that the optimiser is made from."""

    lr: float | Mapping[str, float]
    weight_decay: float
    betas: tuple[float, float]
    eps: float


def lr_factor(step: int, run: Schedule) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then the schedule down to `final_lr`."""
    warmup = run.warmup * run.steps if run.warmup < 1 else run.warmup
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if run.schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1.0, run.steps - warmup))
    shape = 0.5 * (1 + math.cos(math.pi * done)) if run.schedule == "cosine" else 1 - done
    return run.final_lr + (1 - run.final_lr) * shape


def set_lr(optimizer: torch.optim.Optimizer, *factors: float) -> None:
    """Sets the learning rates to their peaks times the factors; a group's peak is its rate at the first call."""
    for group in optimizer.param_groups:
        rate = group.setdefault("peak", group["lr"])
        for factor in factors:
            rate = rate * factor
        group["lr"] = rate


def make_optimizer(models: Models, trains: Sequence[str], run: OptimizerRun) -> torch.optim.AdamW:
    """AdamW over the trained models' parameters; weight decay on matrices only, never on norms and biases.

    Raises:
        ConfigError: a trained model without a learning rate, or no parameter to train.
    """
    groups: list[dict[str, Any]] = []
    for role in trains:
        lr = run.lr if isinstance(run.lr, (int, float)) else run.lr.get(role)
        if lr is None:
            raise ConfigError(f"no learning rate is given for the model '{role}'", where="lr", got=run.lr)
        parameters = models[role].parameters()
        for decay, chosen in (
            (run.weight_decay, [p for p in parameters if p.ndim >= 2]),
            (0.0, [p for p in parameters if p.ndim < 2]),
        ):
            if chosen:
                groups.append({"params": chosen, "lr": lr, "peak": lr, "weight_decay": decay})
    if not groups:
        raise ConfigError(
            "nothing to train: every parameter is frozen", where="freeze_layers", fix="freeze fewer layers"
        )
    return torch.optim.AdamW(groups, betas=run.betas, eps=run.eps, fused=True)
