"""Tables about battles: wins against each opponent, the coverage of each model, ratings by source, the Elo scale."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tiltyard.errors import DataError
from tiltyard.stats.ratings.battles import BOTH_BAD, TIE, Battles, BothBad, Floats
from tiltyard.stats.ratings.bradley_terry import ELO, Fit, bradley_terry, wins_and_ties
from tiltyard.stats.ratings.tie_models import Ties


class WinMatrix(NamedTuple):
    """Weights of battles by pair of models, each [M, M].

    `wins_MM`: row beat column, a tie half a win for each. `battles_MM`: both directions together, symmetric. `rate_MM`:
    their quotient, nan where two models never met, the diagonal included.
    """

    models: tuple[str, ...]
    wins_MM: Floats
    battles_MM: Floats
    rate_MM: Floats


def win_matrix(battles: Battles, *, both_bad: BothBad = "apart") -> WinMatrix:
    """Computes how often each model beat each other one; `both_bad` as in `bradley_terry`."""
    beats_MM, ties_MM = wins_and_ties(battles.without_both_bad(both_bad))
    wins_MM = beats_MM + ties_MM / 2
    battles_MM = wins_MM + wins_MM.T
    with np.errstate(invalid="ignore"):
        return WinMatrix(battles.models, wins_MM, battles_MM, wins_MM / battles_MM)


class Coverage(NamedTuple):
    """The battles of one model; `ties` and `both_bad` are shares of them, `weight` is their sum of weights."""

    model: str
    battles: int
    opponents: int
    prompts: int
    weight: float
    ties: float
    both_bad: float
    by_source: dict[str, int]


def coverage(battles: Battles, *, both_bad: BothBad = "apart") -> list[Coverage]:
    """Counts the battles of each model, with none for a model without any; "both bad" counts unless "left out"."""
    if both_bad == "left out":
        battles = battles.where(battles.outcome_N != BOTH_BAD)
    found = []
    for place, model in enumerate(battles.models):
        mine = battles.where((battles.a_N == place) | (battles.b_N == place))
        n = len(mine)
        per_source = np.bincount(mine.source_N, minlength=len(battles.sources))
        found.append(
            Coverage(
                model,
                n,
                len(set(mine.a_N) | set(mine.b_N)) - 1 if n else 0,
                len(set(mine.prompt_N)),
                float(mine.weight_N.sum()),
                float((mine.outcome_N == TIE).mean()) if n else float("nan"),
                float((mine.outcome_N == BOTH_BAD).mean()) if n else float("nan"),
                dict(zip(battles.sources, per_source.tolist(), strict=True)),
            )
        )
    return found


def by_source(battles: Battles, *, ties: Ties = "half_win", both_bad: BothBad = "apart") -> dict[str, Fit | DataError]:
    """Computes ratings from the battles of each source alone; the error where those cannot be rated.

    Every fit has mean 0 over its own rated models, so compare differences of two models that both fits rate.
    """
    found: dict[str, Fit | DataError] = {}
    for place, source in enumerate(battles.sources):
        try:
            found[source] = bradley_terry(battles.where(battles.source_N == place), ties=ties, both_bad=both_bad)
        except DataError as error:
            found[source] = error
    return found


def on_elo_scale(logits: Floats, *, at: float = 1000.0) -> Floats:
    """Returns ratings or bounds in points of Elo: 400 / ln 10 = 173.72 for one logit, `at` for 0.

    Choose the zero in `intervals(anchor=...)`: a model, or the mean of the rated models.
    """
    return at + ELO * np.asarray(logits)
