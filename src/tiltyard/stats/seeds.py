"""Results of one experiment under several seeds: means with intervals, values at an equal amount of something."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise

from tiltyard.errors import DataError
from tiltyard.stats.intervals import Estimate


def over_seeds(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Computes the mean over seeds with its t interval: m +- t_{n-1} s / sqrt(n), for values that are near normal.

    With three seeds t is 4.3: wide, and as wide as three seeds deserve. One value: the interval is (nan, nan).

    Raises:
        DataError: no value, or one that is not finite.
    """
    from scipy.special import stdtrit

    if not values or not all(math.isfinite(value) for value in values):
        raise DataError("a mean over seeds needs finite values", got=list(values))
    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return Estimate(mean, math.nan, math.nan, n)
    half = float(stdtrit(n - 1, 0.5 + level / 2)) * statistics.stdev(values) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def at_equal(points: Sequence[tuple[float, float]], x: float) -> float | None:
    """Returns y at `x` on the line through the two measured points around it, in order of their x; None outside of all.

    Args:
        points: (x, y) of one family of models, such as the KL and the gold reward of a method at several strengths.
    """
    ordered = sorted(points)
    for (x0, y0), (x1, y1) in pairwise(ordered):
        if x0 <= x <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return next((y for x0, y in ordered if x0 == x), None)
