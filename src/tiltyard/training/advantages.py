"""Prepare steps of the policy-gradient methods: rewards of whole answers, baselines without a critic.

They stand beside those of `training.prepare`, which make token rewards and advantages from a value model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.distributed import processes
from tiltyard.errors import DataError
from tiltyard.losses.advantages import (
    Baseline,
    MissingEos,
    gae_R,
    group_advantages_B,
    mean_var,
    missing_eos_B,
    moments,
    overlong_B,
    response_rewards_B,
)
from tiltyard.losses.kl import sum_per_response
from tiltyard.training.algorithm import Models
from tiltyard.training.prepare import answer_metrics, total

Scale = Literal["group", "batch", "none"]


@dataclass
class ResponseRewards:
    """`reward_B`: the score after the missing-EOS rule minus beta times the summed log-ratio (methods 2.10).

    With beta = 0 no reference is read.
    """

    beta: float = 0.0
    missing_eos: MissingEos = "none"
    penalty: float = 1.0
    score_weight: float = 1.0
    writes: tuple[str, ...] = ("reward_B",)

    @property
    def needs(self) -> tuple[str, ...]:
        return (*(("kl_B",) if self.beta else ()), "score_B", "stopped_B")

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        score_B = missing_eos_B(batch["score_B"], batch["stopped_B"] > 0, self.missing_eos, self.penalty)
        kl_B = batch["kl_B"] if self.beta else torch.zeros_like(score_B)
        reward_B = response_rewards_B(score_B, kl_B, self.beta, self.score_weight)
        return batch.with_columns(answer_metrics(batch, score_B), reward_B=reward_B)


@dataclass
class Overlong:
    """`reward_B` lowered by DAPO's soft punishment in the last `soft` of the `longest` tokens an answer may have."""

    longest: int
    soft: int
    needs: tuple[str, ...] = ("reward_B",)
    writes: tuple[str, ...] = ("reward_B",)

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        extra_B = overlong_B(batch.forest.count_B, self.longest, self.soft)
        return batch.with_columns({"overlong": total(extra_B)}, reward_B=batch["reward_B"] + extra_B)


@dataclass
class GroupAdvantages:
    """`advantage_B`, and on each of the response's tokens `advantage_R`: the reward against those of its group.

    `scale`: divided by the standard deviation of the group's rewards, of all of the step's on all processes, or not.
    """

    baseline: Baseline = "mean"
    scale: Scale = "none"
    ddof: int = 1
    eps: float = 0.0
    needs: tuple[str, ...] = ("reward_B", "old_logp_R")
    writes: tuple[str, ...] = ("advantage_B", "advantage_R")

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        forest, reward_B = batch.forest, batch["reward_B"].double()
        std: Literal["group", "none"] | Tensor = "none" if self.scale == "none" else "group"
        if self.scale == "batch":
            sums = processes.sum_all(torch.stack(moments(reward_B)))
            _, var = mean_var(*sums)
            std = (var * sums[2] / (sums[2] - self.ddof).clamp(min=1)).sqrt()
        if self.baseline != "none":
            _several(batch)
        advantage_B = group_advantages_B(reward_B, forest.group_B, self.baseline, std, self.ddof, self.eps)
        advantage_R = advantage_B[forest.response_R].to(batch["old_logp_R"].dtype)
        return batch.with_columns({"reward": total(reward_B)}, advantage_B=advantage_B, advantage_R=advantage_R)


def _several(batch: Batch) -> None:
    """Refuses groups of a single answer: there is nothing to compare it with, so it would never teach anything."""
    for group in batch.groups:
        if len(group.responses) < 2:
            raise DataError(
                "a baseline of the group needs two answers a prompt",
                where=group.origin or group.prompt.id,
                got=f"{len(group.responses)} answer",
                expected="at least 2",
                fix="set n=2 or more",
            )


@dataclass
class RewardsToGo:
    """`advantage_R`: the sum of the token rewards from this token on; no critic, no discount (methods 2.11)."""

    needs: tuple[str, ...] = ("reward_R",)
    writes: tuple[str, ...] = ("advantage_R",)

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        forest, reward_R = batch.forest, batch["reward_R"]
        zero_R = torch.zeros_like(reward_R)
        advantage_R, _ = gae_R(reward_R, zero_R, forest.offset_B, forest.count_B, 1.0, 1.0)
        return batch.with_columns(advantage_R=advantage_R)


@dataclass
class GroupBaseline:
    """`advantage_R` minus the mean over its group of the responses' whole rewards (REINFORCE++-baseline)."""

    needs: tuple[str, ...] = ("reward_R", "advantage_R")
    writes: tuple[str, ...] = ("advantage_R",)

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        _several(batch)
        forest = batch.forest
        reward_B = sum_per_response(batch["reward_R"], forest.response_R, forest.B).double()
        centred_B = group_advantages_B(reward_B, forest.group_B, "mean")
        baseline_R = (reward_B - centred_B)[forest.response_R]
        advantage_R = batch["advantage_R"]
        return batch.with_columns(advantage_R=advantage_R - baseline_R.to(advantage_R.dtype))


@dataclass
class ResponseReturns:
    """`return_R`: the whole response's reward at each of its tokens; `advantage_R`: that minus the value estimate."""

    needs: tuple[str, ...] = ("reward_B", "old_value_R")
    writes: tuple[str, ...] = ("advantage_R", "return_R")

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        value_R = batch["old_value_R"]
        return_R = batch["reward_B"][batch.forest.response_R].to(value_R.dtype)
        metrics: Metrics = {"value": total(value_R), "return": total(return_R)}
        metrics["value_error"] = total((return_R - value_R) ** 2)
        return batch.with_columns(metrics, advantage_R=return_R - value_R, return_R=return_R)


@dataclass
class EndedOnly:
    """`kept_B`, `kept_R`: 1 for answers that ended by themselves, 0 for those that were cut: they teach nothing."""

    needs: tuple[str, ...] = ("stopped_B",)
    writes: tuple[str, ...] = ("kept_B", "kept_R")

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        kept_B = batch["stopped_B"].double()
        return batch.with_columns(kept_B=kept_B, kept_R=kept_B[batch.forest.response_R])
