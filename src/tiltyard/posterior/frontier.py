"""The reward-KL frontier: the optimal curve, best-of-N, and models, all from samples of the prior.

Along pi_beta dE[r]/dKL is beta (the envelope theorem), so no policy lies above it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tiltyard.posterior.support import WORST
from tiltyard.stats.importance import LEAST_ESS, Floats, effective_samples, log_mean_exp, normalised
from tiltyard.stats.intervals import Estimate


class Point(NamedTuple):
    """A distribution on the frontier's picture: mean KL to the prior (nats a response) and mean reward.

    `at` is the beta or the N that it belongs to; `bound`: an upper bound of the KL, where the KL is a plug-in estimate.
    """

    at: float
    kl: float
    reward: float
    bound: float | None = None


class SampledPoint(NamedTuple):
    """A sampler on the frontier: reward and KL to the prior, nats a response; `at_most`: an upper bound of it."""

    name: str
    reward: Estimate
    kl: Estimate
    at_most: bool

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"reward": self.reward._asdict(), "kl": self.kl._asdict(), "at_most": self.at_most}


def optimal_curve(reward_PM: Floats, betas: Sequence[float]) -> list[Point]:
    """(KL(pi_beta || prior), E[r]) of the posterior at each beta, from samples of the prior.

    A beta at which nine prompts in ten do not have an effective sample size of 10 is left out: the curve ends where the
    samples end.

    Args:
        reward_PM: rewards of the prior's responses, [prompts, M].
    """
    points = []
    for beta in betas:
        log_w = reward_PM / beta
        if np.quantile(effective_samples(log_w), WORST) < LEAST_ESS:
            continue
        reward_P = (normalised(log_w) * reward_PM).sum(-1)
        kl_P = reward_P / beta - log_mean_exp(log_w)
        points.append(Point(beta, float(kl_P.mean()), float(reward_P.mean())))
    return points


def best_of_n_bound(n: float) -> float:
    """log N - (N - 1)/N: KL(best-of-N || prior) where no response has a mass of its own, and an upper bound of it."""
    return math.log(n) - (n - 1) / n


def best_of_n(reward_PM: Floats, counts: Sequence[int]) -> list[Point]:
    """(KL, E[r]) of best-of-N, from M samples of the prior a prompt.

    E[r] by the unbiased order-statistics estimator (Nakano et al. 2021, appendix I), for N up to M. KL by the exact
    formula for the empirical distribution, in which answers of equal reward share a level: p_N(level) =
    F^N - (F - mass)^N and KL = sum p_N log(p_N / mass) (Beirami et al. 2401.01879). It cannot exceed log M and lies
    below `bound`, log N - (N - 1)/N, most where answers are few or rewards tie.
    """
    ordered = np.sort(reward_PM, -1)
    m = ordered.shape[-1]
    points = []
    for n in counts:
        if not 1 <= n <= m:
            continue
        reward = float((ordered * max_weights(m, n)).sum(-1).mean())
        kl = float(np.mean([empirical_kl(row, n) for row in ordered]))
        points.append(Point(n, kl, reward, best_of_n_bound(n)))
    return points


def max_weights(m: int, n: int) -> Floats:
    """C(i-1, n-1) / C(m, n) for i = 1..m: the chance that the i-th smallest of m is the largest of n of them."""
    from scipy.special import gammaln

    i = np.arange(1, m + 1, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        log_chosen = gammaln(i) - gammaln(n) - gammaln(np.maximum(i - n + 1, 1))
    log_all = gammaln(m + 1) - gammaln(n + 1) - gammaln(m - n + 1)
    found: Floats = np.where(i >= n, np.exp(log_chosen - log_all), 0.0)
    return found


def empirical_kl(ordered_M: Floats, n: int) -> float:
    """KL(best-of-n || prior) for the empirical distribution of sorted rewards, equal rewards as one level."""
    _, counts = np.unique(ordered_M, return_counts=True)
    mass = counts / len(ordered_M)
    return level_kl(mass, n)


def level_kl(mass_L: Floats, n: float) -> float:
    """KL(best-of-n || prior) in nats, from the prior's mass of each level of reward, lowest first.

    Within a level both have the same proportions, so only the levels' masses count.
    """
    high = np.cumsum(mass_L)
    low = np.concatenate([[0.0], high[:-1]])
    best = high**n - low**n
    kept = best > 0
    return float((best[kept] * np.log(best[kept] / mass_L[kept])).sum())
