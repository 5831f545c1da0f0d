"""Win rates of paired scores, ties counting one half."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tiltyard.errors import DataError
from tiltyard.stats.arrays import finite
from tiltyard.stats.intervals import Clusters, Estimate, rate_ci

Pairing = Literal["all", "index"]


def outcomes_of(a_scores: ArrayLike, b_scores: ArrayLike) -> NDArray[np.float64]:
    """Returns 1 where a > b, 0 where a < b, 1/2 where they tie."""
    a, b = finite(a_scores, "a_scores"), finite(b_scores, "b_scores")
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
    """Computes how often a[i] beats b[i]; `clusters`: the prompt of each pair (None: every pair its own)."""
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
    """Computes the win rate of a's responses over b's to the same prompt; every prompt has the same weight.

    `pairing="all"`: every response of a against every response of b (n x m pairs a prompt), exactly 1/2 if a is b.
    `"index"`: the i-th against the i-th. The interval resamples prompts. `n` counts the pairs.

    Raises:
        DataError: the two sides have different prompts.
    """
    if set(a) != set(b):
        unpaired = sorted(set(a) ^ set(b))
        raise DataError(
            "a win rate needs responses of both models to the same prompts",
            got=f"{len(unpaired)} prompts with responses of one model only, e.g. {unpaired[0]!r}",
            fix="sample every model on the same prompts",
        )
    rates, n_pairs = [], 0
    for prompt, a_scores in a.items():
        a_n, b_m = finite(a_scores, f"scores of {prompt!r}"), finite(b[prompt], f"scores of {prompt!r}")
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
    """Computes a reward model's accuracy: how often chosen scores above rejected; equal scores count 1/2.

    Wilson's interval without clusters, the cluster bootstrap with them.
    """
    return rate_ci(outcomes_of(chosen_scores, rejected_scores), clusters, rounds=rounds, seed=seed, level=level)
