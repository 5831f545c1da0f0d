"""Paired comparisons on the same prompts: difference, interval, p-value, and the smallest difference that would show.

The outcomes of two models on one prompt are correlated, so a test of their difference within prompts sees more than one
of two separate means, which drops -2 Cov (Miller 2024, arXiv:2411.00640). Prompts are the clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tiltyard.errors import DataError
from tiltyard.stats.arrays import finite
from tiltyard.stats.intervals import SMALL, Clusters, by_cluster, ratio_ci

Test = Literal["sign", "sign flips", "t", ""]
POWER = 0.8  # at which the smallest difference is stated
_ENUMERATED = 14  # clusters up to which all sign flips are tried
_FLIPS = 10_000  # else that many random ones
_CHUNK = 4_000_000  # signs in memory at once


class Difference(NamedTuple):
    """A mean paired difference with its interval.

    Args:
        n: pairs, of `clusters` prompts.
        p: two-sided, that the true difference is 0, by `test`: "sign" is the exact sign test (McNemar's for 0 and 1),
            "sign flips" the randomisation of whole clusters, "t" the t test of clusters.
        mde: the smallest true difference that such a set shows at the level of the interval with a power of 80%; nan
            where the differences have no spread.
    """

    value: float
    low: float
    high: float
    n: int
    clusters: int
    p: float
    mde: float
    test: Test

    def to_dict(self) -> dict[str, Any]:
        """The difference as JSON-ready values; nan becomes null when it is written."""
        return self._asdict()


def paired_difference(
    after: ArrayLike,
    before: ArrayLike,
    clusters: Clusters = None,
    *,
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Computes the mean of after - before, pair by pair.

    Args:
        after, before: [N], the i-th of both are of one prompt. clusters: the prompt of each pair; None: its own.
        rounds: bootstrap draws. seed: of the draws and the flips. level: of the interval and the smallest difference.

    Raises:
        DataError: other lengths, no pairs, a value that is not finite.
    """
    b, a = finite(after, "after"), finite(before, "before")
    if len(a) != len(b):
        raise DataError("paired values must have the same length", got=f"{len(b)} and {len(a)}")
    return mean_difference(b - a, clusters, rounds=rounds, seed=seed, level=level)


def mean_difference(
    differences: ArrayLike, clusters: Clusters = None, *, rounds: int = 1000, seed: int = 0, level: float = 0.95
) -> Difference:
    """Computes the mean of paired differences; see `paired_difference`."""
    d = finite(differences, "differences")
    sums, counts = by_cluster(d, clusters)
    return ratio_difference(sums, counts, n=len(d), rounds=rounds, seed=seed, level=level)


def ratio_difference(
    sums_C: NDArray[np.float64],
    counts_C: NDArray[np.float64],
    *,
    n: int = 0,
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Computes the mean of paired differences from each cluster's sum and count, e.g. bits and bytes of a document.

    Args:
        n: pairs, if they are not the clusters.
    """
    low, high = ratio_ci(sums_C, counts_C, rounds=rounds, seed=seed, level=level)
    p, test = p_value(sums_C, counts_C, seed=seed)
    mde = smallest_difference(standard_error(sums_C, counts_C), len(sums_C), level)
    value = float(sums_C.sum() / counts_C.sum())
    return Difference(value, low, high, n or len(sums_C), len(sums_C), p, mde, test)


def standard_error(sums_C: NDArray[np.float64], counts_C: NDArray[np.float64]) -> float:
    """Returns the cluster-robust standard error of the mean of all values; nan for one cluster."""
    n = len(sums_C)
    if n < 2:
        return math.nan
    residual_C = sums_C - sums_C.sum() / counts_C.sum() * counts_C
    return math.sqrt(n / (n - 1) * float((residual_C**2).sum())) / float(counts_C.sum())


def smallest_difference(error: float, clusters: int, level: float = 0.95, power: float = POWER) -> float:
    """Returns the true difference that a two-sided test at this level finds with this power: (t + t) standard errors.

    Nan where the error is 0 or unknown.
    """
    from scipy.special import stdtrit

    if clusters < 2 or not error > 0:
        return math.nan
    return float(stdtrit(clusters - 1, 0.5 + level / 2) + stdtrit(clusters - 1, power)) * error


def p_value(sums_C: NDArray[np.float64], counts_C: NDArray[np.float64], *, seed: int = 0) -> tuple[float, Test]:
    """Computes the two-sided p-value that the clusters' differences are symmetric about 0, and the name of the test.

    Clusters that are all of one size (0, +d, -d) have the exact sign test, fewer than `SMALL` others the randomisation
    of their signs (all of them, or 10,000), more the t test. Without any difference it is 1; of one cluster nan.
    """
    from scipy.stats import binomtest

    moved = sums_C[sums_C != 0]
    if len(sums_C) < 2:
        return math.nan, ""
    if len(moved) == 0:
        return 1.0, "sign"
    size = np.abs(moved)
    if size.max() - size.min() <= 1e-12 * size.max():
        return float(binomtest(int((moved > 0).sum()), len(moved)).pvalue), "sign"
    if len(sums_C) < SMALL:
        return _flipped(moved, seed), "sign flips"
    return _t(sums_C, counts_C), "t"


def _flipped(moved_C: NDArray[np.float64], seed: int) -> float:
    n, found = len(moved_C), abs(float(moved_C.sum()))
    bound = found - 1e-12 * float(np.abs(moved_C).sum())  # equal sums in another order of additions are equal
    if n <= _ENUMERATED:
        sign_RC = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float((np.abs(sign_RC @ moved_C) >= bound).mean())
    rng, hits, at_once = np.random.default_rng(seed), 0, max(1, _CHUNK // n)
    for start in range(0, _FLIPS, at_once):
        sign_RC = 1.0 - 2.0 * rng.integers(0, 2, (min(at_once, _FLIPS - start), n))
        hits += int((np.abs(sign_RC @ moved_C) >= bound).sum())
    return (1 + hits) / (1 + _FLIPS)


def _t(sums_C: NDArray[np.float64], counts_C: NDArray[np.float64]) -> float:
    from scipy.special import stdtr

    error = standard_error(sums_C, counts_C)
    mean = float(sums_C.sum() / counts_C.sum())
    return 0.0 if error == 0 else float(2 * stdtr(len(sums_C) - 1, -abs(mean) / error))


def false_discovery(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted for their number by Benjamini and Hochberg (1995); nan stays nan and is not counted.

    Those at most q are a list of which a share of q at most is expected to be false (tests independent, or positively
    dependent as those of models against one baseline are).
    """
    from scipy.stats import false_discovery_control

    known = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    adjusted = [math.nan] * len(p_values)
    if known:
        for i, q in zip(known, false_discovery_control([p_values[i] for i in known]), strict=True):
            adjusted[i] = float(q)
    return adjusted
