"""Estimates with intervals: rates, means, win rates, rank correlation, bits per byte. numpy alone.

Answers to one prompt are not independent, so intervals resample whole prompts ("clusters") wherever they are given.
An interval that cannot be known (one prompt only) is (nan, nan), never a point that looks certain.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tiltyard.errors import DataError
from tiltyard.stats.intervals import Interval, numbers, wilson, z_of

Pairing = Literal["all", "index"]
Clusters = Sequence[Hashable] | NDArray | None

_CHUNK = 4_000_000  # resampling weights held at once


class Estimate(NamedTuple):
    """A value with its interval; `n` counts the observations behind it (not the clusters)."""

    value: float
    low: float
    high: float
    n: int

    @property
    def ci(self) -> Interval:
        return (self.low, self.high)


class Bin(NamedTuple):
    """One row of a by-bin table: values in [low, high), the last bin closed; `rate` is the mean outcome in it."""

    label: str
    low: float
    high: float
    rate: Estimate


def bootstrap_ci(
    values: ArrayLike, clusters: Clusters = None, rounds: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Percentile bootstrap interval of the mean; whole clusters (prompts) are resampled when they are given.

    The percentiles are widened for few clusters (Hesterberg 2015, "expanded percentile": Phi(-sqrt(C/(C-1)) t_{C-1})
    in place of alpha/2). Measured coverage of a 95% interval on normal data with 8, 15, 30 clusters: 93.8, 94.0,
    94.7% (the plain percentile: 88.6, 91.5, 93.5%). One cluster: (nan, nan).
    """
    x = _finite(values, "values")
    sums, counts = _by_cluster(x, clusters)
    n_clusters = len(sums)
    if n_clusters < 2:
        return (math.nan, math.nan)
    if rounds < 1:
        raise DataError("the bootstrap needs at least one round", got=rounds)
    rng = np.random.default_rng(seed)
    weights_p = np.full(n_clusters, 1 / n_clusters)
    step = max(1, _CHUNK // n_clusters)
    means = []
    for start in range(0, rounds, step):
        weights = rng.multinomial(n_clusters, weights_p, size=min(step, rounds - start))
        means.append((weights @ sums) / (weights @ counts))
    tail = NormalDist().cdf(-math.sqrt(n_clusters / (n_clusters - 1)) * _student_t(level, n_clusters - 1))
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return (float(low), float(high))


def mean_ci(
    values: ArrayLike, clusters: Clusters = None, *, rounds: int = 1000, seed: int = 0, level: float = 0.95
) -> Estimate:
    """Mean of all values with the (cluster) bootstrap interval."""
    x = _finite(values, "values")
    low, high = bootstrap_ci(x, clusters, rounds, seed, level)
    return Estimate(float(x.mean()), low, high, len(x))


def rate_ci(
    outcomes: ArrayLike, clusters: Clusters = None, *, rounds: int = 1000, seed: int = 0, level: float = 0.95
) -> Estimate:
    """Mean of outcomes in [0, 1]. Without clusters: Wilson. With clusters: cluster bootstrap.

    Where every outcome is 0 or every outcome is 1 a bootstrap would claim certainty; the Wilson interval for that
    many clusters is given instead.
    """
    x = _finite(outcomes, "outcomes")
    if x.min() < 0 or x.max() > 1:
        raise DataError("an outcome must lie in 0..1", got=f"{x.min():g} .. {x.max():g}")
    value = float(x.mean())
    if clusters is None:
        low, high = wilson(float(x.sum()), len(x), level)
    elif value in (0.0, 1.0):
        n_clusters = len(_by_cluster(x, clusters)[0])
        low, high = wilson(value * n_clusters, n_clusters, level)
    else:
        low, high = bootstrap_ci(x, clusters, rounds, seed, level)
    return Estimate(value, low, high, len(x))


def outcomes_of(a_scores: ArrayLike, b_scores: ArrayLike) -> NDArray[np.float64]:
    """1 where a > b, 0 where a < b, 1/2 where they tie."""
    a, b = _finite(a_scores, "a_scores"), _finite(b_scores, "b_scores")
    if len(a) != len(b):
        raise DataError("paired scores must have the same length", got=f"{len(a)} and {len(b)}")
    return (np.sign(a - b) + 1) / 2


def win_rate(
    a_scores: ArrayLike,
    b_scores: ArrayLike,
    clusters: Clusters = None,
    *,
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """How often a[i] beats b[i]; ties are half a win. Clusters: the prompt of each pair (None: every pair its own)."""
    outcomes = outcomes_of(a_scores, b_scores)
    return rate_ci(
        outcomes, range(len(outcomes)) if clusters is None else clusters, rounds=rounds, seed=seed, level=level
    )


def win_rate_by_prompt(
    a: Mapping[str, Sequence[float]],
    b: Mapping[str, Sequence[float]],
    *,
    pairing: Pairing = "all",
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Win rate of a's answers over b's answers to the same prompt; every prompt weighs the same.

    `pairing="all"`: each answer of a meets each answer of b (n x m pairs a prompt), which is exactly 1/2 when a is b.
    `"index"`: the i-th meets the i-th. The interval resamples prompts. `n` counts the pairs.
    """
    if set(a) != set(b):
        alone = sorted(set(a) ^ set(b))
        raise DataError(
            "a win rate needs both models to answer the same prompts",
            got=f"{len(alone)} prompts answered by one model only, e.g. {alone[0]!r}",
            fix="sample every model on the same prompts",
        )
    rates, n_pairs = [], 0
    for prompt, a_scores in a.items():
        a_n, b_m = _finite(a_scores, f"scores of {prompt!r}"), _finite(b[prompt], f"scores of {prompt!r}")
        wins = outcomes_of(a_n, b_m) if pairing == "index" else (np.sign(a_n[:, None] - b_m[None, :]) + 1) / 2
        rates.append(wins.mean())
        n_pairs += wins.size
    estimate = rate_ci(rates, range(len(rates)), rounds=rounds, seed=seed, level=level)
    return estimate._replace(n=n_pairs)


def accuracy_ci(
    chosen_scores: ArrayLike,
    rejected_scores: ArrayLike,
    clusters: Clusters = None,
    *,
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """How often a reward model scores the chosen answer above the rejected one; equal scores count 1/2.

    Wilson interval when every pair stands alone, cluster bootstrap when several pairs share a prompt.
    """
    return rate_ci(outcomes_of(chosen_scores, rejected_scores), clusters, rounds=rounds, seed=seed, level=level)


def binned(
    values: ArrayLike,
    bins: int | Sequence[float],
    outcomes: ArrayLike,
    clusters: Clusters = None,
    *,
    level: float = 0.95,
) -> list[Bin]:
    """Mean outcome by bin of `values`, e.g. accuracy by length. `bins`: edges, or a number of equally full bins.

    Bins are [low, high), the last one closed. A value outside the edges is an error (use -inf/inf for open ends).
    Empty bins stay in the table, with n = 0 and no rate. Equal values are never split, so there may be fewer bins.
    """
    x = numbers(values, "values")
    y = _finite(outcomes, "outcomes")
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
    which = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, len(edges) - 2)
    labels = [_range(edges[i], edges[i + 1], last=i == len(edges) - 2) for i in range(len(edges) - 1)]
    rates = [_rate_where(which == i, y, clusters, level) for i in range(len(labels))]
    return [Bin(label, float(edges[i]), float(edges[i + 1]), rates[i]) for i, label in enumerate(labels)]


def by_label(
    labels: Sequence[str], outcomes: ArrayLike, clusters: Clusters = None, *, level: float = 0.95
) -> dict[str, Estimate]:
    """Mean outcome by label, e.g. accuracy by source; labels sorted."""
    y = _finite(outcomes, "outcomes")
    if len(labels) != len(y):
        raise DataError("labels and outcomes must have the same length", got=f"{len(labels)} and {len(y)}")
    named = np.asarray(labels, dtype=object)
    return {label: _rate_where(named == label, y, clusters, level) for label in sorted(set(labels))}


def bits_per_byte(nll_nats_total: float, bytes_total: int) -> float:
    """Loss that does not depend on the tokenizer: total negative log-likelihood in bits over UTF-8 bytes."""
    if bytes_total <= 0:
        raise DataError("bits per byte needs some bytes", got=bytes_total)
    return nll_nats_total / math.log(2) / bytes_total


def distinct_n(texts: Sequence[str], n: int = 2, budget: int | None = None, seed: int = 0) -> float:
    """Unique word n-grams over all word n-grams of the set (1: never repeats, towards 0: collapsed).

    The plain ratio falls as text grows. With `budget`, that many n-grams are drawn (seeded, without replacement), so
    that models with longer and shorter answers compare. nan when there is no n-gram.
    """
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    if not grams:
        return math.nan
    if budget is not None and len(grams) > budget:
        picked = np.random.default_rng(seed).choice(len(grams), size=budget, replace=False)
        grams = [grams[i] for i in picked]
    return len(set(grams)) / len(grams)


def _rate_where(mask: NDArray[np.bool_], y: NDArray[np.float64], clusters: Clusters, level: float) -> Estimate:
    if not mask.any():
        return Estimate(math.nan, math.nan, math.nan, 0)
    kept = None if clusters is None else [c for c, keep in zip(clusters, mask, strict=True) if keep]
    return rate_ci(y[mask], kept, level=level)


def _by_cluster(x: NDArray[np.float64], clusters: Clusters) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and count of each cluster, in order of first appearance."""
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


def _range(low: float, high: float, *, last: bool) -> str:
    if low == high:
        return f"{low:g}"
    return f"{low:g} to {high:g}" if last else f"{low:g} to <{high:g}"


def _finite(values: ArrayLike, name: str) -> NDArray[np.float64]:
    x = numbers(values, name)
    if not np.isfinite(x).all():
        raise DataError(f"{name} contains infinite numbers", fix="find where the score went wrong")
    return x


def _student_t(level: float, df: int) -> float:
    """Two-sided Student t quantile: exact for 1 and 2 degrees of freedom, else Cornish-Fisher (error < 0.4%)."""
    z = z_of(level)
    if df == 1:
        return math.tan(math.pi * level / 2)
    if df == 2:
        return level * math.sqrt(2 / (1 - level * level))
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / df ** (i + 1) for i, term in enumerate(terms))
