"""Habits of annotators of pairs: how often each prefers what was shown first, what is longer, and gives ties."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import NormalDist, median
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tiltyard.errors import DataError
from tiltyard.stats.arrays import finite
from tiltyard.stats.intervals import Estimate, rate_ci

Bias = Literal["position", "longer", "shorter"]
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


def biases(
    habits: Mapping[str, tuple[Estimate | None, Estimate | None]], *, level: float = 0.95
) -> dict[str, tuple[Bias, ...]]:
    """Returns the biases that the habits of several annotators show; those of no bias are left out.

    `position`: what was shown first wins another share than one half. `longer`, `shorter`: the longer response wins
    another share than one half, and than with the median annotator, since longer responses may be better. The intervals
    are widened to the number of annotators: together they err as often as one.

    Args:
        habits: {annotator: (share of wins of what was shown first, of the longer response)}. level: of its intervals.
    """
    if not habits:
        return {}
    normal = NormalDist()
    wider = normal.inv_cdf(1 - (1 - level) / 2 / len(habits)) / normal.inv_cdf(1 - (1 - level) / 2)
    known = [longer.value for _, longer in habits.values() if longer is not None and longer.n]
    usual = median(known) if len(known) > 1 else 0.5
    found: dict[str, tuple[Bias, ...]] = {}
    for name, (first, longer) in habits.items():
        sides = {_side(longer, 0.5, wider), _side(longer, usual, wider)}
        length: tuple[Bias, ...] = ("longer",) if sides == {1} else ("shorter",) if sides == {-1} else ()
        position: tuple[Bias, ...] = ("position",) if _side(first, 0.5, wider) else ()
        if position or length:
            found[name] = position + length
    return found


def _side(estimate: Estimate | None, neutral: float, wider: float) -> int:
    """1 or -1 where the widened interval lies above or below a value, else 0."""
    if estimate is None or math.isnan(estimate.value) or math.isnan(estimate.low):
        return 0
    value, low, high = estimate.value, estimate.low, estimate.high
    return int(value - wider * (value - low) > neutral) - int(value + wider * (high - value) < neutral)
