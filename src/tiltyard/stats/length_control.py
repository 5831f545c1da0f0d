"""Win rates at equal length: what is left of a win rate when neither side gains by longer responses."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tiltyard.errors import DataError
from tiltyard.stats.arrays import finite
from tiltyard.stats.intervals import Clusters, Estimate, expanded_tail

MIN_CLUSTERS = 30  # prompts below which two coefficients and their interval are not worth printing
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
        The estimate; (nan, nan, nan) where there are fewer than `MIN_CLUSTERS` prompts, or all outcomes agree.

    Raises:
        DataError: an outcome outside 0..1, other lengths of the arguments, a value that is not finite.
    """
    y_P, d_P = finite(outcomes_P, "outcomes"), finite(length_difference_P, "length differences")
    if len(y_P) != len(d_P):
        raise DataError("every outcome needs the difference in length of its pair", got=f"{len(y_P)} and {len(d_P)}")
    if y_P.min() < 0 or y_P.max() > 1:
        raise DataError("an outcome must lie in 0..1", got=f"{y_P.min():g} .. {y_P.max():g}")
    keys = range(len(y_P)) if clusters is None else clusters
    number: dict[object, int] = {}
    cluster_P = np.array([number.setdefault(key, len(number)) for key in keys])
    if len(number) < MIN_CLUSTERS or y_P.min() == y_P.max() != 0.5:
        return Estimate(math.nan, math.nan, math.nan, len(y_P))
    value = float(_at_equal_length(y_P, d_P, np.ones((1, len(y_P))))[0])
    rng = np.random.default_rng(seed)
    even_C = np.full(len(number), 1 / len(number))
    at_once = max(1, _CHUNK // len(y_P))
    draws = (rng.multinomial(len(number), even_C, size=min(at_once, rounds - r)) for r in range(0, rounds, at_once))
    values_R = np.concatenate(
        [_at_equal_length(y_P, d_P, draw_RC[:, cluster_P].astype(np.float64)) for draw_RC in draws]
    )
    tail = expanded_tail(len(number), level)
    low, high = np.quantile(values_R, [tail, 1 - tail])
    return Estimate(value, float(low), float(high), len(y_P))


def _at_equal_length(
    y_P: NDArray[np.float64], d_P: NDArray[np.float64], weight_RP: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Fits the regression under each row of weights by Newton's method and returns sigmoid(theta)."""
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
    return np.asarray(1 / (1 + np.exp(-theta_R)))
