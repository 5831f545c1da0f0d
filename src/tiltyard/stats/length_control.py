"""Win rates at equal length: what is left of a win rate when neither side gains by longer responses."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tiltyard.errors import DataError
from tiltyard.stats.arrays import finite
from tiltyard.stats.bins import Bin, binned
from tiltyard.stats.intervals import Clusters, Estimate, by_cluster, expanded_tail, rate_ci

MIN_CLUSTERS = 30  # prompts below which two coefficients and their interval are not worth printing
MIN_RARER = 5  # wins or losses, whichever is rarer, in prompts: below it one prompt decides the coefficients
MAX_LOGIT = 6.0  # a coefficient beyond it: length separates wins from losses, and only the ridge keeps it finite
MIN_MATCHED = 10  # prompts with a pair of about equal length
RATIOS = (0.0, 0.5, 0.8, 1.25, 2.0, math.inf)  # length over the baseline's; the middle one is "about equal"
RIDGE = 1e-3  # keeps the coefficient of length finite where length separates wins from losses
_ROUNDS_OF_NEWTON = 30
_CHUNK = 1_000_000  # weights of pairs in memory at once


def length_controlled_win_rate(
    outcomes_P: ArrayLike,
    length_difference_P: ArrayLike,
    clusters: Clusters = None,
    *,
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Computes the win rate that a logistic regression predicts at equal length, with a bootstrap interval.

    `logit P(win) = theta + phi tanh(d / sd(d))`, d the length of the response minus that of the baseline's; the value
    is sigmoid(theta) (Dubois et al. 2024, arXiv:2404.04475, without the instructions' difficulty, which needs many
    models). Every draw of the interval resamples whole prompts and fits again, `sd` included: the published standard
    error is that of the fitted probabilities alone and is too small. Swapping the sides gives 1 minus the value.

    Args:
        outcomes_P: 1 a win, 0 a loss, 1/2 a tie, or a probability; one for each pair of responses.
        length_difference_P: in any unit; the scale cancels.
        clusters: the prompt of each pair; None: every pair its own.
        rounds: bootstrap draws. seed: of the draws. level: of the interval.

    Returns:
        The estimate; (nan, nan, nan) where the fit is not stable: fewer than `MIN_CLUSTERS` prompts, fewer than
        `MIN_RARER` wins or losses, or a length that separates them (`unstable` has the reason).

    Raises:
        DataError: an outcome outside 0..1, other lengths of the arguments, a value that is not finite.
    """
    y_P, d_P = finite(outcomes_P, "outcomes"), finite(length_difference_P, "length differences")
    if len(y_P) != len(d_P):
        raise DataError("every outcome needs the difference in length of its pair", got=f"{len(y_P)} and {len(d_P)}")
    if y_P.min() < 0 or y_P.max() > 1:
        raise DataError("an outcome must lie in 0..1", got=f"{y_P.min():g} .. {y_P.max():g}")
    keys = range(len(y_P)) if clusters is None else clusters
    if unstable(y_P, d_P, keys):
        return Estimate(math.nan, math.nan, math.nan, len(y_P))
    number: dict[object, int] = {}
    cluster_P = np.array([number.setdefault(key, len(number)) for key in keys])
    value = float(_sigmoid(_fit(y_P, d_P, np.ones((1, len(y_P))))[0])[0])
    rng = np.random.default_rng(seed)
    even_C = np.full(len(number), 1 / len(number))
    at_once = max(1, _CHUNK // len(y_P))
    draws = (rng.multinomial(len(number), even_C, size=min(at_once, rounds - r)) for r in range(0, rounds, at_once))
    values_R = np.concatenate(
        [_sigmoid(_fit(y_P, d_P, draw_RC[:, cluster_P].astype(np.float64))[0]) for draw_RC in draws]
    )
    tail = expanded_tail(len(number), level)
    low, high = np.quantile(values_R, [tail, 1 - tail])
    return Estimate(value, float(low), float(high), len(y_P))


def unstable(outcomes_P: ArrayLike, length_difference_P: ArrayLike, clusters: Clusters = None) -> str:
    """Returns why the regression of `length_controlled_win_rate` is not to be trusted; "" where it is."""
    y_P, d_P = finite(outcomes_P, "outcomes"), finite(length_difference_P, "length differences")
    sums_C, counts_C = by_cluster(y_P, clusters)
    prompts = len(sums_C)
    if prompts < MIN_CLUSTERS:
        return f"{prompts} prompts, and the regression needs {MIN_CLUSTERS}"
    share = float((sums_C / counts_C).mean())
    rarer = min(share, 1 - share) * prompts
    if rarer < MIN_RARER - 1e-9:  # 5 of 30 is 4.999... in floating point
        which = "lost" if share > 0.5 else "won"
        return f"{rarer:g} of {prompts} prompts are {which}, and the regression needs {MIN_RARER}"
    theta_R, phi_R = _fit(y_P, d_P, np.ones((1, len(y_P))))
    if max(abs(float(theta_R[0])), abs(float(phi_R[0]))) > MAX_LOGIT:
        return "the difference in length separates wins from losses"
    return ""


class EqualLength(NamedTuple):
    """A win rate at equal length: by the `regression`, or of pairs of about equal length (`matched`); "": neither.

    `reason`: why it is not by the regression.
    """

    estimate: Estimate
    how: Literal["regression", "matched", ""]
    reason: str


def at_equal_length(
    outcomes_P: ArrayLike,
    length_P: ArrayLike,
    baseline_length_P: ArrayLike,
    clusters: Clusters = None,
    *,
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> EqualLength:
    """Computes the win rate at equal length by the regression, or where that is not stable of the matched pairs.

    Matched are pairs in which one response is at most 1.25 times as long as the other; there must be `MIN_MATCHED`
    prompts with one. Arguments and errors as of `length_controlled_win_rate`; lengths in any unit.
    """
    long_P, short_P = finite(length_P, "lengths"), finite(baseline_length_P, "lengths of the baseline")
    if len(long_P) != len(short_P):
        raise DataError("every pair has two lengths", got=f"{len(long_P)} and {len(short_P)}")
    reason = unstable(outcomes_P, long_P - short_P, clusters)
    if not reason:
        how = {"rounds": rounds, "seed": seed}
        estimate = length_controlled_win_rate(outcomes_P, long_P - short_P, clusters, level=level, **how)
        return EqualLength(estimate, "regression", "")
    y_P = finite(outcomes_P, "outcomes")
    ratio_P = (long_P + 1) / (short_P + 1)  # an empty response has a ratio too
    on_P = (ratio_P >= RATIOS[2]) & (ratio_P <= RATIOS[3])
    keys = range(len(y_P)) if clusters is None else clusters
    matched = [key for key, on in zip(keys, on_P, strict=True) if on]
    if len(set(matched)) < MIN_MATCHED:
        reason += f"; {len(set(matched))} have a pair of about equal length, and {MIN_MATCHED} are needed"
        return EqualLength(Estimate(math.nan, math.nan, math.nan, int(on_P.sum())), "", reason)
    return EqualLength(rate_ci(y_P[on_P], matched, rounds=rounds, seed=seed, level=level), "matched", reason)


def by_length_ratio(
    outcomes_P: ArrayLike,
    length_P: ArrayLike,
    baseline_length_P: ArrayLike,
    clusters: Clusters = None,
    *,
    level: float = 0.95,
) -> list[Bin]:
    """Computes the win rate in bins of the ratio of the lengths; a rate that rises with it shows a taste for length."""
    ratio_P = (finite(length_P, "lengths") + 1) / (finite(baseline_length_P, "lengths of the baseline") + 1)
    return binned(ratio_P, RATIOS, outcomes_P, clusters, level=level)


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-x)))


