"""Estimates with intervals: means and rates by the cluster bootstrap, few or rare outcomes by a Beta distribution.

Responses to one prompt are not independent, so intervals resample whole prompts ("clusters") if those are given.
An interval that is unknown (a single prompt) is (nan, nan).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tiltyard.errors import DataError
from tiltyard.stats.arrays import finite

Interval = tuple[float, float]
Clusters = Sequence[Hashable] | NDArray | None

SMALL = 100  # clusters below which the bootstrap of a rate covers too little (Bowyer et al. 2025, arXiv:2503.01747)
RARE = 10  # the same of clusters with another outcome than nearly all have
MOST_SCORE = 1e6  # standard errors: a resample of values that are all but equal has none
_CHUNK = 4_000_000  # resampling weights in memory at once


class Estimate(NamedTuple):
    """A value with its interval; `n` is the number of observations (not of clusters)."""

    value: float
    low: float
    high: float
    n: int

    @property
    def ci(self) -> Interval:
        return (self.low, self.high)


def wilson(successes: float, n: int, level: float = 0.95) -> Interval:
    """Returns the Wilson score interval of a proportion.

    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n). Equal to `scipy.stats.binomtest(k, n).proportion_ci`,
    which takes whole numbers only; here an effective number need not be whole. A tie is no half success of it: rates
    with ties are those of `rate_ci`.

    Raises:
        DataError: successes outside 0..n, or a level outside (0, 1).
    """
    if n < 0 or not 0 <= successes <= max(n, 0):
        raise DataError("successes must lie between 0 and n", got=f"{successes} of {n}")
    if n == 0:
        return (math.nan, math.nan)
    z = normal_quantile(level)
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return (max(0.0, low), min(1.0, high))


def bootstrap_ci(
    values: ArrayLike, clusters: Clusters = None, rounds: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Computes the percentile bootstrap interval of the mean; whole clusters (prompts) are resampled if given.

    The percentiles are expanded for few clusters (Hesterberg 2015, "expanded percentile": Phi(-sqrt(C/(C-1)) t_{C-1})
    in place of alpha/2). Measured coverage of a 95% interval on normal data with 8, 15, 30 clusters: 93.8, 94.0,
    94.7% (the plain percentile: 88.6, 91.5, 93.5%). One cluster: (nan, nan).
    """
    return ratio_ci(*by_cluster(finite(values, "values"), clusters), rounds=rounds, seed=seed, level=level)


