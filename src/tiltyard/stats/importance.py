"""Importance weights: means in log space, effective sample size, and the Pareto diagnostic of their tail.

All weights are logarithms, in nats. Functions work along the last axis unless they name a shape.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

K_LIMIT = 0.7  # Vehtari et al. 2024: above it an estimate converges too slowly to be used
LEAST_ESS = 10.0
MOST_K = 0.99  # above it the number of samples that would do has a hundred digits
LEAST_TAIL = 5  # different weights; fewer have no tail that could be fitted


def log_sum_exp(log_w: Floats) -> Floats:
    """log sum exp along the last axis; -inf where all weights are 0."""
    highest = log_w.max(-1, keepdims=True)
    highest = np.where(np.isfinite(highest), highest, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(log_w - highest).sum(-1)) + highest[..., 0]


def log_mean_exp(log_w: Floats) -> Floats:
    """log of the mean weight: the estimate of log Z by importance sampling. Its expectation is below log Z."""
    return log_sum_exp(log_w) - math.log(log_w.shape[-1])


def normalised(log_w: Floats) -> Floats:
    """Weights that sum to 1; nan where all are 0."""
    with np.errstate(invalid="ignore"):
        return np.exp(log_w - log_sum_exp(log_w)[..., None])


def effective_samples(log_w: Floats) -> Floats:
    """(sum w)^2 / sum w^2, from 1 to the number of weights; 0 where all are 0.

    Its share of the weights tends to 1 / (1 + chi^2(pi* || proposal)). A mode that was never sampled does not
    show in it.
    """
    total = log_sum_exp(log_w)
    with np.errstate(invalid="ignore"):
        found: Floats = np.exp(2 * total - log_sum_exp(2 * log_w))
    return np.where(np.isfinite(total), found, 0.0)


def k_hat(log_w: ArrayLike) -> float:
    """The shape of the generalised Pareto distribution fitted to the largest weights [N].

    Vehtari, Simpson, Gelman, Yao & Gabry 2024, "Pareto smoothed importance sampling": the tail are the
    min(N/5, 3 sqrt N) largest; the fit is that of Zhang & Stephens 2009, with a weak prior around 0.5. The weights have
    1/k moments; above 0.7 no estimate from them is to be trusted.

    Returns:
        -inf where all weights are equal, nan where fewer than 5 different ones lie above the tail's threshold: a fit to
        ties is the shape of no tail. Few-valued weights have all moments, so the effective number judges them alone.
    """
    ordered = np.sort(np.asarray(log_w, dtype=np.float64))
    # equal weights stay equal: the last bits of their sums would make a tail of their own
    ordered = np.round(ordered[np.isfinite(ordered)] - ordered[-1], 9)
    if not len(ordered) or ordered[0] == 0:
        return -math.inf
    length = int(min(len(ordered) / 5, 3 * math.sqrt(len(ordered))))
    threshold = max(float(ordered[-length - 1]), math.log(np.finfo(np.float64).tiny))
    tail = np.exp(ordered[ordered > threshold]) - math.exp(threshold)
    if len(np.unique(tail)) < LEAST_TAIL:
        return math.nan
    shape = _pareto_shape(tail)
    return (len(tail) * shape + 10 * 0.5) / (len(tail) + 10)


def _pareto_shape(x: Floats) -> float:
    """Zhang & Stephens 2009: the posterior mean over a grid of their parameter, of sorted excesses x > 0."""
    n = len(x)
    points = 30 + int(math.sqrt(n))
    grid = 1 - np.sqrt(points / (np.arange(1, points + 1) - 0.5))
    grid = grid / (3 * x[int(n / 4 + 0.5) - 1]) + 1 / x[-1]
    shape = np.log1p(-grid[:, None] * x).mean(1)
    profile = n * (np.log(-grid / shape) - shape - 1)
    weight = 1 / np.exp(profile - profile[:, None]).sum(1)
    keep = weight >= 10 * np.finfo(np.float64).eps
    b = float((grid[keep] * weight[keep]).sum() / weight[keep].sum())
    return float(np.log1p(-b * x).mean())


def samples_for_k(k: float) -> float:
    """The number of samples at which an estimate with this tail is reliable: 10^(1/(1-k)); inf for k near 1 and above.

    Vehtari et al. 2024, section 3.2.
    """
    return 10 ** (1 / (1 - k)) if k < MOST_K else math.inf


def stratified_jackknife(function: Any, columns: list[Floats], sizes: tuple[int, ...]) -> Floats:
    """function(means of the columns) without its bias of order 1/N, [...].

    Args:
        function: of the columns' means [...]; vectorised.
        columns: [..., N], whose first `sizes[0]` values are one stratum, and so on: the mean over all N is that of a
            stratified sample, so each stratum's values are left out by themselves (Jones 1974).
        sizes: of the strata, N together.

    Returns:
        The corrected value; the plain one where leaving out a value makes it infinite.
    """
    total = columns[0].shape[-1]
    means = [column.mean(-1) for column in columns]
    with np.errstate(all="ignore"):
        plain: Floats = np.asarray(function(*means))
        corrected = plain.copy()
        start = 0
        for size in sizes:
            part = slice(start, start + size)
            start += size
            if size < 2:
                continue
            scale = size / total / (size - 1)
            left = [
                mean[..., None] - scale * (column[..., part] - column[..., part].mean(-1, keepdims=True))
                for mean, column in zip(means, columns, strict=True)
            ]
            corrected += (size - 1) * (plain - np.asarray(function(*left)).mean(-1))
    return np.where(np.isfinite(corrected), corrected, plain)
