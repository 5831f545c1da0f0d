"""Habits of annotators of pairs: how often each prefers what was shown first, what is longer, and gives ties."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tiltyard.errors import DataError
from tiltyard.stats.arrays import finite
from tiltyard.stats.intervals import Estimate, rate_ci

_UNKNOWN = Estimate(math.nan, math.nan, math.nan, 0)


class Habits(NamedTuple):
    """One annotator's shares, with intervals; `n` of `first` and `longer` counts decided comparisons, of `ties` all."""

    first: Estimate
    longer: Estimate
    ties: Estimate


def preference_habits(
    annotators: Sequence[Hashable],
    first_won: ArrayLike,
    prompts: Sequence[Hashable],
    longer_first: ArrayLike | None = None,
    *,
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[Hashable, Habits]:
    """Computes {annotator: Habits} of N comparisons; intervals resample prompts.

    `first_won`: [N], 1 where the response shown first was preferred, 0 the other, 1/2 a tie. `longer_first`: [N], 1
    where the first is longer, 0 where the other is, 1/2 where they are equally long (left out). With the order drawn
    at random, a share of `first` whose interval lies off 1/2 is a position bias. A share of `longer` off 1/2 is not
    yet a bias, since longer responses may be better: compare annotators of the same pairs.

    Raises:
        DataError: lists of different lengths, or other values than 0, 1/2 and 1.
    """
    won_N = finite(first_won, "first_won")
    longer_N = np.full(len(won_N), 0.5) if longer_first is None else finite(longer_first, "longer_first")
    if not len(won_N) == len(longer_N) == len(annotators) == len(prompts):
        raise DataError(
            "each comparison has an annotator, an outcome, a prompt and a length",
            got=f"{len(annotators)}, {len(won_N)}, {len(prompts)} and {len(longer_N)} of them",
        )
    for column, values in (("first_won", won_N), ("longer_first", longer_N)):
        if not np.isin(values, [0, 0.5, 1]).all():
            raise DataError(f"{column} holds 0, 1/2 and 1", got=f"{values[~np.isin(values, [0, 0.5, 1])][0]:g}")
    rows: dict[Hashable, list[int]] = {}
    for i, annotator in enumerate(annotators):
        rows.setdefault(annotator, []).append(i)

    def rate(outcomes: NDArray[np.float64], kept: Sequence[int]) -> Estimate:
        if not len(kept):
            return _UNKNOWN
        return rate_ci(outcomes[kept], [prompts[i] for i in kept], rounds=rounds, seed=seed, level=level)

    found: dict[Hashable, Habits] = {}
    for annotator, of_N in rows.items():
        decided = [i for i in of_N if won_N[i] != 0.5]
        of_length = [i for i in decided if longer_N[i] != 0.5]
        found[annotator] = Habits(
            rate(won_N, decided),
            rate((won_N == longer_N).astype(float), of_length),
            rate((won_N == 0.5).astype(float), of_N),
        )
    return found
