"""Rewards from scores and the KL to the reference: one number a token, or one a response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.distributed import processes
from tiltyard.losses.advantages import (
    MissingEos,
    mean_var,
    missing_eos_B,
    moments,
    response_rewards_B,
    token_rewards_R,
)
from tiltyard.losses.kl import KLController
from tiltyard.training.algorithm import Models
from tiltyard.training.prepare.columns import sum_count


@dataclass(frozen=True)
class TokenRewards:
    """`reward_R`: -beta * log-ratio on every token and the score on the last (methods 2.1, 2.6).

    The score of a response that did not end by itself is replaced by `-penalty` (`replace`), lowered by it
    (`subtract`), lowered by it times the standard deviation of the step's scores (`spread`) or left alone (`none`).
    Without a KL coefficient no reference is read.
    """

    kl: KLController
    missing_eos: MissingEos = "subtract"
    penalty: float = 1.0
    writes: ClassVar[tuple[str, ...]] = ("reward_R",)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("old_logp_R", *(("ref_logp_R",) if self.kl.beta > 0 else ()), "score_B", "stopped_B")

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        forest, old_R = batch.forest, batch["old_logp_R"]
        ref_R = batch["ref_logp_R"] if self.kl.beta > 0 else old_R
        score_B, metrics = _after_rule_B(batch, self.missing_eos, self.penalty)
        reward_R = token_rewards_R(old_R, ref_R, score_B, forest.offset_B + forest.count_B - 1, self.kl.beta)
        return batch.with_columns(metrics, reward_R=reward_R)


@dataclass(frozen=True)
class ResponseRewards:
    """`reward_B`: the score after the missing-EOS rule minus beta times the summed log-ratio (methods 2.10).

    With beta = 0 no reference is read.
    """

    beta: float = 0.0
    missing_eos: MissingEos = "none"
    penalty: float = 1.0
    score_weight: float = 1.0
    writes: ClassVar[tuple[str, ...]] = ("reward_B",)

    @property
    def needs(self) -> tuple[str, ...]:
        return (*(("kl_B",) if self.beta else ()), "score_B", "stopped_B")

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        score_B, metrics = _after_rule_B(batch, self.missing_eos, self.penalty)
        kl_B = batch["kl_B"] if self.beta else torch.zeros_like(score_B)
        reward_B = response_rewards_B(score_B, kl_B, self.beta, self.score_weight)
        return batch.with_columns(metrics, reward_B=reward_B)


def _after_rule_B(batch: Batch, rule: MissingEos, penalty: float) -> tuple[Tensor, Metrics]:
    """Scores after the missing-EOS rule, and metrics of them; the spread is that of all processes together."""
    score_B = batch["score_B"]
    _, var = mean_var(*processes.sum_all(torch.stack(moments(score_B))))
    std = var.sqrt()
    after_B = missing_eos_B(score_B, batch["stopped_B"] > 0, rule, penalty, std.to(score_B.dtype))
    return after_B, response_metrics(batch, after_B) | {"score_std": (float(std), 1.0)}


def response_metrics(batch: Batch, score_B: Tensor) -> Metrics:
    """Score before and after the missing-EOS rule, length, share of truncated responses."""
    return {
        "score": sum_count(batch["score_B"]),
        "score_after_rule": sum_count(score_B),
        "length": sum_count(batch.forest.count_B.double()),
        "truncated": sum_count(1 - batch["stopped_B"]),
    }