def ratio_ci(
    sums_C: ArrayLike, counts_C: ArrayLike, *, rounds: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Computes the interval of `bootstrap_ci` for sum over count of clusters, such as the bits and bytes of documents.

    Raises:
        DataError: other lengths, a value that is not finite, no rounds.
    """
    sums, counts = finite(sums_C, "sums"), finite(counts_C, "counts")
    if len(sums) != len(counts):
        raise DataError("every sum needs a count", got=f"{len(sums)} and {len(counts)}")
    _check_level(level)
    n_clusters = len(sums)
    if n_clusters < 2:
        return (math.nan, math.nan)
    means = [(w @ sums) / (w @ counts) for w in _resampled(n_clusters, rounds, seed)]
    tail = expanded_tail(n_clusters, level)
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return (float(low), float(high))


def studentised_ci(
    values: ArrayLike, clusters: Clusters = None, rounds: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Computes the studentised bootstrap interval of the mean of skewed values (Efron 1981; Hesterberg 2015, "bootstrap
    t"): each resample's distance to the mean in its own standard errors, made wider in two ways for few clusters.

    A sample is less skewed than what it comes from, so the distances of its resamples are too short on the long side:
    their quantiles are taken at the normal tail of a t quantile, and on each side the wider of this and `bootstrap_ci`
    counts. Measured coverage of 95% intervals with 10, 20, 40 and 100 clusters, of values with a skewness of 0, 0.9,
    3.3, 3.6 and 4.2: 93 to 97% (without the two: 91 to 96%, docs/lab.md). Of values so few or so alike that some
    resamples have no standard error it is `bootstrap_ci`'s.
    """
    x = finite(values, "values")
    _check_level(level)
    sums, counts = by_cluster(x, clusters)
    n_clusters, mean = len(sums), float(x.mean())
    if n_clusters < 2:
        return (math.nan, math.nan)
    error = math.sqrt(float(((sums - mean * counts) ** 2).sum())) / float(counts.sum())
    drawn, scores = [], []
    for w in _resampled(n_clusters, rounds, seed):
        total, count = w @ sums, w @ counts
        means = total / count
        drawn.append(means)
        squares = w @ sums**2 - 2 * means * (w @ (sums * counts)) + means**2 * (w @ counts**2)
        with np.errstate(divide="ignore", invalid="ignore"):
            scores.append((means - mean) / (np.sqrt(np.maximum(squares, 0.0)) / count))
    found = np.concatenate(scores)
    if not np.isfinite(found).all() or np.abs(found).max() > MOST_SCORE:
        return bootstrap_ci(x, clusters, rounds, seed, level)
    tail = _t_tail(n_clusters, level)
    low, high = np.quantile(found, [tail, 1 - tail])
    tail = expanded_tail(n_clusters, level)
    least, most = np.quantile(np.concatenate(drawn), [tail, 1 - tail])
    return (float(min(least, mean - high * error)), float(max(most, mean - low * error)))


def _resampled(n_clusters: int, rounds: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yields how often each cluster is drawn in each round, [some rounds, clusters]."""
    if rounds < 1:
        raise DataError("the bootstrap needs at least one round", got=rounds)
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // n_clusters)
    for start in range(0, rounds, step):
        yield rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=min(step, rounds - start))


def expanded_tail(n_clusters: int, level: float) -> float:
    """Returns the tail probability of the percentiles that bound a bootstrap interval of few clusters, 2 at least.

    Hesterberg 2015, "expanded percentile": Phi(-sqrt(C/(C-1)) t_{C-1}), a little less than (1 - level) / 2.
    """
    from scipy.special import ndtr, stdtrit

    return float(ndtr(-math.sqrt(n_clusters / (n_clusters - 1)) * stdtrit(n_clusters - 1, 0.5 + level / 2)))


def _t_tail(n_clusters: int, level: float) -> float:
    """Returns the normal tail probability beyond the t quantile of C - 1 degrees of freedom."""
    from scipy.special import ndtr, stdtrit

    return float(ndtr(-stdtrit(n_clusters - 1, 0.5 + level / 2)))


def mean_ci(
    values: ArrayLike,
    clusters: Clusters = None,
    *,
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    skewed: bool = False,
) -> Estimate:
    """Computes the mean of all values with its (cluster) bootstrap interval; `skewed`: the studentised one."""
    x = finite(values, "values")
    low, high = (studentised_ci if skewed else bootstrap_ci)(x, clusters, rounds, seed, level)
    return Estimate(float(x.mean()), low, high, len(x))


def rate_ci(
    outcomes: ArrayLike, clusters: Clusters = None, *, rounds: int = 1000, seed: int = 0, level: float = 0.95
) -> Estimate:
    """Computes the mean of outcomes in [0, 1], a tie 1/2.

    The interval is Wilson's for outcomes that are all 0 or 1 and have no clusters: a half is no binomial outcome. Else
    it is that of `beta_interval` for fewer than `SMALL` clusters, or fewer than `RARE` with another outcome than the
    most frequent extreme, and the cluster bootstrap's for more. If all outcomes are 0, or all are 1, it is Wilson's
    for that many clusters.

    Raises:
        DataError: an outcome outside [0, 1].
    """
    x = finite(outcomes, "outcomes")
    if x.min() < 0 or x.max() > 1:
        raise DataError("an outcome must lie in 0..1", got=f"{x.min():g} .. {x.max():g}")
    value = float(x.mean())
    sums, counts = by_cluster(x, clusters)
    if clusters is None and np.isin(x, (0.0, 1.0)).all():
        low, high = wilson(float(x.sum()), len(x), level)
    elif value in (0.0, 1.0):
        low, high = wilson(value * len(sums), len(sums), level)
    elif len(sums) < SMALL or (sums != (counts if value > 0.5 else 0)).sum() < RARE:
        low, high = beta_interval(sums, counts, level, verdicts=bool(np.isin(x, (0.0, 0.5, 1.0)).any()))
    else:
        low, high = bootstrap_ci(x, clusters, rounds, seed, level)
    return Estimate(value, low, high, len(x))


def beta_interval(sums_C: ArrayLike, counts_C: ArrayLike, level: float = 0.95, *, verdicts: bool = True) -> Interval:
    """Computes the interval of a rate from the sum and the number of the outcomes of each cluster.

    One cluster of wins and one of losses are added; the Beta distribution with the mean and the variance of the ratio
    that results is the posterior. For clusters of one outcome, 0 or 1, it is exactly Beta(1 + wins, 1 + losses), the
    Beta-binomial of a uniform prior; for ties and several outcomes a cluster it is that with an effective number of
    outcomes (Korn and Graubard 1998). Measured coverage of 95% intervals with 10, 30 and 100 clusters at rates of 0.5,
    0.8 and 0.95, with and without ties and several outcomes: 92 to 98%; of nothing but ties nearly 100%. One cluster:
    (nan, nan).

    Args:
        verdicts: some outcomes are plain wins, ties or losses. If not, they are probabilities, and the clusters that
            are added count for less the less these spread (`_weight`): a whole win among probabilities of about 0.5
            covered 99 to 100%, now 93 to 98%. What that leaves uncovered is a rare verdict unlike all that were seen:
            of probabilities near 0.97 and 3% of 0.02, 80% at 30 clusters.
    """
    from scipy.special import betaincinv, stdtrit

    _check_level(level)
    sums, counts = np.asarray(sums_C, dtype=float), np.asarray(counts_C, dtype=float)
    if len(sums) < 2:
        return (math.nan, math.nan)
    weight = 1.0 if verdicts else _weight(sums / counts)
    size = weight * counts.mean()
    clusters = len(sums)
    sums, counts = np.append(sums, [size, 0.0]), np.append(counts, [size, size])
    p = sums.sum() / counts.sum()
    variance = ((sums - p * counts) ** 2).sum() / counts.sum() ** 2
    effective = p * (1 - p) / variance
    if weight < 1:  # an estimated variance, of which the added clusters are no large part
        effective *= (normal_quantile(level) / float(stdtrit(clusters - 1, 0.5 + level / 2))) ** 2
    tail = (1 - level) / 2
    low, high = betaincinv(p * effective, (1 - p) * effective, [tail, 1 - tail])
    return (float(low), float(high))


def _weight(rate_C: NDArray[np.float64]) -> float:
    """The part of a whole cluster that is added on each side: 1, or as much less as the rates spread less than wins.

    A Beta distribution of their mean and variance has no mass at 0 and 1 if both its parameters are 2 or more: then
    the share of the variance of wins and losses. With one of 1 or less, extremes may be there unseen: then 1.
    """
    p, variance = float(rate_C.mean()), float(rate_C.var(ddof=1))
    if variance <= 1e-12 * p * (1 - p):  # of one value alone nothing is known
        return 1.0
    least = min(p, 1 - p) * (p * (1 - p) / variance - 1)
    return min(1.0, variance / (p * (1 - p))) ** min(1.0, max(0.0, least - 1))


def by_cluster(x: NDArray[np.float64], clusters: Clusters) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the sum and the count of each cluster, in order of first appearance."""
    if clusters is None:
        return x, np.ones_like(x)
    if len(clusters) != len(x):
        raise DataError("values and clusters must have the same length", got=f"{len(x)} and {len(clusters)}")
    number: dict[Hashable, int] = {}
    index = np.array([number.setdefault(c, len(number)) for c in clusters])
    sums, counts = np.zeros(len(number)), np.zeros(len(number))
    np.add.at(sums, index, x)
    np.add.at(counts, index, 1.0)
    return sums, counts


def normal_quantile(level: float) -> float:
    """Returns the two-sided standard normal quantile, e.g. 1.96 for 0.95."""
    _check_level(level)
    return NormalDist().inv_cdf(0.5 + level / 2)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise DataError("the level of an interval lies between 0 and 1", got=level)
