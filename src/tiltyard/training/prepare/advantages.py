"""Advantages: against a value model's estimates (GAE), or against the other responses of the group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.distributed import processes
from tiltyard.errors import DataError
from tiltyard.losses.advantages import Baseline, gae_R, group_advantages_B, mean_var, moments, whiten
from tiltyard.training.algorithm import Models
from tiltyard.training.prepare.columns import per_microbatch, sum_count

AdvantageScale = Literal["group", "batch", "none"]


@dataclass(frozen=True)
class Values:
    """`old_value_R`: the value model's estimate before each token, before its updates; an existing column is left."""

    needs: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ("old_value_R",)

    def __call__(self, models: Models, batch: Batch) -> Batch:
        if "old_value_R" in batch.columns:
            return batch
        value = models["value"]
        return batch.with_columns(old_value_R=per_microbatch(batch, lambda part: value.value_R(part.forest), value))


@dataclass(frozen=True)
class Gae:
    """`advantage_R`, `return_R` by generalised advantage estimation."""

    gamma: float = 1.0
    lam: float = 0.95
    needs: ClassVar[tuple[str, ...]] = ("reward_R", "old_value_R")
    writes: ClassVar[tuple[str, ...]] = ("advantage_R", "return_R")

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        forest, value_R = batch.forest, batch["old_value_R"]
        spans = forest.offset_B, forest.count_B
        advantage_R, return_R = gae_R(batch["reward_R"], value_R, *spans, self.gamma, self.lam)
        return batch.with_columns(value_metrics(value_R, return_R), advantage_R=advantage_R, return_R=return_R)


def value_metrics(value_R: Tensor, return_R: Tensor) -> Metrics:
    """Means of the value estimates and returns, and the value estimates' squared error."""
    return {
        "value": sum_count(value_R),
        "return": sum_count(return_R),
        "value_error": sum_count((return_R - value_R) ** 2),
    }


@dataclass(frozen=True)
class WhitenAdvantages:
    """`advantage_R` with mean 0 and variance 1 over all tokens of the step, on all processes together."""

    needs: ClassVar[tuple[str, ...]] = ("advantage_R",)
    writes: ClassVar[tuple[str, ...]] = ("advantage_R",)

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        mean, var = mean_var(*processes.sum_all(torch.stack(moments(batch["advantage_R"]))))
        return batch.with_columns(advantage_R=whiten(batch["advantage_R"], mean, var))


@dataclass(frozen=True)
class GroupAdvantages:
    """`advantage_B`, and on each of the response's tokens `advantage_R`: the reward against those of its group.

    `scale`: the divisor is the standard deviation of the group's rewards (`group`), that of all rewards of the step on
    all processes (`batch`), or 1 (`none`).

    Raises:
        DataError: a group has one response only, and the baseline needs several.
    """

    baseline: Baseline = "mean"
    scale: AdvantageScale = "none"
    ddof: int = 1
    eps: float = 0.0
    needs: ClassVar[tuple[str, ...]] = ("reward_B", "old_logp_R")
    writes: ClassVar[tuple[str, ...]] = ("advantage_B", "advantage_R")

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        forest, reward_B = batch.forest, batch["reward_B"].double()
        std: Literal["group", "none"] | Tensor = "none" if self.scale == "none" else "group"
        if self.scale == "batch":
            sums = processes.sum_all(torch.stack(moments(reward_B)))
            _, var = mean_var(*sums)
            std = (var * sums[2] / (sums[2] - self.ddof).clamp(min=1)).sqrt()
        if self.baseline != "none":
            require_several_responses(batch)
        advantage_B = group_advantages_B(reward_B, forest.group_B, self.baseline, std, self.ddof, self.eps)
        advantage_R = advantage_B[forest.response_R].to(batch["old_logp_R"].dtype)
        return batch.with_columns({"reward": sum_count(reward_B)}, advantage_B=advantage_B, advantage_R=advantage_R)


def require_several_responses(batch: Batch) -> None:
    """Raises a DataError if a group was given with a single response: its advantage would always be 0.

    A sampled group may have one left where a scorer abstained from the others: then its advantage is 0.
    """
    for group in batch.groups:
        if len(group.responses) < 2 and group.responses[0].policy_version is None:
            raise DataError(
                "a baseline of the group needs two responses a prompt",
                where=group.origin or group.prompt.id,
                got=f"{len(group.responses)} response",
                expected="at least 2",
                fix="set n=2 or more",
            )
