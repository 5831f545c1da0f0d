"""Intraclass correlation: the share of the variance of scores between things, not between measurements of one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tiltyard.errors import DataError
from tiltyard.stats.intervals import Estimate, expanded_tail


def icc(values: Sequence[Sequence[float]]) -> float:
    """Computes ICC(1) (Shrout and Fleiss 1979, case 1) of measurements of several things.

    (MSB - MSW) / (MSB + (n0 - 1) MSW) from the one-way analysis of variance, with n0 the adjusted mean number of
    measurements (Donner 1986). 1: measurements of one thing are equal; 0 or below: they differ as much
    as those of different things. Nan for fewer than two things, without repeated measurements, or without any variance.

    Args:
        values: the measurements of each thing.
    """
    counts = np.array([len(row) for row in values], dtype=np.float64)
    sums = np.array([math.fsum(row) for row in values])
    squares = np.array([math.fsum(x * x for x in row) for row in values])
    return float(_icc(counts, sums, squares, np.ones((1, len(values))))[0]) if len(values) else math.nan


def icc_ci(
    values: Sequence[Sequence[float]],
    clusters: Sequence[object],
    *,
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Computes ICC(1) with the percentile bootstrap of whole clusters (prompts), expanded for few of them.

    Args:
        values: as `icc`. clusters: of each thing.

    Raises:
        DataError: not one cluster a thing.
    """
    if len(values) != len(clusters):
        raise DataError("one cluster a thing is needed", got=f"{len(values)} things, {len(clusters)} clusters")
    names = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    place_T = np.array([names[name] for name in clusters])
    n = len(names)
    value, things = icc(values), len(values)
    if n < 2:
        return Estimate(value, math.nan, math.nan, things)
    counts = np.array([len(row) for row in values], dtype=np.float64)
    centre = float(np.mean([x for row in values for x in row]))  # sums of squares lose no digits
    sums = np.array([math.fsum(x - centre for x in row) for row in values])
    squares = np.array([math.fsum((x - centre) ** 2 for x in row) for row in values])
    weight_RC = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=rounds)
    drawn = _icc(counts, sums, squares, weight_RC[:, place_T].astype(np.float64))
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Estimate(value, math.nan, math.nan, things)
    tail = expanded_tail(n, level)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(value, float(low), float(high), things)


def _icc(
    counts_T: NDArray[np.float64],
    sums_T: NDArray[np.float64],
    squares_T: NDArray[np.float64],
    weight_RT: NDArray[np.float64],
) -> NDArray[np.float64]:
    """ICC(1) of every row of weights: how often each thing counts."""
    things, total = weight_RT.sum(1), weight_RT @ counts_T
    inner = squares_T - sums_T**2 / np.maximum(counts_T, 1)
    mean = (weight_RT @ sums_T) / total
    between = weight_RT @ (sums_T**2 / np.maximum(counts_T, 1)) - total * mean**2
    with np.errstate(divide="ignore", invalid="ignore"):
        msb, msw = between / (things - 1), (weight_RT @ inner) / (total - things)
        n0 = (total - (weight_RT @ counts_T**2) / total) / (things - 1)
        return np.asarray((msb - msw) / (msb + (n0 - 1) * msw))
