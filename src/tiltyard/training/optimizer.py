"""The optimiser and its learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from tiltyard.errors import ConfigError
from tiltyard.training.models import Models
from tiltyard.training.run import Run


def lr_factor(step: int, run: Run) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then the schedule down to `final_lr`."""
    settings = run.optimizer
    warmup = settings.warmup * run.steps if settings.warmup < 1 else settings.warmup
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1.0, run.steps - warmup))
    shape = 0.5 * (1 + math.cos(math.pi * done)) if settings.schedule == "cosine" else 1 - done
    return settings.final_lr + (1 - settings.final_lr) * shape


def set_lr(optimizer: torch.optim.Optimizer, *factors: float) -> None:
    """Sets the learning rates to their peaks times the factors; a group's peak is its rate at the first call."""
    for group in optimizer.param_groups:
        rate = group.setdefault("peak", group["lr"])
        for factor in factors:
            rate = rate * factor
        group["lr"] = rate


def make_optimizer(models: Models, trains: Sequence[str], run: Run) -> torch.optim.AdamW:
    """AdamW over the trained models' parameters; weight decay on matrices only, never on norms and biases.

    Raises:
        ConfigError: no parameter to train.
    """
    settings = run.optimizer
    groups: list[dict[str, Any]] = []
    for role in trains:
        lr = settings.lr_of(role, run.lr)
        parameters = models[role].parameters()
        for decay, chosen in (
            (settings.weight_decay, [p for p in parameters if p.ndim >= 2]),
            (0.0, [p for p in parameters if p.ndim < 2]),
        ):
            if chosen:
                groups.append({"params": chosen, "lr": lr, "peak": lr, "weight_decay": decay})
    if not groups:
        raise ConfigError(
            "nothing to train: every parameter is frozen", where="freeze_layers", fix="freeze fewer layers"
        )
    return torch.optim.AdamW(groups, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True)
