"""Mean outcomes by bins of a value, or by label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tiltyard.errors import DataError
from tiltyard.stats.arrays import finite, numbers
from tiltyard.stats.intervals import Clusters, Estimate, rate_ci


class Bin(NamedTuple):
    """The mean outcome (`rate`) of values in [low, high); the last bin is closed."""

    label: str
    low: float
    high: float
    rate: Estimate


def binned(
    values: ArrayLike,
    bins: int | Sequence[float],
    outcomes: ArrayLike,
    clusters: Clusters = None,
    *,
    level: float = 0.95,
) -> list[Bin]:
    """Computes the mean outcome by bin of `values`, e.g. accuracy by length.

    Args:
        bins: edges, or a number of equally full bins (fewer where equal values would be split).

    Bins are [low, high), the last one closed. Empty bins have n = 0 and rate nan.

    Raises:
        DataError: a value outside the edges (use -inf/inf for open ends), edges that do not rise, unequal lengths.
    """
    x = numbers(values, "values")
    y = finite(outcomes, "outcomes")
    if len(x) != len(y):
        raise DataError("values and outcomes must have the same length", got=f"{len(x)} and {len(y)}")
    if isinstance(bins, int):
        if bins < 1:
            raise DataError("the number of bins must be at least 1", got=bins)
        edges = np.unique(np.quantile(x, np.linspace(0, 1, bins + 1)))
        edges = edges if len(edges) > 1 else np.repeat(edges, 2)
    else:
        edges = np.asarray(bins, dtype=float)
        if len(edges) < 2 or not np.all(np.diff(edges) > 0):
            raise DataError("bin edges must rise", got=list(bins), expected="at least two, each above the last")
    if x.min() < edges[0] or x.max() > edges[-1]:
        raise DataError(
            "a value lies outside the bins",
            got=f"values {x.min():g} .. {x.max():g}, bins {edges[0]:g} .. {edges[-1]:g}",
            fix="widen the first or last edge; -inf and inf are allowed",
        )
    index = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, len(edges) - 2)
    labels = [_range(edges[i], edges[i + 1], last=i == len(edges) - 2) for i in range(len(edges) - 1)]
    rates = [_rate_where(index == i, y, clusters, level) for i in range(len(labels))]
    return [Bin(label, float(edges[i]), float(edges[i + 1]), rates[i]) for i, label in enumerate(labels)]


def by_label(
    labels: Sequence[str], outcomes: ArrayLike, clusters: Clusters = None, *, level: float = 0.95
) -> dict[str, Estimate]:
    """Computes the mean outcome by label, e.g. accuracy by source; labels sorted."""
    y = finite(outcomes, "outcomes")
    if len(labels) != len(y):
        raise DataError("labels and outcomes must have the same length", got=f"{len(labels)} and {len(y)}")
    named = np.asarray(labels, dtype=object)
    return {label: _rate_where(named == label, y, clusters, level) for label in sorted(set(labels))}


def _rate_where(mask: NDArray[np.bool_], y: NDArray[np.float64], clusters: Clusters, level: float) -> Estimate:
    if not mask.any():
        return Estimate(math.nan, math.nan, math.nan, 0)
    selected = None if clusters is None else [c for c, keep in zip(clusters, mask, strict=True) if keep]
    return rate_ci(y[mask], selected, level=level)


def _range(low: float, high: float, *, last: bool) -> str:
    if low == high:
        return f"{low:g}"
    return f"{low:g} to {high:g}" if last else f"{low:g} to <{high:g}"
