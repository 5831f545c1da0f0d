"""The two estimates that data checks and evaluation share: Wilson's interval and Kendall's tau. numpy alone."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tiltyard.errors import DataError

Interval = tuple[float, float]


def wilson(successes: float, n: int, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion; a tie may count as half a success.

    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    """
    if n < 0 or not 0 <= successes <= max(n, 0):
        raise DataError("successes must lie between 0 and n", got=f"{successes} of {n}")
    if n == 0:
        return (math.nan, math.nan)
    z = z_of(level)
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return (max(0.0, low), min(1.0, high))


def kendall_tau_b(x: ArrayLike, y: ArrayLike) -> float:
    """Rank correlation with ties: (concordant - discordant) / sqrt((pairs - ties in x)(pairs - ties in y)).

    nan where it is undefined (fewer than two values, or one side all equal).
    """
    a, b = numbers(x, "x", empty_ok=True), numbers(y, "y", empty_ok=True)
    if len(a) != len(b):
        raise DataError("rankings must have the same length", got=f"{len(a)} and {len(b)}")
    score = untied_a = untied_b = 0.0
    for i in range(len(a) - 1):
        sign_a, sign_b = np.sign(minus(a[i + 1 :], a[i])), np.sign(minus(b[i + 1 :], b[i]))
        score += float(sign_a @ sign_b)
        untied_a += np.count_nonzero(sign_a)
        untied_b += np.count_nonzero(sign_b)
    return score / math.sqrt(untied_a * untied_b) if untied_a and untied_b else math.nan


def minus(x: NDArray[np.float64], y: float) -> NDArray[np.float64]:
    """x - y with inf - inf = 0, so that equal infinities tie."""
    return np.where(x == y, 0.0, x - y) if np.isfinite(y) else (x > y).astype(float) - (x < y)


def numbers(values: ArrayLike, name: str, *, empty_ok: bool = False) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or (len(x) == 0 and not empty_ok):
        raise DataError(f"{name} must be a non-empty list of numbers", got=f"shape {x.shape}")
    if np.isnan(x).any():
        raise DataError(f"{name} contains {int(np.isnan(x).sum())} NaN", fix="find where the score went wrong")
    return x


def z_of(level: float) -> float:
    if not 0 < level < 1:
        raise DataError("the level of an interval lies between 0 and 1", got=level)
    return NormalDist().inv_cdf(0.5 + level / 2)
