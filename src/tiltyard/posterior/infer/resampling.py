"""Resampling of weighted particles: unbiased, so that each is copied as often, on average, as its weight demands."""

from __future__ import annotations

from typing import Literal

import numpy as np

from tiltyard.stats.importance import Floats

Resampling = Literal["systematic", "stratified", "multinomial"]


def copies(share_K: Floats, n: int, scheme: Resampling, rng: np.random.Generator) -> np.ndarray:
    """The number of times that each of K particles is drawn among n, [K]; on average n times its share.

    `systematic`: one uniform number for all n strata, the least variance. `stratified`: one a stratum. `multinomial`:
    independent draws (Douc, Cappe & Moulines 2005, "Comparison of resampling schemes").

    Args:
        share_K: weights that sum to 1.
    """
    if scheme == "multinomial":
        return rng.multinomial(n, share_K)
    offset = rng.random() if scheme == "systematic" else rng.random(n)
    points = (np.arange(n) + offset) / n
    places = np.searchsorted(np.cumsum(share_K), points, side="right")
    last = int(np.flatnonzero(share_K)[-1])  # rounding may leave the sum below the last point
    return np.bincount(np.minimum(places, last), minlength=len(share_K))


def ancestors(counts_K: np.ndarray) -> list[int]:
    """The ancestor of each of K particles; one that is copied at all stays in its place."""
    spare = iter(np.repeat(np.arange(len(counts_K)), np.maximum(counts_K - 1, 0)).tolist())
    return [k if count else next(spare) for k, count in enumerate(counts_K)]
