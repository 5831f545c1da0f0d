"""Elo ratings as mean and deviation over orders of the battles: one order's ratings are not a result.

Elo 1978; Boubdir et al. 2023 (arXiv:2311.17295): rankings from one order can turn over with the order. Models do not
change from battle to battle, so Bradley-Terry ratings on the Elo scale (`on_elo_scale`) are the better choice.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tiltyard.errors import DataError
from tiltyard.stats.ratings.battles import Battles, BothBad, Floats, Ints

LEAST_ORDERS = 100
_SCORE_OF_A = np.array([1.0, 0.0, 0.5, 0.5])


class Elo(NamedTuple):
    """Final ratings over random orders of the battles: mean and standard deviation, each [M]."""

    models: tuple[str, ...]
    mean_M: Floats
    sd_M: Floats
    orders: int


def elo(
    battles: Battles,
    *,
    k: float = 4.0,
    initial: float = 1000.0,
    orders: int = LEAST_ORDERS,
    seed: int = 0,
    both_bad: BothBad = "apart",
) -> Elo:
    """Computes the mean and the standard deviation of Elo ratings over random orders of the battles.

    The deviation measures the order alone, not the sampling of battles: it is no interval of the rating.

    Args:
        k: points that a certain win moves at most. initial: rating of all models at the start.
        orders: 100 at least. seed: of the orders. both_bad: as in `bradley_terry`.

    Raises:
        DataError: fewer than 100 orders, a k that is not positive, weighted battles, or no battle left.
    """
    if orders < LEAST_ORDERS:
        raise DataError("Elo depends on the order of the battles", got=f"{orders} orders", expected="100 at least")
    if not 0 < k < np.inf or not np.isfinite(initial):
        raise DataError("Elo needs a positive k and a finite initial rating", got=f"k={k}, initial={initial}")
    if np.ptp(battles.weight_N) > 0:
        raise DataError(
            "Elo ratings cannot weigh battles",
            got=f"weights {battles.weight_N.min():g} .. {battles.weight_N.max():g}",
            fix="use bradley_terry, on the Elo scale by on_elo_scale",
        )
    used = battles.without_both_bad(both_bad)
    if len(used) == 0:
        raise DataError("no battle is left to rate", got="both_bad alone", fix="use both_bad='tie'")
    rng = np.random.default_rng(seed)
    order_NR = np.column_stack([rng.permutation(len(used)) for _ in range(orders)])
    rating_RM = in_orders(used, order_NR, k, initial)
    return Elo(battles.models, rating_RM.mean(0), rating_RM.std(0, ddof=1), orders)


def scores_of_a(battles: Battles) -> Floats:
    """Returns the score of a in each battle, [N]: 1, 0, 1/2 for a tie or "both bad", p of a soft label."""
    score_N = _SCORE_OF_A[battles.outcome_N]
    return score_N if battles.p_N is None else np.where(battles.soft_N(), battles.p_N, score_N)


def in_orders(battles: Battles, order_NR: Ints, k: float, initial: float) -> Floats:
    """Returns the final ratings of each order (a column of battle numbers), shape [R, M].

    Both ratings are read before either is changed; E_a = 1 / (1 + 10^((R_b - R_a) / 400)).
    """
    each_R = np.arange(order_NR.shape[1])
    rating_RM = np.full((order_NR.shape[1], len(battles.models)), float(initial))
    score_N = scores_of_a(battles)
    for now_R in order_NR:
        a_R, b_R = battles.a_N[now_R], battles.b_N[now_R]
        expected_R = 1 / (1 + 10 ** ((rating_RM[each_R, b_R] - rating_RM[each_R, a_R]) / 400))
        change_R = k * (score_N[now_R] - expected_R)
        rating_RM[each_R, a_R] += change_R
        rating_RM[each_R, b_R] -= change_R
    return rating_RM
