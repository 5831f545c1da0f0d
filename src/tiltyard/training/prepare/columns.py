"""Helpers of prepare steps: columns computed one micro-batch at a time, tensors of numbers, sums for metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tiltyard.batch.batch import Batch
from tiltyard.batch.passes import each_micro
from tiltyard.models.backbone import Backbone
from tiltyard.training.algorithm import Models


@torch.no_grad()
def per_microbatch(batch: Batch, compute: Callable[[Batch], Tensor], *models: Backbone) -> Tensor:
    """Computes a column one micro-batch at a time, so that memory is bounded by the batch's token budget.

    Args:
        compute: calls these models and no others, see `each_micro`; they may be spread over processes.
    """
    return concatenated(each_micro(batch, compute, *models))


def policy_columns(
    models: Models, batch: Batch, compute: Callable[..., Sequence[Tensor]], count: int, *others: Backbone
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Columns computed from the policy's hidden states, and the value estimates if they come from the same states.

    Hidden states that the sampler kept (`sampled_hidden_R`) are not computed again.

    Args:
        compute: `(forest)` or `(forest, hidden_R=...)` -> `count` columns. others: the models that it calls besides.

    Returns:
        The `count` columns, and `{"old_value_R": ...}` where a value head reads the policy's own states, else `{}`.
    """
    shared, policy = models.shares_states("value"), models["policy"]

    def of_part(part: Batch) -> Sequence[Tensor]:
        kept = "sampled_hidden_R" in part.columns
        if not kept and not shared:
            return compute(part.forest)
        hidden_R = part["sampled_hidden_R"] if kept else policy.hidden_R(part.forest)
        columns = compute(part.forest, hidden_R=hidden_R)
        return (*columns, models["value"].value_R(part.forest, hidden_R)) if shared else columns

    value = [models["value"]] if shared else []
    parts = each_micro(batch, of_part, policy, *value, *others)
    columns = [concatenated([part[i] for part in parts]) for i in range(count + shared)]
    return columns[:count], {"old_value_R": columns[count]} if shared else {}


def concatenated(parts: list[Tensor]) -> Tensor:
    """The parts in one tensor; an empty one where there are none (a process without groups in this step)."""
    return torch.cat(parts) if parts else torch.zeros(0)


def column(values: list[float], batch: Batch) -> Tensor:
    """The numbers as a float64 tensor on the batch's device."""
    return torch.tensor(values, dtype=torch.float64, device=batch.forest.device)


def sum_count(x: Tensor) -> tuple[float, float]:
    """(sum, number of elements) of a tensor: a metric whose mean is taken over micro-batches and processes."""
    return float(x.sum()), float(x.numel())