def _fit(
    y_P: NDArray[np.float64], d_P: NDArray[np.float64], weight_RP: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fits the regression under each row of weights by Newton's method and returns (theta, phi)."""
    total_R = weight_RP.sum(1)
    mean_R = weight_RP @ d_P / total_R
    sd_R = np.sqrt(np.maximum(weight_RP @ d_P**2 / total_R - mean_R**2, 0))
    x_RP = np.tanh(d_P / np.where(sd_R > 0, sd_R, 1)[:, None])
    theta_R, phi_R = np.zeros(len(weight_RP)), np.zeros(len(weight_RP))
    for _ in range(_ROUNDS_OF_NEWTON):
        p_RP = 1 / (1 + np.exp(-(theta_R[:, None] + phi_R[:, None] * x_RP)))
        residual_RP = weight_RP * (y_P - p_RP)
        curvature_RP = weight_RP * p_RP * (1 - p_RP)
        g0, g1 = residual_RP.sum(1) - RIDGE * theta_R, (residual_RP * x_RP).sum(1) - RIDGE * phi_R
        h00, h11 = curvature_RP.sum(1) + RIDGE, (curvature_RP * x_RP**2).sum(1) + RIDGE
        h01 = (curvature_RP * x_RP).sum(1)
        determinant = h00 * h11 - h01**2
        step_theta, step_phi = (h11 * g0 - h01 * g1) / determinant, (h00 * g1 - h01 * g0) / determinant
        # a step of more than 2 in the logit overshoots where the curvature is small
        scale = np.minimum(1, 2 / np.maximum(np.hypot(step_theta, step_phi), 1e-12))
        theta_R, phi_R = theta_R + scale * step_theta, phi_R + scale * step_phi
        if max(np.abs(step_theta).max(), np.abs(step_phi).max()) < 1e-10:
            break
    return theta_R, phi_R
