"""Plackett-Luce ratings from rankings: the best is chosen among all, the second among the rest, and so on.

Luce 1959; Plackett 1975. Two items are Bradley and Terry's model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from tiltyard.errors import DataError, nearest
from tiltyard.stats.ratings.battles import Floats, Ints, numbered
from tiltyard.stats.ratings.connected import Connectivity, connectivity

RankingTies = Literal["refuse", "every_order"]

LARGEST_TIE = 5  # 120 orders
_ITERATIONS = 100


class RankingFit(NamedTuple):
    """Ratings in logits with mean 0 over the rated models, +inf, -inf or nan for the others, and their covariance.

    `covariance_MM`: the sandwich with prompts as clusters; nan without two prompts and for models without a rating.
    """

    models: tuple[str, ...]
    rating_M: Floats
    covariance_MM: Floats
    connectivity: Connectivity


def plackett_luce(
    rankings: Sequence[Sequence[Sequence[str]]],
    *,
    prompt: Sequence[Hashable] | None = None,
    ties: RankingTies = "refuse",
) -> RankingFit:
    """Computes Plackett-Luce ratings by maximum likelihood (Newton's method).

    Args:
        rankings: each from best to worst, a group of equals as one element, e.g. [["a"], ["b", "c"]]; a ranking may
            leave models out.
        prompt: of each ranking; None: every ranking has a prompt of its own.
        ties: "refuse", or "every_order": the mean log-likelihood over all orders of the equals. A tie of two items
            then is half a win for each, as "half_win" of `bradley_terry`.

    Raises:
        DataError: a tie under "refuse" or of more than 5, an unknown choice, a model twice in one ranking, a ranking of
            fewer than two models, no two models that can be compared.
    """
    if ties not in ("refuse", "every_order"):
        raise DataError(f"unknown choice for ties: {ties!r}", fix=nearest(str(ties), ("refuse", "every_order")))
    if prompt is not None and len(prompt) != len(rankings):
        raise DataError("every ranking needs its prompt", got=len(prompt), expected=len(rankings))
    for number, ranking in enumerate(rankings, 1):
        _check(ranking, number, ties)
    models = tuple(sorted({m for ranking in rankings for group in ranking for m in group}))
    place = {name: i for i, name in enumerate(models)}
    chosen, rest, weight, owner = [], [], [], []
    for number, ranking in enumerate(rankings):
        groups = [[place[m] for m in group] for group in ranking]
        share = 1 / math.prod(math.factorial(len(group)) for group in groups)
        for parts in itertools.product(*(itertools.permutations(group) for group in groups)):
            order = [m for part in parts for m in part]
            for at in range(len(order) - 1):
                chosen.append(order[at])
                rest.append(order[at:])
                weight.append(share)
                owner.append(number)
    stages = _Stages(np.array(chosen), rest, np.array(weight), np.array(owner, dtype=np.int64))
    return _fit(models, stages, numbered(range(len(rankings)) if prompt is None else prompt))


class _Stages(NamedTuple):
    """Choices of one model among the rest, with weights and the ranking that each belongs to."""

    chosen_S: Ints
    rest: list[list[int]]
    weight_S: Floats
    owner_S: Ints


def _check(ranking: Sequence[Sequence[str]], number: int, ties: RankingTies) -> None:
    where = f"ranking:{number}"
    names = [m for group in ranking for m in group]
    if len(names) < 2:
        raise DataError("a ranking needs two models at least", where=where, got=names)
    if len(set(names)) < len(names):
        raise DataError("a ranking names a model twice", where=where, got=names)
    largest = max(ranking, key=len)
    if len(largest) > 1 and ties == "refuse":
        raise DataError(
            "the ranking has a tie, of which Plackett-Luce has no probability",
            where=where,
            got=list(largest),
            fix="ties='every_order' averages over the orders of the equals; or leave the ranking out",
        )
    if len(largest) > LARGEST_TIE:
        raise DataError(
            "the ranking has a tie of too many models",
            where=where,
            got=len(largest),
            expected=f"{LARGEST_TIE} at most: the mean over all orders grows as a factorial",
        )


def _fit(models: tuple[str, ...], stages: _Stages, prompt_N: Ints) -> RankingFit:
    m, s = len(models), len(stages.rest)
    member_SM = np.zeros((s, m), dtype=bool)
    for row, rest in enumerate(stages.rest):
        member_SM[row, rest] = True
    beats_MM = np.zeros((m, m))
    np.add.at(beats_MM, stages.chosen_S, member_SM * stages.weight_S[:, None])
    np.fill_diagonal(beats_MM, 0)
    connected = connectivity(models, beats_MM)
    if len(connected.rated_K) < 2:
        raise DataError("no two models can be rated", fix="; ".join(connected.notes()))
    # A choice of a model outside is settled. In the rest of a rated one, all others outside lie infinitely below.
    place_M = np.full(m, -1)
    place_M[connected.rated_K] = np.arange(len(connected.rated_K))
    keep_S = (place_M[stages.chosen_S] >= 0) & (member_SM[:, connected.rated_K].sum(1) > 1)
    inside_SK = member_SM[keep_S][:, connected.rated_K]
    chosen_S, weight_S = place_M[stages.chosen_S[keep_S]], stages.weight_S[keep_S]
    rating_K, information_KK = _newton(chosen_S, inside_SK, weight_S)
    score_SK = weight_S[:, None] * (np.eye(len(rating_K))[chosen_S] - _shares(rating_K, inside_SK))
    _, cluster_S = np.unique(prompt_N[stages.owner_S[keep_S]], return_inverse=True)
    score_CK = np.zeros((cluster_S.max() + 1, len(rating_K)))
    np.add.at(score_CK, cluster_S.ravel(), score_SK)
    bread_KK, c = np.linalg.inv(information_KK), len(score_CK)
    covariance_MM = np.full((m, m), np.nan)
    if c > 1:
        k = np.ix_(connected.rated_K, connected.rated_K)
        covariance_MM[k] = bread_KK @ (score_CK.T @ score_CK) @ bread_KK * c / (c - 1)
    rating_M = connected.unrated()
    rating_M[connected.rated_K] = rating_K
    return RankingFit(models, rating_M, covariance_MM, connected)


def _shares(rating_K: Floats, inside_SK: Floats) -> Floats:
    """Returns the probability of each model at each stage, shape [S, K]."""
    logit_SK = np.where(inside_SK, rating_K, -np.inf)
    share_SK = np.exp(logit_SK - logit_SK.max(1, keepdims=True))
    return np.asarray(share_SK / share_SK.sum(1, keepdims=True))


def _newton(chosen_S: Ints, inside_SK: Floats, weight_S: Floats) -> tuple[Floats, Floats]:
    """Returns the ratings, mean 0, and the negative Hessian with ones in the direction that changes nothing."""
    k = inside_SK.shape[1]
    won_K = np.bincount(chosen_S, weight_S, k)
    rating_K = np.zeros(k)

    def value(rating_K: Floats) -> float:
        logit_SK = np.where(inside_SK, rating_K, -np.inf)
        return float(won_K @ rating_K - weight_S @ np.logaddexp.reduce(logit_SK, axis=1))

    for _ in range(_ITERATIONS):
        share_SK = _shares(rating_K, inside_SK)
        weighted_SK = share_SK * weight_S[:, None]
        information_KK = np.diag(weighted_SK.sum(0)) - share_SK.T @ weighted_SK
        information_KK += np.diag(information_KK).max() / k
        step_K = np.linalg.solve(information_KK, won_K - weighted_SK.sum(0))
        if np.abs(step_K).max() < 1e-11:
            return rating_K, information_KK
        before, scale = value(rating_K), 1.0
        while value(rating_K + scale * step_K) < before - 1e-12 * abs(before) and scale > 1e-9:
            scale /= 2
        rating_K = rating_K + scale * step_K
    raise DataError("the ratings did not converge", got=f"steps of {np.abs(step_K).max():.3g} after {_ITERATIONS}")
