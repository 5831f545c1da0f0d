"""Over-optimisation: gold reward against d = sqrt(KL) while a proxy is optimised, and the two forms of Gao et al.

    best-of-N   R(d) = d (alpha - beta d)        peak at d = alpha / (2 beta)
    RL          R(d) = d (alpha - beta log d)    peak at d = exp(alpha / beta - 1)

R is the gain over the start (Gao, Schulman & Hilton 2022, arXiv:2210.10760). Both are linear in alpha and beta, so the
fits are least squares; their intervals are those of the fitted curve under resampled prompts (best-of-N) or residuals
(RL). A peak is claimed only where its whole interval lies within the sampled range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from tiltyard.posterior.frontier import empirical_kl, max_weights
from tiltyard.stats.importance import Floats
from tiltyard.stats.intervals import Estimate

Form = Literal["best_of_n", "rl"]

ROUNDS = 1000
START = 0.3  # d below which a step still counts as the start: the form of RL rises infinitely fast at 0
LEAST = 4  # points that a fit of two coefficients needs


@dataclass(frozen=True)
class Fit:
    """One of the two forms, fitted.

    Args:
        form: which. start: gold reward at d = 0. alpha, beta: with 95% intervals. reach: the range of d of the points.
        peak: the d at which gold is highest; None where that is not known to lie within `reach`.
    """

    form: Form
    start: float
    alpha: Estimate
    beta: Estimate
    reach: tuple[float, float]
    peak: Estimate | None

    def at(self, d: Floats) -> Floats:
        """The fitted gold reward at these d > 0."""
        return self.start + curve_of(self.form, self.alpha.value, self.beta.value, d)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        peak = None if self.peak is None else self.peak._asdict()
        return {**asdict(self), "alpha": self.alpha._asdict(), "beta": self.beta._asdict(), "peak": peak}


def basis(form: Form, d: Floats) -> Floats:
    """The factors of alpha and beta at each d > 0, [..., 2]."""
    return np.stack([d, -d * (d if form == "best_of_n" else np.log(d))], -1)


def curve_of(form: Form, alpha: float, beta: float, d: Floats) -> Floats:
    """The gain of gold over the start at each d > 0."""
    found: Floats = basis(form, d) @ np.array([alpha, beta])
    return found


def peaks(form: Form, alpha: Floats, beta: Floats) -> Floats:
    """The d at which each form is highest; inf where it only rises."""
    with np.errstate(all="ignore"):
        found = alpha / (2 * beta) if form == "best_of_n" else np.exp(alpha / beta - 1)
    return np.where((beta > 0) & np.isfinite(found), found, np.inf)


def fit_best_of_n(
    reward_PM: Floats, gold_PM: Floats, counts: Sequence[int], *, rounds: int = ROUNDS, seed: int = 0
) -> Fit | None:
    """Fits best-of-N's form on the curve of `best_of_n_gold`; None for fewer than four N above 1.

    Args:
        reward_PM: the proxy, by which the best is chosen, of the prior's responses. gold_PM: their gold rewards.
    """
    counts = [n for n in counts if 1 < n <= reward_PM.shape[-1]]
    if len(counts) < LEAST:
        return None
    kl_PN, gold_PN = best_of_n_gold(reward_PM, gold_PM, counts)
    gain_PN = gold_PN - gold_PM.mean(-1, keepdims=True)
    prompts = len(reward_PM)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=rounds) / prompts
    weights = np.concatenate([np.full((1, prompts), 1 / prompts), weights])  # the first is the fit itself
    d_BN, gain_BN = np.sqrt(weights @ kl_PN), weights @ gain_PN
    found_B2 = (np.linalg.pinv(basis("best_of_n", d_BN)) @ gain_BN[..., None])[..., 0]
    return _fit("best_of_n", float(gold_PM.mean()), found_B2, d_BN[0])


def best_of_n_gold(reward_PM: Floats, gold_PM: Floats, counts: Sequence[int]) -> tuple[Floats, Floats]:
    """KL to the prior and mean gold of best-of-N by the proxy, [prompts, counts].

    Gold by the unbiased order-statistics estimator (Nakano et al. 2021, appendix I), answers of equal proxy reward by
    chance; KL of the empirical distribution (`frontier.empirical_kl`).
    """
    kl, gold = [], []
    for reward_M, gold_M in zip(reward_PM, gold_PM, strict=True):
        levels, level_M, size_L = np.unique(reward_M, return_inverse=True, return_counts=True)
        mean_L = np.bincount(level_M, gold_M, len(levels)) / size_L
        ordered = np.repeat(mean_L, size_L)
        gold.append([ordered @ max_weights(len(ordered), n) for n in counts])
        kl.append([empirical_kl(reward_M, n) for n in counts])
    return np.array(kl), np.array(gold)


def fit_rl(kl_T: Floats, gold_T: Floats, *, rounds: int = ROUNDS, seed: int = 0) -> Fit | None:
    """Fits RL's form on the steps of a training run; None for fewer than four steps beyond the start.

    The start is the mean gold of the steps with d of at most `START`, of the first step where there are none.

    Args:
        kl_T: each step's KL to the reference, in nats a response. gold_T: mean gold reward of its responses.
    """
    d_T = np.sqrt(np.maximum(kl_T, 0.0))
    early = d_T <= START
    if not early.any():
        early[np.argmin(d_T)] = True
    start_T, d, y = gold_T[early], d_T[~early], gold_T[~early]
    if len(d) < LEAST:
        return None
    start, x = float(start_T.mean()), basis("rl", d)
    inverse = np.linalg.pinv(x)
    found = inverse @ (y - start)
    residual = y - start - x @ found
    residual = (residual - residual.mean()) * np.sqrt(len(d) / (len(d) - 2))
    rng = np.random.default_rng(seed)
    starts = start + rng.choice(residual, size=(rounds, len(start_T))).mean(-1)  # too few steps to be resampled
    drawn = x @ found + start + rng.choice(residual, size=(rounds, len(d)))
    found_B2 = np.concatenate([found[None], (drawn - starts[:, None]) @ inverse.T])
    return _fit("rl", start, found_B2, d)


def _fit(form: Form, start: float, found_B2: Floats, d: Floats) -> Fit:
    """The first row is the fit, the others are those of resampled data."""
    reach = (float(d.min()), float(d.max()))
    alpha, beta = (_estimate(column, len(d)) for column in found_B2.T)
    peak = _estimate(peaks(form, *found_B2.T), len(d))
    within = reach[0] <= peak.low and peak.high <= reach[1]
    return Fit(form, start, alpha, beta, reach, peak if within else None)


def _estimate(x_B: Floats, n: int) -> Estimate:
    low, high = np.quantile(x_B[1:], [0.025, 0.975], method="nearest")
    return Estimate(float(x_B[0]), float(low), float(high), n)
