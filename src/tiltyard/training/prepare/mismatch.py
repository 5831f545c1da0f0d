"""Trainer against sampler: how far the log-probs of both lie apart, and the importance weights between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tiltyard.batch.batch import Metrics
from tiltyard.batch.forest import Forest
from tiltyard.errors import ConfigError
from tiltyard.losses.kl import sum_per_response
from tiltyard.training.prepare.columns import sum_count

Level = Literal["token", "sequence", "none"]
NEAR = (0.9, 1.1)  # ratios outside are counted: 7.5% of tokens between vLLM and a trainer at bf16 (TRL #6789)
ABOVE = (1e-3, 1e-2, 1e-1, 1.0)  # nats a token: what the histogram counts


@dataclass(frozen=True)
class Correction:
    """Truncated importance weights min(pi_trainer / pi_sampler, cap) of the policy gradient (Yao et al. 2025).

    Args:
        level: `token`: the ratio of each token; `sequence`: of the whole response, at each of its tokens, which is
            unbiased where nothing is truncated, and varies more; `none`: the sampler's log-probs stand for the
            policy's own.
        cap: the largest weight. [2.0: Yao et al. 2025; also verl's threshold]
    """

    level: Level = "token"
    cap: float = 2.0

    def __post_init__(self) -> None:
        if not self.cap >= 1:
            raise ConfigError("a cap below 1 would lower every weight", where="cap", got=self.cap, expected="1 or more")

    def weight_R(self, logp_R: Tensor, sampled_R: Tensor, forest: Forest) -> tuple[Tensor, Metrics]:
        """The weights of the tokens, in float64, with the metrics `mismatch/weight` and `mismatch/truncated`.

        Args:
            logp_R: the trainer's log-probs, before its updates. sampled_R: those that the sampler recorded.
        """
        log_ratio_R = logp_R.detach().double() - sampled_R.double()
        if self.level == "sequence":
            log_ratio_R = sum_per_response(log_ratio_R, forest.response_R, forest.B)[forest.response_R]
        ratio_R = log_ratio_R.exp()
        weight_R = ratio_R.clamp(max=self.cap)
        truncated_R = (ratio_R > self.cap).double()
        return weight_R, {"mismatch/weight": sum_count(weight_R), "mismatch/truncated": sum_count(truncated_R)}


@torch.no_grad()
def mismatch(logp_R: Tensor, sampled_R: Tensor) -> Metrics:
    """Measures the distance between the trainer's log-probs of sampled tokens and the sampler's.

    `sampler_gap`: the mean absolute difference, in nats a token; `mismatch/above_X`: the share of tokens that differ by
    more than X nats, a histogram; `mismatch/off`: the share whose ratio pi_trainer / pi_sampler is outside [0.9, 1.1];
    `mismatch/effective`: the effective share of the sample, (sum w)^2 / (n sum w^2) of the ratios w: 1 where all are
    equal; `mismatch/largest`: the largest difference. The last two are means over processes.
    """
    if not len(logp_R):
        return {}
    difference_R = (logp_R - sampled_R).abs()
    ratio_R = (logp_R.double() - sampled_R.double()).exp()
    off_R = (ratio_R < NEAR[0]) | (ratio_R > NEAR[1])
    tokens = float(len(ratio_R))
    effective = float(ratio_R.sum() ** 2 / (ratio_R**2).sum())
    metrics: Metrics = {"sampler_gap": sum_count(difference_R), "mismatch/off": sum_count(off_R.double())}
    metrics |= {f"mismatch/above_{x:g}": sum_count((difference_R > x).double()) for x in ABOVE}
    return metrics | {"mismatch/effective": (effective, tokens), "mismatch/largest": (float(difference_R.max()), 1.0)}
